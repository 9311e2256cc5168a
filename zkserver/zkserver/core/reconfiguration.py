"""A request to change the members of the ensemble, checked and turned into a Txn.

Owns what a change may be: by whoever may write `/zookeeper/config`, based on the version that the
client has seen, one at a time, to members of whom a quorum has all that is proposed. Source:
ZooKeeper `PrepRequestProcessor` (reconfig), reference A.12.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any

from duolog_protocol.error_codes import ZkErrorCode

from .members import Member, parse_config, parse_member, parse_members, require_possible
from .prepare import Rejected
from .quorum import Quorums


def wanted_members(shown: bytes, message: Any) -> tuple[Member, ...]:
    """The members that a `ReconfigRequest` asks for. Raises Rejected.

    `shown`: what `/zookeeper/config` holds.
    """
    joining, leaving, replaced, version = message
    try:
        members, current_version = parse_config(shown)
    except ValueError as error:
        raise Rejected(ZkErrorCode.SYSTEM_ERROR, f"/zookeeper/config: {error}") from error
    if version not in (-1, current_version):
        text = f"the members are of version {current_version:#x}, not {version:#x}"
        raise Rejected(ZkErrorCode.BAD_VERSION, text)
    try:
        return _wanted(members, joining, leaving, replaced)
    except ValueError as error:
        raise Rejected(ZkErrorCode.BAD_ARGUMENTS, str(error)) from error


def require_quorum(wanted: Iterable[Member], synced: Set[int]) -> None:
    """Whether they can be members, and a quorum of the participants among them could go on at once.
    Raises Rejected.

    `synced`: the servers that have all that is proposed.
    """
    members = tuple(wanted)
    try:
        require_possible(members)
    except ValueError as error:
        raise Rejected(ZkErrorCode.BAD_ARGUMENTS, str(error)) from error
    voters = frozenset(each.server_id for each in members if each.is_voter)
    if not Quorums(voters).has_quorum(synced):
        here = ", ".join(map(str, sorted(voters & synced))) or "none"
        text = f"no quorum of the new participants is here and up to date: {here} of {len(voters)}"
        raise Rejected(ZkErrorCode.NEW_CONFIG_NO_QUORUM, text)


def _wanted(
    members: Iterable[Member], joining: str | None, leaving: str | None, replaced: str | None
) -> tuple[Member, ...]:
    """The members after the change. Raises ValueError."""
    if replaced:
        if joining or leaving:
            raise ValueError("either all new members, or who joins and who leaves")
        wanted = {each.server_id: each for each in parse_members(_texts(replaced))}
    else:
        wanted = {each.server_id: each for each in members}
        for text in _texts(leaving):
            if not text.isdecimal():
                raise ValueError(f"{text!r} is no id of a server that leaves")
            wanted.pop(int(text), None)
        for text in _texts(joining):
            member = parse_member(text)
            wanted[member.server_id] = member
    if not wanted:
        raise ValueError("nobody would be left")
    return parse_members(map(str, wanted.values()))


def _texts(text: str | None) -> list[str]:
    parts = (text or "").replace("\n", ",").split(",")
    return [part.strip() for part in parts if part.strip()]
