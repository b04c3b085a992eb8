"""Proof of the block structure: it holds for every workload with the real tokenizer, and a breach of it is seen."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loadgen.plans.catalogue import WORKLOADS, make_plan
from loadgen.plans.plan import Plan
from loadgen.plans.verify import verify_chat, verify_text
from radix.chat import ChatTokenizer
from replica import tokenizer
from tests.loadgen.plans.made import VOCABULARY

EXCERPT = Path(__file__).parents[1] / "excerpt.jsonl"
BUNDLED = tokenizer.directory()


def small(workload: str) -> Plan:
    if workload == "trace":
        return make_plan("trace", settings={"file": str(EXCERPT), "token_scale": 8})
    return make_plan(workload, duration_s=10.0)


def other_model(folder: Path, name: str, before: str, after: str) -> ChatTokenizer:
    """The bundled tokenizer's directory with a change in one of its files."""
    model = Path(shutil.copytree(BUNDLED, folder / "model"))
    text = (model / name).read_text(encoding="utf-8")
    assert before in text
    (model / name).write_text(text.replace(before, after), encoding="utf-8")
    return ChatTokenizer.load(model)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_workload_s_prompts_are_cut_as_planned(workload: str) -> None:
    plan = small(workload)
    bundled = ChatTokenizer.load(BUNDLED)
    text, chat = verify_text(bundled, plan, 16), verify_chat(bundled, plan, 16)
    assert text.requests == chat.requests == min(16, plan.requests)
    assert chat.tokens > text.tokens


def test_a_tokenizer_that_knows_less_words_is_found_out(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(BUNDLED, model)
    read = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    read["model"]["merges"] = read["model"]["merges"][:500]
    (model / "tokenizer.json").write_text(json.dumps(read), encoding="utf-8")
    for verify in (verify_text, verify_chat):
        with pytest.raises(ValueError, match="its blocks are not the planned ones"):
            verify(ChatTokenizer.load(model), small("chat"), 4)


def test_a_template_that_trims_what_is_said_is_found_out(tmp_path: Path) -> None:
    trims = other_model(
        tmp_path, "chat_template.jinja", "'\\n' + message.content }}", "'\\n' + message.content | trim }}"
    )
    assert verify_text(trims, small("chat"), 4).requests == 4
    with pytest.raises(ValueError, match=r"chat template|its blocks are not"):
        verify_chat(trims, small("chat"), 4)


def test_a_template_that_repeats_what_is_said_is_found_out(tmp_path: Path) -> None:
    twice = other_model(
        tmp_path, "chat_template.jinja", "'\\n' + message.content }}", "'\\n' + message.content + message.content }}"
    )
    with pytest.raises(ValueError, match="cuts or repeats what messages say"):
        verify_chat(twice, small("chat"), 4)


def test_another_vocabulary_is_verified_with_the_words_it_gives() -> None:
    few = type(VOCABULARY)(VOCABULARY.words[:300], VOCABULARY.ids[:300])
    assert verify_text(ChatTokenizer.load(BUNDLED), small("rag"), 4, few).requests == 4


def test_plans_load_neither_torch_nor_a_tokenizer() -> None:
    code = (
        "import sys; from loadgen.plans import catalogue, ideals, prompts, verify;"
        "prompts.Prompts(catalogue.make_plan('chat'), 'text', 'planned'); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "tokenizers", "transformers", "aiohttp"} & set(loaded)
