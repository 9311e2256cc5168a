"""Whatever a leader takes of its own clients, a learner takes of its clients, too."""

from __future__ import annotations

from typing import Any

import pytest

from duolog_protocol import zk_messages as zk
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.quorum_messages import MAX_LONG_REQUEST_BYTES, LongRequest, Requests
from duolog_protocol.types import OPEN_ACL_UNSAFE, Acl
from tests.jute_support import Body
from tests.unit.zkserver.pair_support import WALL_MS, JuteClient, Pair
from zkserver.core.config import CoreConfig
from zkserver.core.events import Received
from zkserver.core.following import MAX_ON_THE_WAY_BYTES

CREATE, DELETE, SET_DATA, SET_ACL, SYNC, MULTI, CREATE2, RECONFIG = 1, 2, 5, 7, 9, 14, 15, 16
LENGTHS = (4_097, 5_000, 65_000, 70_000, 3_000_000)


def created(path: str, data: bytes | None = b"") -> zk.CreateRequest:
    return zk.CreateRequest(path, data, OPEN_ACL_UNSAFE, 0, -1)


def multi(kind: int, paths: list[str]) -> zk.MultiRequest:
    acl = OPEN_ACL_UNSAFE if kind == zk.MultiKind.CREATE else None
    data = b"" if kind == zk.MultiKind.CREATE else None
    return zk.MultiRequest(tuple(zk.MultiOp(kind, path, data, acl, 0, -1, -1) for path in paths))


def kinds(client: JuteClient, request: zk.MultiRequest) -> set[Any]:
    """Kinds of the results of a multi."""
    results = Body(client.ask(MULTI, request).body).multi()
    assert len(results) == len(request.ops)
    return {kind for kind, _ in results}


def test_a_multi_of_a_thousand_long_paths() -> None:
    pair = Pair()
    for core in pair.cores:
        client = pair.client(core)
        paths = [f"/{number:0900}" for number in range(1_000)]
        assert kinds(client, multi(zk.MultiKind.CREATE, paths)) == {zk.MultiKind.CREATE}
        assert all({*paths} <= {*each.state.tree.nodes} for each in pair.cores)
        assert kinds(client, multi(zk.MultiKind.DELETE, paths)) == {zk.MultiKind.DELETE}
        assert not any({*paths} & {*each.state.tree.nodes} for each in pair.cores)


