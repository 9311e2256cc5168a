"""A whole server that asks who its clients are: TLS beside plain, certificates, passwords."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest

from duolog import ZkClient
from duolog_cluster.cluster import Cluster
from duolog_protocol import zk_messages as zk
from duolog_protocol.errors import (
    ConfigError,
    RequestTimeoutError,
)
from duolog_protocol.types import OPEN_ACL_UNSAFE, Acl
from tests.jute_support import Body, JuteClient, Reply, encode, request
from tests.sasl_support import respond
from tests.tls_files import client_context, copy_tls_files

ALICE = (
    "1.2.840.113549.1.9.1=#1611616c696365406578616d706c652e6f7267,"
    "CN=alice,OU=clients,O=duolog\\, inc.,C=XX"
)


@pytest.fixture
def tls_settings(tmp_path: Path) -> dict[str, Any]:
    folder = copy_tls_files(tmp_path / "tls")
    return {
        "tls_certificate_file": str(folder / "server.pem"),
        "tls_key_file": str(folder / "server.key"),
        "tls_ca_file": str(folder / "ca.pem"),
    }


def server(**settings: Any) -> Cluster:
    return Cluster(brokers=0, zk_settings=settings)


def tls_port_of(cluster: Cluster) -> int:
    port = cluster.zk.server.node.tls_port
    assert isinstance(port, int)
    return port


def who(reply: Reply) -> list[tuple[str, str]]:
    body = Body(reply.body)
    return [(body.ustring() or "", body.ustring() or "") for _ in range(body.i32())]


async def test_every_kind_of_client_over_tls_and_plain_on_one_port(
    tls_settings: dict[str, Any],
) -> None:
    context = client_context()
    async with asyncio.timeout(30), server(**tls_settings) as cluster:
        port = cluster.zk.port
        async with (
            ZkClient(cluster.zookeeper) as plain,
            ZkClient(cluster.zookeeper, ssl_context=context) as secure,
        ):
            await plain.create("/a", b"from plain")
            assert (await secure.get("/a"))[0] == b"from plain"
            await secure.set("/a", bytes(900_000))
            assert (await plain.get("/a"))[0] == bytes(900_000)
            assert (await secure.get("/a"))[0] == bytes(900_000)
            for tls in (None, context):
                jute = await JuteClient.open(port, tls)
                reply = await jute.call(4, zk.GetDataRequest("/a", False))
                assert Body(reply.body).buffer() == bytes(900_000)
                await jute.close()
                word = await JuteClient.dial(port, tls)
                word.send(b"ruok")
                assert await word.rest() == b"imok"
                await word.close()


async def test_many_calls_at_once_over_tls(tls_settings: dict[str, Any]) -> None:
    async with (
        asyncio.timeout(30),
        server(**tls_settings) as cluster,
        ZkClient(cluster.zookeeper, ssl_context=client_context()) as client,
    ):
        paths = [f"/n{number}" for number in range(300)]
        async with asyncio.TaskGroup() as group:
            for path in paths:
                group.create_task(client.create(path, path.encode()))
        async with asyncio.TaskGroup() as group:
            reads = [group.create_task(client.get(path)) for path in paths]
        assert [read.result()[0] for read in reads] == [path.encode() for path in paths]


async def test_a_port_for_tls_only_beside_the_other(tls_settings: dict[str, Any]) -> None:
    async with asyncio.timeout(30), server(**tls_settings, tls_port=0) as cluster:
        port = tls_port_of(cluster)
        assert port not in (0, cluster.zk.port)
        async with ZkClient(f"127.0.0.1:{port}", ssl_context=client_context()) as client:
            await client.create("/a")
        plain = await JuteClient.dial(port)
        plain.send(b"ruok")
        assert await plain.rest() == b""
        await plain.close()
        async with ZkClient(cluster.zookeeper) as client:
            assert await client.exists("/a") is not None


async def test_a_server_may_take_tls_only(tls_settings: dict[str, Any]) -> None:
    async with asyncio.timeout(30), server(**tls_settings, tls_required=True) as cluster:
        async with ZkClient(cluster.zookeeper, ssl_context=client_context()) as client:
            await client.create("/a")
        with pytest.raises(RequestTimeoutError):
            async with ZkClient(cluster.zookeeper, session_timeout=0.2):
                pass


async def test_a_client_does_not_talk_to_a_server_it_does_not_trust(
    tls_settings: dict[str, Any],
) -> None:
    async with asyncio.timeout(30), server(**tls_settings) as cluster:
        for context in (client_context(ca="other-ca.pem"), ssl.create_default_context()):
            with pytest.raises(RequestTimeoutError):
                async with ZkClient(cluster.zookeeper, session_timeout=0.2, ssl_context=context):
                    pass


async def test_a_certificate_is_an_identity(tls_settings: dict[str, Any]) -> None:
    settings = {**tls_settings, "tls_client_auth": "want"}
    async with asyncio.timeout(30), server(**settings) as cluster:
        alice = await JuteClient.open(cluster.zk.port, client_context("client"))
        assert set(who(await alice.call(107, zk.Empty()))) == {("x509", ALICE), ("ip", "127.0.0.1")}
        own = zk.CreateRequest("/own", b"secret", (Acl(31, "auth", ""),), 0, -1)
        assert (await alice.call(1, own)).err == 0
        reply = Body((await alice.call(6, zk.GetAclRequest("/own"))).body)
        assert (reply.i32(), reply.i32(), reply.ustring(), reply.ustring()) == (
            1,
            31,
            "x509",
            ALICE,
        )
        assert (await alice.call(100, zk.AuthRequest("x509", b""))).err == 0
        nobody = await JuteClient.open(cluster.zk.port, client_context())
        plain = await JuteClient.open(cluster.zk.port)
        for other in (nobody, plain):
            assert who(await other.call(107, zk.Empty())) == [("ip", "127.0.0.1")]
            assert (await other.call(4, zk.GetDataRequest("/own", False))).err == -102
        named = zk.CreateRequest("/named", b"", (Acl(31, "x509", ALICE),), 0, -1)
        assert (await plain.call(1, named)).err == 0
        assert (await plain.call(4, zk.GetDataRequest("/named", False))).err == -102
        assert (await alice.call(4, zk.GetDataRequest("/named", False))).err == 0
        for client in (alice, nobody, plain):
            await client.close()


async def test_a_certificate_that_is_required_must_be_good(tls_settings: dict[str, Any]) -> None:
    settings = {**tls_settings, "tls_client_auth": "need", "tls_required": True}
    async with asyncio.timeout(30), server(**settings) as cluster:
        async with ZkClient(cluster.zookeeper, ssl_context=client_context("client")) as client:
            await client.create("/a")
        for who_else in (None, "stranger"):
            with pytest.raises(RequestTimeoutError):
                async with ZkClient(
                    cluster.zookeeper, session_timeout=0.2, ssl_context=client_context(who_else)
                ):
                    pass
        reasons = [values.get("reason", "") for _, _, values in cluster.zk.log.records]
        assert any("did not return a certificate" in reason for reason in reasons), reasons
        assert any("certificate verify failed" in reason for reason in reasons), reasons


async def test_an_unfinished_handshake_is_dropped_in_time(tls_settings: dict[str, Any]) -> None:
    settings = {**tls_settings, "handshake_timeout_ms": 50, "tls_port": 0}
    async with asyncio.timeout(30), server(**settings) as cluster:
        for port in (cluster.zk.port, tls_port_of(cluster)):
            for first in (b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"):
                slow = await JuteClient.dial(port)
                slow.send(first)
                assert await slow.rest() == b""
                await slow.close()
        quiet = await JuteClient.dial(cluster.zk.port, client_context())
        assert await quiet.rest() == b"", "TLS alone is no session"
        await quiet.close()
        reasons = [values.get("reason", "") for _, _, values in cluster.zk.log.records]
        assert sum("no session after" in reason for reason in reasons) == 7, reasons


async def test_a_renewed_certificate_needs_no_restart(
    tls_settings: dict[str, Any], tmp_path: Path
) -> None:
    async with asyncio.timeout(30), server(**tls_settings) as cluster:

        async def unit() -> str:
            client = await JuteClient.open(cluster.zk.port, client_context())
            certificate = client.writer.get_extra_info("peercert")
            await client.close()
            return str(certificate["subject"])

        async with ZkClient(cluster.zookeeper, ssl_context=client_context()) as before:
            assert "renewed" not in await unit()
            for kind in ("pem", "key"):
                source = tmp_path / "tls" / f"server-renewed.{kind}"
                source.replace(tmp_path / "tls" / f"server.{kind}")
            while "renewed" not in await unit():  # within LOOK_INTERVAL_MS
                pass
            await before.create("/still-here")


async def test_wrong_files_stop_the_start(tls_settings: dict[str, Any], tmp_path: Path) -> None:
    missing = {**tls_settings, "tls_key_file": str(tmp_path / "missing.key")}
    with pytest.raises(ConfigError, match="tls_key_file"):
        async with server(**missing):
            pass
    users = tmp_path / "users"
    users.write_text("bob=secret\n")
    users.chmod(0o644)
    with pytest.raises(ConfigError, match="sasl_users_file"):
        async with server(sasl_users_file=str(users)):
            pass


async def test_the_super_user_is_bound_by_no_acl() -> None:
    digest = "super:D/InIHSb7yEEbrWz8b9l71RjZJU="
    async with asyncio.timeout(30), server(super_digests=(digest,)) as cluster:
        owner = await JuteClient.open(cluster.zk.port)
        assert (await owner.call(100, zk.AuthRequest("digest", b"u:p"))).err == 0
        own = zk.CreateRequest("/own", b"x", (Acl(31, "auth", ""),), 0, -1)
        assert (await owner.call(1, own)).err == 0
        other = await JuteClient.open(cluster.zk.port)
        assert (await other.call(4, zk.GetDataRequest("/own", False))).err == -102
        assert (await other.call(100, zk.AuthRequest("digest", b"super:test"))).err == 0
        assert (await other.call(4, zk.GetDataRequest("/own", False))).err == 0
        reply = Body((await other.call(6, zk.GetAclRequest("/own"))).body)
        fields = (reply.i32(), reply.i32(), reply.ustring(), reply.ustring())
        assert fields == (1, 31, "digest", "u:Jq7wMyA/w2Vd5WIDAKdu4OIIFEQ=")
        for client in (owner, other):
            await client.close()
        word = await JuteClient.dial(cluster.zk.port)
        word.send(b"conf")
        assert b"D/InIHSb" not in await word.rest()
        await word.close()


@pytest.fixture
def users_file(tmp_path: Path) -> str:
    path = tmp_path / "users"
    path.write_text("# who may come\n\nbob=bob-secret\nsuper=x = y \n")
    path.chmod(0o600)
    return str(path)


async def log_in(client: JuteClient, password: str | None = None, **bent: str) -> Reply:
    """Two SASL tokens, the answer to the second."""
    reply = await client.call(102, zk.SaslToken(b""))
    assert (reply.zxid, reply.err) == (0, 0)
    challenge = Body(reply.body).buffer()
    assert challenge is not None
    token, answer = respond(challenge, password, **bent)
    reply = await client.call(102, zk.SaslToken(token))
    if reply.err == 0:
        assert Body(reply.body).buffer() in (answer, None)
    return reply


async def test_a_sasl_user_is_an_identity(users_file: str) -> None:
    async with asyncio.timeout(30), server(sasl_users_file=users_file) as cluster:
        bob = await JuteClient.open(cluster.zk.port)
        assert (await log_in(bob)).err == 0
        assert who(await bob.call(107, zk.Empty())) == [("sasl", "bob"), ("ip", "127.0.0.1")]
        own = zk.CreateRequest("/own", b"x", (Acl(31, "sasl", "bob"),), 0, -1)
        assert (await bob.call(1, own)).err == 0
        assert (await bob.call(4, zk.GetDataRequest("/own", False))).err == 0
        plain = await JuteClient.open(cluster.zk.port)
        assert (await plain.call(4, zk.GetDataRequest("/own", False))).err == -102
        every_sasl_entry = await JuteClient.open(cluster.zk.port)
        assert (await log_in(every_sasl_entry, "x = y ", username="super")).err == 0
        assert (await every_sasl_entry.call(4, zk.GetDataRequest("/own", False))).err == 0
        assert (await plain.call(100, zk.AuthRequest("sasl", b"bob"))).err == -115
        assert await plain.rest() == b""
        for client in (bob, plain, every_sasl_entry):
            await client.close()


@pytest.mark.parametrize(
    "bent",
    [{"password": "wrong"}, {"username": "nobody"}, {"nonce": "AAAA"}, {"authzid": "super"}],
)
async def test_a_failed_exchange_is_answered_as_zookeeper_does(
    users_file: str, bent: dict[str, str]
) -> None:
    async with asyncio.timeout(30), server(sasl_users_file=users_file) as cluster:
        client = await JuteClient.open(cluster.zk.port)
        reply = await log_in(client, **bent)
        assert reply == Reply(2, 0, -115, b"\xff\xff\xff\xff")
        assert await client.rest() == b""
        await client.close()


async def test_a_second_exchange_on_a_connection_ends_it(users_file: str) -> None:
    async with asyncio.timeout(30), server(sasl_users_file=users_file) as cluster:
        client = await JuteClient.open(cluster.zk.port)
        assert (await log_in(client)).err == 0
        reply = await client.call(102, zk.SaslToken(b""))
        assert reply == Reply(3, 0, -115, b"\xff\xff\xff\xff")
        assert await client.rest() == b""
        await client.close()


async def test_a_client_who_failed_may_be_kept_as_nobody(users_file: str) -> None:
    settings = {"sasl_users_file": users_file, "allow_failed_sasl": True}
    async with asyncio.timeout(30), server(**settings) as cluster:
        client = await JuteClient.open(cluster.zk.port)
        for _ in range(2):
            reply = await client.call(102, zk.SaslToken(b""))
            token = b"" if reply.xid > 1 else respond(Body(reply.body).buffer() or b"", "wrong")[0]
            reply = await client.call(102, zk.SaslToken(token))
            assert (reply.zxid, reply.err, reply.body) == (0, 0, b"\xff\xff\xff\xff")
        assert who(await client.call(107, zk.Empty())) == [("ip", "127.0.0.1")]
        await client.close()


async def test_without_users_a_token_is_answered_with_null() -> None:
    async with asyncio.timeout(30), server() as cluster:
        client = await JuteClient.open(cluster.zk.port)
        reply = await client.call(102, zk.SaslToken(b""))
        assert reply == Reply(1, 0, 0, b"\xff\xff\xff\xff")
        acl = zk.CreateRequest("/own", b"x", (Acl(31, "sasl", "bob"),), 0, -1)
        assert (await client.call(1, acl)).err == -114
        await client.close()


@pytest.mark.parametrize("operation", [11, 4, 107, -11, 9, 1, 999])
async def test_who_is_not_known_as_required_gets_nothing(operation: int) -> None:
    bodies = {
        4: zk.GetDataRequest("/", False),
        9: zk.SyncRequest("/"),
        1: zk.CreateRequest("/a", b"", OPEN_ACL_UNSAFE, 0, -1),
    }
    async with asyncio.timeout(30), server(enforce_auth_schemes=("digest",)) as cluster:
        client = await JuteClient.open(cluster.zk.port)
        if operation == 999:
            client.send(request(7, 999))
        else:
            client.send(encode(7, operation, bodies.get(operation, zk.Empty())))
        client.send(encode(8, 1, zk.CreateRequest("/b", b"", OPEN_ACL_UNSAFE, 0, -1)))
        reply = await client.next_reply()
        assert reply == Reply(-2 if operation == 11 else 7, 0, -124, b"")
        assert await client.rest() == b""
        await client.close()
        known = await JuteClient.open(cluster.zk.port)
        known.send(
            encode(-4, 100, zk.AuthRequest("digest", b"u:p"))
            + encode(1, 8, zk.GetChildrenRequest("/", False))
        )
        assert await known.next_reply() == Reply(-4, 0, 0, b"")
        assert Body((await known.next_reply()).body).ustrings() == ["zookeeper"]
        await known.close()


async def test_who_must_authenticate_by_sasl_is_told_so(users_file: str) -> None:
    settings = {
        "sasl_users_file": users_file,
        "enforce_auth_schemes": ("sasl",),
        "allow_failed_sasl": True,
        "super_sasl": "bob",
    }
    async with asyncio.timeout(30), server(**settings) as cluster:
        failed = await JuteClient.open(cluster.zk.port)
        reply = await log_in(failed, "wrong")
        assert reply == Reply(2, 0, -124, b"\xff\xff\xff\xff")
        assert await failed.rest() == b""
        other = await JuteClient.open(cluster.zk.port)
        assert (await other.call(100, zk.AuthRequest("digest", b"u:p"))).err == 0
        assert (await other.call(4, zk.GetDataRequest("/", False))).err == -124
        assert await other.rest() == b""
        bob = await JuteClient.open(cluster.zk.port)
        assert (await log_in(bob)).err == 0
        assert who(await bob.call(107, zk.Empty())) == [
            ("sasl", "bob"),
            ("super", ""),
            ("ip", "127.0.0.1"),
        ]
        for client in (failed, other, bob):
            await client.close()


async def test_no_password_is_in_the_log(users_file: str) -> None:
    async with asyncio.timeout(30), server(sasl_users_file=users_file) as cluster:
        client = await JuteClient.open(cluster.zk.port)
        await client.call(100, zk.AuthRequest("digest", b"u:canary-one"))
        await log_in(client, "canary-two")
        await client.close()
    shown = repr(cluster.zk.log.records)
    assert "SASL" in shown and "canary" not in shown and "secret" not in shown
