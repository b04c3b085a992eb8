"""The trace workload: blocks as pieces, scaled, at the trace's times or others."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadgen.plans.catalogue import DURATION_S, make_again, make_plan
from loadgen.plans.plan import Piece, Plan
from loadgen.traces import BLOCK_TOKENS, TraceError, TraceRequest, read_trace
from tests.loadgen.plans.made import prompts_of

EXCERPT = Path(__file__).parents[1] / "excerpt.jsonl"


def replayed(arrivals: str | None = None, duration_s: float | None = None, file: Path = EXCERPT, **given: Any) -> Plan:
    return make_plan("trace", arrivals=arrivals, duration_s=duration_s, settings={"file": str(file)} | given)


def written(path: Path, requests: list[TraceRequest]) -> Path:
    lines = [
        {
            "timestamp": request.at_s * 1e3,
            "input_length": request.prompt_tokens,
            "output_length": request.output_tokens,
            "hash_ids": request.blocks,
        }
        for request in requests
    ]
    path.write_bytes(b"\n".join(map(msgspec.json.encode, lines)))
    return path


def shared(left: Any, right: Any) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def test_every_request_is_a_session_at_its_time_with_its_lengths() -> None:
    plan = replayed()
    requests = list(read_trace(EXCERPT))
    assert [session.start_s for session in plan.sessions] == [request.at_s for request in requests]
    assert plan.duration_s > requests[-1].at_s
    for session, request in zip(plan.sessions, requests, strict=True):
        (turn,) = session.turns
        assert sum(piece.tokens for piece in turn.pieces) == request.prompt_tokens
        assert all(piece.tokens == BLOCK_TOKENS for piece in turn.pieces[:-1])
        assert turn.output_tokens == max(1, request.output_tokens)


def test_ids_are_numbered_in_order_of_first_appearance(tmp_path: Path) -> None:
    requests = [TraceRequest(0, 600, 1, (10**18, 7)), TraceRequest(1, 1200, 1, (10**18, 5, 7))]
    plan = replayed(file=written(tmp_path / "t", requests))
    contents = [[piece.content for piece in session.turns[0].pieces] for session in plan.sessions]
    assert contents == [[0, 1], [0, 2, 1]]


@pytest.mark.parametrize("scale", [1, 2, 8, 32, 512])
def test_a_token_scale_divides_every_block_and_a_partial_one_in_proportion(scale: int) -> None:
    for session, request in zip(replayed(token_scale=scale).sessions, read_trace(EXCERPT), strict=True):
        (turn,) = session.turns
        *full, last = [piece.tokens for piece in turn.pieces]
        assert set(full) <= {BLOCK_TOKENS // scale}
        assert 0 <= last * scale - (request.prompt_tokens - len(full) * BLOCK_TOKENS) < scale
        assert turn.output_tokens == max(1, -(-request.output_tokens // scale))


def test_answers_have_a_scale_and_a_bound_of_their_own(tmp_path: Path) -> None:
    trace = written(tmp_path / "t", [TraceRequest(0, 10, output, (1,)) for output in (0, 1, 100, 1000)])
    for given_, wanted in (
        ({"output_scale": 1}, [1, 1, 100, 1000]),
        ({"output_scale": 2.5}, [1, 1, 40, 400]),
        ({"most_output_tokens": 50, "output_scale": "1"}, [1, 1, 50, 50]),
        ({"token_scale": 4}, [1, 1, 25, 250]),
    ):
        assert [session.turns[0].output_tokens for session in replayed(file=trace, **given_).sessions] == wanted


blocks = st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(blocks, st.integers(1, BLOCK_TOKENS)), min_size=2, max_size=5), st.sampled_from([8, 64, 512]))
def test_prompts_that_share_blocks_share_their_scaled_tokens(
    tmp_path: Path, asked: list[tuple[tuple[int, ...], int]], scale: int
) -> None:
    requests = [
        TraceRequest(0, (len(ids) - 1) * BLOCK_TOKENS + last, 1, ids)
        for ids, last in asked  # the last block is partial
    ]
    plan = replayed(file=written(tmp_path / "t", requests), token_scale=scale)
    prompts = prompts_of(plan)
    ids = [prompts.body(session, 0, ())["prompt"] for session in plan.sessions]
    for left, request in zip(ids, requests, strict=True):
        for right, other in zip(ids, requests, strict=True):
            same = shared(request.blocks, other.blocks)
            full = same * BLOCK_TOKENS // scale
            assert shared(left, right) >= min(full, len(left), len(right))
            if full < min(len(left), len(right)):
                assert shared(left, right) == full


def test_a_rate_scale_divides_all_times_and_nothing_else() -> None:
    plan, fast = replayed(), replayed(rate_scale=4)
    assert [session.start_s for session in fast.sessions] == [session.start_s / 4 for session in plan.sessions]
    assert [session.turns for session in fast.sessions] == [session.turns for session in plan.sessions]


def test_a_stretch_is_cut_in_the_trace_s_time_or_the_run_s() -> None:
    assert len(replayed(until_s=10, rate_scale=2).sessions) == 3
    plan = replayed(duration_s=5.0, rate_scale=2)
    assert len(plan.sessions) == 3
    assert plan.duration_s == 5.0
    assert len(make_plan("trace", sessions=2, settings={"file": str(EXCERPT)}).sessions) == 2


def test_requests_can_come_at_other_times() -> None:
    plan = replayed("constant:10", duration_s=0.5)
    assert [session.start_s for session in plan.sessions] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert [session.turns for session in plan.sessions] == [session.turns for session in replayed().sessions][:5]
    closed = replayed("closed:2")
    assert (closed.concurrency, len(closed.sessions), closed.duration_s) == (2, 8, DURATION_S)


def test_the_plan_is_made_again_from_its_parameters() -> None:
    plan = replayed(token_scale=8, rate_scale=2.0)
    parameters = msgspec.json.decode(msgspec.json.encode(plan.parameters))
    assert make_again(plan.workload, plan.seed, parameters) == plan


def test_equal_pieces_of_a_trace_are_one_object() -> None:
    pieces: list[Piece] = [piece for session in replayed().sessions for piece in session.turns[0].pieces]
    assert len({id(piece) for piece in pieces}) == len(set(pieces)) < len(pieces)


@pytest.mark.parametrize(
    ("given_", "complaint"),
    [
        ({"token_scale": 3}, "token_scale: 3 does not divide a block's 512 tokens; use 1, 2, 4, .*, 256, 512$"),
        ({"token_scale": 1024}, "token_scale: 1024 does not divide"),
        ({"format": "tape"}, "format: 'tape' is no trace's form; there are mooncake, bailian, azure$"),
        ({"file": "nowhere.jsonl"}, "nowhere.jsonl cannot be read"),
        ({"most_output_tokens": 0}, "most_output_tokens: 0 is not a whole number of at least 1 .tokens., or none"),
    ],
)
def test_what_makes_no_plan_is_refused_by_name(given_: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{complaint}"):
        make_plan("trace", settings={"file": str(EXCERPT)} | given_)


def test_an_empty_trace_is_refused(tmp_path: Path) -> None:
    empty = written(tmp_path / "t", [])
    with pytest.raises(ValueError, match=r"^file: .* holds no request"):
        replayed(file=empty)
    empty.write_text("oops")
    with pytest.raises(TraceError, match="line 1"):
        replayed(file=empty)
