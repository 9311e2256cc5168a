"""Members as text, the memberships of a log, and what a change of them may be."""

from __future__ import annotations

import pytest

from duolog_protocol import zk_messages as zk
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.txns import TxnKind, encode_txn
from duolog_protocol.types import make_zxid
from zkserver.core.members import (
    Member,
    config_data,
    parse_config,
    parse_member,
    parse_members,
    require_possible,
)
from zkserver.core.membership import Membership, Memberships, membership_of
from zkserver.core.prepare import Rejected
from zkserver.core.reconfiguration import require_quorum, wanted_members

THREE = tuple(Member(n, f"10.0.0.{n}", 2888, True, "", 2181) for n in (1, 2, 3))


@pytest.mark.parametrize(
    ("text", "member"),
    [
        ("1=10.0.0.1:2888", Member(1, "10.0.0.1", 2888)),
        ("server.1=zk1:2888;2181", Member(1, "zk1", 2888, True, "", 2181)),
        ("2=zk2:2888:observer;0.0.0.0:2181", Member(2, "zk2", 2888, False, "0.0.0.0", 2181)),
        ("3=zk3:2888:3888:participant", Member(3, "zk3", 2888, True, "", 0, 3888)),
        ("4=[::1]:2888;[::]:2181", Member(4, "::1", 2888, True, "::", 2181)),
    ],
)
def test_a_member_is_written_as_in_zookeeper_s_configuration(text: str, member: Member) -> None:
    assert parse_member(text) == member
    assert parse_member(str(member)) == member._replace(
        client_host=member.client_host or _host(member)
    )


def _host(member: Member) -> str:
    return member.host if member.client_port else ""


