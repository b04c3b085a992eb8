"""First questions to a server: whether it answers, what it serves, which replicas it knows.

Owns these few requests, outside any measurement. Must never be used while a run is under way.
"""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp
import msgspec

from loadgen.processes import Child, Children, NotYet, said

PROBE_S = 10.0


class StandFailed(RuntimeError):
    """There is nothing to ask, and why."""


class DescribedReplica(msgspec.Struct):
    name: str
    url: str
    capacity_tokens: int | None = None


class DescribedFleet(msgspec.Struct):
    """What a RadixGate router's control port tells."""

    replicas: list[DescribedReplica]

    @property
    def capacity_tokens(self) -> int | None:
        """Of one replica, where all are alike."""
        sizes = {replica.capacity_tokens for replica in self.replicas}
        return sizes.pop() if len(sizes) == 1 else None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


async def described_fleet(control: str) -> DescribedFleet:
    """Raises StandFailed when `control` is not a router's control port."""
    url = f"{control}/fleet"
    try:
        return msgspec.json.decode(await fetch(url, {}, of=" (--control)"), type=DescribedFleet)
    except msgspec.DecodeError as error:
        raise StandFailed(f"{url} (--control) is not a RadixGate router's control port: {error}") from None


async def served_model(url: str, headers: Mapping[str, str]) -> str:
    """Raises StandFailed unless the server says that it serves exactly one model."""
    asked = f"{url}/v1/models"
    try:
        models = [model.id for model in msgspec.json.decode(await fetch(asked, headers), type=_Models).data]
    except msgspec.DecodeError as error:
        raise StandFailed(f"{asked} did not say which models there are ({error}); choose one with --model") from None
    if len(models) != 1:
        raise StandFailed(f"{asked} names {', '.join(models) or 'no model'}; choose one with --model")
    return models[0]


async def routes(children: Children, router: Child, url: str, model: str, timeout_s: float) -> None:
    """Returns once `router` says that it is well and a first short request comes through.

    Raises ChildFailed when it does not within the time, or when any child dies meanwhile.
    """
    body = {"model": model, "messages": [{"role": "user", "content": "Ready?"}], "max_tokens": 1}

    async def ask(http: aiohttp.ClientSession) -> bytes:
        if not await _well(http, url):
            raise NotYet("neither GET /v1/models nor GET /health answers 200")
        async with http.post(f"{url}/v1/chat/completions", json=body) as response:
            answer = await response.read()
            if response.status != 200:
                raise NotYet(said(response, answer))
            return answer

    otherwise = f"did not route a first request within {timeout_s:g} s; {url}"
    await children.until_answered(router, ask, otherwise, timeout_s, PROBE_S)


async def _well(http: aiohttp.ClientSession, url: str) -> bool:
    for path in ("/v1/models", "/health"):
        async with http.get(url + path) as response:
            if response.status == 200:
                return True
    return False


async def fetch(url: str, headers: Mapping[str, str], within_s: float = PROBE_S, of: str = "") -> bytes:
    """The body. `of` goes into messages behind the URL. Raises StandFailed unless it answers 200."""
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=within_s)) as http:
            async with http.get(url, headers=headers) as response:
                body = await response.read()
                if response.status == 200:
                    return body
                why = said(response, body)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
    raise StandFailed(f"{url}{of} did not answer: {why}")
