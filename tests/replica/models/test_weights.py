"""A checkpoint of any layout fills every parameter, or is refused before anything is copied."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kernels import reference
from replica.models.checkpoint import INDEX
from replica.models.config import ModelConfig, ModelError
from replica.models.decoder import Decoder
from replica.weights import fill_dummy, load
from tests.replica.models.paged_model import CPU, PagedModel
from tests.tiny_models import FAMILIES, write_tiny

Tensors = dict[str, Tensor]


def blank(directory: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """A decoder whose parameters are all NaN."""
    model = Decoder(ModelConfig.read(directory), reference, device=CPU, dtype=dtype)
    for weight in model.parameters():
        weight.fill_(torch.nan)
    return model


def loaded(directory: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    model = blank(directory, dtype)
    load(model, directory)
    return model


def same(one: Decoder, other: Decoder) -> bool:
    pairs = zip(one.named_parameters(), other.named_parameters(), strict=True)
    return all(left[0] == right[0] and torch.equal(left[1], right[1]) for left, right in pairs)


def rewrite(directory: Path, change: Callable[[Tensors], Any]) -> None:
    """Changes the tensors of a checkpoint that is one file."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("llama"), "llama", tokenizer=False)


@pytest.fixture
def copied(llama: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to be spoilt."""
    for file in llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_filled(family: str, tmp_path: Path) -> None:
    model = loaded(write_tiny(tmp_path, family, tokenizer=False))
    assert not any(weight.isnan().any() for weight in model.parameters())


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_stacked_experts_load_as_experts_one_by_one_do(family: str, tmp_path: Path) -> None:
    """Hubs hold a tensor for each expert; transformers 5 holds, and may write, one for all."""
    before = loaded(write_tiny(tmp_path, family, tokenizer=False))
    gate, up, down = ("w1", "w3", "w2") if family == "mixtral" else ("gate_proj", "up_proj", "down_proj")

    def stack(tensors: Tensors) -> None:
        experts = before.config.experts
        assert experts is not None
        for name in [name for name in tensors if ".block_sparse_moe." in name]:
            tensors[name.replace(".block_sparse_moe.", ".mlp.")] = tensors.pop(name)
        for layer in range(before.config.layers):
            prefix = f"model.layers.{layer}.mlp.experts."
            parts = {
                part: [tensors.pop(f"{prefix}{expert}.{part}.weight") for expert in range(experts.count)]
                for part in (gate, up, down)
            }
            pairs = zip(parts[gate], parts[up], strict=True)
            tensors[prefix + "gate_up_proj"] = torch.stack([torch.cat(pair) for pair in pairs])
            tensors[prefix + "down_proj"] = torch.stack(parts[down])

    rewrite(tmp_path, stack)
    assert same(loaded(tmp_path), before)


def test_several_files_load_as_one_does(llama: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path, "llama", tokenizer=False, shards=True)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert same(loaded(tmp_path), loaded(llama))


@pytest.mark.parametrize("saved", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("served", [torch.bfloat16, torch.float16, torch.float32])
def test_any_dtype_loads_into_any(saved: torch.dtype, served: torch.dtype, copied: Path) -> None:
    rewrite(copied, lambda tensors: tensors.update({name: tensor.to(saved) for name, tensor in tensors.items()}))
    norm, key = (
        load_file(copied / "model.safetensors")[f"model.layers.1.{name}.weight"].to(served)
        for name in ("input_layernorm", "self_attn.k_proj")
    )
    layer = loaded(copied, served).layers[1]
    assert torch.equal(layer.input_norm, norm)
    assert torch.equal(layer.attention.qkv.weight[64:96], key)


def test_what_old_checkpoints_carry_along_is_passed_over(tmp_path: Path) -> None:
    before = loaded(write_tiny(tmp_path, "llama", tokenizer=False, tie_word_embeddings=True))
    assert before.head is before.embedding

    def add(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)

    rewrite(tmp_path, add)
    assert same(loaded(tmp_path), before)


@pytest.mark.parametrize(
    "spelling", ["self_attn.{0}_scale", "self_attn.{0}_proj.{0}_scale", "self_attn.attn.{0}_scale"]
)
def test_scales_of_an_fp8_cache_are_read(spelling: str, copied: Path) -> None:
    def add(tensors: Tensors) -> None:
        tensors["model.layers.1." + spelling.format("k")] = torch.tensor(0.5)
        tensors["model.layers.1." + spelling.format("v")] = torch.tensor([0.25]).bfloat16()

    assert loaded(copied).kv_scales == [(1.0, 1.0), (1.0, 1.0)]
    rewrite(copied, add)
    assert loaded(copied).kv_scales == [(1.0, 1.0), (0.5, 0.25)]


def test_progress_ends_with_all_bytes(llama: Path) -> None:
    told: list[tuple[int, int]] = []
    model = blank(llama)
    load(model, llama, lambda done, total: told.append((done, total)))
    total = sum(weight.nbytes for weight in model.parameters())
    assert told[-1] == (total, total)
    assert told == sorted(set(told))
    assert len(told) == len(load_file(llama / "model.safetensors"))


def test_dummy_weights_follow_their_seed_and_keep_logits_sane(llama: Path) -> None:
    models = [blank(llama, torch.bfloat16) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        fill_dummy(model, seed)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])
    logits = PagedModel(models[0], 1, 16).step([[5, 6, 7]])[0]
    assert 0.1 < logits.std() < 10.0


def spoil(change: Callable[[Tensors], Any]) -> Callable[[Path], Any]:
    return lambda directory: rewrite(directory, change)


def truncate(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def only_bin(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def index(names: Any) -> Callable[[Path], Any]:
    return lambda directory: (directory / INDEX).write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (spoil(lambda t: t.pop("model.layers.1.self_attn.k_proj.weight")), r"missing: model\.layers\.1\.self_attn\.k_"),
        (spoil(lambda t: t.pop("lm_head.weight")), "missing: lm_head.weight"),
        (
            spoil(lambda t: [t.pop(name) for name in list(t) if ".layers.0." in name]),
            r"missing: model\.layers\.0\.input_layernorm\.weight, .* and 4 more",
        ),
        (
            spoil(lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)})),
            r"LlamaForCausalLM that config\.json describes; unexpected: model\.layers\.0\.self_attn\.q_proj\.bias",
        ),
        (
            spoil(lambda t: t.update({"model.norm.weight": torch.ones(65)})),
            r"misshapen: model\.norm\.weight \[65\], not \[64\]",
        ),
        (
            spoil(lambda t: t.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)})),
            r"quantised: model\.norm\.weight \(I8\)",
        ),
        (
            spoil(lambda t: t.update({"model.layers.0.self_attn.k_scale": torch.ones(2)})),
            "k_scale must be one positive number",
        ),
        (lambda d: (d / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{not json at all"), "fetch it again"),
        (lambda d: (d / "model.safetensors").write_bytes(b""), "not a whole safetensors file"),
        (truncate, "not a whole safetensors file"),
        (lambda d: (d / "model.safetensors").unlink(), r"holds no \*\.safetensors"),
        (only_bin, r"pickled weights only.*save_pretrained\(NEW_DIR\)"),
        (
            index({"model.norm.weight": "model-00002-of-00002.safetensors"}),
            "names model-00002-of-00002.*fetch the rest",
        ),
        (index({"model.norm.weight": 2}), "index.json: Expected `str`"),
        (lambda d: (d / INDEX).write_text("<html>"), "index.json is not JSON"),
    ],
)
def test_a_spoilt_checkpoint_is_refused_before_anything_is_copied(
    damage: Callable[[Path], Any], words: str, copied: Path
) -> None:
    model = blank(copied)
    damage(copied)
    with pytest.raises(ModelError, match=words) as refused:
        load(model, copied)
    assert str(copied) in str(refused.value)
    assert all(weight.isnan().all() for weight in model.parameters())
