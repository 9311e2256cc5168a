"""The members of an ensemble on this machine, and their ports.

An ensemble has its members in its log, with their ports, from its first start on. So they are kept
in a file beside the directories of the servers, for the next start.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from duolog_protocol.errors import Error

MEMBERS_FILE: Final = "zkserver-members"
"""A member a line, as zkserver's setting `servers` has them."""
PORTS: Final = (10_000, 32_768)


def new_members(count: int, observers: int = 0, port: int = 0) -> list[str]:
    """Members of a new ensemble: `count` that vote, then observers. `port`: for clients of the
    first, the others have those after it; 0: any free ones. Raises Error."""
    total = count + observers
    free = free_ports(2 * total)
    peer_ports, ports = free[:total], range(port, port + total) if port else free[total:]
    roles = ["participant"] * count + ["observer"] * observers
    return [
        f"{at + 1}=127.0.0.1:{peer_ports[at]}:{roles[at]};127.0.0.1:{ports[at]}"
        for at in range(total)
    ]


def client_port(member: str) -> int:
    """Where clients reach it."""
    return int(member.rpartition(":")[2])


def members_in(data: str) -> list[str]:
    """The members that are kept in a directory; none: there is no ensemble."""
    try:
        return Path(data, MEMBERS_FILE).read_text().split()
    except FileNotFoundError:
        return []


def keep_members(data: str, members: Sequence[str]) -> None:
    """Keep them, all or none. Raises OSError."""
    os.makedirs(data, exist_ok=True)
    new = Path(data, f"{MEMBERS_FILE}.new")
    new.write_text("".join(f"{each}\n" for each in members))
    new.replace(Path(data, MEMBERS_FILE))


def free_ports(count: int) -> list[int]:
    """Different ports of loopback that were free a moment ago. Raises Error.

    None is one that the system gives to outgoing connections: while a server is away, a connection
    that looks for it could take its port, even by connecting to itself.
    """
    found: list[int] = []
    rng = random.SystemRandom()
    with ExitStack() as stack:
        for _ in range(100 * count):
            if len(found) == count:
                return found
            port = rng.randrange(*PORTS)
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
    raise Error(f"there are no {count} free ports")
