"""The bundled tokenizer: small, for tests and demonstrations, trained by `train.py` from `corpus.txt`.

Owns where its files lie. The corpus is also the text that the load generator composes documents from.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def directory() -> Path:
    """The folder with tokenizer.json, tokenizer_config.json and chat_template.jinja, as ChatTokenizer.load wants it."""
    return Path(str(files(__name__)))


def corpus() -> str:
    """The training text: essays in plain English, separated by blank lines, each beginning with its title."""
    return (directory() / "corpus.txt").read_text(encoding="utf-8")
