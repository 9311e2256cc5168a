"""`duolog zk status`: who of an ensemble is there, who leads, who is behind; `zk reconfig`.

Asks every server by its four-letter words, those that were named and the other members; a server
that hangs or is down is a row of the answer. The members are told by the word `conf`; where that
is not allowed (as Apache ZooKeeper has it) by zkserver's `/zookeeper/config`.

Source: ZooKeeper `org.apache.zookeeper.server.command`, its `/zookeeper/config`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from duolog import ZkClient
from duolog.core.zk_session import parse_hosts
from duolog_protocol.errors import ConfigError, Error
from zkserver.core.members import Member, parse_config

from ..zk_words import Reach, ServerState, address_of, ask, state_of
from .common import table
from .zk_verbs import show

CONFIG_PATH: Final = "/zookeeper/config"
_PAUSE_SECONDS: Final = 0.2
"""Before all are asked again."""
_VOTING_ROLES: Final = ("leader", "follower", "standalone")

Address = tuple[str, int]


class Members(NamedTuple):
    """Who belongs to the ensemble; `version` is the zxid of the change that made it so."""

    members: tuple[Member, ...]
    version: int


class Server(NamedTuple):
    """One server, and what was found out of it."""

    state: ServerState
    member: Member | None
    """None: it is not known to be one."""


class Ensemble:
    """What all of them have told."""

    def __init__(self, servers: Sequence[Server], members: Members | None) -> None:
        self.servers = servers
        self.members = members
        """None: nobody has told."""
        leaders = [each for each in servers if each.state.role in ("leader", "standalone")]
        self.leader = max(leaders, key=lambda each: each.state.epoch, default=None)

    @property
    def voters(self) -> int:
        """How many servers vote; 0: not known."""
        return 0 if self.members is None else sum(each.is_voter for each in self.members.members)

    @property
    def voters_serving(self) -> int:
        """How many of them serve."""
        return sum(
            each.state.role in _VOTING_ROLES and (each.member is not None or not self.voters)
            for each in self.servers
        )

    @property
    def serves(self) -> bool:
        """Whether a quorum serves. Where the members are not known, whoever serves has one."""
        if not self.voters:
            return any(each.state.reach is Reach.SERVING for each in self.servers)
        return self.leader is not None and self.voters_serving > self.voters // 2

    @property
    def all_serve(self) -> bool:
        """Whether every member serves; where those are not known, everybody who was asked."""
        asked = [each for each in self.servers if each.member is not None or self.members is None]
        return self.serves and all(each.state.reach is Reach.SERVING for each in asked)

    def lag(self, server: Server) -> int | None:
        """Transactions that the server is behind the leader; None: that cannot be told."""
        if self.leader is None or server.state.reach is not Reach.SERVING:
            return None
        leader_zxid, zxid = self.leader.state.zxid, server.state.zxid
        if leader_zxid >> 32 != zxid >> 32:
            return None  # it has nothing of the leader's epoch, and that epoch's start is not told
        return max(0, leader_zxid - zxid)  # it was perhaps asked a moment later


async def status(options: argparse.Namespace) -> int:
    """Ask, print, and say by the exit status whether a quorum (or everybody) serves.

    Raises ConfigError.
    """
    hosts = parse_hosts(options.zookeeper)
    if hosts.chroot:
        raise ConfigError("zookeeper", options.zookeeper, "a chroot has no servers of its own")
    loop = asyncio.get_running_loop()
    end = loop.time() + options.wait
    while True:
        ensemble = await look(hosts.addresses, options)
        good = ensemble.all_serve if options.all else ensemble.serves
        if good or loop.time() >= end:
            break
        await asyncio.sleep(_PAUSE_SECONDS)
    print(json.dumps(_json(ensemble)) if options.json else _text(ensemble))
    return 0 if good else 1


async def reconfig(zk: ZkClient, options: argparse.Namespace) -> None:
    """Change the members, and print what they are then. Raises ConfigError."""
    if not (options.add or options.remove or options.members):
        raise ConfigError("reconfig", "", "name --add, --remove or --members")
    data, _ = await zk.reconfig(
        ",".join(options.add or ()) or None,
        ",".join(options.remove or ()) or None,
        options.members,
        -1 if options.version is None else options.version,
    )
    show(options, data.decode().splitlines(), data.decode())


async def look(given: Sequence[Address], options: argparse.Namespace) -> Ensemble:
    """Ask the servers given, then all that they know of at the same time: their zxids are
    compared."""
    found = None
    first = await asyncio.gather(*(state_of(*each, options.timeout) for each in given))
    for address, state in zip(given, first, strict=True):
        if found is None and state.role not in ("", "standalone"):
            found = await _members(address, options)
    places = {each: await _places(each) for each in given}
    wanted: list[tuple[Address, Member | None]] = []
    for member in found.members if found is not None else ():
        address = member.client_address
        place = await _places(address)
        known = [each for each in places if place & places[each]]
        for each in known:
            del places[each]
        wanted.append((known[0] if known else address, member))
    wanted += [(each, None) for each in places]
    states = await asyncio.gather(*(state_of(*each, options.timeout) for each, _ in wanted))
    servers = [Server(state, member) for state, (_, member) in zip(states, wanted, strict=True)]
    return Ensemble(servers, found)


async def _places(address: Address) -> set[tuple[Any, ...]]:
    """All that an address means: names and addresses of one server are the same."""
    host, port = address
    with contextlib.suppress(OSError):
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return {(each[4][0], port) for each in found}
    return {address}


async def _members(address: Address, options: argparse.Namespace) -> Members | None:
    """Who belongs to the ensemble, as a server knows it; None: it does not tell."""
    host, port = address
    with contextlib.suppress(OSError):
        told = (await ask(host, port, "conf", options.timeout)).partition("membership: \n")[2]
        if told:
            return _parsed(told.strip().encode())
    with contextlib.suppress(Error):
        async with ZkClient(
            address_of(host, port),
            session_timeout=options.session_timeout,
            auth_data=options.auth,
        ) as zk:
            return _parsed((await zk.get(CONFIG_PATH))[0] or b"")
    return None


def _parsed(data: bytes) -> Members | None:
    try:
        return Members(*parse_config(data))
    except ValueError:
        return None


def _text(ensemble: Ensemble) -> str:
    rows: list[list[object]] = []
    for each in ensemble.servers:
        state, member = each.state, each.member
        row: list[object] = [member.server_id if member else "-", state.address]
        if state.role:
            lag = ensemble.lag(each)
            told: list[object] = [state.epoch, f"{state.zxid:#x}", "?" if lag is None else lag]
            row += [state.role, *told, state.clients]
        else:
            row += [state.reach.value, "", "", "", ""]
        rows.append([*row, state.problem])
    heads = ["server", "address", "role", "epoch", "zxid", "lag", "clients", ""]
    return f"{table(heads, rows)}\n{_verdict(ensemble)}"


def _verdict(ensemble: Ensemble) -> str:
    leader = ensemble.leader
    verdict = "a quorum serves" if ensemble.serves else "no quorum serves"
    if leader is not None and leader.state.role == "standalone":
        return "it serves, standalone"
    if ensemble.voters:
        verdict += f": {ensemble.voters_serving} of {ensemble.voters} voters"
    elif ensemble.serves:
        verdict += "; who else belongs to it was not told"
    return verdict


def _json(ensemble: Ensemble) -> dict[str, Any]:
    leader = ensemble.leader
    return {
        "serves": ensemble.serves,
        "leader_id": leader.member.server_id if leader is not None and leader.member else None,
        "voters": ensemble.voters or None,
        "voters_serving": ensemble.voters_serving,
        "config_version": ensemble.members.version if ensemble.members else None,
        "servers": [
            {
                "server_id": each.member.server_id if each.member else None,
                "voter": each.member.is_voter if each.member else None,
                "lag": ensemble.lag(each),
                **each.state._asdict(),
                "reach": each.state.reach.value,
            }
            for each in ensemble.servers
        ],
    }
