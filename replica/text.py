"""From tokens to text, one token at a time: never half a character, never a stop string.

Owns what of an answer's text may be shown already. Must never hold text back longer than it takes to know that it is
neither the beginning of a character nor of a stop string.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

# What a decoder prints for bytes that are not, or not yet, a character.
_REPLACEMENT = "\ufffd"
# Tokens kept in front of the newest, since some decoders treat the first token of a text differently.
_CONTEXT = 4


class TextStream:
    """The text of one answer. `push` a token at a time, `take` what may be shown, `finish` at the end."""

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._longest_stop = max(map(len, self._stop), default=0)
        self._window: list[int] = []
        self._shown = 0  # characters of the window's text that have left it
        self._held = ""
        self._ready: list[str] = []

    def push(self, token: int) -> bool:
        """Takes the next token. True when it completes a stop string: the text ends just before it."""
        self._window.append(token)
        text = self._decode(self._window)
        # A character's missing bytes can only be at the very end, and print as one replacement character.
        whole = len(text) - text.endswith(_REPLACEMENT)
        if whole <= self._shown:
            return False
        fresh, self._shown = text[self._shown : whole], whole
        if whole == len(text) and len(self._window) > 2 * _CONTEXT:
            self._window = self._window[-_CONTEXT:]
            self._shown = len(self._decode(self._window))
        return self._release(fresh)

    def take(self) -> str:
        """The text that became showable since the last call."""
        text = "".join(self._ready)
        self._ready.clear()
        return text

    def finish(self) -> None:
        """There are no more tokens: what was held back may be shown, unfinished characters as U+FFFD."""
        rest = self._decode(self._window)[self._shown :]
        self._window.clear()
        self._shown = 0
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
