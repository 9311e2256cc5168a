"""Garbage collection for a process with a large, long-lived heap.

What a daemon keeps (znodes, index entries) is freed by reference counts and never part of a cycle,
but CPython's collector walks all of it again and again: 0.5 s for a million znodes, in which nobody
is answered. Here what has survived two collections is set aside for good (`gc.freeze`, which costs
nothing), so that a collection only ever looks at what is young. The price: a cycle that was set
aside while it lived is never freed. Owners break the cycles that they make (a connection and its
link) when they end.
"""

from __future__ import annotations

import gc
import os
import resource
from typing import Any, Final

_YOUNG_OBJECTS: Final = 10_000
"""New container objects, less those that died, that start a collection: 0.5 ms."""
_YOUNG_ROUNDS: Final = 10
"""Collections of the young after which those of the last ten are looked at together: 5 ms."""


_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def set_survivors_aside() -> None:
    """Call once, when the process begins; idempotent."""
    gc.set_threshold(_YOUNG_OBJECTS, _YOUNG_ROUNDS, 1_000_000)
    if _on_collection not in gc.callbacks:
        gc.callbacks.append(_on_collection)


def _on_collection(phase: str, info: dict[str, Any]) -> None:
    if phase == "stop" and info["generation"] > 0:
        gc.freeze()


def resident_bytes() -> int:
    """Memory of this process; its peak where the system does not tell the present."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except OSError:
        peak_kib: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak_kib * 1024
