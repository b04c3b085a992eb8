"""What a record says of its request's pace."""

from __future__ import annotations

import msgspec
import pytest

from tests.loadgen.reports.samples import record


def test_pace_counts_the_servers_tokens_where_chunks_hold_several() -> None:
    two_chunks = msgspec.structs.replace(record(tokens=2, tpot=1.0), completion_tokens=11)
    assert two_chunks.tpot == pytest.approx(0.1)
    assert msgspec.structs.replace(record(tokens=3, tpot=0.1), completion_tokens=0).tpot == pytest.approx(0.1)
    assert record(tokens=1).tpot is None
