"""How routers in front of the same replicas tell each other what they have booked, and where they sent which prompt.

Owns the Redis channel, and when what is sent on it: a change almost at once, further ones `flush_s` later; each
`refresh_s` a full refresh, which is also the sign of life; a hello, which others answer with a full refresh; a goodbye.
What the totals mean is scoring/shared_loads.py's. Must never make the hot path wait or fail: there, a change is a note
in a set. Without Redis, a router sees its own bookings only, until it is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import msgspec
from redis.asyncio import RedisCluster
from redis.exceptions import RedisError

from radix.events import KEY_BYTES, pack_keys, unpack_keys
from radix.redis_link import UNAVAILABLE, RedisLink, explain
from radix.tasks import end_tasks
from scoring.shared_loads import SharedLoads, Update

log = logging.getLogger("radixgate.gossip")

FLEET_SPACING_S = 0.001  # routers send each other one message in this time, all together: each must read them all
HOLD_S = 0.001  # before something is told: the request that it is about goes first
RETRY_S = 0.2
GOODBYE_S = 1.0
MAX_MESSAGE_BYTES = 1 << 14  # a router takes one in a turn of its event loop
MAX_KEYS = MAX_MESSAGE_BYTES // KEY_BYTES  # of one prompt; of a longer one, the start is told
MAX_WAITING_KEYS = 1 << 16  # of prompts that are not told yet: after an outage, nobody needs them all
ENTRY_BYTES = 256  # no entry of a message is larger, its keys aside

HEAR = "hear the other routers"
TELL = "tell the other routers its load"

OnRouted = Callable[[str, int, Sequence[int]], None]
"""Replica's name, block size of exact keys (0: keys of text), block keys."""


class RoutedPrompt(msgspec.Struct, frozen=True, array_like=True):
    """A prompt that went to an incarnation of a replica; `exact` is the block size of exact keys, 0 for text."""

    replica: str
    epoch: int
    exact: int
    packed: bytes

    def __post_init__(self) -> None:
        if len(self.packed) % KEY_BYTES:
            raise ValueError(f"block keys must be packed as {KEY_BYTES} bytes each, got {len(self.packed)} bytes")


class Message(msgspec.Struct, frozen=True, array_like=True):
    """`update` names the sender. `asks`: everybody else shall send a full refresh. `leaves`: the sender is ending."""

    update: Update
    routed: tuple[RoutedPrompt, ...] = ()
    asks: bool = False
    leaves: bool = False