def long_requests() -> dict[str, tuple[int, Any]]:
    found: dict[str, tuple[int, Any]] = {}
    for length in LENGTHS:
        path = "/" + "ä" * (length // 2)
        text = "x" * length
        for name, op, message in (
            ("create", CREATE, created(path)),
            ("create2", CREATE2, created(path)),
            ("create in a missing node", CREATE, created(f"{path}/a")),
            ("delete", DELETE, zk.DeleteRequest(path, -1)),
            ("set", SET_DATA, zk.SetDataRequest(path, b"", -1)),
            ("set data", SET_DATA, zk.SetDataRequest("/a", bytes(length), -1)),
            ("set no data", SET_DATA, zk.SetDataRequest(path, None, -1)),
            ("create data", CREATE, created("/b/b", bytes(length))),
            ("set acl", SET_ACL, zk.SetAclRequest(path, OPEN_ACL_UNSAFE, -1)),
            ("sync", SYNC, zk.SyncRequest(path)),
            ("multi", MULTI, multi(zk.MultiKind.CHECK, ["/", path])),
            ("multi data", MULTI, multi(zk.MultiKind.DELETE, ["/none", path])),
            ("reconfig joining", RECONFIG, zk.ReconfigRequest(text, None, None, -1)),
            ("reconfig leaving", RECONFIG, zk.ReconfigRequest(None, text, "", -1)),
            ("reconfig members", RECONFIG, zk.ReconfigRequest(None, None, text, -1)),
        ):
            found[f"{name} {length}"] = op, message
    acl = tuple(Acl(31, "digest", f"{number:01000}") for number in range(64))
    found["acl"] = SET_ACL, zk.SetAclRequest("/a", acl, -1)
    return found


@pytest.mark.parametrize("name", long_requests())
def test_a_long_request_has_the_answer_that_the_leader_gives(name: str) -> None:
    op, message = long_requests()[name]
    pair = Pair()
    pair.client(pair.leader).ask(CREATE, created("/a"))
    answers = []
    for core in pair.cores:
        client = pair.client(core)
        reply = client.ask(op, message)
        body = b"" if op == SET_DATA else reply.body  # a Stat, which tells the versions
        answers.append((reply.err, body, client.closed))
        assert client.ask(SET_DATA, zk.SetDataRequest("/a", b"more", -1)).err == 0
        assert not client.closed
    assert answers[0] == answers[1]
    assert pair.learner.state.tree.nodes.keys() == pair.leader.state.tree.nodes.keys()


@pytest.mark.parametrize("size", [0, 15, 17, 5_000, 200_000])
def test_a_password_of_any_length(size: int) -> None:
    pair = Pair()
    known = pair.client(pair.leader).session
    assert known is not None
    for core in pair.cores:
        assert pair.client(core, password=bytes(size)).session is not None
        expired = pair.client(core, session_id=known.session_id, password=bytes(size)).session
        assert expired is not None and expired.session_id == 0


@pytest.mark.parametrize("count", [8, 16, 17, 64])
def test_identities_of_a_client_as_many_and_as_long_as_it_may_have(count: int) -> None:
    pair = Pair()
    identities = tuple(("digest", f"{number:01022}:x") for number in range(count))
    for core in pair.cores:
        client = pair.client(core)
        client.connection.identities = identities
        assert client.session is not None
        path = f"/{client.session.session_id}"
        acl = (Acl(31, *identities[-1]),)
        assert client.ask(CREATE, created(path)).err == 0
        assert client.ask(SET_ACL, zk.SetAclRequest(path, acl, -1)).err == 0
        assert client.ask(SET_DATA, zk.SetDataRequest(path, b"1", -1)).err == 0
        assert client.ask(SET_DATA, zk.SetDataRequest(path, bytes(9_999), -1)).err == 0
        client.connection.identities = identities[:-1]
        assert client.ask(SET_DATA, zk.SetDataRequest(path, b"2", -1)).err == ZkErrorCode.NO_AUTH


def test_short_and_long_requests_are_answered_in_their_order() -> None:
    pair = Pair()
    client = pair.client(pair.learner)
    sizes = [10, 10_000, 20, 30, 20_000, 40_000, 50]
    client.ask(CREATE, created("/a"))
    for version, size in enumerate(sizes):
        client.send(SET_DATA, zk.SetDataRequest("/a", bytes(size), version))
    pair.sync()
    replies = client.replies()
    assert [reply.err for reply in replies] == [0] * len(sizes)
    assert [Body(reply.body).stat().data_length for reply in replies] == sizes


def test_what_is_on_its_way_to_the_leader_is_bounded() -> None:
    pair = Pair(CoreConfig(max_data_bytes=1 << 20))
    clients = [pair.client(pair.learner) for _ in range(40)]
    clients[0].ask(CREATE, created("/a"))
    pair.held, pair.told = [], []
    data = bytes(1 << 20)
    for client in clients:
        client.send(SET_DATA, zk.SetDataRequest("/a", data, -1))
        client.send(SYNC, zk.SyncRequest("/a"))
    on_the_way = [
        len(each.fields if isinstance(each, LongRequest) else each.frames)
        for each in pair.told
        if isinstance(each, LongRequest | Requests)
    ]
    assert MAX_ON_THE_WAY_BYTES <= sum(on_the_way) < MAX_ON_THE_WAY_BYTES + len(data) + 100
    pair.deliver()
    pair.sync()
    for client in clients:
        assert [reply.err for reply in client.replies()] == [0, 0]


def test_what_no_message_to_the_leader_can_hold_is_refused_in_its_place() -> None:
    pair = Pair()
    client = pair.client(pair.learner)
    client.ask(CREATE, created("/a"))
    data = bytes(MAX_LONG_REQUEST_BYTES)
    requests = [
        (zk.SET_DATA.key, 1, ("/a", b"1", -1)),
        (zk.SET_DATA.key, 2, ("/a", data, -1)),
        (zk.GET_DATA.key, 3, ("/a", False)),
        (zk.SET_DATA.key, 4, ("/a", b"2", -1)),
    ]
    for batch in (requests, requests[1:]):
        pair.step(pair.learner, Received(client.connection, batch, WALL_MS))
        pair.sync()
        replies = client.replies()
        assert [reply.xid for reply in replies] == [each[1] for each in batch]
        refused = replies[len(batch) - 3]
        assert (refused.xid, refused.err) == (2, ZkErrorCode.BAD_ARGUMENTS)
        assert {reply.err for reply in replies if reply is not refused} == {0}
    assert pair.learner.state.tree.nodes["/a"].data == b"2"


def test_the_longest_frame_that_a_setting_allows() -> None:
    pair = Pair()
    client = pair.client(pair.learner)
    # Header, lengths and version of a delete are 16 bytes.
    reply = client.ask(DELETE, zk.DeleteRequest("/" + "a" * ((64 << 20) - 17), -1))
    assert reply.err == ZkErrorCode.NO_NODE
