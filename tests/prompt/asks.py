"""Requests as they arrive: a JSON body, read by the router's own reader."""

from __future__ import annotations

import json
from typing import Any

from router.api import CHAT, COMPLETIONS, Ask, read_ask


def chat(messages: Any, **fields: Any) -> Ask:
    return read_ask(CHAT, json.dumps({"model": "m", "messages": messages, **fields}).encode())


def completion(prompt: Any, **fields: Any) -> Ask:
    return read_ask(COMPLETIONS, json.dumps({"model": "m", "prompt": prompt, **fields}).encode())


def turns(texts: list[str]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]
