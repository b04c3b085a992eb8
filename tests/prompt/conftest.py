"""The bundled tokenizer, loaded once."""

from __future__ import annotations

import pytest

from radix.chat import ChatTokenizer
from replica.tokenizer import directory


@pytest.fixture(scope="session")
def bundled() -> ChatTokenizer:
    return ChatTokenizer.load(directory())
