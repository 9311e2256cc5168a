"""The examples of the documents run as they are printed."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from duolog import ZkClient
from duolog_cluster.cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]


async def test_the_program_in_the_readme_runs() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(program, "README.md", "exec"), names)
    async with asyncio.timeout(30), Cluster() as cluster:
        await names["main"](cluster.bootstrap_servers, cluster.zookeeper)


async def test_the_recipes_document_runs() -> None:
    text = (ROOT / "docs" / "zk-recipes.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(programs) == 7
    for program in programs:
        (name,) = re.findall(r"^async def (\w+)\(zk", program, re.MULTILINE)
        names: dict[str, Any] = {"__name__": "recipes"}
        exec(compile(program, f"zk-recipes.md: {name}", "exec"), names)
        async with (
            asyncio.timeout(30),
            Cluster(brokers=0) as cluster,
            ZkClient(cluster.zookeeper) as zk,
        ):
            await names[name](zk)


def test_the_simulation_document_runs() -> None:
    text = (ROOT / "docs" / "simulation.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(programs) == 3
    for program in programs:
        exec(compile(program, "simulation.md", "exec"), {"__name__": "simulation"})


def test_every_setting_of_the_daemons_is_documented() -> None:
    from duolog_runtime.config import field_docs
    from kbroker.config import BrokerConfig
    from kbroker.core.topic_config import TopicConfig, documentation, kafka_name
    from zkserver.config import ServerConfig
    from zkserver.core.config import CoreConfig

    for settings in (BrokerConfig, ServerConfig, CoreConfig):
        missing = set(settings.__dataclass_fields__) - field_docs(settings).keys()
        assert not missing, (settings.__name__, missing)
    topic_settings = {kafka_name(name) for name in TopicConfig.__dataclass_fields__}
    assert documentation().keys() == topic_settings
