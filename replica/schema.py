"""What clients ask for: OpenAI's request bodies, with vLLM's additions, decoded by type and checked.

Owns the reading of bodies. Must never ignore a field whose meaning changes the answer: such a field is refused. Fields
that it does not know are left alone, as every OpenAI-compatible server does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from replica.errors import ApiError, unsupported
from replica.sampling_ranges import RANGES, Range

# Answers to one body, over all of its prompts.
MOST_ANSWERS = 128
# OpenAI's default for completions. Chats go on until the answer ends.
COMPLETION_TOKENS = 16
# Stop strings of a request, and their characters in all: each token's text is compared with them.
MOST_STOPS = 64
MOST_STOP_CHARACTERS = 2000
_LOGPROBS = Range(0, 20)
# vLLM's additions that are not served, and what they ask for. Null, false, 0 and what is empty ask for nothing.
_UNSUPPORTED = {
    "min_tokens": "a least number of tokens",
    "include_stop_str_in_output": "stop strings in the output",
    "use_beam_search": "beam search",
    "bad_words": "words that must not occur",
    "allowed_token_ids": "a choice of tokens",
    "structured_outputs": "structured output",
    "guided_json": "structured output",
    "guided_regex": "structured output",
    "guided_choice": "structured output",
    "guided_grammar": "structured output",
    "truncate_prompt_tokens": "cutting prompts",
    "length_penalty": "beam search",
    "logits_processors": "logits processors",
    "prompt_embeds": "prompts as embeddings",
    "chat_template": "a chat template of a request's own; it uses that of the model",
    "functions": "`functions`; use `tools`",
}
# What they are where a client only says the default.
_NOTHING = {"length_penalty": 1.0}


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = False


class Ask(msgspec.Struct, kw_only=True):
    """What chats and completions have in common."""

    model: str = ""
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    max_tokens: int | None = None
    cache_salt: str | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    skip_special_tokens: bool | None = None
    logit_bias: dict[str, float] | None = None
    response_format: dict[str, Any] | None = None
    prompt_logprobs: int | None = None
    min_tokens: int | None = None
    include_stop_str_in_output: bool | None = None
    use_beam_search: bool | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    truncate_prompt_tokens: Any = None
    length_penalty: Any = None
    logits_processors: Any = None
    prompt_embeds: Any = None
    chat_template: Any = None
    functions: Any = None

    @property
    def answers(self) -> int:
        """Answers wanted to each prompt."""
        return 1 if self.n is None else self.n

    @property
    def stops(self) -> Sequence[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or ()

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check(self) -> None:
        """Raises ApiError for what is missing, out of range or not supported."""
        if not self.model:
            raise ApiError("You must provide a model parameter.", param="model")
        if not 1 <= self.answers <= MOST_ANSWERS:
            raise ApiError(f"`n` must be between 1 and {MOST_ANSWERS}.", param="n")
        for name, allowed in RANGES.items():
            _check_range(name, getattr(self, name), allowed)
        _check_stops(self.stops)
        if self.stream_options is not None and not self.stream:
            raise ApiError("`stream_options` is only allowed with `stream` set to true.", param="stream_options")
        if self.logit_bias:
            raise unsupported("logit_bias", "logit biases")
        if self.prompt_logprobs is not None:
            raise unsupported("prompt_logprobs", "log probabilities of the prompt")
        for name, what in _UNSUPPORTED.items():
            if (value := getattr(self, name)) and value != _NOTHING.get(name):
                raise unsupported(name, what)
        form = self.response_format
        if form is not None and form.get("type", "text") != "text":
            raise unsupported("response_format", f"the response format {form['type']!r}; only text")


class ChatAsk(Ask, kw_only=True):
    messages: list[dict[str, Any]] | None = None
    max_completion_tokens: int | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    function_call: str | dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    modalities: list[str] | None = None
    documents: list[Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def most_tokens(self) -> int | None:
        """Output tokens the client allows; None when it names no number."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def likeliest(self) -> int | None:
        """How many of the likeliest tokens are wanted beside each token's own log probability; None: none of it all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def check(self) -> None:
        super().check()
        if not self.messages:
            raise ApiError("You must provide `messages` as a list of at least one message.", param="messages")
        _check_length(self.most_tokens, "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens")
        _check_range("top_logprobs", self.top_logprobs, _LOGPROBS)
        if self.top_logprobs and not self.logprobs:
            raise ApiError(
                "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.", param="top_logprobs"
            )
        if not (self.tool_choice is None or self.tool_choice in ("none", "auto")):
            raise unsupported("tool_choice", "a required tool call; only `tool_choice` none and auto")
        if not (self.function_call is None or self.function_call in ("none", "auto")):
            raise unsupported("function_call", "a required function call")
        if self.modalities is not None and self.modalities != ["text"]:
            raise unsupported("modalities", "output other than text")


class CompletionAsk(Ask, kw_only=True):
    """`prompt`: text, token ids, or a list of either."""

    prompt: str | list[str | int | list[int]] | None = None
    add_special_tokens: bool | None = None
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    @property
    def most_tokens(self) -> int:
        return COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def likeliest(self) -> int | None:
        return self.logprobs

    def check(self) -> None:
        super().check()
        _check_length(self.max_tokens, "max_tokens")
        if len(self.prompts()) * self.answers > MOST_ANSWERS:
            raise ApiError(f"A request may ask for {MOST_ANSWERS} answers at most, over all prompts.", param="prompt")
        _check_range("logprobs", self.logprobs, _LOGPROBS)
        if self.echo:
            raise unsupported("echo", "echoing the prompt")
        if self.suffix:
            raise unsupported("suffix", "a suffix")
        if self.best_of is not None and self.best_of != self.answers:
            raise unsupported("best_of", "a choice of the best answers; `best_of` must equal `n`")

    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or token ids. Raises ApiError for an empty one, or a mixture."""
        prompt = self.prompt
        if isinstance(prompt, str):
            prompts: list[str | list[int]] = [prompt]
        elif prompt and all(isinstance(token, int) for token in prompt):
            prompts = [[token for token in prompt if isinstance(token, int)]]
        else:
            prompts = [part for part in prompt or () if not isinstance(part, int)]
            if len(prompts) != len(prompt or ()):
                raise ApiError("`prompt` must not mix token ids with other prompts.", param="prompt")
        if not prompts or not all(prompts):
            raise ApiError("You must provide a prompt that is not empty.", param="prompt")
        return prompts


