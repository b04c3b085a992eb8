"""The latest batches of KV events, and the socket at which readers ask for those that they missed.

Owns what is kept, and the answers that are under way. Must never make the engine wait, nor one reader for another: an
answer goes out piece by piece, as fast as its reader takes it.

As with vLLM: a request is [empty, first number wanted]; each reply [empty, topic, number, payload]; the last one
[empty, empty, -1, empty]. Numbers have 8 bytes, big-endian. vLLM sends the topic since 0.26; without it llm-d takes no
reply, and readers that do not know of it look at the last two frames.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from itertools import islice

import zmq
import zmq.asyncio

log = logging.getLogger(__name__)

END = (b"", (-1).to_bytes(8, "big", signed=True), b"")
REQUEST_FRAMES = 3

# An answer is sent in pieces of so many replies; in between, the engine has its turn.
_PIECE = 32
_PAUSE_MS = 10
# A reader that has taken nothing for so long is given up.
_STALLED_S = 10.0
# Replies waiting for their readers, all in all: beyond, requests are ignored and may be repeated.
_MOST_WAITING = 500_000

Reply = tuple[bytes, bytes, bytes]


class History:
    """Batches numbered from 0: the latest `keep`, of at most `keep_bytes` together, but always the very last one."""

    def __init__(self, topic: bytes, keep: int, keep_bytes: int) -> None:
        self._topic = topic
        self._keep = keep
        self._keep_bytes = keep_bytes
        self._replies: deque[Reply] = deque()
        self._bytes = 0
        self.next_seq = 0

    def append(self, payload: bytes) -> Reply:
        """Numbers the batch. Returns its frames: topic, number, payload."""
        reply = (self._topic, self.next_seq.to_bytes(8, "big"), payload)
        self.next_seq += 1
        self._replies.append(reply)
        self._bytes += len(payload)
        while len(self._replies) > 1 and (len(self._replies) > self._keep or self._bytes > self._keep_bytes):
            self._bytes -= len(self._replies.popleft()[-1])
        return reply

    def since(self, seq: int) -> list[Reply]:
        """All that is kept from batch `seq` on. It begins later where that one is kept no more."""
        oldest = self.next_seq - len(self._replies)
        return list(islice(self._replies, min(max(seq - oldest, 0), len(self._replies)), None))


class ReplayServer:
    """Answers requests that come in at `socket`, a ROUTER that refuses what it cannot send: `run` as a task."""

    def __init__(self, socket: zmq.asyncio.Socket, history: History) -> None:
        self._socket = socket
        self._history = history
        self._answers: dict[bytes, _Answer] = {}

    async def run(self) -> None:
        """Serves until it is cancelled."""
        moving = False
        while True:
            try:
                moving = await self._turn(None if not self._answers else 0 if moving else _PAUSE_MS)
                await asyncio.sleep(0)
            except Exception:
                log.exception("a replay of KV events failed")
                self._answers.clear()
                await asyncio.sleep(_PAUSE_MS / 1000)

    async def _turn(self, wait_ms: int | None) -> bool:
        """Takes a request if one comes in time, and sends a piece of each answer. Returns whether anything went."""
        if await self._socket.poll(wait_ms):
            self._take(await self._socket.recv_multipart())
        return any([await self._send_piece(reader, answer) for reader, answer in list(self._answers.items())])

    def _take(self, frames: list[bytes]) -> None:
        if len(frames) != REQUEST_FRAMES or frames[1] or len(frames[2]) != len(END[1]):
            log.debug("ignored a replay request of frames with %s bytes", [len(frame) for frame in frames])
            return
        if sum(len(answer.replies) for answer in self._answers.values()) > _MOST_WAITING:
            log.warning("ignored a replay request: too many answers are under way")
            return
        reader, _, first = frames
        answer = self._answers.setdefault(reader, _Answer())
        answer.replies.extend(self._history.since(int.from_bytes(first, "big")))
        answer.replies.append(END)

    async def _send_piece(self, reader: bytes, answer: _Answer) -> bool:
        """Sends some more of the answer; forgets it when it is complete or in vain. Returns whether anything went."""
        sent, over = 0, False
        try:
            while answer.replies and sent < _PIECE:
                await self._socket.send_multipart((reader, b"", *answer.replies[0]), zmq.NOBLOCK)
                answer.replies.popleft()
                sent += 1
            over = not answer.replies
        except zmq.Again:
            over = not sent and answer.stalled()
        except zmq.ZMQError as error:
            log.debug("a replay ends early, for its reader is gone: %s", error)
            over = True
        if sent:
            answer.moved()
        if over:
            del self._answers[reader]
        return sent > 0


class _Answer:
    """What a reader still has to get, and since when it has taken nothing."""

    def __init__(self) -> None:
        self.replies: deque[Reply] = deque()
        self.moved()

    def moved(self) -> None:
        self._moved_at = asyncio.get_running_loop().time()

    def stalled(self) -> bool:
        return asyncio.get_running_loop().time() - self._moved_at > _STALLED_S
