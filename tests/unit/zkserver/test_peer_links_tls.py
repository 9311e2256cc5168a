"""Servers of an ensemble prove to each other that they are, and talk to nobody else."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from duolog_protocol.errors import ConfigError
from duolog_protocol.quorum_messages import FollowerInfo, PeerRefusal, Ping, Proposal, RefusalReason
from duolog_runtime.clocks import ManualClock
from duolog_runtime.logs import RecordingLogger
from duolog_runtime.tls import TlsLayer
from duolog_runtime.tls_context import LOOK_INTERVAL_MS, PeerTls
from tests.support import until
from tests.tls_files import copy_tls_files
from tests.unit.zkserver.peer_links_support import (
    ELECTION,
    HOST,
    LEARNER,
    Hand,
    Server,
    connect,
    encoded,
    ensemble,
    hello,
    introduce,
    vote,
)
from zkserver.config import ServerConfig
from zkserver.security import load_peer_tls
from zkserver.server import peer_link, peer_links


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_tls_files(tmp_path / "tls")


def peer_tls(folder: Path, name: str = "peer", ca: str = "peer-ca") -> PeerTls:
    """What a server with this certificate is given."""
    tls = load(folder, (f"{name}.pem", f"{name}.key", f"{ca}.pem"))
    assert tls is not None
    return tls


def load(
    folder: Path,
    names: tuple[str, str, str],
    clock: ManualClock | None = None,
    log: RecordingLogger | None = None,
) -> PeerTls | None:
    """What certificate, key and authority make; an empty name: there is none."""
    certificate, key, authority = (str(folder / name) if name else "" for name in names)
    config = ServerConfig(
        data_directory="data",
        peer_tls_certificate_file=certificate,
        peer_tls_key_file=key,
        peer_tls_ca_file=authority,
    )
    return load_peer_tls(config, clock or ManualClock(), log or RecordingLogger())


@asynccontextmanager
async def two_servers(first: PeerTls | None, second: PeerTls | None) -> AsyncIterator[list[Server]]:
    """Servers 1 and 2 that know each other, each with its own idea of TLS."""
    async with ensemble(1, tls=first) as servers:
        servers.append(Server(2, tls=second))
        await servers[1].links.start()
        introduce(servers)
        yield servers
        await servers[1].close()


async def test_servers_of_one_authority_elect_and_talk(folder: Path) -> None:
    async with two_servers(peer_tls(folder), peer_tls(folder, "peer-renewed")) as (leader, learner):
        for number in (1, 2):
            leader.call("notify", 2, vote(number))
            learner.call("notify", 1, vote(number))
            await until(lambda: len(leader.heard) == len(learner.heard) == number)  # noqa: B023
        await connect(learner, leader)
        learner.call("tell", learner.link, FollowerInfo(2, 0, 1))
        records = tuple(zxid.to_bytes(8, "big") + os.urandom(700_000) for zxid in range(1, 6))
        told = [Proposal(zxid, zxid, (record,)) for zxid, record in enumerate(records, 1)]
        for each in told:
            leader.call("tell", leader.link, each)
        await until(lambda: len(learner.received) == len(told) and bool(leader.received))
        assert learner.messages == told
        for each in (leader, learner):
            transport = each.link.transport
            assert transport is not None
            assert transport._ssl.version() == "TLSv1.3"  # type: ignore[attr-defined]
            assert not each.log.records


@pytest.mark.parametrize("we_dial", [False, True])
@pytest.mark.parametrize("orderly", [False, True])
async def test_an_end_is_heard_with_the_last_read(
    folder: Path, we_dial: bool, orderly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = peer_link.DialledLink if we_dial else peer_link.AcceptedLink
    original = cls.eof_received
    heard_in_the_same_turn: list[bool] = []
    async with two_servers(peer_tls(folder), peer_tls(folder)) as (leader, learner):
        await connect(learner, leader)
        here, there = (learner, leader) if we_dial else (leader, learner)

        def eof_received(link: peer_link.DialledLink) -> None:
            original(link)
            heard_in_the_same_turn.append(here.lost == [link])

        monkeypatch.setattr(cls, "eof_received", eof_received)
        there.call("tell", there.link, Ping(1) if we_dial else FollowerInfo(2, 0, 1))
        if orderly:
            there.call("close_link", there.link, "enough")
        else:
            there.link.flush()
            layer = there.link.transport
            assert layer is not None
            layer._transport.write_eof()  # type: ignore[attr-defined]
        await until(lambda: bool(here.lost))
        assert heard_in_the_same_turn[0]
        assert len(here.messages) == 1


async def test_who_speaks_no_tls_hears_that_he_must(folder: Path) -> None:
    async with two_servers(peer_tls(folder), None) as (secure, plain):
        plain.call("dial", 1)
        plain.call("notify", 1, vote(1))
        await until(lambda: bool(plain.failed) and len(plain.reasons) == 2)
        assert all("takes only TLS" in reason for reason in plain.reasons)
        assert len(secure.reasons) == 1 and "takes only TLS" in secure.reasons[0]
        caller = await Hand.dial(secure, hello(2, ELECTION))
        (answer,) = await caller.answers()
        assert isinstance(answer, PeerRefusal) and answer.reason == RefusalReason.NO_TLS
        assert not secure.opened and not secure.heard


async def test_a_server_without_tls_says_so_and_so_does_its_caller(folder: Path) -> None:
    async with two_servers(None, peer_tls(folder)) as (plain, secure):
        secure.call("dial", 1)
        await until(lambda: bool(secure.failed))
        assert "is peer_tls_certificate_file set there" in secure.reasons[0]
        await until(lambda: bool(plain.reasons))
        assert plain.reasons == ["it speaks TLS, and here peer_tls_certificate_file is not set"]
        assert not plain.opened


@pytest.mark.parametrize(
    "name, ca",
    [
        ("stranger", "peer-ca"),  # signed by an authority that the other does not trust
        ("client", "peer-ca"),
        ("server-of-peers", "peer-ca"),  # of the right authority, but not to dial with
        ("peer", "ca"),  # it does not trust the other's authority
    ],
)
async def test_a_certificate_that_is_not_of_the_ensemble_opens_nothing(
    folder: Path, name: str, ca: str
) -> None:
    async with two_servers(peer_tls(folder), peer_tls(folder, name, ca)) as (server, stranger):
        stranger.call("dial", 1)
        stranger.call("notify", 1, vote(1))
        await until(lambda: bool(stranger.failed) and bool(server.reasons))
        assert server.reasons[0].startswith("TLS: "), server.reasons
        assert not server.opened and not server.heard and not stranger.opened
        if name not in ("peer", "server-of-peers"):
            server.call("dial", 2)
            await until(lambda: bool(server.failed))
            assert any("certificate verify failed" in each for each in server.reasons)


async def test_a_caller_without_a_certificate_opens_nothing(folder: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(folder / "peer-ca.pem")
    async with ensemble(2, tls=peer_tls(folder)) as (server, _):
        reader, writer = await asyncio.open_connection(HOST, server.links.port, ssl=context)
        writer.write(hello(2, LEARNER))
        assert await Hand(reader, writer).rest() == b""
        await until(lambda: bool(server.reasons))
        assert "did not return a certificate" in server.reasons[0]
        assert not server.opened


async def test_who_has_a_certificate_must_still_say_hello(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ensemble(2, tls=peer_tls(folder)) as (server, _):
        context = peer_tls(folder).current().dialling
        for first, words in (
            (hello(2, LEARNER, 77), "another ensemble"),
            (hello(2, LEARNER) + encoded(Ping(1)), "Ping came where"),
            (b"ruok", "four-letter word"),
            (b"\x16\x03\x01\0\1\1", "a TLS client"),
        ):
            reader, writer = await asyncio.open_connection(HOST, server.links.port, ssl=context)
            writer.write(first)
            await Hand(reader, writer).rest()
            await until(lambda: not server.links._accepted)
            server.clock.advance(60_000)
            assert words in server.reasons[-1]
        monkeypatch.setattr(peer_links, "HELLO_S", 0.01)
        for first in (b"", b"\x16", b"\x16\x03\x01\x02\0\1"):
            assert await (await Hand.dial(server, first)).rest() == b""
        assert server.reasons[-1] == "no hello within 0.01 s"
        assert not server.opened and not server.links._strangers


async def test_bytes_at_random_in_the_handshake_bring_nothing_but_a_close(folder: Path) -> None:
    async with ensemble(2, tls=peer_tls(folder)) as (server, learner):
        for size in range(1, 60):
            stranger = await Hand.dial(server, b"\x16\x03\x01" + os.urandom(size))
            stranger.writer.write_eof()
            await stranger.rest()
        await until(lambda: not server.links._accepted)
        assert not server.links._strangers
        await connect(learner, server)


async def test_a_renewed_certificate_counts_for_new_connections(folder: Path) -> None:
    clock, log = ManualClock(), RecordingLogger()
    tls = load(folder, ("peer.pem", "peer.key", "peer-ca.pem"), clock, log)
    assert tls is not None
    async with two_servers(tls, tls) as (leader, learner):
        shown = []
        for _ in range(2):
            await connect(learner, leader)
            for each in (leader, learner):
                shown.append(each.link.transport.peer_certificate())  # type: ignore[union-attr]
            for kind in ("pem", "key"):
                shutil.copyfile(folder / f"peer-renewed.{kind}", folder / f"peer.{kind}")
            clock.advance(LOOK_INTERVAL_MS)
        assert shown[0] == shown[1] != shown[2] == shown[3]
        assert log.events == ["tls_renewed"]


@pytest.mark.parametrize("secure", [False, True])
async def test_links_that_have_ended_leave_no_cycle_behind(folder: Path, secure: bool) -> None:
    kinds = (peer_link.DialledLink, peer_link.AcceptedLink, TlsLayer)

    def left() -> int:
        return sum(isinstance(each, kinds) for each in gc.get_objects())

    async with ensemble(2, tls=peer_tls(folder) if secure else None) as (leader, learner):
        gc.collect()
        gc.disable()
        try:
            for killed in (leader, learner):
                await connect(learner, leader)
                assert left() >= 2
                killed.call("close_link", killed.link, "enough")
            learner.call("set_members", {2: (HOST, learner.links.port), 1: (HOST, 1)})
            learner.call("dial", 1)
            await until(lambda: len(leader.lost) == len(learner.lost) == len(learner.failed) == 1)
            await until(lambda: not leader.links._accepted and not learner.links._dialled)
            for each in (leader, learner):
                each.opened.clear()
                each.lost.clear()
            await until(lambda: left() == 0)
        finally:
            gc.enable()


def test_wrong_settings_are_named_as_they_are(folder: Path) -> None:
    peer, key, ca = "peer.pem", "peer.key", "peer-ca.pem"
    assert load(folder, ("", "", "")) is None
    for names, field in (
        ((peer, key, "none.pem"), "peer_tls_ca_file"),
        ((peer, key, key), "peer_tls_ca_file"),
        (("none.pem", key, ca), "peer_tls_certificate_file"),
        ((peer, "client.key", ca), "peer_tls_key_file"),
        ((peer, "", ca), "peer_tls_certificate_file"),
        ((peer, "server-encrypted.key", ca), "peer_tls_key_file"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(folder, names)
        assert caught.value.field == field
        assert "password" not in caught.value.rule, "there is no setting for one"
