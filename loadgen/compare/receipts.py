"""Recorded decisions, as the router's control port gives them, read back from a file.

Owns the reading. Must never correct a receipt: one that is wrong is an error that says where. Two forms are taken: JSON
(a list of receipts, or an object whose `receipts` is one, as GET /receipts answers) and a receipt a line. What a newer
router adds to a receipt is ignored; what an older one left out is not known.
"""

from __future__ import annotations

import msgspec

FAILED = 400
CLIENT_LEFT = 499


class ReceiptsError(ValueError):
    """These are no receipts; the message says where, and why."""


class Recorded(msgspec.Struct, frozen=True):
    """What replay reads of a receipt: see scoring.decision.Receipt. A load begins with uncached tokens queued, requests
    without a first byte, and requests decoding. `output_tokens`, `session`, `prefix`, `streamed` and `answer_s` are not
    in every receipt.
    """

    at: float
    policy: str
    prompt_tokens: int
    candidates: tuple[str, ...]
    overlap_tokens: tuple[int, ...]
    loads: tuple[tuple[int, ...], ...]
    chosen: str
    request_id: str = ""
    costs: tuple[float, ...] | None = None
    mode: str = "exact"
    attempts: int = 1
    status: int | None = None
    outcome: str | None = None
    cached_tokens: int | None = None
    ttft_s: float | None = None
    duration_s: float | None = None
    output_tokens: int | None = None
    session: str = ""
    prefix: int = 0
    streamed: bool = True
    answer_s: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError for what no router writes."""
        count = len(self.candidates)
        costs = count if self.costs is None else len(self.costs)
        if not count or not count == len(self.overlap_tokens) == len(self.loads) == costs:
            raise ValueError("candidates, overlap_tokens, loads and costs must be parallel lists, and not empty")
        if self.chosen not in self.candidates:
            raise ValueError(f"the chosen replica {self.chosen!r} is not among the candidates")
        if any(len(load) < 3 or min(load) < 0 for load in self.loads):
            raise ValueError("a load is three counts: tokens queued, requests waiting, requests decoding")
        if self.prompt_tokens < 0 or min(self.overlap_tokens) < 0:
            raise ValueError("prompt_tokens and overlap_tokens cannot be negative")

    @property
    def position(self) -> int:
        """That of the chosen one among the candidates."""
        return self.candidates.index(self.chosen)

    @property
    def happened_s(self) -> float | None:
        """The TTFT, where it is that of the chosen replica's answer: no refusal, no other replica tried before, and not
        the end of an answer that came in one piece.
        """
        answered = self.status is None or self.status < FAILED or self.status == CLIENT_LEFT
        said = answered and self.attempts == 1 and self.streamed and self.ttft_s is not None and self.ttft_s > 0
        return self.ttft_s if said else None

    @property
    def decoding_s(self) -> float:
        """From the first byte to the end, where both are known."""
        return max(0.0, (self.duration_s or 0.0) - (self.ttft_s or 0.0)) if self.ttft_s is not None else 0.0


class _Answer(msgspec.Struct):
    receipts: list[Recorded]


_line = msgspec.json.Decoder(Recorded)


def read_receipts(data: bytes, name: str) -> tuple[list[Recorded], list[str]]:
    """The receipts of a file in order of time, and notes on what was left out. Raises ReceiptsError."""
    notes: list[str] = []
    try:
        found = _document(data) if _is_document(data) else _lines(data, name, notes)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReceiptsError(f"{name} has no receipts: {error}") from None
    if not found:
        raise ReceiptsError(
            f"{name} has no receipts in it; get some from a router's control port: GET /receipts?limit=1024"
        )
    return sorted(found, key=lambda receipt: receipt.at), notes


def _is_document(data: bytes) -> bool:
    """A list, or an object with receipts in it; that it begins so is enough, for it may be damaged further on."""
    start = data.lstrip()
    return start.startswith(b"[") or (start.startswith(b"{") and start[1:].lstrip().startswith(b'"receipts"'))


def _document(data: bytes) -> list[Recorded]:
    if data.lstrip().startswith(b"["):
        return msgspec.json.decode(data, type=list[Recorded])
    return msgspec.json.decode(data, type=_Answer).receipts


def _lines(data: bytes, name: str, notes: list[str]) -> list[Recorded]:
    found = []
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(_line.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            # Whoever was writing was killed: the last line begins, but has no end.
            begun = line.startswith(b"{") and not isinstance(error, msgspec.ValidationError)
            if begun and number == len(lines) and found:
                notes.append(f"line {number}, the last, is cut off and was left out")
                continue
            raise ReceiptsError(f"{name}, line {number}: {error}") from None
    return found
