"""Who comes before whom among the contenders for a lock, and how a set is divided.

Pure. Contenders are sequential znodes below one path; their names are kazoo's, so that its locks
and ours exclude each other: `<32 hex digits><kind><sequence>`.

Source: the lock recipes of the ZooKeeper documentation, kazoo `Lock`, `SetPartitioner`; kazoo #730
for what the sequence does at its end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

EXCLUSIVE: Final = "__lock__"
SHARED: Final = "__rlock__"

_SEQUENCE: Final = re.compile(r"(-?\d{10})$")
_HALF: Final = 1 << 31
_WHOLE: Final = 1 << 32


def sequence_of(name: str) -> int | None:
    """The number that the server appended to a name, None for a name without one."""
    found = _SEQUENCE.search(name)
    return int(found[1]) if found is not None else None


def in_order(names: Iterable[str], kinds: Iterable[str]) -> list[str]:
    """The contenders of some kinds among these names, oldest first.

    The server's counter has 32 bits and goes on at its other end (2147483647, -2147483648, ...):
    the order is that of a circle in which all contenders lie within one half.
    """
    wanted = tuple(kinds)
    found: list[tuple[int, str]] = []
    for name in names:
        sequence = sequence_of(name)
        if sequence is not None and _kind_matches(name, wanted):
            found.append((sequence % _WHOLE, name))
    numbers = [number for number, _ in found]
    if numbers and max(numbers) - min(numbers) >= _HALF:
        found = [(number + _WHOLE if number < _HALF else number, name) for number, name in found]
    return [name for _, name in sorted(found)]


def _kind_matches(name: str, kinds: tuple[str, ...]) -> bool:
    stem = _SEQUENCE.sub("", name)
    return stem.endswith(kinds)


def predecessor(
    names: Iterable[str], mine: str, *, own_kind: str, blocked_by: Iterable[str]
) -> str | None:
    """The contender that must go before `mine` may have it: the youngest older one.

    None: nobody is before it. `mine` must be among the names.
    """
    blocking = tuple(blocked_by)
    order = in_order(names, {own_kind, *blocking})
    before = order[: order.index(mine)]
    for name in reversed(before):
        if _kind_matches(name, blocking):
            return name
    return None


def divide(items: Iterable[T], members: Iterable[str], mine: str) -> list[T]:
    """This member's share: the sorted items are dealt out to the sorted members in turn."""
    order: Sequence[str] = sorted(members)
    return sorted(items, key=str)[order.index(mine) :: len(order)]
