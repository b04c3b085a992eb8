"""The settings that are compared: how many routers there are, and how they know what is cached where.

Owns their names and titles. Must never hold anything else that could differ between two settings.
"""

from __future__ import annotations

from loadgen.fleet import Routers, Truth

REFERENCE = "one"
SETTINGS: dict[str, Truth] = {REFERENCE: "embedded", "shared": "redis", "private": "private"}
TITLES = {REFERENCE: "one router", "shared": "{} routers, one tree", "private": "{} routers, private"}


def routers_of(setting: str, several: int) -> Routers:
    return Routers(1 if setting == REFERENCE else several, SETTINGS[setting])
