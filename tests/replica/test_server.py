"""The server speaks OpenAI's API, as the official client and a plain socket see it."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import openai
import pytest

from radix.blocks import block_keys, namespace_seed
from radix.events import BlockRemoved, Registration, decode_snapshot, pack_keys, unpack_keys
from replica.service import ReplicaService
from replica.settings import Settings
from replica.simulated import TimingModel
from tests.replica.conftest import QUICK
from tests.replica.replay import Replay

CACHED = "x-radixgate-cached-tokens"
LONG = "Tell me everything about bridges and bread, please, and leave nothing out. " * 8


def chat(text: str = LONG, **fields: Any) -> dict[str, Any]:
    return {"model": "simulated", "messages": [{"role": "user", "content": text}], "max_tokens": 8, **fields}


def events(text: str) -> list[Any]:
    """The JSON of a stream's events, without its end mark."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [msgspec.json.decode(line) for line in lines]


async def test_the_official_client_chats(service: ReplicaService) -> None:
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none") as client:
        assert [model.id async for model in client.models.list()] == ["simulated"]
        assert (await client.models.retrieve("simulated")).id == "simulated"
        whole = await client.chat.completions.create(
            model="simulated", messages=[{"role": "user", "content": LONG}], max_tokens=20
        )
        assert whole.choices[0].finish_reason == "length"
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 20
        stream = await client.chat.completions.create(
            model="simulated",
            messages=[{"role": "user", "content": LONG}],
            max_tokens=20,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[0].choices[0].delta.role == "assistant"
        assert (
            "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
        )
        assert chunks[-2].choices[0].finish_reason == "length"
        used = chunks[-1].usage
        assert used is not None
        assert used.prompt_tokens_details is not None
        assert used.prompt_tokens_details.cached_tokens == (used.prompt_tokens - 1) // 16 * 16
        with pytest.raises(openai.NotFoundError, match="`other` does not exist"):
            await client.chat.completions.create(model="other", messages=[{"role": "user", "content": "hi"}])


async def test_completions_take_text_tokens_and_lists_of_either(http: httpx.AsyncClient) -> None:
    tokens = (await http.post("/tokenize", json={"prompt": LONG})).json()["tokens"]
    texts = []
    for prompt in (LONG, tokens, [LONG, "other"], [tokens, [1, 2, 3]]):
        answer = await http.post("/v1/completions", json={"model": "simulated", "prompt": prompt})
        assert answer.status_code == 200
        body = answer.json()
        assert body["object"] == "text_completion"
        several = isinstance(prompt, list) and not isinstance(prompt[0], int)
        assert [choice["index"] for choice in body["choices"]] == list(range(2 if several else 1))
        assert body["usage"]["completion_tokens"] == 16 * len(body["choices"]), "OpenAI's default length"
        texts.append(body["choices"][0]["text"])
    assert len(set(texts)) == 1


async def test_the_second_time_a_prompt_is_cached_and_a_salt_keeps_it_apart(http: httpx.AsyncClient) -> None:
    first = await http.post("/v1/chat/completions", json=chat())
    again = await http.post("/v1/chat/completions", json=chat())
    salted = await http.post("/v1/chat/completions", json=chat(cache_salt="tenant"))
    used = again.json()["usage"]
    expected = (used["prompt_tokens"] - 1) // 16 * 16
    assert expected > 64
    assert [answer.headers[CACHED] for answer in (first, again, salted)] == ["0", str(expected), "0"]
    assert used["prompt_tokens_details"]["cached_tokens"] == expected
    streamed = await http.post("/v1/chat/completions", json=chat(stream=True))
    assert streamed.headers[CACHED] == str(expected)
    assert streamed.headers["content-type"].startswith("text/event-stream")


async def test_the_next_turn_finds_the_answer_cached(http: httpx.AsyncClient) -> None:
    body = chat(max_tokens=200)
    answer = (await http.post("/v1/chat/completions", json=body)).json()
    body["messages"] += [answer["choices"][0]["message"], {"role": "user", "content": "Go on."}]
    following = (await http.post("/v1/chat/completions", json=body)).json()
    total = answer["usage"]["total_tokens"]
    assert following["usage"]["prompt_tokens_details"]["cached_tokens"] >= (total - 1) // 16 * 16 - 16


async def test_several_answers_to_one_prompt(http: httpx.AsyncClient) -> None:
    whole = (await http.post("/v1/chat/completions", json=chat(n=3))).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert whole["usage"]["completion_tokens"] == 24
    one = (await http.post("/v1/chat/completions", json=chat())).json()
    assert whole["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    streamed = events((await http.post("/v1/chat/completions", json=chat(n=3, stream=True))).text)
    texts = ["", "", ""]
    for event in streamed:
        choice = event["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]
    assert [e["choices"][0]["index"] for e in streamed if e["choices"][0]["delta"].get("role")] == [0, 1, 2]


async def test_stop_strings_and_lengths_end_an_answer(http: httpx.AsyncClient) -> None:
    full = (await http.post("/v1/chat/completions", json=chat(max_tokens=60))).json()["choices"][0]["message"][
        "content"
    ]
    word = full.split()[5]
    for stream in (False, True):
        answer = await http.post("/v1/chat/completions", json=chat(max_tokens=60, stop=[word], stream=stream))
        if stream:
            choices = [event["choices"][0] for event in events(answer.text)]
            text, reason = "".join(c["delta"].get("content", "") for c in choices), choices[-1]["finish_reason"]
        else:
            choice = answer.json()["choices"][0]
            text, reason = choice["message"]["content"], choice["finish_reason"]
        assert text == full[: full.find(word)]
        assert reason == "stop"
    ending = (await http.post("/v1/chat/completions", json=chat(max_tokens=None))).json()
    assert ending["choices"][0]["finish_reason"] == "stop"
    assert 32 <= ending["usage"]["completion_tokens"] <= 256


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": ""}, 400, "model"),
        ({"model": "gpt-5"}, 404, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": "hi"}, 400, None),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_completion_tokens": -1}, 400, "max_completion_tokens"),
        ({"max_tokens": 5000}, 400, "messages"),
        ({"n": 0}, 400, "n"),
        ({"n": 1000}, 400, "n"),
        ({"stop": ""}, 400, "stop"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
        ({"tools": [{"type": "function"}], "tool_choice": "required"}, 400, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, 400, "tool_choice"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, 400, "response_format"),
        ({"logprobs": True}, 400, "logprobs"),
        ({"logit_bias": {"1": 5}}, 400, "logit_bias"),
        ({"modalities": ["audio"]}, 400, "modalities"),
        ({"chat_template_kwargs": {"messages": []}}, 400, "messages"),
        ({"add_generation_prompt": True, "continue_final_message": True}, 400, "messages"),
    ],
)
async def test_chats_that_cannot_be_answered(
    http: httpx.AsyncClient, fields: dict[str, Any], status: int, param: str | None
) -> None:
    answer = await http.post("/v1/chat/completions", json=chat() | fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (status, param, "invalid_request_error")
    assert error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [10**9]}, "prompt"),
        ({"prompt": ["a"] * 200}, "prompt"),
        ({"prompt": [1] * 4096, "max_tokens": 1}, "prompt"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "logprobs": 0}, "logprobs"),
    ],
)
async def test_completions_that_cannot_be_answered(http: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    answer = await http.post("/v1/completions", json={"model": "simulated"} | fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"a"', b"\xff", b"[" * 100_000])
async def test_what_is_no_request_at_all(http: httpx.AsyncClient, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
        answer = await http.post(path, content=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]


async def test_other_paths_and_methods_are_refused_in_the_same_form(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/nothing")).json()["error"]["message"].startswith("There is no /v1/nothing")
    wrong = await http.get("/v1/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"]["type"] == "invalid_request_error"
    assert (await http.get("/v1/models/other")).status_code == 404


async def test_a_context_that_is_too_long_says_by_how_much(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/completions", json={"model": "simulated", "prompt": [5] * 4000, "max_tokens": 97})
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "4096 tokens" in error["message"]
    assert "4000 tokens and 97 output tokens" in error["message"]


async def test_tokens_and_text_go_both_ways(http: httpx.AsyncClient) -> None:
    text = "Straße, 東京 and 🌉 bridges"
    answer = (
        await http.post("/tokenize", json={"model": "simulated", "prompt": text, "return_token_strs": True})
    ).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == 4096
    assert (await http.post("/detokenize", json={"tokens": answer["tokens"]})).json() == {"prompt": text}
    messages = [{"role": "user", "content": text}]
    chatted = (await http.post("/tokenize", json={"messages": messages})).json()
    used = (await http.post("/v1/chat/completions", json=chat(text))).json()["usage"]
    assert chatted["count"] == used["prompt_tokens"]
    assert (await http.post("/tokenize", json={})).status_code == 400
    assert (await http.post("/detokenize", json={"tokens": [10**9]})).status_code == 400


async def test_half_a_surrogate_pair_is_refused(http: httpx.AsyncClient) -> None:
    body = b'{"model": "simulated", "prompt": "\\ud800"}'
    assert (await http.post("/v1/completions", content=body)).status_code == 400


async def test_routers_learn_who_it_is_and_what_it_holds(http: httpx.AsyncClient, service: ReplicaService) -> None:
    said = msgspec.json.decode((await http.get("/radixgate/info")).content, type=Registration)
    assert (said.name, said.url, said.models) == ("r1", service.url, ("simulated",))
    assert (said.block_size, said.capacity_blocks, said.max_model_len) == (16, 512, 4096)
    prompt = list(range(5, 105))
    for seq in (1, 1):
        await http.post("/v1/completions", json={"model": "simulated", "prompt": prompt, "max_tokens": 1})
        answer = await http.get("/radixgate/blocks")
        assert answer.headers["content-type"] == "application/msgpack"
        snapshot = decode_snapshot(answer.content)
        assert (snapshot.replica, snapshot.epoch, snapshot.seq) == ("r1", said.epoch, seq)
        assert list(Replay(snapshot.stored).parents) == block_keys(prompt, 16, namespace_seed("simulated"))


async def fill(http: httpx.AsyncClient, service: ReplicaService, prompts: int) -> set[int]:
    """Every resident key, after so many prompts of 20 blocks each."""
    for number in range(prompts):
        prompt = range(10 + number, 330 + number)
        await http.post("/v1/completions", json={"model": "simulated", "prompt": list(prompt), "max_tokens": 1})
    snapshot = decode_snapshot((await http.get("/radixgate/blocks")).content)
    assert snapshot.epoch == service.account().epoch
    return {key for event in snapshot.stored for key in event.keys}


@pytest.mark.parametrize(("prompts", "wanted"), [(20, 7), (20, 10_000), (1, 7), (1, 10**30), (0, 7)])
async def test_auditors_take_samples_of_what_it_holds(
    http: httpx.AsyncClient, service: ReplicaService, prompts: int, wanted: int
) -> None:
    held = await fill(http, service, prompts)
    assert len(held) == 20 * prompts
    drawn = []
    for _ in range(2):
        answer = await http.get(f"/radixgate/blocks?sample={wanted}")
        assert answer.headers["x-radixgate-epoch"] == str(service.account().epoch)
        keys = unpack_keys(msgspec.msgpack.decode(answer.content, type=bytes))
        assert len(keys) == len(set(keys)) == min(wanted, len(held))
        assert held.issuperset(keys)
        drawn.append(keys)
    assert drawn[0] != drawn[1] or not held, "a sample is drawn anew each time"


@pytest.mark.parametrize("size", ["", "0", "000", "-1", "1.5", "many", "٣"])
async def test_samples_of_no_size_are_refused(http: httpx.AsyncClient, size: str) -> None:
    answer = await http.get("/radixgate/blocks", params={"sample": size})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "sample")


async def test_auditors_ask_whether_it_holds_a_block(http: httpx.AsyncClient, service: ReplicaService) -> None:
    held = sorted(await fill(http, service, 1))
    for asked in ([], [0, *held, 2**64 - 1, held[0]], range(10_000)):
        answer = await http.post("/radixgate/holds", content=pack_keys(asked))
        assert answer.headers["x-radixgate-epoch"] == str(service.account().epoch)
        assert answer.content == bytes(key in held for key in asked)
    for body in (b"1234567", pack_keys(range(10_001))):
        refused = await http.post("/radixgate/holds", content=body)
        assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_what_a_step_evicts_is_on_record_before_an_auditor_hears_of_it() -> None:
    """Else an honest replica with long steps would seem to have lost blocks that it never reported as gone."""
    service = ReplicaService(Settings("r1", kv_blocks=32, timing=TimingModel(step_s=0.5), max_model_len=512))
    await service.start()
    pool, journal = service.engine.scheduler.pool, service.engine.journal
    async with httpx.AsyncClient(base_url=service.url, timeout=20) as http:
        held = await fill(http, service, 1)
        due = journal.next_seq
        body = {"model": "simulated", "prompt": [7] * 400, "max_tokens": 1}
        asked = asyncio.create_task(http.post("/v1/completions", json=body))
        while pool.resident == len(held):
            await http.get("/health")
        answer = await http.post("/radixgate/holds", content=pack_keys(held))
        gone = {key for key, there in zip(held, answer.content, strict=True) if not there}
        batch = journal.batch(due)
        assert batch is not None
        removed = [key for event in batch.events if isinstance(event, BlockRemoved) for key in event.keys]
        assert gone
        assert gone.issubset(removed)
        assert (await asked).status_code == 200
    await service.stop()


async def test_metrics_use_the_names_of_vllm(http: httpx.AsyncClient) -> None:
    for _ in range(2):
        await http.post("/v1/completions", json={"model": "simulated", "prompt": [7] * 33, "max_tokens": 3})
    text = (await http.get("/metrics")).text
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    label = '{model_name="simulated"}'
    expected = {
        "num_requests_running": 0,
        "num_requests_waiting": 0,
        "kv_cache_usage_perc": 0,
        "num_preemptions_total": 0,
        "prefix_cache_queries_total": 66,
        "prefix_cache_hits_total": 32,
        "prompt_tokens_total": 66,
        "generation_tokens_total": 6,
        "time_to_first_token_seconds_count": 2,
        "inter_token_latency_seconds_count": 4,
        "e2e_request_latency_seconds_count": 2,
        "request_queue_time_seconds_count": 2,
        "iteration_tokens_total_count": 6,
    }
    assert {name: float(figures[f"vllm:{name}{label}"]) for name in expected} == expected
    assert float(figures['vllm:request_success_total{finished_reason="length",model_name="simulated"}']) == 2


async def test_it_says_that_it_is_well(http: httpx.AsyncClient, service: ReplicaService) -> None:
    assert (await http.get("/health")).status_code == 200
    assert (await http.get("/version")).json()["version"]
    await service.engine.stop()
    assert (await http.get("/health")).status_code == 503
    refused = await http.post("/v1/chat/completions", json=chat())
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "server_error")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_takes_its_request_with_it(service: ReplicaService, stream: bool) -> None:
    body = msgspec.json.encode(chat(stream=stream, max_tokens=3500))
    address = urlsplit(service.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    if stream:
        await reader.readuntil(b"content")
    else:
        await writer.drain()
        async with httpx.AsyncClient(base_url=service.url) as other:
            while 'num_requests_running{model_name="simulated"} 1.0' not in (await other.get("/metrics")).text:
                pass
    writer.transport.abort()
    await service.engine.idle()
    pool = service.engine.scheduler.pool
    assert pool.referenced == 0
    assert 0 < pool.resident < 200, "what was computed stays cached, and the rest was never computed"


async def test_an_answer_cut_off_by_shutdown_may_be_tried_elsewhere() -> None:
    service = ReplicaService(Settings("r1", timing=QUICK, drain_s=0))
    await service.start()
    async with httpx.AsyncClient(base_url=service.url) as http:
        asking = asyncio.create_task(http.post("/v1/chat/completions", json=chat(max_tokens=20_000)))
        while 'num_requests_running{model_name="simulated"} 1.0' not in (await http.get("/metrics")).text:
            pass
        await service.stop()
        answer = await asking
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable"), "routers try again after 503"


async def test_a_stream_cut_off_by_shutdown_ends_with_an_error_event() -> None:
    service = ReplicaService(Settings("r1", timing=QUICK, drain_s=0))
    await service.start()
    async with (
        httpx.AsyncClient(base_url=service.url) as http,
        http.stream("POST", "/v1/chat/completions", json=chat(stream=True, max_tokens=20_000)) as answer,
    ):
        lines = answer.aiter_lines()
        seen = [await anext(lines)]
        stopping = asyncio.create_task(service.stop())
        seen += [line async for line in lines if line]
        await stopping
    assert "shutting down" in msgspec.json.decode(seen[-2].removeprefix("data: "))["error"]["message"]
    assert seen[-1] == "data: [DONE]"
