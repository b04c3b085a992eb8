"""Reading receipts: both forms, what newer routers add, and what is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadgen.compare.receipts import ReceiptsError, Recorded, read_receipts
from loadgen.compare.regret import regret_mean_s
from loadgen.runs.receipts import write_receipts
from scoring.decision import Receipt
from tests.loadgen.compare.recorded import as_lines, receipt

ONE = receipt(1.0, [0, 500], [(0, 0, 0), (10, 1, 2)], 1)
OTHER = receipt(2.0, [100], [(0, 0, 0)], 0)


def plain(said: Recorded, **changed: Any) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(said)
    return found | changed


def test_lines_a_list_and_the_control_ports_answer_are_read_alike_in_order_of_time() -> None:
    every = [plain(OTHER), plain(ONE)]
    for data in (as_lines(every), json.dumps(every).encode(), json.dumps({"receipts": every}, indent=2).encode()):
        assert read_receipts(data, "it") == ([ONE, OTHER], [])
    assert read_receipts(as_lines([plain(ONE)]), "it") == ([ONE], [])


def test_what_bench_run_saves_is_read(tmp_path: Path) -> None:
    said = Receipt("id", 3.0, "m", "/v1/completions", "kv", "exact", 9, ("a",), [4], [(1, 2, 3)], None, "a", "why")
    write_receipts(tmp_path / "receipts.jsonl", [said])
    (read,), _ = read_receipts((tmp_path / "receipts.jsonl").read_bytes(), "it")
    assert (read.at, read.candidates, read.overlap_tokens, read.loads) == (3.0, ("a",), (4,), ((1, 2, 3),))
    assert regret_mean_s([said]) == 0.0
    assert regret_mean_s([]) is None


def test_what_a_newer_router_adds_is_ignored() -> None:
    newer = plain(ONE, weather="fine", loads=[[0, 0, 0, 7], [10, 1, 2, 7]])
    (read,), _ = read_receipts(as_lines([newer]), "it")
    assert read.chosen == "b"
    assert [load[:3] for load in read.loads] == [(0, 0, 0), (10, 1, 2)]


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.99])
def test_a_last_line_that_is_cut_off_is_left_out_with_a_note(kept: float) -> None:
    last = as_lines([plain(OTHER)])
    found, notes = read_receipts(as_lines([plain(ONE)]) + last[: int(len(last) * kept) - 1], "it")
    assert found == [ONE]
    assert notes == ["line 2, the last, is cut off and was left out"]


def test_a_last_line_without_an_end_of_line_counts_when_it_is_whole() -> None:
    assert read_receipts(as_lines([plain(ONE), plain(OTHER)]).rstrip(), "it") == ([ONE, OTHER], [])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"at": 1', "truncated"),
        (b"oops", "malformed"),
        (b"\xff", "malformed|utf-8"),
        (b'{"at": 1.0}', "missing required field"),
        (json.dumps(plain(ONE, chosen="z")).encode(), "'z' is not among the candidates"),
        (json.dumps(plain(ONE, loads=[[0, 0, 0]])).encode(), "parallel"),
        (json.dumps(plain(ONE, loads=[[0, 0], [0, 0]])).encode(), "three counts"),
        (json.dumps(plain(ONE, prompt_tokens=-1)).encode(), "negative"),
        (json.dumps(plain(ONE, candidates=[], loads=[], overlap_tokens=[])).encode(), "not empty"),
    ],
)
def test_any_other_line_that_is_wrong_is_named(line: bytes, complaint: str) -> None:
    with pytest.raises(ReceiptsError, match=f"^it, line 3: .*({complaint})"):
        read_receipts(as_lines([plain(ONE)]) + b"\n" + line + b"\n" + as_lines([plain(OTHER)]), "it")


@pytest.mark.parametrize("data", [b"", b"\n", b"[]", b'{"receipts": []}', b'{"receipts": [', b"[1]"])
def test_a_file_without_receipts_is_refused(data: bytes) -> None:
    with pytest.raises(ReceiptsError, match="it has no receipts"):
        read_receipts(data, "it")


def test_what_happened_counts_only_where_it_is_the_chosen_replicas_time() -> None:
    assert ONE.happened_s == pytest.approx(0.51)
    unclear: list[dict[str, Any]] = [{"attempts": 2}, {"status": 503}, {"ttft_s": None}, {"streamed": False}]
    assert [receipt(1.0, [0], [(0, 0, 0)], 0, **each).happened_s for each in unclear] == [None] * 4
    assert receipt(1.0, [0], [(0, 0, 0)], 0, status=499).happened_s == pytest.approx(1.0)
