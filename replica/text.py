"""From tokens to text, one token at a time: never half a character, never a stop string.

Owns what of an answer's text may be shown already. Must never hold text back longer than it takes to know that it is
neither the beginning of a character nor of a stop string, nor look at a token twice.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Callable, Sequence

Piece = Callable[[int], bytes]
"""What a token stands for, which may be part of a character."""


class TextStream:
    """The text of one answer. `push` a token at a time, `take` what may be shown, `finish` at the end."""

    def __init__(self, piece: Piece, stop: Sequence[str] = ()) -> None:
        self._piece = piece
        self._stop = tuple(stop)
        self._longest_stop = max(map(len, self._stop), default=0)
        self._part = b""  # of a character
        self._held = ""
        self._ready: list[str] = []

    def push(self, token: int) -> bool:
        """Takes the next token. True when it completes a stop string: the text ends just before it."""
        data = self._part + self._piece(token)
        fresh, used = utf_8_decode(data, "replace", False)
        self._part = data[used:]
        return bool(fresh) and self._release(fresh)

    def take(self) -> str:
        """The text that became showable since the last call."""
        text = "".join(self._ready)
        self._ready.clear()
        return text

    def finish(self) -> None:
        """There are no more tokens: what was held back may be shown, unfinished characters as U+FFFD."""
        rest, self._part = self._part.decode(errors="replace"), b""
        if not self._release(rest):
            self._ready.append(self._held)
            self._held = ""

    def _release(self, fresh: str) -> bool:
        """Lets text out up to a stop string, or to what could still become one."""
        if not self._stop:
            self._ready.append(fresh)
            return False
        text = self._held + fresh
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self._ready.append(text[: min(found)])
            self._held = ""
            return True
        keep = next(
            size
            for size in range(min(self._longest_stop - 1, len(text)), -1, -1)
            if not size or any(stop.startswith(text[-size:]) for stop in self._stop)
        )
        cut = len(text) - keep
        self._ready.append(text[:cut])
        self._held = text[cut:]
        return False
