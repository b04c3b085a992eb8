"""Forms of traces: others' files are read, and what is wrong in them is said."""

from __future__ import annotations

import gzip
import lzma
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loadgen.plans.catalogue import make_plan
from loadgen.plans.trace_formats import GROUP, trace_format
from loadgen.traces import TraceError, TraceRequest

BAILIAN = """{"chat_id": 1, "parent_chat_id": -1, "timestamp": 61.0, "input_length": 40, "output_length": 7, "type": "text", "turn": 1, "hash_ids": [9, 8, 7]}

{"chat_id": 2, "parent_chat_id": 1, "timestamp": 61.5, "input_length": 90, "output_length": 0, "type": "text", "turn": 2, "hash_ids": [9, 8]}
"""  # noqa: E501, a line a request
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,600,10
2023-11-16 18:17:04.2299600,3,1
"""


def read(name: str, path: Path, until_s: float = math.inf) -> list[TraceRequest]:
    return list(trace_format(name).read(path, until_s))


def file(folder: Path, text: str) -> Path:
    path = folder / "trace"
    path.write_text(text, encoding="utf-8")
    return path


def test_bailian_s_blocks_are_16_tokens_and_count_where_the_length_does_not_fit(tmp_path: Path) -> None:
    assert trace_format("bailian").block_tokens == 16
    requests = read("bailian", file(tmp_path, BAILIAN))
    assert requests == [TraceRequest(0.0, 40, 7, (9, 8, 7)), TraceRequest(0.5, 32, 0, (9, 8))]


def test_azure_s_requests_share_nothing(tmp_path: Path) -> None:
    first, second = read("azure", file(tmp_path, AZURE))
    assert (first.at_s, first.prompt_tokens, first.output_tokens, first.blocks) == (0.0, 600, 10, (0, 1))
    assert (second.prompt_tokens, second.output_tokens, second.blocks) == (3, 1, (2,))
    assert second.at_s == pytest.approx(0.25)


@pytest.mark.parametrize(("suffix", "pack"), [("xz", lzma.compress), ("gz", gzip.compress), ("txt", bytes)])
def test_they_may_be_compressed(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"trace.{suffix}"
    path.write_bytes(pack(BAILIAN.encode()))
    assert len(read("bailian", path)) == 2
    assert len(read("bailian", path, until_s=0.5)) == 1


def test_a_trace_of_small_blocks_becomes_a_plan(tmp_path: Path) -> None:
    given = {"file": str(file(tmp_path, BAILIAN)), "format": "bailian", "token_scale": 4}
    plan = make_plan("trace", settings=given)
    assert [[piece.tokens for piece in session.turns[0].pieces] for session in plan.sessions] == [[4, 4, 2], [4, 4]]
    with pytest.raises(ValueError, match="token_scale: 32 does not divide a block's 16 tokens; use 1, 2, 4, 8, 16"):
        make_plan("trace", settings=given | {"token_scale": 32})


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("bailian", BAILIAN + "oops\n", "request 3: JSON is malformed"),
        ("bailian", "[]", "request 1: Expected `object`"),
        ("bailian", BAILIAN.replace("61.5", "60.5"), "request 2: it is earlier than the one before"),
        ("bailian", BAILIAN.replace("[9, 8]", "[]"), "request 2: hash_ids is empty"),
        ("bailian", BAILIAN.replace(": 7,", ": -7,"), "request 1: a prompt has at least 1 token, an answer at least 0"),
        ("azure", AZURE.replace("ContextTokens", "Tokens"), "request 1: it must have the columns TIMESTAMP"),
        ("azure", AZURE.replace(",3,", ",three,"), "request 2: invalid literal"),
        ("azure", AZURE.replace(",3,", ",0,"), "request 2: a prompt has at least 1 token"),
        ("azure", AZURE.replace("2023-11-16 18:17:04", "soon"), "request 2: Invalid isoformat"),
    ],
)
def test_what_is_wrong_is_said_with_the_request(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    with pytest.raises(TraceError, match=complaint):
        read(name, file(tmp_path, text))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nowhere cannot be read: No such file"):
        read("bailian", tmp_path / "nowhere")
    cut = tmp_path / "cut.xz"
    cut.write_bytes(lzma.compress(BAILIAN.splitlines()[0].encode())[:-30])
    with pytest.raises(TraceError, match=r"cut.xz is damaged at request"):
        read("bailian", cut)


def test_another_package_can_add_a_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tape.py").write_text(
        "from loadgen.traces import TraceRequest\n"
        "class Tape:\n"
        "    block_tokens = 4\n"
        "    def read(self, path, until_s):\n"
        "        return [TraceRequest(0.0, 4, 1, (int(path.read_text()),))]\n"
        "tape = Tape()\n"
    )
    described = tmp_path / "tape-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: tape\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(f"[{GROUP}]\ntape = tape:tape\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tape", raising=False)
    assert read("tape", file(tmp_path, "5")) == [TraceRequest(0.0, 4, 1, (5,))]
    with pytest.raises(ValueError, match="there are mooncake, bailian, azure, tape"):
        trace_format("disc")
