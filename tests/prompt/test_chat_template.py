"""Templates are rendered as Hugging Face renders them, and messages reach them in the shape they can handle."""

from __future__ import annotations

from typing import Any

import pytest

from radix.chat_template import ChatTemplate, ChatTemplateError

TEXT_ONLY = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
PARTS_ONLY = "{% for m in messages %}{% for p in m.content %}({{ p.text }}){% endfor %}{% endfor %}"
BOTH = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for p in m.content %}({{ p['text'] }}){% endfor %}{% endif %}{% endfor %}"
)
PARTS = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]


def render(source: str, content: Any = "hi", **options: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}).render(
        [{"role": "user", "content": content}], **options
    )


@pytest.mark.parametrize(("source", "content", "expected"), [
    (TEXT_ONLY, "one", "[user] one"),
    (TEXT_ONLY, PARTS, "[user] one\ntwo"),
    (TEXT_ONLY, None, "[user] "),
    (PARTS_ONLY, "one", "(one)"),
    (PARTS_ONLY, PARTS, "(one)(two)"),
    (PARTS_ONLY, None, ""),
    (BOTH, "one", "one"),
    (BOTH, PARTS, "(one)(two)"),
])  # fmt: skip
def test_content_comes_as_the_template_can_handle_it(source: str, content: Any, expected: str) -> None:
    assert render(source, content) == expected


@pytest.mark.parametrize(("source", "expected"), [
    ("{{ bos_token }}|{{ eos_token }}|{{ unk_token }}", "<s>|</s>|"),
    ("{% for m in messages %}\n  {% if true %}\nx\n  {% endif %}\n{% endfor %}\n", "x\n"),
    ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
    ("{% for i in range(4) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "023"),
    ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
    ("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}", '{\n "a": 2,\n "b": 1\n}'),
    ("{% generation %}x{{ 1 + 1 }}{% endgeneration %}y", "x2y"),
    ("{{ strftime_now('%%') }}", "%"),
    ("{{ messages[0].items() | list | length }}", "2"),
    ("{{ messages[0].nothing is defined }}", "False"),
    ("{{ thinking }}{{ tools is none }}{{ documents is none }}", "yesTrueTrue"),
])  # fmt: skip
def test_the_environment_is_hugging_faces(source: str, expected: str) -> None:
    assert render(source, thinking="yes") == expected


@pytest.mark.parametrize(("source", "complaint"), [
    ("{{ raise_exception('Roles must alternate.') }}", "Roles must alternate."),
    ("{{ messages.append(1) }}", "append"),
    ("{{ ''.__class__.__mro__ }}", "__class__"),
    ("{{ messages[0].a.b }}", "a"),
    ("{{ 1 / 0 }}", "ZeroDivisionError"),
])  # fmt: skip
def test_what_a_template_refuses_is_told_in_its_words(source: str, complaint: str) -> None:
    with pytest.raises(ChatTemplateError, match=complaint):
        render(source)


def test_a_source_that_is_no_jinja_is_refused_at_once() -> None:
    with pytest.raises(ChatTemplateError, match="not valid Jinja"):
        ChatTemplate("{% for %}", {})


@pytest.mark.parametrize("messages", [
    ["hi"],
    [["role", "user"]],
    [{"role": "user", "content": [{"type": "image_url"}]}],
    [{"role": "assistant", "content": "", "tool_calls": 5}],
])  # fmt: skip
def test_messages_of_an_odd_shape_are_refused(messages: list[Any]) -> None:
    with pytest.raises(ChatTemplateError):
        ChatTemplate(TEXT_ONLY, {}).render(messages)


def test_arguments_of_calls_become_objects() -> None:
    template = ChatTemplate("{% for c in messages[0].tool_calls %}{{ c.function.arguments | tojson }};{% endfor %}", {})
    arguments = ['{"a": 1}', "", "no json", {"b": 2}]
    calls = [{"function": {"name": "f", "arguments": each}} for each in arguments]
    messages = [{"role": "assistant", "content": None, "tool_calls": calls}]
    assert template.render(messages) == '{"a": 1};{};"no json";{"b": 2};'
    assert calls[0]["function"]["arguments"] == '{"a": 1}'  # the caller's messages stay as they are


TURNS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<go>{% endif %}"
)
TRIMMED = "{% for m in messages %}<{{ m.content | trim }}>{% endfor %}"


@pytest.mark.parametrize(("source", "content", "expected"), [
    (TURNS, "The tide ", "<user>q</><assistant>The tide "),
    (TRIMMED, " The tide ", "<q><The tide"),
    (TURNS, [{"type": "text", "text": "The tide"}], "<user>q</><assistant>The tide"),
])  # fmt: skip
def test_a_final_message_can_be_continued(source: str, content: Any, expected: str) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": content}]
    template = ChatTemplate(source, {})
    assert template.render(messages, add_generation_prompt=False, continue_final_message=True) == expected
    with pytest.raises(ChatTemplateError, match="only one"):
        template.render(messages, continue_final_message=True)


def test_template_arguments_cannot_replace_the_messages() -> None:
    with pytest.raises(ChatTemplateError, match="messages"):
        ChatTemplate(TURNS, {}).render([], messages=[])
