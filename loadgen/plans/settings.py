"""Parameters of workloads that can be set by name: what they mean, their units, and how a string becomes one.

Owns the way from `name=value` to a frozen struct, and the messages about what is wrong. Must never know a workload.
"""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

P = TypeVar("P", bound=msgspec.Struct)
Span = tuple[int, int]
"""Inclusive bounds of a uniform draw; written 3-6, or 4 for 4-4."""


def about(description: str, unit: str = "", ge: float | None = None, gt: float | None = None) -> msgspec.Meta:
    """What stands beside a parameter's type. Bounds hold for both ends of a span."""
    return msgspec.Meta(description=description, extra={"unit": unit, "ge": ge, "gt": gt})


class Setting(msgspec.Struct, frozen=True):
    """One parameter, as help texts show it. `default` is None where there is none, or where none is one."""

    name: str
    default: Any
    unit: str
    description: str
    required: bool = False


def settings_of(parameters: type[msgspec.Struct]) -> tuple[Setting, ...]:
    """What can be set of `parameters`, in its order."""
    hints = typing.get_type_hints(parameters, include_extras=True)
    listed = []
    for field in msgspec.structs.fields(parameters):
        meta = _meta(hints[field.name])
        default = None if field.default is msgspec.NODEFAULT else field.default
        unit = (meta.extra or {})["unit"]
        listed.append(Setting(field.name, default, unit, meta.description or "", field.required))
    return tuple(listed)


def read_settings(parameters: type[P], given: Mapping[str, Any]) -> P:
    """`parameters` with what is `given`, values or strings of such. Raises ValueError that names the parameter."""
    hints = typing.get_type_hints(parameters, include_extras=True)
    values = {}
    for name, value in given.items():
        if name not in hints:
            raise ValueError(f"{name}: there is no such parameter; there are {', '.join(sorted(hints))}")
        values[name] = _read(name, value, hints[name])
    for setting in settings_of(parameters):
        if setting.required and setting.name not in values:
            raise ValueError(f"{setting.name}: must be given ({setting.description})")
    return parameters(**values)


def split_setting(text: str) -> tuple[str, str]:
    """`name=value` in two. Raises ValueError where there is no name or no `=`."""
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise ValueError(f"{text!r} sets nothing; write name=value")
    return name.strip(), value.strip()


def _read(name: str, value: Any, hint: Any) -> Any:
    meta = _meta(hint)
    kind = typing.get_args(hint)[0]
    try:
        read = _span(value) if kind == Span else _plain(value, kind)
    except ValueError:  # msgspec's ValidationError is one
        raise ValueError(f"{name}: {value!r} is not {_allowed(kind, meta)}") from None
    if not all(_within(part, meta) for part in (read if kind == Span else (read,))):
        raise ValueError(f"{name}: {value!r} is not {_allowed(kind, meta)}")
    return read


def _plain(value: Any, kind: Any) -> Any:
    if typing.get_origin(kind) is types.UnionType and value == "none":
        return None
    return msgspec.convert(value, kind, strict=False)


def _meta(hint: Any) -> msgspec.Meta:
    meta = typing.get_args(hint)[1]
    assert isinstance(meta, msgspec.Meta)
    return meta


def _span(value: Any) -> Span:
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", value.strip())
        if match is None:
            raise ValueError(value)
        value = (match[1], match[2] or match[1])
    elif isinstance(value, int):
        value = (value, value)
    low, high = msgspec.convert(value, Span, strict=False)
    if low > high:
        raise ValueError(value)
    return low, high


def _within(value: Any, meta: msgspec.Meta) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return True
    bounds = meta.extra or {}
    least, above = bounds["ge"], bounds["gt"]
    return math.isfinite(value) and (least is None or value >= least) and (above is None or value > above)


def _allowed(kind: Any, meta: msgspec.Meta) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    optional = typing.get_origin(kind) is types.UnionType
    if kind == Span:
        what = "a whole number or two such with a dash, the lower first (3-6),"
    elif typing.get_origin(kind) is typing.Literal:
        what = "one of " + ", ".join(typing.get_args(kind))
    else:
        what = names[typing.get_args(kind)[0] if optional else kind]
    bounds = meta.extra or {}
    least = "" if bounds["ge"] is None else f" of at least {bounds['ge']:g}"
    above = "" if bounds["gt"] is None else f" above {bounds['gt']:g}"
    unit = f" ({bounds['unit']})" if bounds["unit"] else ""
    return what + least + above + unit + (", or none" if optional else "")
