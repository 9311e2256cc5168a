"""ZooKeeper's client protocol against a whole server: real core, log, sockets; both event loops."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from duolog import ZkClient
from duolog_cluster.cluster import Cluster
from duolog_protocol import zk_messages as zk
from duolog_protocol.types import OPEN_ACL_UNSAFE
from tests.jute_support import (
    Body,
    JuteClient,
    Reply,
    Session,
    buffer,
    connect_request,
    encode,
    frames_of,
    i32,
    request,
    ustring,
)


def created(path: str, data: bytes | None = b"", flags: int = 0) -> zk.CreateRequest:
    return zk.CreateRequest(path, data, OPEN_ACL_UNSAFE, flags, -1)


def server(**settings: Any) -> Cluster:
    return Cluster(brokers=0, zk_settings=settings)


async def test_a_session_from_connect_to_close() -> None:
    async with asyncio.timeout(30), server() as cluster:
        client = await JuteClient.open(cluster.zk.port)
        assert client.session is not None
        assert client.session.timeout_ms == 10_000
        assert client.session.read_only is False
        reply = await client.call(1, created("/a", b"hello"))
        assert (reply.xid, reply.err, Body(reply.body).ustring()) == (1, 0, "/a")
        first_zxid = reply.zxid
        reply = await client.call(15, created("/a/s-", None, 2))
        body = Body(reply.body)
        assert (body.ustring(), body.stat().czxid) == ("/a/s-0000000000", reply.zxid)
        reply = await client.call(4, zk.GetDataRequest("/a", False))
        body = Body(reply.body)
        assert body.buffer() == b"hello"
        stat = body.stat()
        assert (stat.czxid, stat.version, stat.cversion, stat.num_children) == (first_zxid, 0, 1, 1)
        reply = await client.call(5, zk.SetDataRequest("/a", None, 0))
        stat = Body(reply.body).stat()
        assert (stat.version, stat.mzxid, stat.data_length) == (1, reply.zxid, 0)
        assert Body((await client.call(4, zk.GetDataRequest("/a", False))).body).buffer() is None
        assert Body((await client.call(3, zk.ExistsRequest("/a", False))).body).stat() == stat
        reply = await client.call(8, zk.GetChildrenRequest("/a", False))
        assert Body(reply.body).ustrings() == ["s-0000000000"]
        body = Body((await client.call(12, zk.GetChildrenRequest("/a", False))).body)
        assert (body.ustrings(), body.stat()) == (["s-0000000000"], stat)
        assert Body((await client.call(9, zk.SyncRequest("/a"))).body).ustring() == "/a"
        assert (await client.call(2, zk.DeleteRequest("/a", -1))).err == -111
        assert (await client.call(2, zk.DeleteRequest("/a/s-0000000000", 0))).err == 0
        assert (await client.call(3, zk.ExistsRequest("/none", False))).err == -101
        client.send(request(-2, 11))
        pong = await client.next_reply()
        assert (pong.xid, pong.err, pong.body) == (-2, 0, b"")
        reply = await client.call(-11, zk.Empty())
        assert (reply.err, reply.body) == (0, b"")
        assert await client.rest() == b""
        await client.close()


async def test_an_event_comes_before_the_reply_that_shows_its_change() -> None:
    async with asyncio.timeout(30), server() as cluster:
        client = await JuteClient.open(cluster.zk.port)
        await client.call(1, created("/g", b"hi"))
        client.send(
            encode(2, 4, zk.GetDataRequest("/g", True))
            + encode(3, 5, zk.SetDataRequest("/g", b"yo", 0))
            + encode(4, 4, zk.GetDataRequest("/g", False))
            + encode(5, 106, zk.AddWatchRequest("/g", 1, -1))
            + encode(-7, 5, zk.SetDataRequest("/g", b"", -1))
        )
        replies = [await client.next_reply() for _ in range(7)]
        assert [reply.xid for reply in replies] == [2, -1, 3, 4, 5, -1, -7]
        assert replies[1] == Reply(-1, replies[2].zxid, 0, i32(3) + i32(3) + ustring("/g"))
        assert Body(replies[3].body).buffer() == b"yo"
        assert replies[4].body == i32(0)
        await client.close()


async def test_a_whole_session_in_one_packet_on_a_server_where_nobody_else_asks() -> None:
    """Each write is alone, and what comes behind it waits until it is answered."""
    async with asyncio.timeout(30), server() as cluster:
        for _ in range(20):
            client = await JuteClient.dial(cluster.zk.port)
            client.send(
                connect_request()
                + encode(1, 5, zk.SetDataRequest("/", b"x", -1))
                + encode(2, -11, zk.Empty())
            )
            await client.next_frame()
            assert [(await client.next_reply()).xid for _ in range(2)] == [1, 2]
            assert await client.rest() == b""
            await client.close()


async def test_a_multi_and_what_is_left_when_one_fails() -> None:
    async with asyncio.timeout(30), server() as cluster:
        client = await JuteClient.open(cluster.zk.port)
        create = zk.MultiOp(1, "/m", b"x", OPEN_ACL_UNSAFE, 0, -1, -1)
        change = zk.MultiOp(5, "/m", b"y", None, 0, -1, 0)
        check = zk.MultiOp(13, "/m", None, None, 0, -1, 1)
        delete = zk.MultiOp(2, "/m", None, None, 0, -1, 9)
        reply = await client.call(14, zk.MultiRequest((create, change, check)))
        (one, path), (two, stat), (three, nothing) = Body(reply.body).multi()
        assert (one, path, two, stat.version, three, nothing) == (1, "/m", 5, 1, 13, None)
        reply = await client.call(14, zk.MultiRequest((check, delete, change)))
        assert (reply.err, Body(reply.body).multi()) == (0, [(-1, 0), (-1, -103), (-1, -2)])
        reply = await client.call(14, zk.MultiRequest(()))
        assert (reply.err, Body(reply.body).multi()) == (0, [])
        await client.close()


async def test_a_session_moves_with_its_password_and_is_told_when_it_is_gone() -> None:
    async with asyncio.timeout(30), server() as cluster:
        old = await JuteClient.open(cluster.zk.port, read_only=None)
        session = old.session
        assert session is not None
        assert session.read_only is None
        reply = await old.call(1, created("/e", b"", 1))
        new = await JuteClient.open(
            cluster.zk.port, session_id=session.session_id, password=session.password
        )
        assert new.session == session._replace(read_only=False)
        assert await old.rest() == b""
        stat = Body((await new.call(3, zk.ExistsRequest("/e", False))).body).stat()
        assert (stat.ephemeral_owner, stat.czxid) == (session.session_id, reply.zxid)
        await new.call(-11, zk.Empty())
        assert await new.rest() == b""
        for password in (session.password, bytes(16), b"", None):
            for read_only in (None, True):
                late = await JuteClient.dial(cluster.zk.port)
                late.send(connect_request(0, 10_000, session.session_id, password, read_only))
                (told,) = frames_of(await late.rest())
                byte = None if read_only is None else False
                assert Session.of(told) == (0, 0, bytes(16), byte)
                await late.close()
        await old.close()
        await new.close()


async def test_a_client_that_has_seen_more_than_the_server_is_closed_without_a_word() -> None:
    async with asyncio.timeout(30), server() as cluster:
        client = await JuteClient.dial(cluster.zk.port)
        client.send(connect_request(last_zxid=1 << 60) + request(-2, 11))
        assert await client.rest() == b""
        await client.close()


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (request(3, 77, b"x"), [(3, -1, -6)]),
        (request(3, 13, ustring("/a") + i32(-1)), [(3, -1, -6)]),
        (i32(-1), []),
        (i32(0), []),
        (request(1, 4)[:4] + bytes(8), []),
        (request(1, 100, i32(0)), []),
        (i32(2048 + 1), []),
    ],
    ids=["unknown", "check alone", "negative", "empty", "op 0", "auth cut off", "too long"],
)
async def test_a_broken_request_ends_the_connection_behind_the_replies_before_it(
    sent: bytes, answered: list[tuple[int, int, int]]
) -> None:
    async with asyncio.timeout(30), server(jute_max_frame_bytes=2048) as cluster:
        client = await JuteClient.open(cluster.zk.port)
        client.send(
            encode(1, 1, created("/a")) + sent + encode(4, 5, zk.SetDataRequest("/a", b"", -1))
        )
        first, *rest = [Reply.of(content) for content in frames_of(await client.rest())]
        assert (first.xid, first.err) == (1, 0)
        if sent == request(1, 4)[:4] + bytes(8):
            assert [reply[:3] for reply in rest] == [(0, -1, -6)]
        else:
            assert [reply[:3] for reply in rest] == answered
        await client.close()
        other = await JuteClient.open(cluster.zk.port)
        stat = Body((await other.call(3, zk.ExistsRequest("/a", False))).body).stat()
        assert stat.version == 0
        await other.close()


async def test_a_body_that_cannot_be_decoded_changes_nothing_and_the_connection_goes_on() -> None:
    async with asyncio.timeout(30), server() as cluster:
        client = await JuteClient.open(cluster.zk.port)
        before = await client.call(1, created("/a", b"x"))
        client.send(request(2, 5, ustring("/a") + i32(1 << 30)) + request(3, 1, ustring("/b")))
        for xid in (2, 3):
            assert await client.next_reply() == Reply(xid, before.zxid, -5, b"")
        reply = await client.call(4, zk.GetDataRequest("/a", False))
        assert (reply.zxid, Body(reply.body).buffer()) == (before.zxid, b"x")
        await client.close()


async def test_a_frame_at_the_limit_is_served_and_long_ones_only_in_a_session() -> None:
    async with asyncio.timeout(30), server(jute_max_frame_bytes=500_000) as cluster:
        client = await JuteClient.open(cluster.zk.port)
        overhead = len(encode(1, 1, created("/a"))) - 4
        for more, err in ((0, 0), (1, None)):
            client.send(encode(7, 1, created("/a", bytes(500_000 - overhead + more))))
            if err is not None:
                assert (await client.next_reply()).err == err
        assert await client.rest() == b""
        await client.close()
        early = await JuteClient.dial(cluster.zk.port)
        early.send(i32(256 * 1024 + 1))
        assert await early.rest() == b""
        await early.close()


async def test_both_kinds_of_client_see_the_same_tree_and_the_words_still_answer() -> None:
    async with asyncio.timeout(30), server() as cluster:
        jute = await JuteClient.open(cluster.zk.port)
        async with ZkClient(cluster.zookeeper) as native:
            await jute.call(1, created("/shared", b"jute"))
            await jute.call(4, zk.GetDataRequest("/shared", True))
            assert (await native.get("/shared"))[0] == b"jute"
            await native.set("/shared", b"native")
            event = await jute.next_reply()
            assert (event.xid, event.body) == (-1, i32(3) + i32(3) + ustring("/shared"))
            body = Body((await jute.call(4, zk.GetDataRequest("/shared", False))).body)
            assert (body.buffer(), body.stat().version) == (b"native", 1)
            assert (await native.get("/shared"))[0] == b"native"
        await jute.close()
        word = await JuteClient.dial(cluster.zk.port)
        word.send(b"ruok")
        assert await word.rest() == b"imok"
        await word.close()


async def test_what_is_sent_behind_the_connect_is_served_after_it_byte_by_byte_too() -> None:
    async with asyncio.timeout(30), server() as cluster:
        stream = (
            connect_request()
            + request(-8, 101, bytes(8) + i32(1) + ustring("/gone") + i32(0) * 2)
            + encode(1, 4, zk.GetDataRequest("/zookeeper", False))
        )
        for step in (len(stream), 1):
            client = await JuteClient.dial(cluster.zk.port)
            for start in range(0, len(stream), step):
                client.send(stream[start : start + step])
                await client.writer.drain()
            assert Session.of(await client.next_frame()).timeout_ms == 10_000
            replies = [await client.next_reply() for _ in range(3)]
            assert [reply.xid for reply in replies] == [-1, -8, 1]
            assert replies[2].body[:4] == buffer(b"")
            await client.close()


async def test_many_pipelined_requests_are_answered_in_order() -> None:
    async with asyncio.timeout(60), server() as cluster:
        client = await JuteClient.open(cluster.zk.port)
        await client.call(1, created("/a"))
        expected: list[int] = []
        for xid in range(10, 3010):
            op = (4, 5, 3)[xid % 3] if xid % 7 else 5
            message: Any = zk.GetDataRequest("/a", False)
            if op == 5:
                message = zk.SetDataRequest("/a", b"%d" % xid, -1)
            client.send(encode(xid, op, message))
            expected.append(op)
        version, last = 0, b""
        for xid, op in enumerate(expected, 10):
            reply = await client.next_reply()
            assert (reply.xid, reply.err) == (xid, 0)
            body = Body(reply.body)
            if op == 5:
                version, last = version + 1, b"%d" % xid
            elif op == 4:
                assert body.buffer() == last
            assert body.stat().version == version
        await client.close()
