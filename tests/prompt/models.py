"""Small tokenizers of the kinds in use, trained here from the bundled corpus, as directories and as descriptions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from replica.tokenizer import corpus

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA_SPECIAL = ("<unk>", "<s>", "</s>")
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def gpt2() -> Tokenizer:
    """Byte-level BPE with GPT-2's own pattern."""
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), None)


def qwen() -> Tokenizer:
    """Byte-level BPE behind NFC and a splitting pattern."""
    steps = [
        pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return _byte_level(pre_tokenizers.Sequence(steps), normalizers.NFC())


def roberta(prefix_space: bool) -> Tokenizer:
    """Byte-level BPE, perhaps with a space before each piece, with added tokens that swallow spaces or overlap."""
    tokenizer = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=prefix_space), None)
    tokenizer.add_special_tokens(
        [
            AddedToken("<mask>", lstrip=True, rstrip=False, normalized=False),
            AddedToken("<|end|>", lstrip=False, rstrip=True, normalized=False),
            AddedToken("<|", lstrip=False, rstrip=False, normalized=False),
            AddedToken("|><|im", lstrip=False, rstrip=False, normalized=False),
        ]
    )
    tokenizer.add_tokens([AddedToken("bridge<", normalized=True), AddedToken("tide", normalized=True, lstrip=True)])
    return tokenizer


def llama_legacy() -> Tokenizer:
    """BPE over characters, spaces turned to ▁ by normalizers, which also prepend one to each piece."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _with_ends(_trained(tokenizer, LLAMA_SPECIAL), "<s> $A")


def llama_metaspace(scheme: str) -> Tokenizer:
    """BPE behind a Metaspace pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return _with_ends(_trained(tokenizer, LLAMA_SPECIAL), "<s> $A </s>")


@lru_cache
def every_kind() -> dict[str, Tokenizer]:
    return {
        "gpt2": gpt2(),
        "qwen": qwen(),
        "roberta": roberta(True),
        "phi": roberta(False),
        "llama_legacy": llama_legacy(),
        "metaspace_first": llama_metaspace("first"),
        "metaspace_always": llama_metaspace("always"),
    }


def save(tokenizer: Tokenizer, directory: Path, **config: Any) -> Path:
    """A model directory, with `config` as tokenizer_config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def _byte_level(splitter: pre_tokenizers.PreTokenizer, normalizer: normalizers.Normalizer | None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, SPECIAL, pre_tokenizers.ByteLevel.alphabet())


def _trained(tokenizer: Tokenizer, special: Sequence[str], alphabet: Sequence[str] = ()) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=list(special), initial_alphabet=sorted(alphabet), show_progress=False
    )
    # Short lines keep training fast where nothing splits at spaces.
    words = corpus()[:12000].split()
    tokenizer.train_from_iterator((" ".join(words[at : at + 4]) for at in range(0, len(words), 4)), trainer)
    return tokenizer


def _with_ends(tokenizer: Tokenizer, form: str) -> Tokenizer:
    names = [name for name in form.split() if name != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=form, special_tokens=[(name, tokenizer.token_to_id(name)) for name in names]
    )
    return tokenizer
