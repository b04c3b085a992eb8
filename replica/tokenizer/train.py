"""Trains the bundled tokenizer: `python -m replica.tokenizer.train` writes tokenizer.json from corpus.txt.

Owns the recipe. Must stay deterministic: the same corpus gives the same file, byte for byte.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from replica.tokenizer import corpus, directory

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 3072


def train(text: str) -> str:
    """tokenizer.json for a byte-level BPE of at most VOCABULARY tokens, special tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return tokenizer.to_str(pretty=True) + "\n"


if __name__ == "__main__":
    (directory() / "tokenizer.json").write_text(train(corpus()), encoding="utf-8")
