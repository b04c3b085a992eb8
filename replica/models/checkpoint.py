"""The safetensors files of a model directory: which they are, and what their headers say.

Owns the refusal of files that are absent, broken or in another format. Files are mapped, not read. Must never interpret
a tensor's name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError, safe_open
from torch import Tensor

from replica.models.written import ModelError, read_json

INDEX = "model.safetensors.index.json"
_DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a file's header has it; `dtype` in safetensors' words."""

    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def is_float(self) -> bool:
        """False for what only quantised checkpoints hold."""
        return self.dtype in _DTYPE_BYTES

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * _DTYPE_BYTES[self.dtype]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of the directory's checkpoint by its name, file by file. Raises ModelError."""
    stored = {}
    for file in _files(directory):
        with _opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                header = tensors.get_slice(name)
                stored[name] = StoredTensor(file, tuple(header.get_shape()), header.get_dtype())
    return stored


def read_tensors(stored: dict[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor, mapped from its file: valid until the next is asked for."""
    for file in sorted({tensor.file for tensor in stored.values()}):
        with _opened(file) as tensors:
            for name, tensor in stored.items():
                if tensor.file == file:
                    yield name, tensors.get_tensor(name)


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not a whole safetensors file ({error}); fetch it again") from error


def _files(directory: Path) -> list[Path]:
    try:
        named = set(read_json(directory / INDEX, _Index).weight_map.values())
    except FileNotFoundError:
        return _unindexed(directory)
    missing = sorted(name for name in named if not (directory / name).is_file())
    if missing:
        raise ModelError(f"{directory / INDEX} names {', '.join(missing)}, not there; fetch the rest of the model")
    return sorted(directory / name for name in named)


def _unindexed(directory: Path) -> list[Path]:
    whole = directory / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(directory.glob("*.safetensors"))
    if files:
        return files
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt*")):
        raise ModelError(
            f"{directory} holds pickled weights only, which are not loaded, for they may run code. Convert them: "
            "transformers.AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR) writes safetensors"
        )
    raise ModelError(f"{directory} holds no *.safetensors; to run without weights, use --load-format dummy")
