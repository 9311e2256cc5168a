"""All that the broker does on zkserver: registration, election, the controller's writes, watches.

Owns the session's consequences and the current `MetadataImage`. Decides nothing that
`core.controller` can decide; reading is `znode_reader`'s, the controller's writes `znode_writer`'s.

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
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, TypeVar

from duolog.zk import SessionState, WatchedEvent, ZkClient
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
    BrokerRequestTimedOutError,
    ConfigError,
    ConnectionClosedError,
    CorruptRecordError,
    DataDirectoryError,
    Error,
    NodeExistsError,
    NoNodeError,
    NotControllerError,
    SessionExpiredError,
    StorageError,
    TransportError,
)
from duolog_runtime.clocks import Clock
from duolog_runtime.logs import Logger

from ..core import controller as decide
from ..core import znodes
from ..core.controller import Refusal, TopicPlan
from ..core.metadata_image import EMPTY_IMAGE, NO_LEADER, MetadataImage
from ..core.topic_config import TopicConfig
from .control_plane import DataPlane
from .znode_reader import ZnodeReader
from .znode_writer import ControllerLost, ZnodeWriter, first_error_raised

_RETRY_MS_FIRST: Final = 50
_RETRY_MS_LAST: Final = 2_000
_INCOMPLETE_RETRY_SECONDS: Final = 1.0
_SEQID_TRIES: Final = 20
_NOT_BEGUN: Final = "the time was up before this topic's turn came: nothing was done"

T = TypeVar("T")
R = TypeVar("R")


class Registration(NamedTuple):
    """What the broker registers as."""

    broker_id: int
    """-1: take the next id from zkserver (from 1001 on, as Kafka does)."""
    host: str
    port: int
    rack: str | None


class _Again(Exception):
    """What was looked at has just changed: look again, at once."""


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
        self._reader = ZnodeReader(zk, log)
        self._writer = ZnodeWriter(zk, self._reader, log)
        self._image = EMPTY_IMAGE
        self._broker_epoch = -1
        """czxid of our registration, -1 while there is none."""
        self._has_served = False
        """Whether this process was ever registered: then its id is its own."""
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
        names = [request.name for request in requests]

        async def create(request: NewTopicRequest) -> CreateTopicResponse:
            return await self._create_topic(request, names.count(request.name), validate_only)

        def late(request: NewTopicRequest) -> CreateTopicResponse:
            return _not_created(request, KafkaErrorCode.REQUEST_TIMED_OUT, _NOT_BEGUN)

        return tuple(await self._one_by_one(requests, timeout_ms, create, late))

    async def delete_topics(
        self, names: tuple[str, ...], timeout_ms: int
    ) -> tuple[DeleteTopicResponse, ...]:
        """See ControlPlane."""
        self._check_may_administer()

        def late(name: str) -> DeleteTopicResponse:
            return DeleteTopicResponse(name, "", KafkaErrorCode.REQUEST_TIMED_OUT, _NOT_BEGUN)

        return tuple(await self._one_by_one(names, timeout_ms, self._delete_topic, late))

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
                await self._writer.create_if_missing(
                    znodes.PRODUCER_IDS, znodes.encode_producer_ids(self.broker_id, -1, -1)
                )
            except BadVersionError:
                continue  # another broker took that block
            except CorruptRecordError as error:
                raise BrokerError(str(error)) from error  # a person has to mend the znode
            except Error as error:
                # Where it is indefinite the block may be ours. It is left out; there are 2^63.
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
                except _Again:
                    continue
                except ControllerLost:
                    self._resign("a newer controller epoch was found")
                    self._wake.set()
                except Error as error:
                    if isinstance(error, ConfigError | StorageError) and not isinstance(
                        error, znodes.CorruptZnodeError
                    ):
                        raise  # not zkserver's fault, and no retry helps
                    self._log.warning("coordination_interrupted", error=_words(error))
                    if not (error.retriable or isinstance(error, SessionExpiredError)):
                        # A znode is not what we left there: forget what we know, read all of it.
                        self._resign(f"the znodes have changed: {_words(error)}")
                    self._wake.set()
                    await asyncio.sleep(self._rng.uniform(0.5, 1.0) * delay_ms / 1000)
                    delay_ms = min(2 * delay_ms, _RETRY_MS_LAST)
                await self._wake.wait()
                self._wake.clear()
        finally:
            self._zk.remove_listener(self._on_session_state)

    def _on_session_state(self, state: SessionState) -> None:
        if state is SessionState.LOST:
            self._resign("the session expired")
            self._lose_registration("the session with zkserver expired")
            self._log.warning("session_expired", broker_id=self.broker_id)
        self._wake.set()

    def _lose_registration(self, reason: str) -> None:
        """Nobody may count on us: somebody else may lead what we led."""
        self._broker_epoch = -1
        self.registered.clear()
        self._data_plane.fence(reason)

    def _on_watch(self, _event: WatchedEvent) -> None:
        self._wake.set()

    async def _settle(self) -> None:
        """Bring registration, controllership and image up to date; each step is idempotent."""
        if self._broker_epoch == -1:
            await self._register()
        if not self._is_controller:
            await self._elect()
        brokers = await self._reader.brokers(self._on_watch)
        me = brokers.get(self.broker_id)
        if me is None or me.epoch != self._broker_epoch:
            self._lose_registration("the registration was taken away")
            raise BrokerNotAvailableError(f"{znodes.broker_path(self.broker_id)} is not ours")
        image = self._image._replace(brokers=brokers)
        if self._is_controller:
            image = await self._settle_as_controller(image)
        else:
            image = await self._reader.topics(image, frozenset(), self._on_watch)
        await self._publish(image)
        if not self.registered.is_set() and self._broker_epoch != -1:
            self._data_plane.unfence(self._broker_epoch)
            self._has_served = True
            self.registered.set()
            self._log.info(
                "broker_registered",
                broker_id=self.broker_id,
                broker_epoch=self._broker_epoch,
                controller=self._is_controller,
            )

    async def _publish(self, image: MetadataImage) -> bool:
        """Take an image; whether all partitions could be opened. The rest is tried again."""
        self._image = image
        if await self._data_plane.apply_image(image):
            return True
        asyncio.get_running_loop().call_later(_INCOMPLETE_RETRY_SECONDS, self._wake.set)
        return False

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
        interrupted = False

        def on_state(_state: SessionState) -> None:
            nonlocal interrupted
            interrupted = True

        self._zk.add_listener(on_state)
        try:
            async with asyncio.timeout(limit_s):
                await gone.wait()
        except TimeoutError:
            # A zkserver that was away extends every session, our former one's too; and a broker
            # that has served under its id goes on waiting for it.
            if not interrupted and not self._has_served:
                raise ConfigError(
                    "broker_id",
                    self.broker_id,
                    f"another broker is registered under this id and stays ({path})",
                ) from None
        finally:
            self._zk.remove_listener(on_state)
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
            await self._writer.create_if_missing(znodes.CLUSTER_ID, made)
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
            data, stat = await self._zk.get(znodes.CONTROLLER, watch=self._on_watch)
        except NoNodeError:
            await self._claim()
            return
        if stat.ephemeral_owner == self._session_id():
            await self._take_office()  # our claim, though we have resigned, or never heard of it
        else:
            self._note_controller(self._reader.controller(data))

    async def _claim(self) -> None:
        await self._writer.create_if_missing(
            znodes.CONTROLLER_EPOCH, str(znodes.FIRST_CONTROLLER_EPOCH).encode()
        )
        data, stat = await self._zk.get(znodes.CONTROLLER_EPOCH)
        epoch = znodes.decode_epoch(data) + 1
        claim = znodes.encode_controller(self.broker_id, self._clock.wall_ms())
        transaction = self._zk.transaction()
        transaction.create(znodes.CONTROLLER, claim, ephemeral=True)
        transaction.set_data(znodes.CONTROLLER_EPOCH, str(epoch).encode(), stat.version)
        try:
            first_error_raised(await transaction.commit())
        except (NodeExistsError, BadVersionError):
            self._wake.set()  # another broker won; so may we have, if an earlier answer was lost
            return
        except TransportError:
            # The answer was lost: whether it happened shows when we look again (kafka.md G.3).
            self._wake.set()
            raise
        await self._take_office()

    async def _take_office(self) -> None:
        """`/controller` is ours: read the epoch that fences our writes, and all topics."""
        session_id = self._session_id()
        data, stat = await self._zk.get(znodes.CONTROLLER_EPOCH)
        if not await self._claimed_by_us() or session_id != self._session_id():
            self._wake.set()
            return
        await self._zk.get(znodes.CONTROLLER, watch=self._on_watch)
        self._writer.controller_epoch = znodes.decode_epoch(data)
        self._writer.epoch_version = stat.version
        self._writer.session_id = session_id
        self._is_controller = True
        self._note_controller(self.broker_id)
        self._log.info(
            "controller_elected", broker_id=self.broker_id, epoch=self._writer.controller_epoch
        )
        self._image = await self._reader.topics(self._image, frozenset(), self._on_watch)

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

    # ---- the controller's work -----------------------------------------------------------------

    async def _settle_as_controller(self, image: MetadataImage) -> MetadataImage:
        """Finish what was begun: deletions, states that are missing, elections."""
        image = await self._reader.topics(image, frozenset(image.topics), self._on_watch)
        for name in await self._reader.deletions(self._on_watch):
            image = await self._writer.finish_deletion(image, name)
        return await self._writer.write_elections(image)

    async def _one_by_one(
        self,
        items: Sequence[T],
        timeout_ms: int,
        work: Callable[[T], Awaitable[R]],
        late: Callable[[T], R],
    ) -> list[R]:
        """Do the work for each item in our turn; what has not begun in time is answered `late`.

        What was begun is finished: every call to zkserver has its own time limit.
        """
        done: list[R] = []
        deadline_ms = self._clock.now_ms() + timeout_ms
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._turn.acquire()
        except TimeoutError:
            return [late(item) for item in items]
        try:
            for item in items:
                in_time = not done or self._clock.now_ms() < deadline_ms
                done.append(await work(item) if in_time else late(item))
        finally:
            self._turn.release()
        return done

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
            except (Error, ControllerLost) as error:
                return _not_created(request, self._code_of(error), _words(error))
        return CreateTopicResponse(
            plan.name, plan.topic_id, 0, None, len(plan.replicas), plan.replication_factor
        )

    async def _write_topic(self, plan: TopicPlan) -> None:
        """Topic and settings in one multi, then the states; a crash between is settled later.

        Raises BrokerRequestTimedOutError where the topic is there but cannot be used yet.
        """
        await self._writer.write_topic(plan)
        image = decide.apply_topic(self._image, plan.image())
        try:
            image = await self._writer.write_elections(image)
        except StorageError:
            raise
        except (Error, ControllerLost) as error:
            self._image = image
            self._code_of(error)
            raise BrokerRequestTimedOutError(
                f"topic {plan.name!r} is created, but has no leaders yet: {_words(error)}"
            ) from error
        if not await self._publish(image):
            raise BrokerRequestTimedOutError(
                f"topic {plan.name!r} is created, but the broker could not open all of its "
                "partitions: it has no disk space or no file descriptors left, and tries again"
            )
        self._log.info("topic_created", topic=plan.name, partitions=len(plan.replicas))

    async def _delete_topic(self, name: str) -> DeleteTopicResponse:
        topic = self._image.topics.get(name)
        if topic is None:
            code = KafkaErrorCode.UNKNOWN_TOPIC_OR_PARTITION
            return DeleteTopicResponse(name, "", code, f"topic {name!r} does not exist")
        try:
            await self._writer.request_deletion(name)
            await self._publish(await self._writer.finish_deletion(self._image, name))
        except (Error, ControllerLost) as error:
            return DeleteTopicResponse(name, topic.topic_id, self._code_of(error), _words(error))
        return DeleteTopicResponse(name, topic.topic_id, 0, None)

    def _code_of(self, error: Error | ControllerLost) -> int:
        """What an admin is told of a failed write; the task then looks at everything again.

        Raises StorageError: our own logs have failed, and the broker with them.
        """
        self._wake.set()
        if isinstance(error, StorageError) and not isinstance(error, znodes.CorruptZnodeError):
            raise error
        if isinstance(error, ControllerLost):
            self._resign("a newer controller epoch was found")
            return KafkaErrorCode.NOT_CONTROLLER
        self._log.warning("topic_not_written", error=_words(error))
        if isinstance(error, BrokerError):
            return error.code
        if not error.definite:
            return KafkaErrorCode.REQUEST_TIMED_OUT
        if error.retriable or isinstance(error, SessionExpiredError | ConnectionClosedError):
            return KafkaErrorCode.BROKER_NOT_AVAILABLE
        return KafkaErrorCode.UNKNOWN_SERVER_ERROR

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


def _not_created(request: NewTopicRequest, code: int, message: str) -> CreateTopicResponse:
    return CreateTopicResponse(
        request.name, "", code, message, request.num_partitions, request.replication_factor
    )


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


__all__ = ["ControllerLink", "Registration"]
