"""HTML and SVG elements as text.

Owns escaping: plain text becomes safe here, and nowhere else. Must never be handed foreign text as `Markup`.
"""

from __future__ import annotations

from html import escape

_EMPTY = frozenset({"meta"})
_DRAWN = frozenset({"rect", "line", "path", "circle"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str | float | None) -> Markup:
    """`<name ...>children</name>`; children that are not Markup are escaped.

    In attribute names `_` stands for `-`, one at the end is dropped (`class_`). Numbers get one decimal at most; an
    attribute of None is left out.
    """
    said = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    if name in _EMPTY:
        return Markup(f"<{name}{said}>")
    if name in _DRAWN and not children:
        return Markup(f"<{name}{said}/>")
    return Markup(f"<{name}{said}>{join(*children)}</{name}>")


def join(*parts: str) -> Markup:
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts))


def number(value: float) -> str:
    """One decimal, none where it is 0: what a drawing needs, and short."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


def _attribute(key: str, value: str | float) -> str:
    text = value if isinstance(value, str) else number(value)
    return f' {key.rstrip("_").replace("_", "-")}="{escape(text)}"'
