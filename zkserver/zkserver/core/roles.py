"""What the roles of a server have in common."""

from __future__ import annotations

from typing import Any, Final

from duolog_protocol.errors import RemoteProtocolError

MAX_CALLERS_PER_SERVER: Final = 4
"""Links that may wait, for the end of an election or for a first word, for each other server."""

MAX_NON_MEMBERS: Final = 8
"""Servers that are no members and learn from a leader: about to join, or just removed."""


class GaveUp(Exception):
    """A role cannot go on; its server looks for a leader again."""


def expect(condition: bool, what: str, *values: Any) -> None:
    """What a peer says must fit where the protocol stands. Raises RemoteProtocolError."""
    if not condition:
        told = ", ".join(f"{value:#x}" if type(value) is int else repr(value) for value in values)
        raise RemoteProtocolError(f"{what}: {told}")