class TokenizeAsk(msgspec.Struct, kw_only=True):
    """vLLM's /tokenize: either `prompt` or `messages`."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[Any] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeAsk(msgspec.Struct, kw_only=True):
    tokens: list[int]


Body = TypeVar("Body", ChatAsk, CompletionAsk, TokenizeAsk, DetokenizeAsk)


def read(body: bytes, kind: type[Body]) -> Body:
    """Raises ApiError for anything but an object with fields of the right types."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise ApiError(f"The request body has a field that is missing or of the wrong type: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(f"The request body is not valid JSON: {error}.") from None


def _check_range(name: str, value: float | None, allowed: Range) -> None:
    """Raises ApiError in OpenAI's words."""
    if value is None or allowed.admits(value):
        return
    kind = "integer" if isinstance(value, int) else "decimal"
    if allowed.too_low(value):
        where, sign, bound, code = "below minimum", ">" if allowed.above else ">=", allowed.low, "below_min"
    else:
        where, sign, bound, code = "above maximum", "<=", allowed.high, "above_max"
    raise ApiError(
        f"Invalid '{name}': {kind} {where} value. Expected a value {sign} {bound}, but got {value} instead.",
        param=name,
        code=f"{kind}_{code}_value",
    )


def _check_stops(stops: Sequence[str]) -> None:
    if "" in stops:
        raise ApiError("A stop string must not be empty.", param="stop")
    if len(stops) > MOST_STOPS or sum(map(len, stops)) > MOST_STOP_CHARACTERS:
        raise ApiError(
            f"`stop` may have {MOST_STOPS} strings at most, of {MOST_STOP_CHARACTERS} characters in all.", param="stop"
        )


def _check_length(tokens: int | None, param: str) -> None:
    if tokens is not None and tokens < 1:
        raise ApiError(f"`{param}` must be at least 1.", param=param)