class WaitingPrompts:
    """Prompts that were routed and not told yet, as many as MAX_WAITING_KEYS allow; the oldest make room."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, int, Sequence[int]]] = deque()
        self._keys = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def append(self, replica: str, exact: int, keys: Sequence[int]) -> None:
        self._waiting.append((replica, exact, keys))
        self._keys += len(keys)
        while self._keys > MAX_WAITING_KEYS:
            self._keys -= len(self._waiting.popleft()[2])
            self.dropped += 1

    def clear(self) -> None:
        self._waiting.clear()
        self._keys = 0

    def take(self, room: int, epoch: Callable[[str], int | None]) -> Iterator[RoutedPrompt]:
        """The oldest, about `room` bytes of them but one at least. Those of a replica that has left are passed over."""
        while self._waiting and room > 0:
            replica, exact, keys = self._waiting.popleft()
            self._keys -= len(keys)
            incarnation = epoch(replica)
            if incarnation is not None:
                packed = pack_keys(keys[:MAX_KEYS])
                room -= len(packed) + ENTRY_BYTES
                yield RoutedPrompt(replica, incarnation, exact, packed)


class Gossip:
    """One router's end of the channel. `start` it within a running loop; `close` says goodbye.

    `on_routed` hears where other routers sent a prompt, if this router knows that incarnation of the replica.
    """

    def __init__(
        self,
        link: RedisLink,
        shared: SharedLoads,
        on_routed: OnRouted,
        clock: Callable[[], float],
        *,
        flush_s: float = 0.002,
        refresh_s: float = 1.0,
        lease_s: float = 3.0,
    ) -> None:
        self._link = link
        self._channel = f"{{radixgate:{link.namespace}}}:loads"
        self._shared = shared
        self._on_routed = on_routed
        self._clock = clock
        self._flush_s = flush_s
        self._refresh_s = refresh_s
        self._lease_s = lease_s
        self._due = asyncio.Event()  # there is something to say
        self._prompts = WaitingPrompts()
        self._refresh_due = False
        self._asks = False
        self._complaints: set[str] = set()  # what was said to fail, and does so still
        self._tasks: set[asyncio.Task[None]] = set()
        self._decoder = msgspec.msgpack.Decoder(Message)
        self.connected = False  # this router hears the others
        self.speaking = False  # ... and what it sends goes out
        self.sent = 0
        self.received = 0
        self.refused = 0  # messages that cannot be read
        shared.news = self._due.set

    @property
    def peers(self) -> int:
        """Other routers that are alive."""
        return self._shared.peers

    @property
    def dropped(self) -> int:
        """Routed prompts that the others were never told of."""
        return self._prompts.dropped

    def routed(self, replica: str, exact: int, keys: Sequence[int]) -> None:
        """Tell the others that a prompt goes to `replica`. `keys` must not change afterwards."""
        if keys:
            self._prompts.append(replica, exact, keys)
            self._due.set()

    def start(self) -> None:
        run = asyncio.get_running_loop().create_task
        self._tasks = {run(self._listen()), run(self._speak()), run(self._keep_time())}

    async def close(self) -> None:
        await end_tasks(*self._tasks)
        self._shared.news = _nobody
        if self.speaking:
            with suppress(RedisError, *UNAVAILABLE):
                async with asyncio.timeout(GOODBYE_S):
                    await self._publish(Message(self._nothing(), leaves=True))
        self.connected = self.speaking = False

    # -- hearing

    async def _listen(self) -> None:
        while True:
            try:
                await self._hear()
            except Exception as error:
                self._complain(HEAR, error)
            self.connected = False
            await asyncio.sleep(RETRY_S)

    async def _hear(self) -> None:
        client = self._link.client
        if isinstance(client, RedisCluster):
            await client.initialize()  # its subscriptions do not do so themselves
        pubsub = client.pubsub()
        try:
            await pubsub.subscribe(self._channel)
            heard_at = self._clock()
            while True:
                message = await pubsub.get_message(timeout=self._refresh_s)
                if message is not None:
                    heard_at = self._clock()
                    self._hear_one(message["type"], message["data"])
                    await asyncio.sleep(0)  # however many have come, requests go in between
                elif self._clock() - heard_at > self._lease_s:
                    raise TimeoutError("not even this router's own messages come back")
        finally:
            await pubsub.aclose()  # type: ignore[no-untyped-call]  # not typed there

    def _hear_one(self, kind: str, data: bytes) -> None:
        if kind == "message":
            try:
                message = self._decoder.decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                if not self.refused:
                    log.warning("a message on %s cannot be read: %s", self._channel, error)
                self.refused += 1
            else:
                self._take(message)
        elif kind == "subscribe":
            self.connected = True
            self._is_well(HEAR)
            self._asks = self._refresh_due = True
            self._due.set()

    def _take(self, message: Message) -> None:
        sender = message.update.sender
        if sender == self._shared.sender:
            return
        self.received += 1
        if message.leaves:
            self._shared.end(sender)
            return
        was_alone = not self._shared.peers
        self._shared.heard(message.update, self._clock())
        if message.asks or was_alone:  # alone, this router kept its changes to itself
            self._refresh_due = True
            self._due.set()
        for prompt in message.routed:
            if self._shared.epoch(prompt.replica) == prompt.epoch:
                self._on_routed(prompt.replica, prompt.exact, unpack_keys(prompt.packed))

    # -- speaking

    async def _speak(self) -> None:
        while True:
            await self._due.wait()
            await asyncio.sleep(HOLD_S)
            self._due.clear()
            if self._alone and not (self._refresh_due or self._asks):
                self._prompts.clear()  # whoever comes asks for the totals
                continue
            began = self._clock()
            try:
                for message in self._messages():
                    await self._tell(message)
            except Exception as error:
                self._complain(TELL, error)
                self.speaking = False
                self._asks = self._refresh_due = True
                self._due.set()
                await asyncio.sleep(RETRY_S)
            else:
                spacing = max(self._flush_s, self.peers * FLEET_SPACING_S)
                await asyncio.sleep(max(spacing - (self._clock() - began), 0))

    @property
    def _alone(self) -> bool:
        """Nobody listens, as far as one can hear."""
        return self.connected and self.speaking and not self.peers

    def _messages(self) -> Iterator[Message]:
        """All that is due. Prompts wait while nothing gets out anyway."""
        full, asks = self._refresh_due, self._asks
        self._refresh_due = self._asks = False
        updates = deque(self._shared.updates(full=full))
        prompts = len(self._prompts)  # those that come meanwhile go with fresher totals
        while updates or (prompts > 0 and self._prompts and self.speaking):
            update = updates.popleft() if updates else self._nothing()
            room = MAX_MESSAGE_BYTES - len(update.totals) * ENTRY_BYTES
            before = len(self._prompts)
            routed = tuple(self._prompts.take(room, self._shared.epoch)) if self.speaking else ()
            prompts -= before - len(self._prompts)
            yield Message(update, routed, asks)
            asks = False

    def _nothing(self) -> Update:
        """Says no more than who sends it."""
        return Update(self._shared.sender, 0)

    async def _tell(self, message: Message) -> None:
        try:
            await self._publish(message)
        except BaseException:
            self._prompts.dropped += len(message.routed)
            raise
        self.sent += 1
        self.speaking = True
        self._is_well(TELL)

    async def _publish(self, message: Message) -> None:
        await self._link.client.publish(self._channel, msgspec.msgpack.encode(message))

    # -- time

    async def _keep_time(self) -> None:
        """Signs of life, and the end of those who give none. Does no I/O, so it is punctual when Redis is not."""
        while True:
            await asyncio.sleep(self._refresh_s)
            for sender in self._shared.expire(self._clock() - self._lease_s):
                log.warning("router %s is silent: its bookings end", sender)
            self._refresh_due = True
            self._due.set()

    # -- what a person should know

    def _complain(self, of: str, error: Exception) -> None:
        """Once for each outage."""
        if of not in self._complaints:
            self._complaints.add(of)
            expected = isinstance(error, (RedisError, *UNAVAILABLE))
            log.warning("this router cannot %s: %s", of, explain(error), exc_info=None if expected else error)

    def _is_well(self, of: str) -> None:
        if of in self._complaints:
            self._complaints.remove(of)
            log.warning("this router can %s again", of)


def _nobody() -> None: ...
