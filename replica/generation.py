"""Answers as they grow: what a step brought, for whoever waits for it.

Owns the way from requests, which the engine makes grow, to an asynchronous iterator over what is new. Must never make
the engine wait: a slow reader finds more at once.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from replica.request import Finish, Request
from replica.sampling_params import TokenLogprobs


class GenerationFailed(RuntimeError):
    """The engine could not finish the answer; the message says why."""


@dataclass(frozen=True, slots=True)
class Output:
    """What an answer grew by since one last looked. `text` may be empty although there are tokens, and the reverse.

    `logprobs` has an entry for each of the tokens where the request wants them, else none.
    """

    tokens: tuple[int, ...]
    text: str
    finish: Finish | None
    logprobs: tuple[TokenLogprobs, ...] = ()


class Generation:
    """The answers to one or more requests that were submitted together, as an asynchronous iterator.

    Each item lists (index of the request, Output) for those that grew; a slow reader finds several tokens in one item.
    Ends when all have ended. Raises GenerationFailed when one of them cannot be finished.
    """

    def __init__(self, requests: tuple[Request, ...]) -> None:
        self.requests = requests
        self._fetched = [request.prompt_tokens for request in requests]
        self._ended: set[int] = set()
        self._news = asyncio.Event()
        self._failure: str | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens found in the cache, of all requests that have started."""
        return sum(request.cached or 0 for request in self.requests)

    def notify(self, failure: str | None = None) -> None:
        """Called by the engine when one of the requests took a token or ended."""
        self._failure = self._failure or failure
        self._news.set()

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> list[tuple[int, Output]]:
        while True:
            if self._failure is not None:
                raise GenerationFailed(self._failure)
            if grown := self._grown():
                return grown
            if len(self._ended) == len(self.requests):
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()

    def _grown(self) -> list[tuple[int, Output]]:
        grown = []
        for index, request in enumerate(self.requests):
            if index in self._ended or not (len(request.tokens) > self._fetched[index] or request.finish):
                continue
            fetched, self._fetched[index] = self._fetched[index], len(request.tokens)
            if request.finish:
                self._ended.add(index)
            output = Output(
                tuple(request.tokens[fetched:]),
                request.text.take() if request.text else "",
                request.finish,
                tuple(request.logprobs[fetched - request.prompt_tokens :]),
            )
            grown.append((index, output))
        return grown