@pytest.mark.parametrize(
    "text",
    [
        *("", "1", "x=a:1", "1=a", "1=a:0", "1=a:70000", "1=a:1:leader", "1=a:1;", "1=:1"),
        *("1=a b:1", f"1={'a' * 256}:1"),
    ],
)
def test_what_is_no_member_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must (be|have)"):
        parse_member(text)


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (["1=a:1", "1=b:1"], "twice"),
        (["1=a:1", "2=a:1"], "one address"),
        (["1=a:1:observer"], "nobody is a participant"),
    ],
)
def test_members_that_cannot_be_an_ensemble_are_refused(texts: list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_members(texts)


@pytest.mark.parametrize(
    "texts",
    [
        *(["1=a:1;2181", "2=a:2;2181"], ["1=a:1;2181", "2=b:1;a:2181"]),
        *(["1=a:1;0.0.0.0:2181", "2=a:2;[::]:2181"], ["1=a:1", "2=b:1;c:1", "3=c:1;1"]),
    ],
)
def test_clients_cannot_reach_two_members_at_one_address(texts: list[str]) -> None:
    with pytest.raises(
        ValueError, match=r"servers \d and \d have one address for clients: [ac]:\d"
    ):
        require_possible(parse_members(texts))


def test_each_machine_may_have_its_clients_at_the_same_port() -> None:
    require_possible(parse_members(["1=a:1;0.0.0.0:2181", "2=b:1;0.0.0.0:2181", "3=c:1", "4=d:1"]))


def test_the_config_node_tells_members_and_version() -> None:
    data = config_data(THREE, make_zxid(1, 5))
    assert data.splitlines()[0] == b"server.1=10.0.0.1:2888:2888:participant;10.0.0.1:2181"
    assert data.splitlines()[-1] == b"version=100000005"
    members, version = parse_config(data)
    assert [each.server_id for each in members] == [1, 2, 3] and version == make_zxid(1, 5)


# ---- the memberships of a log -------------------------------------------------------------------


def record(zxid: int, members: tuple[Member, ...], *, is_joint: bool) -> bytes:
    body = (TxnKind.MEMBERS, int(is_joint), config_data(members, zxid))
    return encode_txn(zxid, 0, 0, 0, body)


def test_a_joint_membership_needs_both_quorums_from_the_append_on() -> None:
    four = (*THREE[1:], Member(4, "10.0.0.4", 2888), Member(5, "10.0.0.5", 2888))
    found = Memberships(Membership(frozenset({1, 2, 3})))
    assert found.on_appended(10, [record(10, four, is_joint=True)])
    quorums = found.current.quorums
    assert found.current.is_joint and found.current.has_voter(1)
    assert not quorums.has_quorum({1, 2}), "no quorum of the new ones"
    assert not quorums.has_quorum({3, 4, 5}), "no quorum of the old ones"
    assert quorums.has_quorum({2, 3, 4})
    assert found.on_appended(11, [record(11, four, is_joint=False)])
    assert found.current.quorums.has_quorum({3, 4, 5}) and not found.current.has_voter(1)
    assert found.since_zxid == 11


def test_what_is_truncated_is_taken_back() -> None:
    found = Memberships(Membership(frozenset({1, 2, 3})))
    found.on_appended(10, [record(10, THREE[:2], is_joint=True)])
    found.on_appended(11, [encode_txn(11, 0, 0, 0, (TxnKind.LEVEL, 1))])
    assert found.level == 1
    assert not found.truncate_to(10) and found.level == 0 and found.current.is_joint
    assert found.truncate_to(9) and found.current.voters == {1, 2, 3}


def test_a_snapshot_says_where_the_memberships_begin() -> None:
    found = Memberships(Membership(frozenset({1})))
    found.on_appended(10, [record(10, THREE[:2], is_joint=False)])
    found.on_appended(20, [record(20, THREE, is_joint=False)])
    base = Membership(frozenset({7}))
    assert found.rebased(15, base, 1).current.voters == {1, 2, 3}
    assert found.rebased(25, base, 1).current.voters == {7}
    assert found.rebased(25, None, 1).level == 1


def test_a_joint_change_behind_a_snapshot_changes_what_the_snapshot_says() -> None:
    """It is logged before the snapshot is installed, which takes its time."""
    wanted = tuple(Member(n, f"10.0.0.{n}", 2888) for n in (4, 5, 6))
    found = Memberships(Membership(frozenset({1, 2, 3})))
    found.on_appended(20, [record(20, wanted, is_joint=True)])
    quorums = found.rebased(15, Membership(frozenset({1, 4, 5})), 1).current.quorums
    assert quorums.has_quorum({4, 5}) and quorums.has_quorum({1, 5, 6})
    assert not quorums.has_quorum({2, 3, 5, 6}), "2 and 3 decide nothing any more"


def test_whom_a_change_leaves_out_may_lead_until_the_change_is_committed() -> None:
    """Nobody else may have it: then only he can bring it to those that decide from then on."""
    found = Memberships(Membership(frozenset({1, 2, 3})))
    found.on_appended(10, [record(10, THREE[1:], is_joint=True)])
    assert found.may_lead(1, 0) and not found.may_lead(4, 0)
    found.on_appended(11, [record(11, THREE[1:], is_joint=False)])
    assert found.may_lead(1, 10) and found.may_lead(2, 11)
    assert not found.may_lead(1, 11) and not found.may_lead(4, 0)
    assert not found.rebased(11, Membership(frozenset({2, 3})), 1).may_lead(1, 0)


def test_whom_only_its_settings_name_may_not_lead() -> None:
    """It may have been about to join; a snapshot's members are another thing."""
    left = [record(10, THREE[1:], is_joint=False)]
    found = Memberships(Membership(frozenset({1, 2, 3})))
    found.on_appended(10, left)
    assert not found.may_lead(1, 0) and found.may_lead(2, 0)
    found = Memberships(membership_of(THREE))
    found.on_appended(10, left)
    assert found.may_lead(1, 0)


def test_other_records_say_nothing_of_members() -> None:
    found = Memberships(Membership(frozenset({1})))
    for body in ((TxnKind.NEW_EPOCH, b"s" * 32), (TxnKind.SET_DATA, "/a", b"\0\x10" * 9, 1)):
        assert not found.on_appended(1, [encode_txn(1, 0, 0, 0, body)])
    assert found.since_zxid == -1 and found.level == 0


# ---- changes ------------------------------------------------------------------------------------

SHOWN = config_data(THREE, 0x100000001)


def wanted(
    joining: str | None, leaving: str | None, new: str | None = None, version: int = -1
) -> tuple[Member, ...]:
    return wanted_members(SHOWN, zk.ReconfigRequest(joining, leaving, new, version))


def test_servers_join_leave_and_change_their_part() -> None:
    found = wanted("4=10.0.0.4:2888,server.3=10.0.0.3:2888:observer", "1")
    assert [(each.server_id, each.is_voter) for each in found] == [(2, True), (3, False), (4, True)]
    found = wanted(None, None, "5=a:1,6=b:1")
    assert [each.server_id for each in found] == [5, 6]


@pytest.mark.parametrize(
    ("joining", "leaving", "new", "version", "code"),
    [
        ("some thing", None, None, -1, ZkErrorCode.BAD_ARGUMENTS),
        (None, "one", None, -1, ZkErrorCode.BAD_ARGUMENTS),
        (None, "1,2,3", None, -1, ZkErrorCode.BAD_ARGUMENTS),
        ("4=a:1", None, "5=b:1", -1, ZkErrorCode.BAD_ARGUMENTS),
        (None, "1", None, 0x100000002, ZkErrorCode.BAD_VERSION),
    ],
)
def test_what_is_no_change_is_refused(
    joining: str | None, leaving: str | None, new: str | None, version: int, code: int
) -> None:
    with pytest.raises(Rejected) as refused:
        wanted(joining, leaving, new, version)
    assert refused.value.code == code


def test_a_quorum_of_the_new_participants_must_be_here() -> None:
    members = wanted("4=10.0.0.4:2888,5=10.0.0.5:2888", None)
    require_quorum(members, {1, 2, 3})
    with pytest.raises(Rejected) as refused:
        require_quorum(members, {1, 4})
    assert refused.value.code == ZkErrorCode.NEW_CONFIG_NO_QUORUM
    for joining in ("999=a:1", "4=10.0.0.4:2888;10.0.0.1:2181"):
        with pytest.raises(Rejected) as refused:
            require_quorum(wanted(joining, None), {1, 2, 3})
        assert refused.value.code == ZkErrorCode.BAD_ARGUMENTS
