"""The router's receipts of a run: what it believed when it chose, joined with what the client saw.

Owns reading them from the control port, which keeps only the latest, while the run goes on. Must never read more often
than it must: the router that answers here is the one that is measured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path

import aiohttp
import msgspec

from loadgen.records import Record
from loadgen.runs.runner import Runner
from scoring.decision import Receipt

# Routers keep the latest 1024. Reading all takes one some milliseconds, hence a few microseconds a request.
KEPT = 1024
EVERY_REQUESTS = 256
LOOK_S = 0.25
READ_S = 5.0


class _Page(msgspec.Struct):
    receipts: list[Receipt]


class ReceiptReader:
    """Reads the receipts of `runner`'s requests from its target's control port; `failure` says why it could not."""

    def __init__(self, runner: Runner) -> None:
        self.failure = ""
        self._runner = runner
        self._found: dict[tuple[str, float], Receipt] = {}
        self._read_at = 0

    @property
    def receipts(self) -> list[Receipt]:
        """In order of their decisions."""
        return sorted(self._found.values(), key=lambda receipt: receipt.at)

    async def follow(self) -> None:
        """Reads whenever enough has been sent, until cancelled or until it fails."""
        while not self.failure:
            if self._runner.sent - self._read_at >= EVERY_REQUESTS:
                await self.read()
            await asyncio.sleep(LOOK_S)

    async def read(self) -> None:
        """Once; never raises."""
        self._read_at = self._runner.sent
        url = f"{self._runner.target.control}/receipts?limit={KEPT}"
        try:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=READ_S)) as http:
                async with http.get(url) as response:
                    body = await response.read()
                    if response.status != 200:
                        self.failure = f"{url} answered HTTP {response.status}"
                        return
            page = msgspec.json.decode(body, type=_Page)
        except (aiohttp.ClientError, OSError, msgspec.DecodeError) as error:
            self.failure = f"{url}: {type(error).__name__}: {error}"
            return
        for receipt in page.receipts:
            if receipt.request_id.startswith(self._runner.mark):
                self._found[receipt.request_id, receipt.at] = receipt


def with_predictions(records: Sequence[Record], receipts: Iterable[Receipt], mark: str) -> list[Record]:
    """The records, each with what its last receipt believed to be cached on the replica that was chosen."""
    predicted: dict[str, int] = {}
    for receipt in receipts:  # by rising time: a request that was tried again was decided again
        if receipt.chosen in receipt.candidates:
            predicted[receipt.request_id] = receipt.overlap_tokens[receipt.candidates.index(receipt.chosen)]
    return [
        msgspec.structs.replace(record, predicted_tokens=predicted.get(f"{mark}{record.session}.{record.turn}"))
        for record in records
    ]


def write_receipts(path: Path, receipts: Iterable[Receipt]) -> None:
    """One a line, as JSON. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(msgspec.json.encode(receipt) + b"\n" for receipt in receipts))
