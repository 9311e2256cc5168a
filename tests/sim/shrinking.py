"""From a failing seed to a short script: what can be left out, so that it still fails the same way.

Delta debugging (Zeller, Hildebrandt 2002) over the things of a `Script`: halves are left out, then
quarters, down to single ones, until nothing more can go. Without one thing all later chance is
drawn differently, so that a number may mean something else in the next attempt; what is kept is
always what did happen in a history that failed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from .script import Script, Told

MOST_ATTEMPTS: Final = 1_000


class Failure(NamedTuple):
    """A history that has failed."""

    violation: Exception
    told: list[Told]

    @property
    def kind(self) -> str:
        """The invariant's name."""
        return str(self.violation).partition(":")[0]

    @property
    def kept(self) -> list[int]:
        """The numbers of what has happened."""
        return [each.number for each in self.told]


def attempt(live: Callable[[Script], Any], kept: list[int] | None) -> Failure | None:
    """Live through one history; None: it holds."""
    script = Script(None if kept is None else frozenset(kept))
    try:
        live(script)
    except Exception as violation:
        return Failure(violation, script.told)
    return None


def shrink(live: Callable[[Script], Any]) -> Failure:
    """The shortest history found that fails as the whole one does.

    `live` makes a world with a script and lives through it. Raises ValueError if that holds.
    """
    failure = attempt(live, None)
    if failure is None:
        raise ValueError("the history holds: there is nothing to shrink")
    attempts, size = 1, (len(failure.told) + 1) // 2
    while size and attempts < MOST_ATTEMPTS:
        position, before = 0, len(failure.told)
        while position < len(failure.told) and attempts < MOST_ATTEMPTS:
            kept = failure.kept
            shorter = attempt(live, kept[:position] + kept[position + size :])
            attempts += 1
            if (
                shorter is not None
                and shorter.kind == failure.kind
                and len(shorter.told) < len(kept)
            ):
                failure = shorter
            else:
                position += size
        if size > 1:
            size //= 2
        elif len(failure.told) == before:
            break
    return failure
