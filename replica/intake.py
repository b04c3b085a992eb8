"""From what a client asks for to requests for the engine: prompts become tokens, wishes become limits and parameters.

Owns that step and the threads that long prompts are tokenized on. Must never let a prompt through that the model cannot
take, nor keep the event loop busy with a long one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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

# Bodies up to this size are tokenized at once: it takes less time than a thread's turn.
_SHORT_BYTES = 4096
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
        tokens = await self._tokenize(size, lambda: self._encode_chat(ask))
        return self._requests(ask, [tokens])

    async def completion(self, ask: CompletionAsk, size: int) -> list[Request]:
        """The requests of a completion: `n` for the first prompt, then for the second, and so on. Raises ApiError."""
        self._check(ask)
        prompts = ask.prompts()
        special = ask.add_special_tokens is not False
        tokens = await self._tokenize(size, lambda: [self._encode(prompt, special) for prompt in prompts])
        return self._requests(ask, tokens)

    async def tokens(self, ask: TokenizeAsk, size: int) -> list[int]:
        """The tokens that a chat or a completion would start with. Raises ApiError."""
        if ask.messages is not None:
            return await self._tokenize(size, lambda: self._encode_chat(ask))
        if ask.prompt is None:
            raise ApiError("You must provide `prompt` or `messages`.", param="prompt")
        text, special = ask.prompt, ask.add_special_tokens is not False
        return await self._tokenize(size, lambda: self._encode(text, special))

    def check_ids(self, tokens: Sequence[int], param: str) -> None:
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

    async def _tokenize(self, size: int, work: Callable[[], Result]) -> Result:
        try:
            if size <= _SHORT_BYTES:
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
        return self.tokenizer.encode(text, add_special_tokens=ask.add_special_tokens is True)

    def _encode(self, prompt: str | list[int], add_special_tokens: bool) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
        self.check_ids(prompt, "prompt")
        return prompt

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
            wanted = (
                f" and {most_tokens} output tokens were asked for" if most_tokens else ", which leaves no room for any"
            )
            raise ApiError(
                f"This model's maximum context length is {self.max_model_len} tokens. The prompt has {prompt_tokens} "
                f"tokens{wanted}. Shorten the prompt{' or lower max_tokens' if most_tokens else ''}.",
                param="messages" if isinstance(ask, ChatAsk) else "prompt",
                code=CONTEXT_LENGTH_EXCEEDED,
            )
        return Limits(
            max_tokens=room if most_tokens is None else most_tokens,
            open_ended=most_tokens is None,
            ignore_eos=bool(ask.ignore_eos),
            eos_ids=self._eos_ids,
            stop_ids=frozenset(ask.stop_token_ids or ()),
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
