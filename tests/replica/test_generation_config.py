"""A model's own wishes for sampling are the defaults of requests, and nonsense in them is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from replica.generation_config import read_defaults
from replica.models.config import ModelError
from replica.sampling_params import SamplingParams


def written(directory: Path, text: str) -> Path:
    (directory / "generation_config.json").write_text(text)
    return directory


def test_what_the_file_says_is_the_default_and_what_it_leaves_out_is_ours(tmp_path: Path) -> None:
    said = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.05, "min_p": None}
    other = {"do_sample": False, "eos_token_id": [1, 2], "bos_token_id": 0, "max_new_tokens": 9}
    assert read_defaults(written(tmp_path, json.dumps(said | other))) == SamplingParams(
        temperature=0.6, top_p=0.95, top_k=20, repetition_penalty=1.05
    )


def test_a_model_without_such_a_file_has_our_defaults(tmp_path: Path) -> None:
    assert read_defaults(tmp_path) == SamplingParams()


@pytest.mark.parametrize(("written_as", "meant"), [(-1, 0), (0, 0), (40.0, 40)])
def test_top_k_without_a_limit_is_written_in_two_ways(tmp_path: Path, written_as: float, meant: int) -> None:
    defaults = read_defaults(written(tmp_path, json.dumps({"top_k": written_as})))
    assert (defaults.top_k, type(defaults.top_k)) == (meant, int)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", "hot"),
        ("temperature", True),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_k", 1.5),
        ("top_k", float("inf")),
        ("min_p", [0.1]),
        ("repetition_penalty", 0.0),
    ],
)
def test_what_is_no_value_is_refused_by_name(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(ModelError, match=f"no value for `{name}`"):
        read_defaults(written(tmp_path, json.dumps({name: value})))


@pytest.mark.parametrize("text", ["nope", "[1]", '"a"'])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        read_defaults(written(tmp_path, text))
