"""All that the broker does on zkserver: registration, election, the controller's writes, watches.

Owns the session's consequences and the current `MetadataImage`. Decides nothing that
`core.controller` can decide; every write of the controller is one multi with a check of
`/controller_epoch`'s version.

    CONNECTED      register -> elect -> load -> settle -> serve
    SUSPENDED      serve what is led; admin requests fail (retriable)
    LOST           fence: the registration is gone, somebody else may lead; start again

Watches only wake the one task that owns all this; it then reads what it needs again, so that a
burst of changes costs one reading and a missed event costs nothing. Source: Kafka
`KafkaController.elect`, `KafkaZkClient`, KAFKA-6082, KAFKA-4277 (own registration still there).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from duolog.zk import SessionState, Transaction, WatchedEvent, ZkClient
from duolog_protocol.broker_messages import (
    CreateTopicResponse,
    DeleteTopicResponse,
    NewTopicRequest,
)
from duolog_protocol.error_codes import KafkaErrorCode
from duolog_protocol.errors import (
    BadVersionError,
    BrokerError,
    BrokerNotAvailableError,
    ConfigError,
    DataDirectoryError,
    Error,
    NodeExistsError,
    NoNodeError,
    NotControllerError,
    SessionExpiredError,
    TransportError,
)
from duolog_runtime.clocks import Clock
from duolog_runtime.logs import Logger

from ..core import controller as decide
from ..core import znodes
from ..core.controller import Refusal, StateChange, TopicPlan
from ..core.metadata_image import (
    EMPTY_IMAGE,
    NO_LEADER,
    BrokerInfo,
    MetadataImage,
    PartitionImage,
    TopicImage,
)
from ..core.topic_config import TopicConfig
from .control_plane import DataPlane

STATES_PER_MULTI: Final = 200
READS_IN_FLIGHT: Final = 64
_RETRY_MS_FIRST: Final = 50
_RETRY_MS_LAST: Final = 2_000
_INCOMPLETE_RETRY_SECONDS: Final = 1.0
_SEQID_TRIES: Final = 20


class Registration(NamedTuple):
    """What the broker registers as."""

    broker_id: int
    """-1: take the next id from zkserver (from 1001 on, as Kafka does)."""
    host: str
    port: int
    rack: str | None


class _Again(Exception):
    """What was looked at has just changed: look again, at once."""


class ControllerLost(Exception):
    """Another broker is the controller now: a write found a newer `/controller_epoch`."""


class ControllerLink:
    """The broker's control plane. `run` is its one task; the rest asks for its turn."""

    def __init__(
        self,
        zk: ZkClient,
        registration: Registration,
        data_plane: DataPlane,
        topic_defaults: TopicConfig,
        *,
        default_partitions: int,
        known_cluster_id: str | None,
        clock: Clock,
        rng: random.Random,
        log: Logger,
        on_identity: Callable[[int, str], Awaitable[None]],
    ) -> None:
        self._zk = zk
        self._registration = registration
        self._data_plane = data_plane
        self._topic_defaults = topic_defaults
        self._default_partitions = default_partitions
        self._known_cluster_id = known_cluster_id
        self._clock = clock
        self._rng = rng
        self._log = log
        self._on_identity = on_identity
        self._image = EMPTY_IMAGE
        self._broker_epoch = -1
        """czxid of our registration, -1 while there is none."""
        self._controller_epoch = -1
        self._controller_epoch_version = -1
        self._is_controller = False
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        """Held by whoever changes the image: the task, or an admin request."""
        self.registered = asyncio.Event()
        """Set while the broker is registered and serves what it leads."""

    # ---- what the data side asks ---------------------------------------------------------------

    @property
    def image(self) -> MetadataImage:
        """The cluster as it is known now."""
        return self._image

    @property
    def is_controller(self) -> bool:
        """Whether this broker is the controller, as far as it knows."""
        return self._is_controller

    @property
    def broker_id(self) -> int:
        """This broker's id, -1 before the first registration where none was given."""
        return self._registration.broker_id

    async def create_topics(
        self, requests: tuple[NewTopicRequest, ...], timeout_ms: int, validate_only: bool
    ) -> tuple[CreateTopicResponse, ...]:
        """See ControlPlane."""
        self._check_may_administer()
        async with self._turn:
            names = [request.name for request in requests]
            return tuple(
                [
                    await self._create_topic(request, names.count(request.name), validate_only)
                    for request in requests
                ]
            )

    async def delete_topics(
        self, names: tuple[str, ...], timeout_ms: int
    ) -> tuple[DeleteTopicResponse, ...]:
        """See ControlPlane."""
        self._check_may_administer()
        async with self._turn:
            return tuple([await self._delete_topic(name) for name in names])

    async def allocate_producer_ids(self) -> range:
        """See ControlPlane."""
        self._check_registered()
        for _ in range(_SEQID_TRIES):
            try:
                data, stat = await self._zk.get(znodes.PRODUCER_IDS)
                first = znodes.decode_last_producer_id(data) + 1
                last = first + znodes.PRODUCER_ID_BLOCK - 1
                block = znodes.encode_producer_ids(self.broker_id, first, last)
                await self._zk.set(znodes.PRODUCER_IDS, block, stat.version)
                return range(first, last + 1)
            except NoNodeError:
                await self._create_if_missing(
                    znodes.PRODUCER_IDS, znodes.encode_producer_ids(self.broker_id, -1, -1)
                )
            except BadVersionError:
                continue  # another broker took that block
            except TransportError as error:
                # Indefinite: the block may be ours. It is left out; there are 2^63 of them.
                raise BrokerNotAvailableError(f"zkserver: {error}") from error
        raise BrokerNotAvailableError("producer ids: too many brokers take blocks at once")

    # ---- the task ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the broker registered and its image true until cancelled."""
        self._zk.add_listener(self._on_session_state)
        delay_ms = _RETRY_MS_FIRST
        try:
            while True:
                try:
                    await self._zk.wait_for(SessionState.CONNECTED)
                    async with self._turn:
                        await self._settle()
                    delay_ms = _RETRY_MS_FIRST
                except (TransportError, SessionExpiredError) as error:
                    self._log.warning("coordination_interrupted", error=str(error))
                    self._wake.set()
                    await asyncio.sleep(self._rng.uniform(0.5, 1.0) * delay_ms / 1000)
                    delay_ms = min(2 * delay_ms, _RETRY_MS_LAST)
                except _Again:
                    continue
                except ControllerLost:
                    self._resign("a newer controller epoch was found")
                    self._wake.set()
                await self._wake.wait()
                self._wake.clear()
        finally:
            self._zk.remove_listener(self._on_session_state)

    def _on_session_state(self, state: SessionState) -> None:
        if state is SessionState.LOST:
            self._broker_epoch = -1
            self.registered.clear()
            self._resign("the session expired")
            self._data_plane.fence("the session with zkserver expired")
            self._log.warning("session_expired", broker_id=self.broker_id)
        self._wake.set()

    def _on_watch(self, _event: WatchedEvent) -> None:
        self._wake.set()

    async def _settle(self) -> None:
        """Bring registration, controllership and image up to date; each step is idempotent."""
        if self._broker_epoch == -1:
            await self._register()
        if not self._is_controller:
            await self._elect()
        brokers = await self._read_brokers()
        image = self._image._replace(brokers=brokers)
        if self._is_controller:
            image = await self._settle_as_controller(image)
        else:
            image = await self._read_topics(image, frozenset())
        await self._publish(image)
        if not self.registered.is_set() and self._broker_epoch != -1:
            self._data_plane.unfence(self._broker_epoch)
            self.registered.set()
            self._log.info(
                "broker_registered",
                broker_id=self.broker_id,
                broker_epoch=self._broker_epoch,
                controller=self._is_controller,
            )

    async def _publish(self, image: MetadataImage) -> None:
        self._image = image
        if not await self._data_plane.apply_image(image):
            asyncio.get_running_loop().call_later(_INCOMPLETE_RETRY_SECONDS, self._wake.set)

    # ---- registration and election -------------------------------------------------------------

    async def _register(self) -> None:
        """Register under our id; the czxid is our broker epoch. Raises ConfigError when taken."""
        await self._make_parents()
        await self._join_cluster()
        me = self._registration
        path = znodes.broker_path(me.broker_id)
        data = znodes.encode_broker(me.host, me.port, me.rack, self._clock.wall_ms())
        try:
            await self._zk.create(path, data, ephemeral=True)
        except NodeExistsError:
            await self._wait_for_our_place(path)
        stat = await self._zk.exists(path)
        if stat is None or stat.ephemeral_owner != self._session_id():
            raise _Again
        self._broker_epoch = stat.czxid

    async def _wait_for_our_place(self, path: str) -> None:
        """Somebody is registered under our id: we ourselves, or one who must go first."""
        gone = asyncio.Event()
        stat = await self._zk.exists(path, watch=lambda _event: gone.set())
        if stat is None or stat.ephemeral_owner == self._session_id():
            if stat is None:
                raise _Again
            return
        limit_s = 2 * self._zk.negotiated_timeout + 1
        self._log.warning("registration_taken", path=path, waiting_s=limit_s)
        try:
            async with asyncio.timeout(limit_s):
                await gone.wait()
        except TimeoutError:
            raise ConfigError(
                "broker_id",
                self.broker_id,
                f"another broker is registered under this id and stays ({path})",
            ) from None
        raise _Again

    def _session_id(self) -> int:
        client_id = self._zk.client_id
        return 0 if client_id is None else client_id[0]

    async def _make_parents(self) -> None:
        for path in znodes.PERSISTENT_PARENTS:
            await self._zk.ensure_path(path)

    async def _join_cluster(self) -> None:
        """Learn or make the cluster id, and our broker id; refuse another cluster's directory."""
        try:
            data, _ = await self._zk.get(znodes.CLUSTER_ID)
        except NoNodeError:
            made = znodes.encode_cluster_id(decide.new_topic_id(self._rng))
            await self._create_if_missing(znodes.CLUSTER_ID, made)
            data, _ = await self._zk.get(znodes.CLUSTER_ID)
        cluster_id = znodes.decode_cluster_id(data)
        known = self._known_cluster_id
        if known is not None and known != cluster_id:
            raise DataDirectoryError(
                f"the data directory belongs to cluster {known}, zkserver holds cluster "
                f"{cluster_id}: point the broker at its own zkserver, or give it another directory"
            )
        self._known_cluster_id = cluster_id
        if self._registration.broker_id == -1:
            stat = await self._zk.set(znodes.BROKER_SEQID, b"", -1)
            broker_id = znodes.RESERVED_BROKER_MAX_ID + stat.version
            self._registration = self._registration._replace(broker_id=broker_id)
        self._image = self._image._replace(cluster_id=cluster_id)
        await self._on_identity(self.broker_id, cluster_id)

    async def _elect(self) -> None:
        """Become the controller, or learn who is. Watches `/controller` either way."""
        try:
            data, _ = await self._zk.get(znodes.CONTROLLER, watch=self._on_watch)
            self._note_controller(znodes.decode_controller(data))
            return
        except NoNodeError:
            pass
        await self._create_if_missing(
            znodes.CONTROLLER_EPOCH, str(znodes.FIRST_CONTROLLER_EPOCH).encode()
        )
        data, stat = await self._zk.get(znodes.CONTROLLER_EPOCH)
        epoch = znodes.decode_epoch(data) + 1
        claim = znodes.encode_controller(self.broker_id, self._clock.wall_ms())
        transaction = self._zk.transaction()
        transaction.create(znodes.CONTROLLER, claim, ephemeral=True)
        transaction.set_data(znodes.CONTROLLER_EPOCH, str(epoch).encode(), stat.version)
        try:
            await self._commit(transaction)
        except (NodeExistsError, BadVersionError, TransportError) as error:
            # Another broker won, or the answer was lost: look again before acting (G.3).
            claimed = await self._claimed_by_us()
            if not claimed:
                self._wake.set()
                if isinstance(error, TransportError):
                    raise
                return
        data, stat = await self._zk.get(znodes.CONTROLLER_EPOCH)
        self._controller_epoch = znodes.decode_epoch(data)
        self._controller_epoch_version = stat.version
        if not await self._claimed_by_us():
            self._wake.set()
            return
        await self._zk.get(znodes.CONTROLLER, watch=self._on_watch)
        self._is_controller = True
        self._note_controller(self.broker_id)
        self._log.info("controller_elected", broker_id=self.broker_id, epoch=self._controller_epoch)
        self._image = await self._read_topics(self._image, frozenset())

    async def _claimed_by_us(self) -> bool:
        stat = await self._zk.exists(znodes.CONTROLLER)
        return stat is not None and stat.ephemeral_owner == self._session_id()

    def _note_controller(self, broker_id: int) -> None:
        self._image = self._image._replace(controller_id=broker_id)

    def _resign(self, reason: str) -> None:
        if self._is_controller:
            self._is_controller = False
            self._log.warning("controller_resigned", broker_id=self.broker_id, reason=reason)
        self._note_controller(NO_LEADER)

    # ---- reading -------------------------------------------------------------------------------

    async def _read_brokers(self) -> dict[int, BrokerInfo]:
        names = await self._zk.get_children(znodes.BROKER_IDS, watch=self._on_watch)
        found: dict[int, BrokerInfo] = {}
        for broker_id in sorted(map(int, names)):
            try:
                data, stat = await self._zk.get(znodes.broker_path(broker_id))
            except NoNodeError:
                continue
            found[broker_id] = znodes.decode_broker(broker_id, data, stat)
        return found

    async def _read_topics(self, image: MetadataImage, known: frozenset[str]) -> MetadataImage:
        """The image with its topics read anew, but for those that are `known`."""
        names = await self._zk.get_children(znodes.TOPICS, watch=self._on_watch)
        topics: dict[str, TopicImage] = {}
        for name in sorted(names):
            if name in known:
                topics[name] = image.topics[name]
                continue
            topic = await self._read_topic(name)
            if topic is not None:
                topics[name] = topic
        return image._replace(topics=topics)

    async def _read_topic(self, name: str) -> TopicImage | None:
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
        partitions: dict[int, PartitionImage] = {}
        for start in range(0, len(numbers), READS_IN_FLIGHT):
            batch = numbers[start : start + READS_IN_FLIGHT]
            async with asyncio.TaskGroup() as group:
                reads = [
                    group.create_task(
                        self._read_state(name, each, node.replicas[each]), name="read-state"
                    )
                    for each in batch
                ]
            partitions.update(zip(batch, [read.result() for read in reads], strict=True))
        return TopicImage(name, node.topic_id, partitions, configs)

    async def _read_state(
        self, topic: str, partition: int, replicas: tuple[int, ...]
    ) -> PartitionImage:
        try:
            data, stat = await self._zk.get(znodes.state_path(topic, partition))
        except NoNodeError:
            return PartitionImage(replicas, NO_LEADER, -1, (), decide.NO_STATE, 0, 0)
        return znodes.decode_state(topic, partition, replicas, data, stat)

    # ---- the controller's writes ---------------------------------------------------------------

    async def _settle_as_controller(self, image: MetadataImage) -> MetadataImage:
        """Finish what was begun: deletions, states that are missing, elections."""
        image = await self._read_topics(image, frozenset(image.topics))
        for name in await self._zk.get_children(znodes.DELETE_TOPICS, watch=self._on_watch):
            image = await self._finish_deletion(image, name)
        return await self._write_elections(image)

    async def _write_elections(self, image: MetadataImage) -> MetadataImage:
        changes = decide.elections(image, self._controller_epoch)
        for start in range(0, len(changes), STATES_PER_MULTI):
            image = await self._write_states(image, changes[start : start + STATES_PER_MULTI])
        return image

    async def _write_states(
        self, image: MetadataImage, changes: Sequence[StateChange]
    ) -> MetadataImage:
        transaction = self._fenced()
        made = 0
        for change in changes:
            if change.expected_epoch == decide.NO_STATE:
                partition = znodes.partition_path(change.topic, change.partition)
                transaction.create(partition, b"")
                transaction.create(change.path, change.data)
                made += 1
            else:
                transaction.set_data(change.path, change.data, change.expected_epoch)
        results = await self._commit_fenced(transaction)
        written: list[tuple[StateChange, int, int]] = []
        at = 1
        for change in changes:
            if change.expected_epoch == decide.NO_STATE:
                stat = await self._zk.exists(change.path)
                if stat is None:
                    raise TransportError(f"{change.path} vanished while it was written")
                written.append((change, stat.version, stat.mzxid))
                at += 2
            else:
                written.append((change, results[at].version, results[at].mzxid))
                at += 1
        self._log.info("leaders_elected", partitions=len(changes), new=made)
        return decide.apply_states(image, written)

    async def _create_topic(
        self, request: NewTopicRequest, times_named: int, validate_only: bool
    ) -> CreateTopicResponse:
        if times_named > 1:
            return _not_created(
                request, KafkaErrorCode.INVALID_REQUEST, "the request names the topic twice"
            )
        plan = decide.plan_topic(
            request, self._image, self._topic_defaults, self._default_partitions, self._rng
        )
        if isinstance(plan, Refusal):
            return _not_created(request, plan.error_code, plan.message)
        if not validate_only:
            try:
                await self._write_topic(plan)
            except NodeExistsError:
                self._wake.set()
                return _not_created(
                    request,
                    KafkaErrorCode.TOPIC_ALREADY_EXISTS,
                    f"topic {plan.name!r} already exists",
                )
            except (TransportError, ControllerLost) as error:
                self._wake.set()
                return _not_created(request, KafkaErrorCode.REQUEST_TIMED_OUT, str(error))
        return CreateTopicResponse(
            plan.name, plan.topic_id, 0, None, len(plan.replicas), plan.replication_factor
        )

    async def _write_topic(self, plan: TopicPlan) -> None:
        """Topic and settings in one multi, then the states; a crash between is settled later."""
        transaction = self._fenced()
        await self._drop_stale_config(plan.name)
        transaction.create(znodes.topic_config_path(plan.name), plan.config_data)
        transaction.create(znodes.topic_path(plan.name), plan.topic_data)
        transaction.create(znodes.partitions_path(plan.name), b"")
        await self._commit_fenced(transaction)
        image = decide.apply_topic(self._image, plan.image())
        await self._publish(await self._write_elections(image))
        self._log.info("topic_created", topic=plan.name, partitions=len(plan.replicas))

    async def _drop_stale_config(self, name: str) -> None:
        """Settings of a topic that is not there (left by an interrupted deletion)."""
        try:
            await self._zk.delete(znodes.topic_config_path(name))
        except NoNodeError:
            return

    async def _delete_topic(self, name: str) -> DeleteTopicResponse:
        topic = self._image.topics.get(name)
        if topic is None:
            code = KafkaErrorCode.UNKNOWN_TOPIC_OR_PARTITION
            return DeleteTopicResponse(name, "", code, f"topic {name!r} does not exist")
        try:
            await self._create_if_missing(znodes.delete_topic_path(name), b"")
            await self._publish(await self._finish_deletion(self._image, name))
        except (TransportError, ControllerLost) as error:
            self._wake.set()
            return DeleteTopicResponse(
                name, topic.topic_id, KafkaErrorCode.REQUEST_TIMED_OUT, str(error)
            )
        return DeleteTopicResponse(name, topic.topic_id, 0, None)

    async def _finish_deletion(self, image: MetadataImage, name: str) -> MetadataImage:
        """Remove a topic's znodes, the request last, so that a crash begins here again."""
        await self._check_still_controller()
        for path in (znodes.topic_path(name), znodes.topic_config_path(name)):
            try:
                await self._zk.delete(path, recursive=True)
            except NoNodeError:
                continue
        try:
            await self._zk.delete(znodes.delete_topic_path(name))
        except NoNodeError:
            self._log.debug("deletion_already_finished", topic=name)
        self._log.info("topic_deleted", topic=name)
        return decide.apply_deletion(image, name)

    def _fenced(self) -> Transaction:
        """A transaction that does nothing unless we still are the controller."""
        transaction = self._zk.transaction()
        transaction.check(znodes.CONTROLLER_EPOCH, self._controller_epoch_version)
        return transaction

    async def _commit_fenced(self, transaction: Transaction) -> list[Any]:
        results = await transaction.commit()
        if isinstance(results[0], BadVersionError):
            raise ControllerLost
        return _first_error_raised(results)

    async def _commit(self, transaction: Transaction) -> list[Any]:
        return _first_error_raised(await transaction.commit())

    async def _check_still_controller(self) -> None:
        """Raises ControllerLost; a deletion is many writes, each of them idempotent."""
        await self._commit_fenced(self._fenced())

    async def _create_if_missing(self, path: str, data: bytes) -> None:
        try:
            await self._zk.create(path, data, makepath=True)
        except NodeExistsError:
            return

    # ---- who may ask ---------------------------------------------------------------------------

    def _check_registered(self) -> None:
        if self._broker_epoch == -1:
            raise BrokerNotAvailableError("the broker is not registered with zkserver at present")

    def _check_may_administer(self) -> None:
        self._check_registered()
        if not self._is_controller:
            raise NotControllerError(f"broker {self._image.controller_id} is the controller")
        if self._zk.state is not SessionState.CONNECTED:
            raise BrokerNotAvailableError("zkserver cannot be reached at present")


def _first_error_raised(results: Iterable[Any]) -> list[Any]:
    """The results of a multi, or the error that failed it (not those it took along)."""
    found = list(results)
    errors = [each for each in found if isinstance(each, Error)]
    for error in errors:
        if getattr(error, "code", 0) != -2:
            raise error
    if errors:
        raise errors[0]
    return found


def _not_created(request: NewTopicRequest, code: int, message: str) -> CreateTopicResponse:
    return CreateTopicResponse(
        request.name, "", code, message, request.num_partitions, request.replication_factor
    )


__all__ = ["BrokerError", "ControllerLink", "ControllerLost", "Registration"]
