"""Short words for the events and effects of a peer: for the trace, and what a violation shows."""

from __future__ import annotations

from typing import Any

from duolog_cluster.sim.network import Link
from duolog_protocol.quorum_messages import Proposal


def describe(event: Any) -> str:
    """An event or an effect in one line, without the records it carries."""
    words = [type(event).__name__]
    for name in sorted(type(event).__slots__):
        value = getattr(event, name)
        if isinstance(value, Proposal):
            words.append(f"Proposal({value.first_zxid:#x}, {value.last_zxid:#x})")
        elif isinstance(value, int):
            words.append(f"{value:#x}")
        elif isinstance(value, list | tuple) and value and isinstance(value[0], bytes):
            words.append(f"{len(value)} records")
        elif isinstance(value, Link):
            words.append(repr(value))
        else:
            words.append(str(value))
    return " ".join(words)
