"""How a broker stops: what it leaves behind, and what it says of it."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from duolog_cluster.cluster import Cluster
from duolog_protocol import broker_messages as kb
from duolog_protocol.apis import API_VERSIONS, ApiVersionsRequest
from duolog_protocol.errors import ConnectionLostError, LogOfflineError
from duolog_runtime.connection import ClientLink, connect
from kbroker.server.broker import SESSION_FILE
from kbroker.storage.flush import FlushTarget
from tests.support import until
from tests.unit.kbroker.test_connections import ask, fetch, no_push, produce


async def test_a_session_that_could_not_be_closed_is_left_for_the_next_process(
    tmp_path: Path,
) -> None:
    async with asyncio.timeout(30), Cluster(data=str(tmp_path)) as cluster:
        (broker,) = cluster.brokers
        session_file = tmp_path / broker.name / SESSION_FILE
        await cluster.stop(broker)
        assert not session_file.exists()
        await cluster.start_broker(broker)
        await cluster.stop(cluster.zk)
        await cluster.stop(broker)
        assert session_file.exists()
        await cluster.start_zk()
        await cluster.start_broker(broker)
        assert "former_session_closed" in broker.log.events
        assert "registration_taken" not in broker.log.events


async def link_with_topic(port: int) -> ClientLink:
    """A link to a broker that has been asked for the topic `t`, and has made it."""
    link = await connect(
        "127.0.0.1",
        port,
        max_frame_bytes=1 << 24,
        on_push=no_push,
        on_closed=lambda _reason: None,
    )
    await ask(link, API_VERSIONS, ApiVersionsRequest("test", "0"))
    await ask(link, kb.METADATA, kb.MetadataRequest(("t",), True, False))
    return link


async def test_a_long_poll_is_answered_when_the_broker_stops() -> None:
    async with asyncio.timeout(30), Cluster() as cluster:
        (broker,) = cluster.brokers
        link = await link_with_topic(broker.port)
        polling = asyncio.ensure_future(ask(link, kb.FETCH, fetch(0, wait_ms=200_000)))
        await until(lambda: broker.server.delayed_count == 1)
        await cluster.stop(broker)
        assert (await polling).partitions[0].error_code == 0


async def test_a_sync_that_fails_while_the_broker_stops_is_no_orderly_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(30), Cluster(data=str(tmp_path)) as cluster:
        (broker,) = cluster.brokers
        link = await link_with_topic(broker.port)

        def fail(_target: FlushTarget) -> None:
            raise OSError(errno.EIO, "Input/output error")

        held: list[Callable[[], None]] = []
        broker.server.logs._defer = held.append
        asking = asyncio.ensure_future(ask(link, kb.PRODUCE, produce(b"a")))
        await until(lambda: bool(held))
        broker.stop.set()
        await until(lambda: "broker_stopping" in broker.log.events)
        monkeypatch.setattr(FlushTarget, "sync", fail)
        held.pop()()
        with pytest.raises(LogOfflineError):
            await broker.task  # type: ignore[misc]
        with pytest.raises(ConnectionLostError):
            await asking
        assert "broker_stopped" not in broker.log.events
        broker.task = None
        monkeypatch.undo()
