"""One site for the tests of a module; what only the full form has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.form import FULL
from tests.chaos.site import Site

collect_ignore = [] if FULL else ["test_long_faults.py"]


@pytest.fixture(scope="module")
def shared() -> Iterator[Site]:
    with Site(seed=7) as running:
        yield running


@pytest.fixture
def site(shared: Site) -> Site:
    """Whole, whatever the test before has left."""
    shared.mend()
    return shared
