"""The members of an ensemble, as people write them and as `/zookeeper/config` shows them.

    ID=HOST:PEER_PORT[:participant|:observer][;[CLIENT_HOST:]CLIENT_PORT]

It is ZooKeeper's `server.ID=...` with one port for other servers instead of two, so that the lines
of `/zookeeper/config`, which programs parse, name it twice. A host that is an IPv6 address stands
in brackets. Source: ZooKeeper `QuorumPeer.QuorumServer`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from duolog_protocol.quorum_messages import MAX_HOST_BYTES, PORT_LAST, SERVER_ID_LAST

MAX_MEMBERS: Final = 32
_ANY_HOST: Final = ("", "0.0.0.0", "::")
"""Client hosts that stand for all addresses of the server."""
_HOST: Final = r"\[[0-9A-Fa-f:.%]+\]|[^\s:;,\[\]=]+"
_MEMBER: Final = re.compile(
    rf"(?:server\.)?(?P<id>\d{{1,9}})=(?P<host>{_HOST}):(?P<port>\d{{1,5}})(?::(?P<election>\d{{1,5}}))?"
    rf"(?::(?P<role>participant|observer))?(?:;(?:(?P<client_host>{_HOST}):)?(?P<client>\d{{1,5}}))?"
)


class Member(NamedTuple):
    """One server of an ensemble."""

    server_id: int
    host: str
    peer_port: int
    is_voter: bool = True
    client_host: str = ""
    """Where its clients reach it; empty: at `host`."""
    client_port: int = 0
    """0: not told."""
    election_port: int = 0
    """Of no use here: shown again as it was told. 0: not told."""

    @property
    def client_address(self) -> tuple[str, int]:
        """(host, port) where clients reach it; port 0: not told."""
        host = self.host if self.client_host in _ANY_HOST else self.client_host
        return host, self.client_port

    def __str__(self) -> str:
        """A line of `/zookeeper/config`."""
        host = _bracketed(self.host)
        role = "participant" if self.is_voter else "observer"
        election_port = self.election_port or self.peer_port
        text = f"server.{self.server_id}={host}:{self.peer_port}:{election_port}:{role}"
        if self.client_port:
            text += f";{_bracketed(self.client_host or self.host)}:{self.client_port}"
        return text


def parse_member(text: str) -> Member:
    """The member that a text describes. Raises ValueError, which says what is wrong."""
    found = _MEMBER.fullmatch(text.strip())
    if found is None:
        raise ValueError(
            f"{text!r} must be ID=HOST:PEER_PORT[:participant|:observer][;[HOST:]CLIENT_PORT]"
        )
    server_id, port, client = int(found["id"]), int(found["port"]), int(found["client"] or 0)
    if not 1 <= port <= PORT_LAST or client > PORT_LAST:
        raise ValueError(f"{text!r}: a port must be in [1, {PORT_LAST}]")
    is_voter = found["role"] != "observer"
    client_host = (found["client_host"] or "").strip("[]")
    election = int(found["election"] or 0)
    election = 0 if election == port else election
    host = found["host"].strip("[]")
    if len(host.encode()) > MAX_HOST_BYTES:
        raise ValueError(f"a host must have at most {MAX_HOST_BYTES} bytes: {host[:50]}...")
    return Member(server_id, host, port, is_voter, client_host, client, election)


def parse_members(texts: Iterable[str]) -> tuple[Member, ...]:
    """All members, by ascending id. Raises ValueError."""
    members = sorted(map(parse_member, texts))
    ids = [each.server_id for each in members]
    if len(set(ids)) != len(ids):
        raise ValueError(f"an id is there twice: {ids}")
    addresses = [(each.host, each.peer_port) for each in members]
    if len(set(addresses)) != len(addresses):
        raise ValueError("two members have one address")
    if len(members) > MAX_MEMBERS:
        raise ValueError(f"{len(members)} members are more than {MAX_MEMBERS}")
    if members and not any(each.is_voter for each in members):
        raise ValueError("nobody is a participant")
    return tuple(members)


def require_possible(members: Iterable[Member]) -> None:
    """Whether all ids can be those of servers, and clients reach each where no other one is.
    Raises ValueError."""
    places: dict[tuple[str, int], int] = {}
    for each in members:
        if not 1 <= each.server_id <= SERVER_ID_LAST:
            raise ValueError(f"{str(each)!r}: the id must be in [1, {SERVER_ID_LAST}]")
        host, port = place = each.client_address
        if port and places.setdefault(place, each.server_id) != each.server_id:
            text = f"servers {places[place]} and {each.server_id} have one address for clients"
            raise ValueError(f"{text}: {_bracketed(host)}:{port}")


def config_data(members: Iterable[Member], version: int) -> bytes:
    """What `/zookeeper/config` holds. `version`: the zxid of the change that made it; first 0."""
    lines = [*map(str, members), f"version={version:x}"]
    return "\n".join(lines).encode()


def parse_config(data: bytes) -> tuple[tuple[Member, ...], int]:
    """The members and the version of what `/zookeeper/config` holds. Raises ValueError."""
    *lines, last = data.decode().split("\n")
    name, equals, version = last.partition("=")
    if name != "version" or not equals:
        raise ValueError(f"{last!r} is no version")
    return parse_members(lines), int(version, 16)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
