"""Legal topic names. Source: Kafka `Topic.validate`, `Topic.hasCollision`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

MAX_NAME_CHARS: Final = 249
_LEGAL: Final = re.compile(r"[A-Za-z0-9._-]+")


def name_problem(name: str) -> str | None:
    """What is wrong with a topic name, in words, or None when it is legal."""
    if not name:
        return "a topic name must not be empty"
    if name in {".", ".."}:
        return f"a topic must not be called {name!r}"
    if len(name) > MAX_NAME_CHARS:
        return f"a topic name has at most {MAX_NAME_CHARS} characters, this one {len(name)}"
    if not _LEGAL.fullmatch(name):
        return f"topic name {name[:60]!r} may only have letters, digits, '.', '_' and '-'"
    return None


def colliding_name(name: str, existing: Iterable[str]) -> str | None:
    """An existing topic that differs only in '.' against '_': metrics would confuse the two."""
    if "." not in name and "_" not in name:
        return None
    folded = name.replace(".", "_")
    for other in existing:
        if other != name and other.replace(".", "_") == folded:
            return other
    return None
