"""The tokens that bursts are made of.

Owns the choice of them. Must never give a special token: that would end or split a prompt.
"""

from __future__ import annotations

from pathlib import Path


def ordinary_tokens(directory: Path) -> list[int]:
    """Ids of the tokenizer in `directory` that stand for text: all but the special ones."""
    # Imported here so that `--help` need not wait for it.
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    special = tokenizer.get_added_tokens_decoder().keys()
    return sorted(set(tokenizer.get_vocab(with_added_tokens=True).values()) - special)
