"""From what a client asks for to requests for the engine: prompts become tokens, wishes become limits and parameters.

Owns that step and the threads that long prompts are tokenized on. Must never let a prompt through that the model cannot
take, nor keep the event loop busy with a long one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import TypeVar

from radix.chat import ChatTemplateError, ChatTokenizer, render_options
from replica.blocks import Namespace
from replica.errors import CONTEXT_LENGTH_EXCEEDED, MODEL_NOT_FOUND, ApiError, unsupported
from replica.request import Limits, Request
from replica.sampling_params import SamplingParams
from replica.sampling_ranges import RANGES
from replica.schema import Ask, ChatAsk, CompletionAsk, TokenizeAsk
from replica.text import TextStream

# Bytes of a body, or tokens, that are dealt with at once: it takes less time than a thread's turn.
_SHORT = 4096
# Characters of a long prompt that are tokenized before its length is looked at.
_PART = 65_536
# Below, a temperature is meant to be 0.
_COLDEST = 1e-5
_SEEDS = 2**64

Result = TypeVar("Result")


_DEFAULTS = SamplingParams()


class Intake:
    """For one model, called `model`, with a context of `max_model_len` tokens.

    `defaults`: what the model itself wishes for its sampling. `logprobs`: whether its runner gives any. `eos_ids`: what
    ends answers beside the tokenizer's own ends.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        model: str,
        max_model_len: int,
        defaults: SamplingParams = _DEFAULTS,
        *,
        logprobs: bool = False,
        eos_ids: Iterable[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.max_model_len = max_model_len
        self._defaults = defaults
        self._logprobs = logprobs
        self._eos_ids = tokenizer.eos_ids.union(eos_ids)
        self._random = Random()
        self._threads = ThreadPoolExecutor(2, "tokenize")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def chat(self, ask: ChatAsk, size: int) -> list[Request]:
        """The requests of a chat, from a body of `size` bytes. Raises ApiError."""
        self._check(ask)
        tokens = await self._aside(size, lambda: self._encode_chat(ask))
        return self._requests(ask, [tokens])

    async def completion(self, ask: CompletionAsk, size: int) -> list[Request]:
        """The requests of a completion: `n` for the first prompt, then for the second, and so on. Raises ApiError."""
        tokens = await self._aside(size, lambda: self._encode_completion(ask))
        return self._requests(ask, tokens)

    async def tokens(self, ask: TokenizeAsk, size: int) -> list[int]:
        """The tokens that a chat or a completion would start with. Raises ApiError."""
        if ask.messages is not None:
            return await self._aside(size, lambda: self._encode_chat(ask))
        if ask.prompt is None:
            raise ApiError("You must provide `prompt` or `messages`.", param="prompt")
        text, special = ask.prompt, ask.add_special_tokens is not False
        return await self._aside(size, lambda: self._encode_text(ask, text, special))

    async def strings(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token by itself."""
        return await self._aside(len(tokens), lambda: [self.tokenizer.decode([token], False) for token in tokens])

    async def decode(self, tokens: Sequence[int]) -> str:
        """The text of all tokens together, special ones included. Raises ApiError for what is no token."""

        def work() -> str:
            self._check_ids(tokens, "tokens")
            return self.tokenizer.decode(tokens, False)

        return await self._aside(len(tokens), work)

    def _check_ids(self, tokens: Sequence[int], param: str) -> None:
        """Raises ApiError for what is no token of the model."""
        size = self.tokenizer.vocab_size
        if wrong := [token for token in tokens if not 0 <= token < size]:
            raise ApiError(f"{wrong[0]} is not a token id; the model has ids 0 to {size - 1}.", param=param)

    def _check(self, ask: ChatAsk | CompletionAsk) -> None:
        ask.check()
        if ask.model != self.model:
            message = f"The model `{ask.model}` does not exist; this replica serves `{self.model}`."
            raise ApiError(message, status=404, param="model", code=MODEL_NOT_FOUND)
        if ask.likeliest is not None and not self._logprobs:
            raise unsupported("logprobs", "log probabilities, for its model is simulated")

    async def _aside(self, size: int, work: Callable[[], Result]) -> Result:
        """What `work` gives, done on a thread unless `size` is small."""
        try:
            if size <= _SHORT:
                return work()
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except ChatTemplateError as error:
            raise ApiError(str(error), param="messages") from None
        except UnicodeEncodeError:
            raise ApiError("The prompt holds half a surrogate pair (\\ud800 to \\udfff), which is no text.") from None

    def _encode_chat(self, ask: ChatAsk | TokenizeAsk) -> list[int]:
        options = render_options(
            ask.tools, ask.add_generation_prompt, ask.continue_final_message, ask.chat_template_kwargs
        )
        if "messages" in options:
            raise ChatTemplateError("`chat_template_kwargs` may not set the messages; use `messages`.")
        if isinstance(ask, ChatAsk):
            options.setdefault("documents", ask.documents)
        text = self.tokenizer.render(ask.messages or [], **options)
        # Templates print their own first token.
        return self._encode_text(ask, text, ask.add_special_tokens is True)

    def _encode_completion(self, ask: CompletionAsk) -> list[list[int]]:
        self._check(ask)
        special = ask.add_special_tokens is not False
        prompts = []
        for prompt in ask.prompts():
            if isinstance(prompt, str):
                prompts.append(self._encode_text(ask, prompt, special))
            else:
                self._check_ids(prompt, "prompt")
                prompts.append(prompt)
        return prompts

    def _encode_text(
        self, ask: ChatAsk | CompletionAsk | TokenizeAsk, text: str, add_special_tokens: bool
    ) -> list[int]:
        """The tokens of a prompt. A long one is taken in parts where that is exact, and refused as soon as they are too
        many: all tokens of the longest text would take minutes, and gigabytes.
        """
        cuts = self.tokenizer.cut_points(text, _PART) if len(text) > _PART else []
        if not cuts or isinstance(ask, TokenizeAsk):
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        before, after = self.tokenizer.affixes if add_special_tokens else ([], [])
        tokens = [*before]
        for begin, end in pairwise((0, *cuts, len(text))):
            tokens += self.tokenizer.encode(text[begin:end], add_special_tokens=False)
            if len(tokens) >= self.max_model_len and end < len(text):
                raise self._too_long(ask, f"more than {len(tokens)}")
        return tokens + after

    def _requests(self, ask: ChatAsk | CompletionAsk, prompts: Sequence[Sequence[int]]) -> list[Request]:
        namespace = Namespace(self.model, cache_salt=ask.cache_salt or "")
        params = _params(ask, self._defaults)
        return [
            Request(
                prompt,
                self._limits(ask, len(prompt)),
                namespace,
                self._text(ask),
                variant,
                replace(params, seed=self._seed(ask.seed, variant)),
            )
            for prompt in prompts
            for variant in range(ask.answers)
        ]

    def _limits(self, ask: ChatAsk | CompletionAsk, prompt_tokens: int) -> Limits:
        most_tokens = ask.most_tokens
        room = self.max_model_len - prompt_tokens
        if prompt_tokens < 1:
            raise ApiError("The prompt has no tokens.", param="prompt")
        if room < (most_tokens or 1):
            raise self._too_long(ask, str(prompt_tokens))
        return Limits(
            max_tokens=room if most_tokens is None else most_tokens,
            open_ended=most_tokens is None,
            ignore_eos=bool(ask.ignore_eos),
            eos_ids=self._eos_ids,
            stop_ids=frozenset(ask.stop_token_ids or ()),
        )

    def _too_long(self, ask: ChatAsk | CompletionAsk, prompt_tokens: str) -> ApiError:
        most = ask.most_tokens
        wanted = f" and {most} output tokens were asked for" if most else ", which leaves no room for any"
        return ApiError(
            f"This model's maximum context length is {self.max_model_len} tokens. The prompt has {prompt_tokens} "
            f"tokens{wanted}. Shorten the prompt{' or lower max_tokens' if most else ''}.",
            param="messages" if isinstance(ask, ChatAsk) else "prompt",
            code=CONTEXT_LENGTH_EXCEEDED,
        )

    def _text(self, ask: Ask) -> TextStream:
        pieces = self.tokenizer.pieces
        return TextStream(pieces if ask.skip_special_tokens is False else pieces.visible, ask.stops)

    def _seed(self, named: int | None, variant: int) -> int:
        """A 64-bit seed: another one for each answer, but the same ones again for the seed that a client names."""
        seed = self._random.getrandbits(64) if named is None else named + variant
        return (seed + _SEEDS // 2) % _SEEDS - _SEEDS // 2


def _params(ask: ChatAsk | CompletionAsk, defaults: SamplingParams) -> SamplingParams:
    """What the client names, and the defaults for all else; without a seed."""
    named = {name: value for name in RANGES if (value := getattr(ask, name)) is not None}
    params = replace(defaults, **named, logprobs=ask.likeliest)
    return replace(
        params,
        temperature=0.0 if params.temperature < _COLDEST else params.temperature,
        top_k=max(0, params.top_k),
    )
