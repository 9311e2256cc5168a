"""Every operation of the client against a real server."""

from __future__ import annotations

import asyncio

import pytest

from duolog import (
    CREATOR_ALL_ACL,
    OPEN_ACL_UNSAFE,
    Acl,
    Perms,
    SessionState,
    WatchedEvent,
    ZkClient,
    make_acl,
    make_digest_acl,
    make_digest_acl_credential,
)
from duolog_protocol.errors import (
    AuthFailedError,
    BadVersionError,
    InvalidACLError,
    NoAuthError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    RolledBackError,
)
from duolog_protocol.types import EventType, KeeperState
from duolog_protocol.zk_messages import ClientIdentity

from .zk_support import Zk


async def test_create_in_every_mode() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        path, stat = await zk.create("/a", b"1", include_data=True)
        assert (path, stat.data_length, stat.ephemeral_owner) == ("/a", 1, 0)
        assert (await zk.get("/a"))[0] == b"1"
        await zk.create("/null", None)
        assert (await zk.get("/null"))[0] is None
        path = await zk.create("/a/e-", b"", ephemeral=True, sequence=True)
        assert path == "/a/e-0000000000"
        found = await zk.exists(path)
        assert found is not None and zk.client_id is not None
        assert found.ephemeral_owner == zk.client_id[0]
        assert await zk.create("/c", container=True) == "/c"
        assert await zk.create("/t", ttl=60) == "/t"
        assert await zk.create("/a/t-", ttl=60, sequence=True) == "/a/t-0000000001"
        assert await zk.create("/x/y/z", b"deep", makepath=True) == "/x/y/z"
        with pytest.raises(NodeExistsError):
            await zk.create("/a")
        with pytest.raises(NoNodeError):
            await zk.create("/none/x")


@pytest.mark.parametrize(
    "wrong",
    [
        {"container": True, "ephemeral": True},
        {"container": True, "ttl": 5},
        {"ttl": 5, "ephemeral": True},
        {"ttl": 0},
    ],
)
async def test_modes_that_do_not_exist_are_refused_at_once(wrong: dict[str, object]) -> None:
    async with ZkClientWithoutServer() as zk:
        with pytest.raises(ValueError):
            await zk.create("/a", **wrong)


class ZkClientWithoutServer(ZkClient):
    async def __aenter__(self) -> ZkClientWithoutServer:
        return self


async def test_names_and_order_of_arguments_are_kazoos() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        path, stat = await zk.create("/a/b-", b"v", OPEN_ACL_UNSAFE, False, True, True, True)
        assert (path, stat.version) == ("/a/b-0000000000", 0)
        await zk.delete("/a", -1, True)
        assert await zk.exists("/a") is None


async def test_data_children_and_versions() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        await zk.create("/a")
        stat = await zk.set("/a", b"1", 0)
        assert stat.version == 1
        with pytest.raises(BadVersionError):
            await zk.set("/a", b"2", 0)
        await zk.create("/a/b")
        names, stat = await zk.get_children("/a", include_data=True)
        assert (names, stat.num_children) == (["b"], 1)
        with pytest.raises(NotEmptyError):
            await zk.delete("/a")
        await zk.ensure_path("/a/b/c/d")
        assert await zk.get_all_children_number("/a") == 3
        await zk.delete("/a", recursive=True)
        await zk.check("/")
        with pytest.raises(NoNodeError):
            await zk.check("/a")
        assert await zk.sync("/a") == "/a"


async def test_acls_and_identities() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk, other = await server.client(), await server.client()
        await zk.add_auth("digest", "ann:secret")
        await zk.create("/mine", b"x", CREATOR_ALL_ACL)
        acls, stat = await zk.get_acls("/mine")
        id_ = make_digest_acl_credential("ann", "secret")
        assert acls == (Acl(31, "digest", id_),)
        assert ClientIdentity("digest", "ann") in await zk.whoami()
        with pytest.raises(NoAuthError):
            await other.get("/mine")
        stat = await zk.set_acls(
            "/mine", [*acls, make_acl("world", "anyone", read=True)], stat.aversion
        )
        assert stat.aversion == 1
        with pytest.raises(BadVersionError):
            await zk.set_acls("/mine", acls, 0)
        assert (await other.get("/mine"))[0] == b"x"
        masked, _ = await other.get_acls("/mine")
        assert masked[0].id == "ann:x"
        with pytest.raises(InvalidACLError):
            await zk.set_acls("/mine", [])
        await other.add_auth("digest", b"ann:secret")
        await other.set("/mine", b"y")


def test_the_digest_is_zookeepers() -> None:
    """The super digest of the documentation's example of DigestAuthenticationProvider."""
    assert make_digest_acl_credential("super", "test") == "super:D/InIHSb7yEEbrWz8b9l71RjZJU="
    assert make_digest_acl("super", "test", read=True, admin=True) == Acl(
        17, "digest", "super:D/InIHSb7yEEbrWz8b9l71RjZJU="
    )


async def test_credentials_go_to_every_later_connection() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client(auth_data=[("digest", "ann:secret")])
        await zk.create("/mine", b"x", CREATOR_ALL_ACL)
        await server.kill(server.zk)
        await zk.wait_for(SessionState.SUSPENDED)
        await server.start_zk()
        assert (await zk.get("/mine"))[0] == b"x"
        await server.expire(zk)
        assert (await zk.get("/mine"))[0] == b"x"


