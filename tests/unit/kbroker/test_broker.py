"""How a broker stops: what it leaves behind, and what it says of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from duolog_cluster.cluster import Cluster
from kbroker.server.broker import SESSION_FILE


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
