"""Small traces for the simulator's tests: who asks what, when."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from loadgen.traces import BLOCK_TOKENS, TraceRequest


def request(at_s: float, tokens: int, output: int = 1, conversation: int = 0) -> TraceRequest:
    """Prompts of one conversation are prefixes of each other."""
    blocks = tuple(conversation * 1000 + block for block in range(-(-tokens // BLOCK_TOKENS)))
    return TraceRequest(at_s, tokens, output, blocks)


def in_order(requests: Sequence[TraceRequest]) -> list[TraceRequest]:
    return sorted(requests, key=lambda each: each.at_s)


requests = st.lists(
    st.builds(
        request,
        st.sampled_from([0.0, 0.5, 0.75, 1.0, 1.3, 2.0, 4.0]),
        st.integers(1, 2500),
        st.integers(1, 150),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=16,
).map(in_order)
