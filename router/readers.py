"""Which prompt reader a pool of replicas gets: exact where their tokenizer is at hand, text else.

Owns the loaded tokenizers, one per content: from the directory that a replica names, where this machine has it, else
from the replica itself. Loading reads big files, so it happens in a thread when a replica appears; until it is done
the pool is read as text. Must never guess: content that is not what the replica said is not used, and the log says
so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import aiohttp
import msgspec

from radix.chat import TOKEN_FILES, ChatTokenizer, TokenizerError
from radix.events import Registration
from router.fleet import Fleet, Replica, State
from router.models import Pool
from router.prompt import ExactPrompts, TextPrompts

log = logging.getLogger("radixgate.prompts")

DEFAULT_BLOCK_SIZE = 16
FETCH_TIMEOUT_S = 60.0

T = TypeVar("T")


class PromptReaders:
    """Readers by pool; `directories` maps a model name ("" for any) to the tokenizer directory the user gave for it."""

    def __init__(
        self, fleet: Fleet, directories: dict[str, Path], executor: Executor, http: aiohttp.ClientSession
    ) -> None:
        self._fleet = fleet
        self._http = http
        self._directories = directories
        self._executor = executor
        self._text = TextPrompts()
        self._tokenizers: dict[str, ChatTokenizer] = {}  # by fingerprint
        self._given: dict[str, ChatTokenizer] = {}  # by model name, as the user gave them
        self._exact: dict[tuple[str, int, str], ExactPrompts] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        fleet.subscribe(self._on_change)

    def load_given(self) -> None:
        """Load the directories that the user gave, before serving. Raises TokenizerError."""
        for model, directory in self._directories.items():
            tokenizer = ChatTokenizer.load(directory)
            self._tokenizers[tokenizer.fingerprint] = self._given[model] = tokenizer

    def of(self, pool: Pool) -> TextPrompts | ExactPrompts:
        """The reader for prompts that go to `pool`."""
        reader = pool.reader
        if reader is None:
            reader = pool.reader = self._choose(pool)
        return reader

    async def close(self) -> None:
        """End the loading that is under way."""
        tasks = list(self._loading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _choose(self, pool: Pool) -> TextPrompts | ExactPrompts:
        """Exact, if any member's tokenizer is here. Members of other block sizes live on predictions alone."""
        for replica in pool.up:
            said = replica.registration
            tokenizer = self._tokenizer_of(replica)
            if tokenizer is not None:
                block_size = said.block_size if said else DEFAULT_BLOCK_SIZE
                namespace = said.models[0] if said and said.models else ""
                return self._reader(tokenizer, block_size, namespace)
        return self._text

    def _tokenizer_of(self, replica: Replica) -> ChatTokenizer | None:
        said = replica.registration
        if said is not None and said.tokenizer_fingerprint:
            return self._tokenizers.get(said.tokenizer_fingerprint)
        for name in (*(replica.serves or ()), ""):
            if name in self._given:
                return self._given[name]
        return None

    def _reader(self, tokenizer: ChatTokenizer, block_size: int, namespace: str) -> ExactPrompts:
        key = (tokenizer.fingerprint, block_size, namespace)
        if key not in self._exact:
            self._exact[key] = ExactPrompts(tokenizer, block_size, namespace, executor=self._executor)
        return self._exact[key]

    def _on_change(self, replica: Replica) -> None:
        said = replica.registration
        if replica.state is not State.UP or said is None or not said.tokenizer_fingerprint:
            return
        if said.tokenizer_fingerprint not in self._tokenizers and said.tokenizer_fingerprint not in self._loading:
            self._loading[said.tokenizer_fingerprint] = asyncio.get_running_loop().create_task(
                self._load(replica, said)
            )

    async def _load(self, replica: Replica, said: Registration) -> None:
        try:
            tokenizer = await self._load_local(said) or await self._fetch(replica)
        except (TokenizerError, OSError, aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
            log.warning("replica %s: cannot use its tokenizer, so its prompts are read as text: %s", said.name, error)
        else:
            if tokenizer.fingerprint == said.tokenizer_fingerprint:
                self._tokenizers[tokenizer.fingerprint] = tokenizer
                self._fleet.rebuild()
            else:
                log.warning(
                    "replica %s: its tokenizer is not the one it named; its prompts are read as text", said.name
                )
        finally:
            self._loading.pop(said.tokenizer_fingerprint, None)

    async def _load_local(self, said: Registration) -> ChatTokenizer | None:
        """From the directory that the replica named, where this machine has the same content there."""
        try:
            tokenizer = await self._in_thread(ChatTokenizer.load, Path(said.tokenizer))
        except (TokenizerError, OSError):
            return None
        return tokenizer if tokenizer.fingerprint == said.tokenizer_fingerprint else None

    async def _fetch(self, replica: Replica) -> ChatTokenizer:
        """From the replica itself."""
        timeout = aiohttp.ClientTimeout(total=FETCH_TIMEOUT_S)
        async with self._http.get(replica.address.url + "/radixgate/tokenizer", timeout=timeout) as response:
            response.raise_for_status()
            files = msgspec.msgpack.decode(await response.read(), type=dict[str, bytes])
        return await self._in_thread(_load_files, files)

    async def _in_thread(self, load: Callable[[T], ChatTokenizer], source: T) -> ChatTokenizer:
        return await asyncio.get_running_loop().run_in_executor(self._executor, load, source)


def _load_files(files: dict[str, bytes]) -> ChatTokenizer:
    with TemporaryDirectory(prefix="radixgate-") as directory:
        for name in TOKEN_FILES:
            if name in files:
                Path(directory, name).write_bytes(files[name])
        return ChatTokenizer.load(Path(directory))
