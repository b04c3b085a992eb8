"""What clients say about sampling reaches the runner, the model's own wishes fill the gaps, and what cannot be is
refused in OpenAI's words.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from replica.sampling_params import SamplingParams
from tests.replica.scripted import ScriptedRunner, scripted_server

WISHES = SamplingParams(temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.05)


@pytest.fixture
async def served() -> AsyncIterator[tuple[httpx.AsyncClient, ScriptedRunner]]:
    async with scripted_server([5], WISHES) as (url, runner), httpx.AsyncClient(base_url=url, timeout=20) as http:
        yield http, runner


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, **fields}


async def params(served: tuple[httpx.AsyncClient, ScriptedRunner], **fields: Any) -> list[SamplingParams]:
    """What the runner is told for the answers to one chat."""
    http, runner = served
    runner.seen.clear()
    answer = await http.post("/v1/chat/completions", json=chat(**fields))
    assert answer.status_code == 200, answer.text
    return [request.sampling for request in sorted(runner.seen, key=lambda request: request.variant)]


async def test_the_model_s_own_wishes_hold_where_the_client_says_nothing(
    served: tuple[httpx.AsyncClient, ScriptedRunner],
) -> None:
    (found,) = await params(served)
    assert (found.temperature, found.top_k, found.top_p, found.repetition_penalty) == (0.6, 20, 0.95, 1.05)
    assert found.logprobs is None
    (found,) = await params(served, temperature=0, top_k=None, top_p=1)
    assert (found.temperature, found.top_k, found.top_p) == (0, 20, 1)


async def test_everything_that_is_said_reaches_the_runner(served: tuple[httpx.AsyncClient, ScriptedRunner]) -> None:
    said: dict[str, Any] = {
        "temperature": 1.5,
        "top_k": 3,
        "top_p": 0.5,
        "min_p": 0.1,
        "presence_penalty": -2,
        "frequency_penalty": 2,
        "repetition_penalty": 1.3,
        "seed": 7,
    }
    (found,) = await params(served, **said, logprobs=True, top_logprobs=4)
    assert found == SamplingParams(**said, logprobs=4)


@pytest.mark.parametrize(
    ("said", "field", "meant"),
    [
        ({"top_k": -1}, "top_k", 0),
        ({"top_k": 0}, "top_k", 0),
        ({"temperature": 1e-9}, "temperature", 0),
        ({"logprobs": True}, "logprobs", 0),
        ({"logprobs": False, "top_logprobs": 0}, "logprobs", None),
        ({"seed": -(2**63)}, "seed", -(2**63)),
    ],
)
async def test_what_is_meant_by_special_values(
    served: tuple[httpx.AsyncClient, ScriptedRunner], said: dict[str, Any], field: str, meant: object
) -> None:
    (found,) = await params(served, **said)
    assert getattr(found, field) == meant


async def test_a_seed_gives_different_answers_but_the_same_ones_again(
    served: tuple[httpx.AsyncClient, ScriptedRunner],
) -> None:
    seeds = [[one.seed for one in await params(served, n=4, seed=2**63 - 2)] for _ in range(2)]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 4
    unnamed = [one.seed for _ in range(2) for one in await params(served, n=4)]
    assert len(set(unnamed)) == 8
    assert all(-(2**63) <= seed < 2**63 for seed in (*seeds[0], *unnamed))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"temperature": 2.5},
            "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 2.5",
        ),
        (
            {"temperature": -1},
            "Invalid 'temperature': decimal below minimum value. Expected a value >= 0, but got -1.0",
        ),
        ({"top_p": 0}, "Invalid 'top_p': decimal below minimum value. Expected a value > 0, but got 0.0"),
        ({"top_p": 1.1}, "Invalid 'top_p': decimal above"),
        ({"top_k": -2}, "Invalid 'top_k': integer below minimum value. Expected a value >= -1, but got -2 instead."),
        ({"min_p": 2}, "Invalid 'min_p'"),
        ({"presence_penalty": 3}, "Invalid 'presence_penalty'"),
        ({"frequency_penalty": -3}, "Invalid 'frequency_penalty'"),
        ({"repetition_penalty": 0}, "Invalid 'repetition_penalty'"),
        ({"seed": 2**63}, "Invalid 'seed': integer above"),
        ({"top_logprobs": 3}, "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled."),
        ({"top_logprobs": 21, "logprobs": True}, "Invalid 'top_logprobs': integer above maximum value"),
        ({"stop": ["a"] * 65}, "`stop` may have 64 strings"),
        ({"stop": "a" * 2001}, "`stop` may have 64 strings at most, of 2000 characters"),
        ({"logit_bias": {"1": 5}}, "does not support logit biases"),
        ({"prompt_logprobs": 0}, "does not support log probabilities of the prompt"),
        ({"min_tokens": 3}, "does not support a least number of tokens"),
        ({"include_stop_str_in_output": True}, "does not support stop strings in the output"),
        ({"guided_json": {"type": "object"}}, "does not support structured output"),
        ({"structured_outputs": {"regex": "a"}}, "does not support structured output"),
        ({"response_format": {"type": "json_object"}}, "does not support the response format 'json_object'; only text"),
        ({"tool_choice": "required"}, "does not support a required tool call"),
        ({"repetition_penalty": 1e300}, "Invalid 'repetition_penalty': decimal above maximum value"),
        ({"repetition_penalty": 1e-300}, "Invalid 'repetition_penalty': decimal below minimum value"),
        ({"truncate_prompt_tokens": 5}, "does not support cutting prompts"),
        ({"chat_template": "{{ messages }}"}, "does not support a chat template of a request's own"),
        ({"functions": [{"name": "f"}]}, "does not support `functions`; use `tools`"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(
    served: tuple[httpx.AsyncClient, ScriptedRunner], fields: dict[str, Any], message: str
) -> None:
    answer = await served[0].post("/v1/chat/completions", json=chat(**fields))
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", next(iter(fields)))
    assert message in error["message"]
    assert not served[1].seen


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"logprobs": 21},
            "Invalid 'logprobs': integer above maximum value. Expected a value <= 20, but got 21 instead.",
        ),
        ({"logprobs": -1}, "Invalid 'logprobs': integer below"),
        ({"best_of": 3, "n": 2}, "`best_of` must equal `n`"),
        ({"echo": True}, "does not support echoing the prompt"),
        ({"suffix": "b"}, "does not support a suffix"),
    ],
)
async def test_what_a_completion_cannot_be_is_refused_by_name(
    served: tuple[httpx.AsyncClient, ScriptedRunner], fields: dict[str, Any], message: str
) -> None:
    answer = await served[0].post("/v1/completions", json={"model": "scripted", "prompt": "a"} | fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, next(iter(fields)))
    assert message in error["message"]


async def test_what_asks_for_nothing_is_let_through(served: tuple[httpx.AsyncClient, ScriptedRunner]) -> None:
    await params(
        served,
        min_tokens=0,
        logit_bias={},
        guided_json=None,
        bad_words=[],
        use_beam_search=False,
        response_format={"type": "text"},
        tool_choice="auto",
        chat_template=None,
        length_penalty=1,
    )
    body = {"model": "scripted", "prompt": "a", "best_of": 2, "n": 2, "echo": False, "suffix": ""}
    assert len((await served[0].post("/v1/completions", json=body)).json()["choices"]) == 2
