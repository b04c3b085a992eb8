"""What a model's generation_config.json says about sampling: the defaults of requests that say nothing themselves.

Owns the reading of that file, as other engines read it: a field that is there is the default, one that is not there or
null leaves ours, and `do_sample` is not looked at. Where answers end is the tokenizer's business. Must stay torch-free.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from replica.models.config import ModelError
from replica.sampling_params import SamplingParams
from replica.sampling_ranges import RANGES

_FILE = "generation_config.json"
_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def read_defaults(directory: Path) -> SamplingParams:
    """The defaults of the model in `directory`; ours if it has no such file. Raises ModelError for a broken one."""
    path = directory / _FILE
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return SamplingParams()
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} must hold a JSON object")
    given = {name: _number(path, name, content[name]) for name in _FIELDS if content.get(name) is not None}
    return SamplingParams(**given)


def _number(path: Path, name: str, value: Any) -> Any:
    """Raises ModelError for what is no number, or none that the parameter may be."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and RANGES[name].admits(value):
        if name != "top_k":
            return float(value)
        if value == int(value):
            return max(0, int(value))
    raise ModelError(f"{path}: {value!r} is no value for `{name}`; correct it or remove the line")
