"""Reads the cluster out of zkserver: brokers, topics, states, as parts of a `MetadataImage`.

Owns what is read how; never writes and decides nothing. What does not belong there (a name that is
no broker id, a registration that cannot be read) is said once in the log and passed over. A topic
that cannot be read stays as it is known, or offline where it is not: it must not look deleted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from duolog.zk import WatchedEvent, ZkClient
from duolog_protocol.errors import NoNodeError
from duolog_protocol.types import Stat
from duolog_runtime.logs import Logger
from duolog_runtime.tasks import first_of

from ..core import controller as decide
from ..core import znodes
from ..core.metadata_image import (
    NO_LEADER,
    BrokerInfo,
    MetadataImage,
    PartitionImage,
    TopicImage,
)
from ..core.topic_names import name_problem
from ..core.znodes import CorruptZnodeError

READS_IN_FLIGHT: Final = 64
_MAX_REMEMBERED: Final = 10_000

Watch = Callable[[WatchedEvent], None]
S = TypeVar("S")
T = TypeVar("T")


class ZnodeReader:
    """Reads for one broker; every read may raise what `ZkClient` raises."""

    def __init__(self, zk: ZkClient, log: Logger) -> None:
        self._zk = zk
        self._log = log
        self._passed_over: set[str] = set()

    async def brokers(self, watch: Watch) -> dict[int, BrokerInfo]:
        """The live brokers; `watch` hears when one comes or goes."""
        names: list[str] = await self._zk.get_children(znodes.BROKER_IDS, watch=watch)
        found: dict[int, BrokerInfo] = {}
        for name in sorted(names):
            if not (name.isascii() and name.isdecimal() and len(name) < 10):
                self._pass_over(f"{znodes.BROKER_IDS}/{name}", "is no broker id")
                continue
            broker_id = int(name)
            try:
                data, stat = await self._zk.get(f"{znodes.BROKER_IDS}/{name}")
                found[broker_id] = znodes.decode_broker(broker_id, data, stat)
            except NoNodeError:
                continue
            except CorruptZnodeError as error:
                self._pass_over(error.path, error.problem)
        return dict(sorted(found.items()))

    def controller(self, data: bytes | None) -> int:
        """Id of the controller whose claim this is, `NO_LEADER` where it cannot be read."""
        try:
            return znodes.decode_controller(data)
        except CorruptZnodeError as error:
            self._pass_over(error.path, error.problem)
            return NO_LEADER

    def _pass_over(self, path: str, problem: str) -> None:
        if path not in self._passed_over:
            if len(self._passed_over) >= _MAX_REMEMBERED:
                self._passed_over.clear()
            self._passed_over.add(path)
            self._log.warning("znode_passed_over", path=path, problem=problem)

    async def topics(
        self, image: MetadataImage, known: frozenset[str], watch: Watch
    ) -> MetadataImage:
        """The image with its topics read anew, but for those that are `known`."""
        names = await self._zk.get_children(znodes.TOPICS, watch=watch)
        topics: dict[str, TopicImage] = {}
        unreadable: set[str] = set()
        for name in sorted(names):
            if name in known:
                topics[name] = image.topics[name]
                continue
            if name_problem(name) is not None:
                self._pass_over(f"{znodes.TOPICS}/{name}", "is no legal name of a topic")
                continue
            try:
                topic = await self._topic(name)
            except CorruptZnodeError as error:
                self._pass_over(error.path, error.problem)
                topic = image.topics.get(name)
                if topic is None:
                    unreadable.add(name)
            if topic is not None:
                topics[name] = topic
        return image._replace(topics=topics, unreadable=frozenset(unreadable))

    async def deletions(self, watch: Watch) -> list[str]:
        """Topics that are to be deleted."""
        names: list[str] = await self._zk.get_children(znodes.DELETE_TOPICS, watch=watch)
        for name in names:
            if name_problem(name) is not None:
                self._pass_over(znodes.delete_topic_path(name), "is no legal name of a topic")
        return [name for name in names if name_problem(name) is None]

    async def _topic(self, name: str) -> TopicImage | None:
        """A topic with settings and states; None where it is just being deleted."""
        try:
            data, _ = await self._zk.get(znodes.topic_path(name))
        except NoNodeError:
            return None
        node = znodes.decode_topic(name, data)
        try:
            config, _ = await self._zk.get(znodes.topic_config_path(name))
            configs = znodes.decode_config(name, config)
        except NoNodeError:
            configs = {}
        numbers = sorted(node.replicas)
        states = await in_parallel(
            numbers, lambda each: self._state(name, each, node.replicas[each])
        )
        return TopicImage(name, node.topic_id, dict(zip(numbers, states, strict=True)), configs)

    async def _state(self, topic: str, partition: int, replicas: tuple[int, ...]) -> PartitionImage:
        try:
            data, stat = await self._zk.get(znodes.state_path(topic, partition))
        except NoNodeError:
            return PartitionImage(replicas, NO_LEADER, -1, (), decide.NO_STATE, 0, 0)
        return znodes.decode_state(topic, partition, replicas, data, stat)

    async def stats(self, paths: Sequence[str]) -> list[Stat | None]:
        """The Stats of znodes, in order."""
        return await in_parallel(paths, self._zk.exists)


async def in_parallel(items: Sequence[S], read: Callable[[S], Coroutine[Any, Any, T]]) -> list[T]:
    """What `read` gives for each item, in order, a bounded number of them under way at once.

    Raises the first error itself, not a group.
    """
    found: list[T] = []
    for start in range(0, len(items), READS_IN_FLIGHT):
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(read(item), name="read-znode")
                    for item in items[start : start + READS_IN_FLIGHT]
                ]
        except BaseExceptionGroup as failed:
            raise first_of(failed) from failed
        found += [task.result() for task in tasks]
    return found
