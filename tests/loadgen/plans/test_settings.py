"""Settings: what a string becomes, and what is said of one that becomes nothing."""

from __future__ import annotations

from typing import Any

import pytest

from loadgen.plans.agents import Agents
from loadgen.plans.catalogue import WORKLOADS
from loadgen.plans.chat import Chat
from loadgen.plans.settings import read_settings, settings_of, split_setting
from loadgen.plans.trace import Trace


def test_strings_and_values_become_the_same_parameters() -> None:
    as_text = {"systems": "3", "zipf": "0.5", "turns": "2-4", "question_tokens": "7", "causal": "false"}
    as_values = {"systems": 3, "zipf": 0.5, "turns": [2, 4], "question_tokens": 7, "causal": False}
    wanted = Chat(systems=3, zipf=0.5, turns=(2, 4), question_tokens=(7, 7), causal=False)
    assert read_settings(Chat, as_text) == read_settings(Chat, as_values) == wanted


def test_none_is_a_value_where_a_parameter_may_be_none() -> None:
    assert read_settings(Trace, {"file": "none", "until_s": "none"}) == Trace("none")
    with pytest.raises(ValueError, match=r"^zipf: 'none' is not a number of at least 0$"):
        read_settings(Chat, {"zipf": "none"})


def test_what_is_not_given_has_its_default() -> None:
    assert read_settings(Chat, {}) == Chat()


@pytest.mark.parametrize(
    ("parameters", "name", "value", "allowed"),
    [
        (Chat, "systems", "0", "a whole number of at least 1"),
        (Chat, "systems", "2.5", "a whole number of at least 1"),
        (Chat, "zipf", "nan", "a number of at least 0"),
        (Chat, "think_s", "-1", "a number of at least 0 (s)"),
        (Chat, "turns", "4-2", "a whole number or two such with a dash, the lower first (3-6), of at least 1"),
        (Chat, "turns", "0-2", "a whole number or two such with a dash, the lower first (3-6), of at least 1"),
        (Chat, "turns", "a", "a whole number or two such with a dash, the lower first (3-6), of at least 1"),
        (Chat, "turns", [1, 2, 3], "a whole number or two such with a dash, the lower first (3-6), of at least 1"),
        (Chat, "causal", "perhaps", "true or false"),
        (Agents, "tool_role", "robot", "one of tool, user"),
        (Trace, "rate_scale", "0", "a number above 0"),
        (Trace, "until_s", "soon", "a number above 0 (s), or none"),
    ],
)
def test_a_bad_value_is_refused_by_name_with_what_is_allowed(
    parameters: Any, name: str, value: Any, allowed: str
) -> None:
    with pytest.raises(ValueError, match=f"^{name}: ") as caught:
        read_settings(parameters, {name: value})
    assert str(caught.value) == f"{name}: {value!r} is not {allowed}"


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"^turn: there is no such parameter; there are causal, .*, turns, zipf$"):
        read_settings(Chat, {"turn": "3"})


def test_what_must_be_given_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"^file: must be given"):
        read_settings(Trace, {"rate_scale": "2"})


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_parameter_is_described_and_its_default_allowed(workload: str) -> None:
    parameters = WORKLOADS[workload].parameters
    listed = settings_of(parameters)
    assert [setting.name for setting in listed] == list(parameters.__struct_fields__)
    for setting in listed:
        assert setting.description
        assert setting.unit == {"tokens": "tokens", "s": "s"}.get(setting.name.rpartition("_")[2], "")
    defaults = {setting.name: setting.default for setting in listed if not setting.required}
    required = {setting.name: "x" for setting in listed if setting.required}
    assert read_settings(parameters, defaults | required) == parameters(**required)


@pytest.mark.parametrize(("text", "split"), [("a=1", ("a", "1")), (" a = b=c ", ("a", "b=c")), ("a=", ("a", ""))])
def test_a_setting_is_split_at_its_first_sign(text: str, split: tuple[str, str]) -> None:
    assert split_setting(text) == split


@pytest.mark.parametrize("text", ["a", "=1", ""])
def test_what_sets_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write name=value"):
        split_setting(text)