async def test_a_refused_credential_ends_the_client() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        states: list[SessionState] = []
        heard: list[WatchedEvent] = []
        await zk.create("/a")
        await zk.get("/a", heard.append)
        zk.add_listener(states.append)
        with pytest.raises(AuthFailedError):
            await zk.add_auth("nonsense", b"x")
        await zk.wait_for(SessionState.AUTH_FAILED)
        with pytest.raises(AuthFailedError):
            await zk.get("/a")
        assert states[-1] is SessionState.AUTH_FAILED
        assert [each.state for each in heard] == [KeeperState.AUTH_FAILED]


async def test_a_client_that_begins_with_a_refused_credential_does_not_start() -> None:
    async with asyncio.timeout(30), Zk() as server:
        with pytest.raises(AuthFailedError):
            await server.client(auth_data=[("nonsense", b"x")])


async def test_own_ephemerals_are_listed_without_the_chroot() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        await zk.create("/app")
        await zk.create("/outside", ephemeral=True)
        async with ZkClient(f"{server.zookeeper}/app", client_id=None) as inside:
            await inside.create("/b", ephemeral=True)
            await inside.create("/a", ephemeral=True)
            assert await inside.get_ephemerals() == ["/a", "/b"]
            assert await inside.get_ephemerals("/b") == ["/b"]
        assert await zk.get_ephemerals() == ["/outside"]


async def test_a_chroot_is_completed_below_a_parent_that_grants_nothing() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        await zk.create("/a")
        await zk.create("/a/b")
        await zk.set_acls("/a", [Acl(Perms.READ | Perms.ADMIN, "world", "anyone")])
        inside = ZkClient(f"{server.zookeeper}/a/b/c")
        server.clients.append(inside)
        await inside.start()
        await inside.ensure_path("/x")
        assert await zk.exists("/a/b/c/x") is not None
        await inside.ensure_path("/")


async def test_a_chroot_hides_itself_everywhere() -> None:
    async with asyncio.timeout(30), Zk() as server:
        outside = await server.client()
        async with ZkClient(f"{server.zookeeper}/app/one") as zk:
            await zk.ensure_path("/")
            assert await outside.exists("/app/one") is not None
            heard: list[WatchedEvent] = []
            assert await zk.exists("/a", heard.append) is None
            assert await zk.create("/a", b"1") == "/a"
            assert [(each.type, each.path) for each in heard] == [(EventType.CREATED, "/a")]
            results = await zk.transaction().create("/a/b").check("/a", 0).commit()
            assert results == ["/a/b", True]
            assert await zk.multi_read().get_children("/").commit() == [["a"]]
            async with zk.events("/", recursive=True) as events:
                await outside.create("/app/one/c")
                assert (await anext(events)).path == "/c"
        assert await outside.exists("/app/one/a/b") is not None


async def test_a_transaction_is_all_or_nothing() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        transaction = zk.transaction()
        transaction.create("/a", b"1").create("/a/s-", sequence=True, include_data=True)
        transaction.set_data("/a", b"2", 0).check("/a", 1).create("/d").delete("/d")
        transaction.create("/c", container=True).create("/t", ttl=60)
        assert len(transaction) == 8
        path, (sequential, stat), changed, *rest = await transaction.commit()
        assert (path, sequential, stat.version, changed.version) == ("/a", "/a/s-0000000000", 0, 1)
        assert rest == [True, "/d", True, "/c", "/t"]
        failed = await zk.transaction().create("/x").check("/a", 7).delete("/a").commit()
        kinds = [type(each) for each in failed]
        assert kinds[1:] == [BadVersionError, RolledBackError]
        assert await zk.exists("/x") is None
        assert await zk.transaction().commit() == []


async def test_a_transaction_as_a_block_raises_what_made_it_fail() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        async with zk.transaction() as transaction:
            transaction.create("/a")
        assert transaction.results == ["/a"]
        with pytest.raises(NodeExistsError, match="/a"):
            async with zk.transaction() as transaction:
                transaction.create("/b").create("/a")
        with pytest.raises(ZeroDivisionError):
            async with zk.transaction() as transaction:
                transaction.create("/b")
                raise ZeroDivisionError
        assert await zk.exists("/b") is None


async def test_several_reads_are_of_one_moment_and_fail_one_by_one() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        await zk.create("/a", b"1")
        await zk.create("/a/b")
        read = zk.multi_read().get("/a").get_children("/a").get("/none").get_children("/a/b")
        (data, stat), names, missing, none = await read.commit()
        assert (data, stat.num_children, names, none) == (b"1", 1, ["b"], [])
        assert isinstance(missing, NoNodeError)


async def test_one_shot_watches_hear_one_change() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        heard: list[tuple[str, str]] = []

        def hear(event: WatchedEvent) -> None:
            heard.append((event.type.name, event.path))

        await zk.exists("/a", hear)
        await zk.create("/a")
        await zk.get("/a", hear)
        await zk.get_children("/a", hear)
        await zk.set("/a", b"1")
        await zk.set("/a", b"2")
        await zk.create("/a/b")
        assert heard == [("CREATED", "/a"), ("CHANGED", "/a"), ("CHILD", "/a")]
        await zk.get("/a", hear)
        zk.forget_watch("/a", hear)
        await zk.set("/a", b"3")
        assert len(heard) == 3
