"""From a request to the block keys of its prompt: exact where the engine's tokenizer is known, by text elsewhere.

Owns the two readers that a pool of replicas can have. Both answer `prepare(ask, path)`. Neither may ever refuse a
prompt for being odd: what cannot be read exactly gives no keys (mode "none"), and is then routed by load alone. Only a
prompt that is not decodable raises BadBody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import msgspec

from radix.blocks import block_keys, hash_chunks, namespace_seed
from radix.chat import ChatTemplateError, ChatTokenizer, render_options
from router.api import CHAT, Ask, BadBody
from router.prompt_cache import KnownPrefix, TokenCache

BYTES_PER_TOKEN = 4
# Hashing goes by the chunk: half as many cost half as much, and a match ends at most this much too early.
TEXT_CHUNK_BYTES = 512
TEXT_BLOCK_TOKENS = TEXT_CHUNK_BYTES // BYTES_PER_TOKEN
CACHE_BYTES = 64 << 20
# Tokenizing takes about 0.1-0.2 ms a KB; what is longer than this leaves the event loop.
LONG_TAIL_BYTES = 8 << 10
# Fewer and longer pieces make the cache cheaper; a new turn then tokenizes up to this many known characters again.
MIN_PIECE = 256

_MAX_SEEDS = 1024


class PromptKeys(msgspec.Struct, frozen=True, gc=False):
    """What routing needs of a prompt.

    `keys` of its full blocks; `tokens`, its length, estimated unless the mode is exact; `block_size` in tokens in every
    mode. Mode "none": the prompt cannot be read, and has no keys.
    """

    keys: list[int]
    tokens: int
    block_size: int
    mode: Literal["exact", "text", "none"]


class _Seeds:
    """Namespace seeds by model and cache salt. Bounded, since clients choose both."""

    def __init__(self) -> None:
        self._seeds: dict[tuple[str, str | None], int] = {}

    def of(self, model: str, cache_salt: str | None) -> int:
        key = (model, cache_salt)
        seed = self._seeds.get(key)
        if seed is None:
            if len(self._seeds) >= _MAX_SEEDS:
                self._seeds.clear()
            seed = self._seeds[key] = namespace_seed(model, "", cache_salt or "")
        return seed


class TextPrompts:
    """Keys of the prompt's raw JSON text in chunks, for engines of which nothing is known.

    The raw messages of a conversation's turn, less the closing bracket, are a byte prefix of its next turn's.
    """

    def __init__(self, chunk_bytes: int = TEXT_CHUNK_BYTES) -> None:
        self._chunk_bytes = chunk_bytes
        self._block_size = max(chunk_bytes // BYTES_PER_TOKEN, 1)
        self._seeds = _Seeds()

    def prepare(self, ask: Ask, path: str) -> PromptKeys:
        """Never waits. The namespace is the request's model name and cache salt."""
        text = _unclosed(memoryview(ask.messages if path == CHAT else ask.prompt))
        if len(ask.tools):
            text = memoryview(bytes(ask.tools) + text)
        keys = hash_chunks(text, self._chunk_bytes, self._seeds.of(ask.model, ask.cache_salt))
        return PromptKeys(keys, len(text) // BYTES_PER_TOKEN + 1, self._block_size, "text")


def _unclosed(text: memoryview) -> memoryview:
    """A JSON list or string without its end, and without the blanks before that."""
    end = len(text) - 1
    while end > 0 and text[end - 1] in b" \t\r\n":
        end -= 1
    return text[:end]


@dataclass(frozen=True, slots=True)
class _Plan:
    """A prompt half read: what the cache knows of it, and the pieces still to be tokenized.

    `head` and `end` are the tokens around the text; `tail_bytes` is the size of the pieces, about.
    """

    known: KnownPrefix
    head: list[int]
    pieces: list[str]
    end: list[int]
    tail_bytes: int


class ExactPrompts:
    """The very block keys that a replica computes, from its own tokenizer and chat template.

    `block_size` is in tokens. `model` is the name in the replica's namespace; without one, the request's. Prompts whose
    unknown part is long are tokenized in `executor`, if there is one.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        block_size: int,
        model: str = "",
        *,
        executor: Executor | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._tokenizer = tokenizer
        self._block_size = block_size
        self._model = model
        self._executor = executor
        self._seeds = _Seeds()
        self._cache = TokenCache(block_size, cache_bytes)
        self._decode_any = msgspec.json.Decoder().decode

    def prepare(self, ask: Ask, path: str) -> PromptKeys | Awaitable[PromptKeys]:
        """The keys at once, or, for a long unknown prompt, an awaitable that must be awaited (or closed).

        Raises BadBody for messages, tools or a prompt that cannot be decoded.
        """
        plan = self._plan(ask, path)
        if isinstance(plan, PromptKeys):
            return plan
        if self._executor is not None and plan.tail_bytes > LONG_TAIL_BYTES:
            return self._finish_later(plan, self._executor)
        return self._finish(plan, self._tokenizer.encode_pieces(plan.pieces))

    def keys(self, ask: Ask, path: str) -> PromptKeys:
        """As `prepare`, but always at once."""
        plan = self._plan(ask, path)
        return plan if isinstance(plan, PromptKeys) else self._finish(plan, self._tokenizer.encode_pieces(plan.pieces))

    def _plan(self, ask: Ask, path: str) -> _Plan | PromptKeys:
        seed = self._seeds.of(self._model or ask.model, ask.cache_salt)
        if path == CHAT:
            text = self._render(ask)
            special = ask.add_special_tokens is True
        else:
            prompt = _first(self._decode(ask.prompt, "prompt"))
            if isinstance(prompt, list):
                return self._of_ids(prompt, seed)
            text = prompt
            special = ask.add_special_tokens is not False
        if text is None:
            return self._unreadable(len(ask.messages) + len(ask.prompt) + len(ask.tools))
        return self._plan_text(text, seed, special)

    def _plan_text(self, text: str, seed: int, special: bool) -> _Plan | PromptKeys:
        try:
            size = len(text.encode())
        except UnicodeEncodeError:  # a lone surrogate, from a tool call's arguments
            return self._unreadable(len(text))
        head, end = self._tokenizer.affixes if special else ([], [])
        cuts = self._tokenizer.cut_points(text, MIN_PIECE)
        pieces = [text[start:stop] for start, stop in pairwise((0, *cuts, len(text)))]
        known = self._cache.find(seed, head, pieces[:-1])
        pieces = pieces[len(known.names) :]
        # The pieces' share of the bytes, about.
        tail_bytes = size * sum(map(len, pieces)) // max(len(text), 1)
        return _Plan(known, head, pieces, end, tail_bytes)

    def _render(self, ask: Ask) -> str | None:
        messages = self._decode(ask.messages, "messages")
        tools = self._decode(ask.tools, "tools") if len(ask.tools) else None
        options = render_options(tools, ask.add_generation_prompt, ask.continue_final_message, ask.chat_template_kwargs)
        if not isinstance(messages, list) or _has_media(messages):
            return None
        try:
            return self._tokenizer.render(messages, **options)
        except ChatTemplateError:
            return None

    def _finish(self, plan: _Plan, ids: list[list[int]]) -> PromptKeys:
        known = plan.known
        # The last piece ends with the prompt, not at a cut: no longer prompt would have it as a piece.
        self._cache.extend(known, plan.head, plan.pieces[:-1], ids[:-1])
        known.append(ids[-1] + plan.end if plan.end else ids[-1], self._block_size)
        return PromptKeys(known.keys, known.tokens(self._block_size), self._block_size, "exact")

    async def _finish_later(self, plan: _Plan, executor: Executor) -> PromptKeys:
        encode = self._tokenizer.encode_pieces
        return self._finish(plan, await asyncio.get_running_loop().run_in_executor(executor, encode, plan.pieces))

    def _of_ids(self, ids: list[Any], seed: int) -> PromptKeys:
        try:
            keys = block_keys(ids, self._block_size, seed) if set(map(type, ids)) <= {int} else None
        except OverflowError:
            keys = None
        mode: Literal["exact", "none"] = "none" if keys is None else "exact"
        return PromptKeys(keys or [], len(ids), self._block_size, mode)

    def _unreadable(self, size: int) -> PromptKeys:
        return PromptKeys([], size // BYTES_PER_TOKEN + 1, self._block_size, "none")

    def _decode(self, raw: msgspec.Raw, field: str) -> Any:
        try:
            return self._decode_any(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadBody(f"`{field}` cannot be decoded: {error}.", field) from None


def _first(prompt: Any) -> str | list[Any] | None:
    """The text or token ids to route by: of a batch its first prompt, since the whole batch goes to one replica."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    return prompt if isinstance(prompt, str | list) else None


def _has_media(messages: Sequence[Any]) -> bool:
    """Whether any content part is other than text: an engine puts tokens for it that no template shows."""
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list) and not all(_is_text(part) for part in content):
            return True
    return False


def _is_text(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, dict) and part.get("type", "text") == "text")
