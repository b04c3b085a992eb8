"""A model's chat template: OpenAI messages in, the prompt text out, rendered as Hugging Face's libraries render it.

Owns the Jinja environment and the shaping of messages that templates expect. Must never guess: what the template
refuses is a ChatTemplateError with the template's own words, never a prompt that is nearly right.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

Message = Mapping[str, Any]

_PROBE = "probe-9f3a"
_DICT_ATTRIBUTES = frozenset(dir(dict))
_RESERVED = frozenset({"messages", "self", "loop", "raise_exception", "strftime_now"})


class ChatTemplateError(ValueError):
    """The messages cannot be rendered; the message is the template's own complaint, or says what is missing."""


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text for training; serving looks through it."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    def getattr(self, obj: Any, attribute: str) -> Any:
        # `message.role` on a dict: Jinja tries the attribute first and pays for the exception each time. The order only
        # matters for names that dicts have as methods.
        if type(obj) is dict and attribute in obj and attribute not in _DICT_ATTRIBUTES:
            return obj[attribute]
        return super().getattr(obj, attribute)


class ChatTemplate:
    """One compiled template. Raises ChatTemplateError where the source is not valid Jinja."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._special_tokens = dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ChatTemplateError(f"The chat template is not valid Jinja (line {error.lineno}): {error}.") from None
        self._takes_parts = self._shows([{"type": "text", "text": _PROBE}])
        self._takes_text = self._shows(_PROBE) or not self._takes_parts

    def render(
        self,
        messages: Sequence[Message],
        /,
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **template_kwargs: Any,
    ) -> str:
        """The prompt text. Raises ChatTemplateError for whatever the template refuses."""
        if add_generation_prompt and continue_final_message:
            raise ChatTemplateError("Set only one of `add_generation_prompt` and `continue_final_message`.")
        if not _RESERVED.isdisjoint(template_kwargs):
            names = ", ".join(sorted(_RESERVED & template_kwargs.keys()))
            raise ChatTemplateError(f"`chat_template_kwargs` may not set {names}.")
        shaped = [self._shape(message) for message in messages]
        text = self._run(
            {
                **self._special_tokens,
                **template_kwargs,
                "messages": shaped,
                "tools": tools,
                "documents": documents,
                "add_generation_prompt": add_generation_prompt,
            }
        )
        return _cut_after_final_message(text, shaped) if continue_final_message else text

    def _run(self, context: dict[str, Any]) -> str:
        try:
            return self._template.render(context)
        except jinja2.TemplateError as error:
            raise ChatTemplateError(error.message or type(error).__name__) from None
        except Exception as error:
            # A template is a program from a file: what it does to messages of an odd shape can fail in any way.
            raise ChatTemplateError(f"{type(error).__name__}: {error}") from None

    def _shows(self, content: object) -> bool:
        """Whether the template prints the text of such content, rather than nothing or the content's repr."""
        context = {
            **self._special_tokens,
            "messages": [{"role": "user", "content": content}],
            "tools": None,
            "documents": None,
            "add_generation_prompt": False,
        }
        try:
            text = self._run(context)
        except ChatTemplateError:
            return False
        return _PROBE in text and not any(quote + _PROBE in text for quote in "'\"")

    def _shape(self, message: Message) -> Message:
        """The message as the template expects it: content as text or parts, tool-call arguments as objects."""
        if not isinstance(message, Mapping):
            raise ChatTemplateError("Each message must be an object with a role and content.")
        content = message.get("content")
        has_calls = "tool_calls" in message
        if isinstance(content, str) and self._takes_text and not has_calls:
            return message
        shaped = dict(message)
        shaped["content"] = self._shape_content(content)
        if has_calls:
            calls = shaped.pop("tool_calls")
            if calls:
                shaped["tool_calls"] = _shape_calls(calls)
        return shaped

    def _shape_content(self, content: Any) -> Any:
        if content is None:
            return "" if self._takes_text else []
        if isinstance(content, str):
            return content if self._takes_text else [{"type": "text", "text": content}]
        if self._takes_parts or not isinstance(content, list):
            return content
        # The way vLLM does it: one line for each part.
        return "\n".join(_text_of(part) for part in content)


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    helpers: dict[str, Callable[..., Any]] = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    environment.globals.update(helpers)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _text_of(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise ChatTemplateError(f"The chat template takes text only, but a message has a part of type {kind!r}.")


def _shape_calls(calls: Any) -> list[Any]:
    if not isinstance(calls, list):
        raise ChatTemplateError("`tool_calls` must be a list.")
    return [_with_parsed_arguments(call) for call in calls]


def _with_parsed_arguments(call: Any) -> Any:
    """OpenAI sends a call's arguments as a JSON string, templates expect the object. A string that is no JSON stays."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _cut_after_final_message(text: str, messages: Sequence[Message]) -> str:
    """Ends the prompt with the final message's own text, so that the model goes on where it stopped."""
    content = messages[-1].get("content") if messages else None
    if isinstance(content, list):
        texts = [part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
        content = texts[-1] if texts else None
    if not isinstance(content, str):
        raise ChatTemplateError("`continue_final_message` needs a final message with text.")
    at = text.rfind(content.strip())
    if at < 0:
        raise ChatTemplateError("`continue_final_message`: the template does not print the final message as it is.")
    kept = content.lstrip()
    # Trailing space is part of what to continue, unless the template trimmed it away.
    return text[: at + len(kept)] if text.startswith(kept, at) else text[: at + len(content.strip())]
