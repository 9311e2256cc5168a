"""The broker's control plane against a real zkserver in this process, and a data plane of notes.

What other brokers, people with an editor and lost answers do is done to the znodes directly.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from duolog.zk import SessionState, ZkClient
from duolog.zk_transaction import Transaction, failure_of
from duolog_cluster.cluster import Cluster
from duolog_protocol.broker_messages import CreateTopicResponse, NewTopicRequest
from duolog_protocol.error_codes import KafkaErrorCode
from duolog_protocol.errors import (
    BrokerError,
    BrokerNotAvailableError,
    ConfigError,
    ConnectionLostError,
    DataDirectoryError,
    Error,
    NotControllerError,
    RequestTimeoutError,
    StorageFullError,
)
from duolog_runtime.clocks import RealClock
from duolog_runtime.logs import RecordingLogger
from kbroker.core import znodes
from kbroker.core.metadata_image import MetadataImage
from kbroker.core.topic_config import TopicConfig
from kbroker.server import controller_link
from kbroker.server.controller_link import ControllerLink, Registration
from tests.support import until

LONG_MS = 20_000


class Notes:
    """A data plane that only remembers what it was told."""

    def __init__(self) -> None:
        self.image: MetadataImage | None = None
        self.fenced: str | None = "not registered"
        self.epochs: list[int] = []
        self.incomplete = 0
        """So many images cannot be taken whole."""

    async def apply_image(self, image: MetadataImage) -> bool:
        self.image = image
        self.incomplete -= 1
        return self.incomplete < 0

    def fence(self, reason: str) -> None:
        self.fenced = reason

    def unfence(self, broker_epoch: int) -> None:
        self.epochs.append(broker_epoch)
        self.fenced = None


class Broker:
    """One control plane, with its own session."""

    def __init__(
        self, zookeeper: str, broker_id: int, known_cluster_id: str | None, session: float = 2.0
    ) -> None:
        self.zk = ZkClient(zookeeper, session_timeout=session)
        self.notes = Notes()
        self.log = RecordingLogger()
        self.link = ControllerLink(
            self.zk,
            Registration(broker_id, "127.0.0.1", 9092, None),
            self.notes,
            TopicConfig(),
            default_partitions=1,
            known_cluster_id=known_cluster_id,
            clock=RealClock(),
            rng=random.Random(1),
            log=self.log,
            on_identity=self._on_identity,
        )
        self.task: asyncio.Task[None] | None = None

    async def _on_identity(self, broker_id: int, cluster_id: str) -> None:
        self.identity = (broker_id, cluster_id)

    async def start(self) -> None:
        await self.zk.start()
        self.task = asyncio.create_task(self.link.run(), name="control")

    async def registered(self) -> None:
        """Until it serves, or has failed."""
        assert self.task is not None
        waiting = asyncio.ensure_future(self.link.registered.wait())
        ends = {waiting, self.task}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED, timeout=20)
        assert waiting.done() or self.task.done(), self.log.records
        waiting.cancel()
        if self.task.done():
            self.task.result()

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait({self.task})
        await self.zk.close()

    async def create(self, name: str, partitions: int = 1) -> CreateTopicResponse:
        request = NewTopicRequest(name, partitions, 1, (), ())
        (made,) = await self.link.create_topics((request,), LONG_MS, False)
        return made

    def leaders(self, topic: str) -> list[int]:
        return [each.leader_id for each in self.link.image.topics[topic].partitions.values()]

    @property
    def has_topic(self) -> Callable[[str], bool]:
        return lambda name: name in self.link.image.topics


class World:
    """A zkserver, brokers on it, and a person who edits znodes."""

    def __init__(self, cluster: Cluster, zk: ZkClient) -> None:
        self.cluster = cluster
        self.zk = zk
        self.brokers: list[Broker] = []

    async def new(self, broker_id: int = 1, known_cluster_id: str | None = None) -> Broker:
        broker = Broker(self.cluster.zookeeper, broker_id, known_cluster_id)
        self.brokers.append(broker)
        await broker.start()
        return broker

    async def broker(self, broker_id: int = 1) -> Broker:
        found = await self.new(broker_id)
        await found.registered()
        return found


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with (
        Cluster(brokers=0, zk_settings={"tick_ms": 100}) as cluster,
        ZkClient(cluster.zookeeper, session_timeout=30) as zk,
    ):
        found = World(cluster, zk)
        yield found
        for broker in found.brokers:
            await broker.stop()


async def test_a_topic_with_the_longest_name_and_many_partitions_is_made_and_deleted(
    world: World,
) -> None:
    broker = await world.broker()
    name = "n" * 249
    made = await broker.create(name, 300)
    assert (made.error_code, made.num_partitions) == (0, 300)
    assert broker.leaders(name) == [1] * 300
    (gone,) = await broker.link.delete_topics((name,), LONG_MS)
    assert gone.error_code == 0
    assert await world.zk.get_children(znodes.TOPICS) == []
    assert await world.zk.get_children(znodes.TOPIC_CONFIGS) == []
    assert broker.task is not None and not broker.task.done()


async def test_a_creation_that_was_interrupted_is_settled_by_the_next_controller(
    world: World,
) -> None:
    first = await world.broker()
    await first.stop()
    path = znodes.topic_path("half")
    await world.zk.create(path, znodes.encode_topic("A" * 22, {0: (1,), 1: (1,)}))
    await world.zk.create(znodes.topic_config_path("half"), znodes.encode_config({}))
    broker = await world.broker()
    assert broker.leaders("half") == [1, 1]
    assert await world.zk.exists(znodes.state_path("half", 1)) is not None


async def test_a_deletion_that_was_interrupted_is_settled_by_the_next_controller(
    world: World,
) -> None:
    first = await world.broker()
    assert (await first.create("doomed", 3)).error_code == 0
    await first.stop()
    await world.zk.create(znodes.delete_topic_path("doomed"))
    await world.zk.delete(znodes.state_path("doomed", 1))  # as far as it had come
    broker = await world.broker()
    assert not broker.has_topic("doomed")
    assert await world.zk.exists(znodes.topic_path("doomed")) is None
    assert await world.zk.get_children(znodes.DELETE_TOPICS) == []


async def test_a_topic_that_the_image_does_not_know_yet_is_not_made_twice(world: World) -> None:
    broker = await world.broker()
    await world.zk.create(znodes.topic_config_path("t"), b'{"version":1,"config":{"a":"b"}}')
    async with broker.link._turn:  # the broker cannot look yet
        await world.zk.create(znodes.topic_path("t"), znodes.encode_topic("A" * 22, {0: (1,)}))
        creating = asyncio.ensure_future(broker.create("t"))
        await asyncio.sleep(0)
    made = await creating
    assert made.error_code == KafkaErrorCode.TOPIC_ALREADY_EXISTS
    data, _ = await world.zk.get(znodes.topic_config_path("t"))
    assert data == b'{"version":1,"config":{"a":"b"}}'


async def test_strange_znodes_among_the_brokers_are_passed_over(world: World) -> None:
    broker = await world.broker()
    for name, data in (("notes.txt", b""), ("7", b"no JSON"), ("٧", b"{}")):
        await world.zk.create(f"{znodes.BROKER_IDS}/{name}", data)
    await until(lambda: broker.log.events.count("znode_passed_over") == 3)
    assert (await broker.create("t")).error_code == 0
    assert list(broker.link.image.brokers) == [1]


async def test_a_state_that_a_person_has_edited_is_read_again_not_fatal(world: World) -> None:
    broker = await world.broker()
    assert (await broker.create("t")).error_code == 0
    path = znodes.state_path("t", 0)
    await world.zk.set(path, znodes.encode_state(1, 5, (1,), 1))
    await world.zk.delete(znodes.broker_path(1))  # so that it must elect, and finds its own id gone
    await until(lambda: len(broker.notes.epochs) == 2)
    await broker.registered()
    await until(lambda: broker.link.image.topics["t"].partitions[0].leader_epoch > 5)
    assert broker.leaders("t") == [1]
    assert broker.notes.fenced is None
    assert broker.task is not None and not broker.task.done()


async def test_a_newer_controller_epoch_fences_every_write(world: World) -> None:
    broker = await world.broker()
    await world.zk.set(znodes.CONTROLLER_EPOCH, b"7")
    refused = await broker.create("t")
    assert refused.error_code == KafkaErrorCode.NOT_CONTROLLER
    assert await world.zk.exists(znodes.topic_path("t")) is None
    await until(lambda: broker.link.is_controller)  # `/controller` is still its own
    assert (await broker.create("t")).error_code == 0
    data, _ = await world.zk.get(znodes.state_path("t", 0))
    assert b'"controller_epoch":7' in (data or b"")


async def test_a_deposed_controller_follows_until_the_other_one_is_gone(world: World) -> None:
    broker = await world.broker()
    async with ZkClient(world.cluster.zookeeper, session_timeout=30) as other:
        taking = other.transaction().delete(znodes.CONTROLLER)
        taking.create(znodes.CONTROLLER, znodes.encode_controller(2, 1), ephemeral=True)
        taking.set_data(znodes.CONTROLLER_EPOCH, b"2")
        await taking.commit()
        refused = await broker.create("t")
        assert refused.error_code == KafkaErrorCode.NOT_CONTROLLER
        await until(lambda: broker.link.image.controller_id == 2)
        with pytest.raises(NotControllerError, match="broker 2"):
            await broker.create("t")
    await until(lambda: broker.link.is_controller)
    assert (await broker.create("t")).error_code == 0
    assert (await world.zk.get(znodes.CONTROLLER_EPOCH))[0] == b"3"


async def test_a_deposed_controller_deletes_nothing_of_a_topic_that_was_made_again(
    world: World,
) -> None:
    broker = await world.broker()
    assert (await broker.create("t")).error_code == 0
    bulk = broker.link._writer._delete_states

    async def paused(name: str) -> None:
        await bulk(name)
        broker.link._writer._delete_states = bulk  # type: ignore[method-assign]
        await world.zk.set(znodes.CONTROLLER_EPOCH, b"7")  # the next one finishes the deletion
        await world.zk.delete(znodes.delete_topic_path(name))
        await world.zk.set(znodes.topic_path(name), znodes.encode_topic("B" * 22, {0: (1,)}))

    broker.link._writer._delete_states = paused  # type: ignore[method-assign]
    (refused,) = await broker.link.delete_topics(("t",), LONG_MS)
    assert refused.error_code == KafkaErrorCode.NOT_CONTROLLER
    assert b"B" * 22 in ((await world.zk.get(znodes.topic_path("t")))[0] or b"")
    assert await world.zk.exists(znodes.topic_config_path("t")) is not None


async def test_the_controllers_writes_are_never_sent_in_a_later_session(world: World) -> None:
    broker = await world.broker()
    broker.link._writer.session_id = 1
    refused = await broker.create("t")
    assert refused.error_code == KafkaErrorCode.BROKER_NOT_AVAILABLE
    assert await world.zk.exists(znodes.topic_path("t")) is None


async def test_a_deletion_takes_along_what_other_tools_have_put_below_a_topic(
    world: World,
) -> None:
    broker = await world.broker()
    assert (await broker.create("t", 2)).error_code == 0
    await world.zk.create(f"{znodes.state_path('t', 1)}/a/b", b"", makepath=True)
    await world.zk.create(f"{znodes.topic_config_path('t')}/c", b"")
    (gone,) = await broker.link.delete_topics(("t",), LONG_MS)
    assert gone.error_code == 0
    for parent in (znodes.TOPICS, znodes.TOPIC_CONFIGS, znodes.DELETE_TOPICS):
        assert await world.zk.get_children(parent) == []


BAD_TOPICS = {
    "empty": b"",
    "deep": b"[" * 100_000,
    "n" * 250: znodes.encode_topic("A" * 22, {0: (1,)}),
    "no-replicas": znodes.encode_topic("A" * 22, {0: ()}),
}


async def test_what_others_write_into_znodes_never_ends_a_broker(world: World) -> None:
    broker = await world.broker()
    assert (await broker.create("good")).error_code == 0
    for name, data in BAD_TOPICS.items():
        await world.zk.create(znodes.topic_path(name), data)
    good = znodes.encode_topic("A" * 22, {0: (1,)})
    making = world.zk.transaction().create(znodes.topic_path("bad-state"), good)
    making.create(znodes.partitions_path("bad-state"))
    making.create(znodes.partition_path("bad-state", 0))
    making.create(znodes.state_path("bad-state", 0), BAD_STATE)
    assert failure_of(await making.commit()) is None
    await world.zk.create(znodes.delete_topic_path("n" * 250), b"")
    await world.zk.create(f"{znodes.BROKER_IDS}/8", b'{"host":"h","port":%d}' % (1 << 70))
    await until(lambda: broker.log.events.count("znode_passed_over") >= len(BAD_TOPICS) + 3)
    bad = {"empty", "deep", "no-replicas", "bad-state"}
    await until(lambda: broker.link.image.unreadable == bad)
    assert (await broker.create("t")).error_code == 0
    assert sorted(broker.link.image.topics) == ["good", "t"]
    assert (await broker.create("empty")).error_code == KafkaErrorCode.TOPIC_ALREADY_EXISTS
    await broker.stop()
    again = await world.broker(2)  # as it is when all is read for the first time
    assert again.link.image.unreadable == bad
    assert sorted(again.link.image.topics) == ["good", "t"]
    await world.zk.set(znodes.topic_path("empty"), good)  # a person mends one
    assert (await again.create("u")).error_code == 0
    await world.zk.create(f"{znodes.TOPICS}/nudge", b"")
    await until(lambda: "empty" in again.link.image.topics)


BAD_STATE = b'{"leader":1,"leader_epoch":0,"isr":[],"controller_epoch":1}'


async def test_a_claim_of_the_controller_that_cannot_be_read_names_nobody(world: World) -> None:
    await world.zk.create(znodes.CONTROLLER, b"")
    broker = await world.broker()
    assert broker.link.image.controller_id == -1
    await world.zk.delete(znodes.CONTROLLER)
    await until(lambda: broker.link.is_controller)


async def test_a_controller_epoch_that_cannot_be_read_is_waited_for(world: World) -> None:
    await world.zk.create(znodes.CONTROLLER_EPOCH, b"many")
    broker = await world.new()
    await until(lambda: "coordination_interrupted" in broker.log.events)
    await world.zk.set(znodes.CONTROLLER_EPOCH, b"4")
    await broker.registered()
    assert broker.link.is_controller


class LostAnswer(Transaction):
    """Commits, and never hears of it."""

    async def commit(
        self, *, timeout: float | None = None, session_id: int | None = None
    ) -> list[Any]:
        await super().commit(timeout=timeout, session_id=session_id)
        raise ConnectionLostError("no answer before the end")


async def test_an_election_whose_answer_was_lost_is_recognised_as_won(world: World) -> None:
    broker = Broker(world.cluster.zookeeper, 1, None)
    world.brokers.append(broker)
    losses = 1
    honest = broker.zk.transaction

    def transaction() -> Transaction:
        nonlocal losses
        losses -= 1
        return LostAnswer(broker.zk._keeper) if losses >= 0 else honest()

    broker.zk.transaction = transaction  # type: ignore[method-assign]
    await broker.start()
    await broker.registered()
    assert "coordination_interrupted" in broker.log.events
    assert broker.link.is_controller
    assert (await world.zk.get(znodes.CONTROLLER_EPOCH))[0] == b"1"
    assert (await broker.create("t")).error_code == 0


async def test_a_broker_waits_for_its_place_and_says_when_it_stays_taken(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.zk.ensure_path(znodes.BROKER_IDS)
    taken = znodes.encode_broker("127.0.0.1", 1, None, 1)
    async with ZkClient(world.cluster.zookeeper, session_timeout=30) as other:
        await other.create(znodes.broker_path(1), taken, ephemeral=True)
        waiting = await world.new()
        await until(lambda: "registration_taken" in waiting.log.events)
    await waiting.registered()
    monkeypatch.setattr(ZkClient, "negotiated_timeout", -0.49)
    stranger = await world.new()
    with pytest.raises(ConfigError, match="another broker is registered under this id"):
        await stranger.registered()


async def test_a_first_registration_that_was_interrupted_goes_on_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.zk.ensure_path(znodes.BROKER_IDS)
    monkeypatch.setattr(ZkClient, "negotiated_timeout", 0.5)
    async with ZkClient(world.cluster.zookeeper, session_timeout=30) as other:
        await other.create(znodes.broker_path(1), b"{}", ephemeral=True)
        waiting = await world.new()
        await until(lambda: "registration_taken" in waiting.log.events)
        for listener in list(waiting.zk._keeper.listeners):
            listener(SessionState.SUSPENDED)  # zkserver was away: it extends every session
        await until(lambda: waiting.log.events.count("registration_taken") == 2)
    await waiting.registered()


async def test_a_broker_that_has_served_waits_for_its_id_however_long_it_takes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await world.broker()
    monkeypatch.setattr(ZkClient, "negotiated_timeout", -0.49)
    async with ZkClient(world.cluster.zookeeper, session_timeout=30) as other:
        taking = other.transaction().delete(znodes.broker_path(1))
        taking.create(znodes.broker_path(1), b"{}", ephemeral=True)
        await taking.commit()
        await until(lambda: broker.log.events.count("registration_taken") >= 3)
        assert broker.notes.fenced is not None
    await until(lambda: len(broker.notes.epochs) == 2)
    assert broker.task is not None and not broker.task.done()


async def test_partitions_that_could_not_be_opened_are_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_link, "_INCOMPLETE_RETRY_SECONDS", 0.001)
    broker = await world.broker()
    broker.notes.incomplete = 3
    made = await broker.create("t")
    assert made.error_code == KafkaErrorCode.REQUEST_TIMED_OUT
    assert "is created, but the broker could not open" in (made.error_message or "")
    await until(lambda: broker.notes.incomplete < 0)
    assert broker.leaders("t") == [1]


Call = Callable[..., Awaitable[Any]]


def failing(call: Call, error: Error, paths: str, times: int) -> Call:
    """`call`, but for the first `times` calls about a path with `paths` in it."""
    left = times

    async def instead(path: str, *arguments: Any, **options: Any) -> Any:
        nonlocal left
        if paths in path and left:
            left -= 1
            raise error
        return await call(path, *arguments, **options)

    return instead


async def test_a_timeout_in_the_midst_of_reading_states_is_ridden_out(world: World) -> None:
    """The reads run side by side: their error must not come out as a group."""
    first = await world.broker()
    assert (await first.create("t", 5)).error_code == 0
    await first.stop()
    broker = Broker(world.cluster.zookeeper, 1, None)
    world.brokers.append(broker)
    late = RequestTimeoutError("GetData was not answered")
    broker.zk.get = failing(broker.zk.get, late, "/state", 2)  # type: ignore[method-assign]
    await broker.start()
    await broker.registered()
    await until(lambda: broker.has_topic("t"))
    assert broker.log.events.count("coordination_interrupted") >= 1
    assert broker.leaders("t") == [1] * 5


class FullDisk(Transaction):
    """zkserver has no disk space."""

    async def commit(
        self, *, timeout: float | None = None, session_id: int | None = None
    ) -> list[Any]:
        raise StorageFullError("zkserver's disk is full")


async def test_a_zkserver_without_disk_space_costs_requests_not_the_broker(world: World) -> None:
    broker = await world.broker()
    honest, set_data = broker.zk.transaction, broker.zk.set
    broker.zk.transaction = lambda: FullDisk(broker.zk._keeper)  # type: ignore[method-assign]
    full = StorageFullError("zkserver's disk is full")
    broker.zk.set = failing(set_data, full, "", 1)  # type: ignore[method-assign]
    refused = await broker.create("t")
    assert refused.error_code == KafkaErrorCode.BROKER_NOT_AVAILABLE
    assert "disk is full" in (refused.error_message or "")
    with pytest.raises(BrokerNotAvailableError, match="disk is full"):
        await broker.link.allocate_producer_ids()
    broker.zk.transaction = honest  # type: ignore[method-assign]
    assert (await broker.create("t")).error_code == 0
    assert len(await broker.link.allocate_producer_ids()) == znodes.PRODUCER_ID_BLOCK


async def test_a_topic_whose_leaders_could_not_be_written_is_told_as_made_and_settled(
    world: World,
) -> None:
    broker = await world.broker()
    honest = broker.zk.transaction
    count = 0

    def transaction() -> Transaction:
        nonlocal count
        count += 1
        return FullDisk(broker.zk._keeper) if count == 2 else honest()

    broker.zk.transaction = transaction  # type: ignore[method-assign]
    made = await broker.create("t")
    assert made.error_code == KafkaErrorCode.REQUEST_TIMED_OUT
    assert "is created, but has no leaders yet" in (made.error_message or "")
    await until(lambda: broker.leaders("t") == [1])


async def test_the_time_limit_of_an_admin_request_holds_while_others_have_their_turn(
    world: World,
) -> None:
    broker = await world.broker()
    assert (await broker.create("old")).error_code == 0
    request = NewTopicRequest("new", 1, 1, (), ())
    async with broker.link._turn:
        (late,) = await broker.link.create_topics((request,), 1, False)
        (gone,) = await broker.link.delete_topics(("old",), 1)
    for answer in (late, gone):
        assert answer.error_code == KafkaErrorCode.REQUEST_TIMED_OUT
        assert "nothing was done" in (answer.error_message or "")
    assert sorted(await world.zk.get_children(znodes.TOPICS)) == ["old"]
    assert not broker.link._turn.locked()


async def test_blocks_of_producer_ids_are_never_given_twice(world: World) -> None:
    brokers = [await world.broker(1), await world.broker(2)]
    blocks = await asyncio.gather(*[each.link.allocate_producer_ids() for each in brokers * 3])
    ids = [number for block in blocks for number in block]
    assert len(set(ids)) == len(ids) == 6 * znodes.PRODUCER_ID_BLOCK
    await world.zk.set(znodes.PRODUCER_IDS, b'{"version":1,"block_end":"many"}')
    with pytest.raises(BrokerError, match="is no number"):
        await brokers[0].link.allocate_producer_ids()


async def test_the_directory_of_another_cluster_ends_the_broker(world: World) -> None:
    stranger = await world.new(1, "another-cluster")
    with pytest.raises(DataDirectoryError, match="belongs to cluster another-cluster"):
        await stranger.registered()


async def test_without_zkserver_admin_is_refused_and_after_expiry_the_broker_is_fenced(
    world: World,
) -> None:
    broker = Broker(world.cluster.zookeeper, 1, None, session=0.7)
    world.brokers.append(broker)
    await broker.start()
    await broker.registered()
    assert (await broker.create("t")).error_code == 0
    registrations = len(broker.notes.epochs)
    await world.cluster.kill(world.cluster.zk)
    await until(lambda: broker.zk.state is SessionState.SUSPENDED)
    with pytest.raises(BrokerNotAvailableError, match="cannot be reached"):
        await broker.create("u")
    assert broker.notes.fenced is None
    await until(lambda: broker.zk.state is SessionState.LOST)
    assert broker.notes.fenced == "the session with zkserver expired"
    with pytest.raises(BrokerNotAvailableError, match="not registered"):
        await broker.create("u")
    await world.cluster.start_zk()
    await broker.registered()
    assert broker.notes.epochs == sorted(set(broker.notes.epochs))
    assert len(broker.notes.epochs) > registrations
    await until(lambda: broker.link.is_controller)
    assert (await broker.create("u")).error_code == 0
