"""Asks coordination servers how they are, by their four-letter words, in clear.

Owns the connection of a word and what is read out of its text: of zkserver, and of Apache
ZooKeeper as far as its words tell the same. It opens no session, so a server answers also while
its ensemble has no leader.

Source: ZooKeeper `org.apache.zookeeper.server.command`.
"""

from __future__ import annotations

import asyncio
import contextlib
from enum import Enum
from typing import Final, NamedTuple

WORD_SECONDS: Final = 2.0
MAX_ANSWER_BYTES: Final = 1024 * 1024
_NOT_SERVING: Final = "not currently serving requests"
_NOT_ALLOWED: Final = "is not in the whitelist"


class Reach(Enum):
    """How far one gets with a server."""

    SERVING = "serving"
    READ_ONLY = "read-only"
    """It has no leader and lets those read that are content with it."""
    NOT_SERVING = "not serving"
    """It lives and has no leader, or is not as far as its leader yet."""
    SILENT = "silent"
    """It lives and may not tell more: the word is not allowed."""
    UNREACHABLE = "unreachable"


class ServerState(NamedTuple):
    """What a server has told of itself."""

    address: str
    reach: Reach
    role: str = ""
    """leader, follower, observer, standalone, read-only; empty unless it serves."""
    zxid: int = 0
    """Of the last transaction that it has applied."""
    epoch: int = 0
    """Of its leader; where the server does not tell, of its last transaction."""
    clients: int = 0
    """Their connections, without the one that asks."""
    version: str = ""
    problem: str = ""
    """Why it could not be reached, or does not tell."""


async def ask(host: str, port: int, word: str, timeout: float = WORD_SECONDS) -> str:
    """The answer to a word, without what is beyond 1 MiB. Raises OSError, also for a timeout."""
    async with asyncio.timeout(timeout):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(word.encode())
            answer = bytearray()
            while len(answer) < MAX_ANSWER_BYTES and (piece := await reader.read(64 * 1024)):
                answer += piece
            return answer.decode(errors="replace")
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def state_of(host: str, port: int, timeout: float = WORD_SECONDS) -> ServerState:
    """How a server is. A server that cannot be reached is a result, not an error."""
    address = address_of(host, port)
    try:
        if port == 0:
            return ServerState(host, Reach.UNREACHABLE, problem="its client port is not told")
        text = await ask(host, port, "srvr", timeout)
        if not text:
            return ServerState(address, Reach.UNREACHABLE, problem="it does not answer srvr")
        if _NOT_SERVING in text:
            return ServerState(address, Reach.NOT_SERVING)
        if _NOT_ALLOWED in text:
            return ServerState(address, Reach.SILENT, problem="srvr is not allowed")
        told = fields_of(text, ": ")
        more = fields_of(await ask(host, port, "mntr", timeout), "\t")
    except TimeoutError:
        return ServerState(address, Reach.UNREACHABLE, problem=f"no answer in {timeout:g} s")
    except OSError as error:
        problem = error.strerror or str(error) or type(error).__name__
        return ServerState(address, Reach.UNREACHABLE, problem=problem.lower())
    zxid, role = _number(told.get("Zxid", "0")), told.get("Mode", "")
    return ServerState(
        address,
        Reach.READ_ONLY if role == "read-only" else Reach.SERVING,
        role,
        zxid,
        _number(more.get("zk_epoch", "")) or zxid >> 32,
        max(0, _number(told.get("Connections", "0")) - 1),
        told.get("Zookeeper version", ""),
    )


def address_of(host: str, port: int) -> str:
    """HOST:PORT, as people write it and clients take it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def fields_of(text: str, between: str) -> dict[str, str]:
    """The lines `NAME<between>VALUE` of a word's answer."""
    pairs = (line.partition(between) for line in text.splitlines())
    return {name: value.strip() for name, found, value in pairs if found}


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        return 0
