"""The partitions this broker holds: becoming leader, appending, reading, looking up offsets.

Owns the map from partition to replica and the order of an append: check, stamp, append, sync,
acknowledge. Waiting is the purgatory's, bytes are the log's, visibility is `core.partition`'s.
One task drives all of it: nothing here awaits between reading and changing a replica.

Source: Kafka `ReplicaManager`, `Partition.appendRecordsToLeader`, kafka.md A6, A10, B2.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from duolog_protocol.broker_messages import (
    EARLIEST_TIMESTAMP,
    LATEST_TIMESTAMP,
    MAX_TIMESTAMP,
    FetchPartition,
    ListOffsetsPartition,
    ListOffsetsPartitionResponse,
    ProducePartition,
)
from duolog_protocol.error_codes import KafkaErrorCode
from duolog_protocol.errors import (
    BrokerError,
    ConfigError,
    DiskFullError,
    LogOfflineError,
    OffsetOutOfRangeError,
    StorageError,
)
from duolog_protocol.records import (
    CorruptBatchError,
    check_batch,
    stamp,
    stamp_log_append_time,
    validate_client_batch,
)
from duolog_protocol.types import LeaderAndEpoch, TopicPartition
from duolog_runtime.clocks import Clock
from duolog_runtime.disk import DiskExecutor, run_on_disk
from duolog_runtime.logs import Logger

from ..core.metadata_image import NO_LEADER, MetadataImage, PartitionImage, TopicImage
from ..core.partition import Leading, Offline, Role, epoch_problem
from ..core.producer_state import Duplicate, ProducerStates
from ..core.purgatory import Purgatory
from ..core.topic_config import TimestampType, TopicConfig
from ..storage.log import Log, LogSlice
from ..storage.log_types import NO_ROOM
from .log_manager import LogManager

NO_OFFSET: Final = -1


class Appended(NamedTuple):
    """What became of one partition of a produce request."""

    error_code: int
    message: str | None
    base_offset: int
    end_offset: int
    """Acknowledged once the replica's records below this are."""
    log_append_time_ms: int
    log_start_offset: int
    leader: LeaderAndEpoch


class Read(NamedTuple):
    """What was found for one partition of a fetch request."""

    error_code: int
    high_watermark: int
    log_start_offset: int
    slice: LogSlice | None
    leader: LeaderAndEpoch


_NOBODY: Final = LeaderAndEpoch(NO_LEADER, -1)


class Replica:
    """One partition that this broker holds."""

    __slots__ = ("config", "key", "log", "producers", "role", "topic_id")

    def __init__(
        self,
        key: TopicPartition,
        topic_id: str,
        log: Log,
        producers: ProducerStates,
        config: TopicConfig,
        role: Role,
    ) -> None:
        self.key = key
        self.topic_id = topic_id
        self.log = log
        self.producers = producers
        self.config = config
        self.role = role


class ReplicaManager:
    """See the module. `purgatory` holds whoever waits for a partition to change."""

    def __init__(
        self,
        logs: LogManager,
        disk: DiskExecutor,
        purgatory: Purgatory,
        topic_defaults: TopicConfig,
        *,
        clock: Clock,
        log: Logger,
    ) -> None:
        self._logs = logs
        self._disk = disk
        self._purgatory = purgatory
        self._topic_defaults = topic_defaults
        self._clock = clock
        self._log = log
        self._replicas: dict[tuple[str, int], Replica] = {}
        self._broker_id = NO_LEADER
        self._fenced: str | None = "the broker has not registered yet"
        self._unusable: set[tuple[str, int]] = set()
        """Partitions whose topic has settings that nothing here can follow; all of the image's."""
        self._strays_checked = False
        self.broker_epoch = -1

    # ---- following the image -------------------------------------------------------------------

    def identify(self, broker_id: int) -> None:
        """Learn this broker's id, before the first image."""
        assert self._broker_id in {NO_LEADER, broker_id}, (self._broker_id, broker_id)
        self._broker_id = broker_id

    def fence(self, reason: str) -> None:
        """See DataPlane."""
        self._fenced = reason

    def unfence(self, broker_epoch: int) -> None:
        """See DataPlane."""
        assert broker_epoch > self.broker_epoch, (broker_epoch, self.broker_epoch)
        self.broker_epoch = broker_epoch
        self._fenced = None

    @property
    def fenced(self) -> str | None:
        """Why produce is refused; None while the broker is registered."""
        return self._fenced

    async def apply_image(self, image: MetadataImage) -> bool:
        """See DataPlane. One call at a time. Raises StorageError where a log is damaged."""
        mine = {
            (topic.name, number): (topic, partition)
            for topic in image.topics.values()
            for number, partition in topic.partitions.items()
            if self._broker_id in partition.replicas
        }
        for key, replica in list(self._replicas.items()):
            found = mine.get(key)
            if found is None and key[0] in image.unreadable:
                continue  # not deleted: nobody can tell
            if found is None or found[0].topic_id != replica.topic_id:
                await self._drop(replica)
        if not self._strays_checked:
            await self._put_strays_aside(set(mine), image.unreadable)
            self._strays_checked = True
        self._unusable &= mine.keys()
        complete = True
        for key, (topic, partition) in mine.items():
            try:
                known = self._replicas.get(key)
                if known is None:
                    known = await self._open(TopicPartition(*key), topic)
                await self._follow(known, partition)
            except ConfigError as error:
                # Settings that this broker does not have, `compact` among them: what it holds
                # stays as it is, offline, rather than be kept by other rules.
                if key not in self._unusable:
                    self._unusable.add(key)
                    self._log.error("topic_config_refused", partition=key, error=str(error))
            except (DiskFullError, OSError) as error:
                if isinstance(error, OSError) and error.errno not in NO_ROOM:
                    raise LogOfflineError(f"{key[0]}-{key[1]}: {error}") from error
                complete = False
                self._log.warning("partition_not_opened", partition=key, error=str(error))
        return complete

    async def _open(self, key: TopicPartition, topic: TopicImage) -> Replica:
        config = self._topic_defaults.with_overrides(topic.configs)
        log, producers = await run_on_disk(
            self._disk, lambda: self._logs.open_or_create(key, topic.topic_id, config)
        )
        self._logs.add(key, log)
        replica = Replica(key, topic.topic_id, log, producers, config, Offline(_NOBODY))
        self._replicas[key] = replica
        return replica

    async def _follow(self, replica: Replica, partition: PartitionImage) -> None:
        """Take the role that the image gives; an older leader epoch is ignored."""
        if partition.leader_epoch <= replica.role.leader_epoch:
            return
        leader = LeaderAndEpoch(partition.leader_id, partition.leader_epoch)
        if partition.leader_id != self._broker_id:
            replica.role = Offline(leader)
        else:
            log = replica.log
            # The epoch's line is durable before any batch of the epoch can be acknowledged.
            await run_on_disk(self._disk, lambda: log.assign_epoch(partition.leader_epoch))
            replica.role = Leading(
                leader,
                partition.isr,
                replica.config.durability,
                log_end_offset=log.log_end_offset,
                durable_end_offset=log.durable_end_offset,
            )
        self._log.info(
            "leadership_changed",
            topic=replica.key.topic,
            partition=replica.key.partition,
            leader_id=partition.leader_id,
            leader_epoch=partition.leader_epoch,
            log_end_offset=replica.log.log_end_offset,
        )
        self._purgatory.on_changed(replica.key)

    async def _drop(self, replica: Replica) -> None:
        key = replica.key
        del self._replicas[key]
        replica.role = Offline(_NOBODY)
        self._purgatory.on_changed(key)
        log = self._logs.forget(key)
        await run_on_disk(self._disk, lambda: self._logs.delete(key, log))
        self._log.info("partition_dropped", topic=key.topic, partition=key.partition)

    async def _put_strays_aside(
        self, mine: set[tuple[str, int]], unreadable: frozenset[str]
    ) -> None:
        def put_aside() -> None:
            for key in self._logs.partitions_on_disk():
                if key not in mine and key.topic not in unreadable:
                    self._logs.put_aside(key)

        await run_on_disk(self._disk, put_aside)

    # ---- append --------------------------------------------------------------------------------

    def append(self, request: ProducePartition) -> Appended:
        """Append a client's batch as leader. Never raises for what a client can do wrong."""
        replica = self._replicas.get((request.topic, request.partition))
        if replica is None:
            return _refused(
                KafkaErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
                f"{request.topic}-{request.partition} is not on this broker",
            )
        role = replica.role
        if not isinstance(role, Leading):
            return _refused(
                KafkaErrorCode.NOT_LEADER_OR_FOLLOWER,
                f"broker {role.leader.leader_id} leads {request.topic}-{request.partition}",
                role.leader,
            )
        if self._fenced is not None:
            return _refused(KafkaErrorCode.BROKER_NOT_AVAILABLE, self._fenced)
        try:
            return self._append_as_leader(replica, role, request.records)
        except CorruptBatchError as error:
            return _refused(KafkaErrorCode.CORRUPT_MESSAGE, str(error))
        except BrokerError as error:
            return _refused(error.code, str(error))
        except DiskFullError as error:
            self._log.warning("append_refused", partition=replica.key, error=str(error))
            return _refused(KafkaErrorCode.KAFKA_STORAGE_ERROR, str(error))
        except StorageError as error:
            self._logs.halt(error)  # every connection is dropped: nobody gets this answer
            return _refused(KafkaErrorCode.KAFKA_STORAGE_ERROR, str(error))

    def _append_as_leader(
        self, replica: Replica, role: Leading, records: bytes | bytearray | memoryview
    ) -> Appended:
        log, config = replica.log, replica.config
        batch = bytearray(records)
        size = len(batch)
        if size > config.max_message_bytes:
            return _refused(
                KafkaErrorCode.MESSAGE_TOO_LARGE,
                f"batch of {size} bytes is over max.message.bytes={config.max_message_bytes}",
            )
        header = check_batch(batch, 0, size)
        validate_client_batch(header, size)
        if size > config.segment_bytes:
            return _refused(
                KafkaErrorCode.RECORD_LIST_TOO_LARGE,
                f"batch of {size} bytes is over segment.bytes={config.segment_bytes}",
            )
        wall_ms = self._clock.wall_ms()
        log_append_time_ms = -1
        if config.message_timestamp_type is TimestampType.LOG_APPEND_TIME:
            log_append_time_ms = wall_ms
        elif header.max_timestamp - wall_ms > config.message_timestamp_after_max_ms or (
            wall_ms - header.max_timestamp > config.message_timestamp_before_max_ms
        ):
            return _refused(
                KafkaErrorCode.INVALID_TIMESTAMP,
                f"timestamp {header.max_timestamp} is too far from the broker's {wall_ms}",
            )
        if header.producer_id >= 0:
            seen = replica.producers.check(header)
            if isinstance(seen, Duplicate):
                return self._accepted(
                    replica, role, seen.base_offset, seen.last_offset + 1, seen.timestamp_ms
                )
            if seen is not None:
                return _refused(
                    seen,
                    f"producer {header.producer_id} epoch {header.producer_epoch}: sequence "
                    f"{header.base_sequence} does not follow",
                )
        base_offset = log.log_end_offset
        stamp(batch, base_offset, role.leader_epoch)
        if log_append_time_ms >= 0:
            stamp_log_append_time(batch, log_append_time_ms)
        stamped = header._replace(
            base_offset=base_offset,
            leader_epoch=role.leader_epoch,
            max_timestamp=header.max_timestamp if log_append_time_ms < 0 else log_append_time_ms,
        )
        info = log.append([batch], [stamped], wall_ms=wall_ms)
        assert info.base_offset == base_offset, (info, base_offset)
        if role.on_appended(log.log_end_offset):
            self._purgatory.on_changed(replica.key)
        if role.needs_sync or info.rolled:
            self._sync_soon(replica)
        return self._accepted(replica, role, base_offset, info.end_offset, log_append_time_ms)

    def _accepted(
        self, replica: Replica, role: Leading, base_offset: int, end_offset: int, time_ms: int
    ) -> Appended:
        assert base_offset < end_offset <= role.log_end_offset, (base_offset, end_offset)
        if time_ms >= 0 and replica.config.message_timestamp_type is TimestampType.CREATE_TIME:
            time_ms = -1
        return Appended(
            *(0, None, base_offset, end_offset, time_ms, replica.log.log_start_offset),
            role.leader,
        )

    def _sync_soon(self, replica: Replica) -> None:
        def on_durable(durable_end_offset: int) -> None:
            role = replica.role
            if isinstance(role, Leading) and role.on_durable(durable_end_offset):
                self._purgatory.on_changed(replica.key)

        self._logs.sync_soon(replica.log, on_durable)

    def acknowledgement(self, key: tuple[str, int], appended: Appended) -> int | None:
        """Whether an append may be acknowledged: 0 yes, None not yet, else the error code."""
        replica = self._replicas.get(key)
        if replica is None or not isinstance(replica.role, Leading):
            return KafkaErrorCode.NOT_LEADER_OR_FOLLOWER
        if replica.role.leader_epoch != appended.leader.leader_epoch:
            return KafkaErrorCode.NOT_LEADER_OR_FOLLOWER
        return 0 if replica.role.is_acknowledged(appended.end_offset) else None

    # ---- read ----------------------------------------------------------------------------------

    def read(self, request: FetchPartition, max_bytes: int, *, min_one_batch: bool) -> Read:
        """Whole batches for a consumer, up to the high watermark. Never raises for a client."""
        replica = self._replicas.get((request.topic, request.partition))
        if replica is None:
            return _unread(KafkaErrorCode.UNKNOWN_TOPIC_OR_PARTITION, _NOBODY)
        role = replica.role
        if not isinstance(role, Leading):
            return _unread(KafkaErrorCode.NOT_LEADER_OR_FOLLOWER, role.leader)
        problem = epoch_problem(role, request.current_leader_epoch)
        if problem is not None:
            return _unread(problem, role.leader)
        log = replica.log
        start, end = log.log_start_offset, role.high_watermark
        offset = request.fetch_offset
        if not start <= offset <= log.log_end_offset:
            return Read(KafkaErrorCode.OFFSET_OUT_OF_RANGE, end, start, None, role.leader)
        try:
            found = log.read(
                offset, max_bytes=max_bytes, end_offset=end, min_one_batch=min_one_batch
            )
        except OffsetOutOfRangeError:
            return Read(KafkaErrorCode.OFFSET_OUT_OF_RANGE, end, start, None, role.leader)
        except (StorageError, OSError) as error:
            self._log.error("read_failed", partition=replica.key, error=str(error))
            return _unread(KafkaErrorCode.KAFKA_STORAGE_ERROR, role.leader)
        return Read(0, end, start, found if found.size_bytes else None, role.leader)

    def list_offset(self, request: ListOffsetsPartition) -> ListOffsetsPartitionResponse:
        """Look up one offset. Never raises for a client."""
        topic, partition = request.topic, request.partition
        replica = self._replicas.get((topic, partition))

        def answer(
            code: int, timestamp_ms: int = -1, offset: int = NO_OFFSET, epoch: int = -1
        ) -> ListOffsetsPartitionResponse:
            return ListOffsetsPartitionResponse(topic, partition, code, timestamp_ms, offset, epoch)

        if replica is None:
            return answer(KafkaErrorCode.UNKNOWN_TOPIC_OR_PARTITION)
        role, log = replica.role, replica.log
        if not isinstance(role, Leading):
            return answer(KafkaErrorCode.NOT_LEADER_OR_FOLLOWER)
        problem = epoch_problem(role, request.current_leader_epoch)
        if problem is not None:
            return answer(problem)
        wanted = request.timestamp_ms
        if wanted == LATEST_TIMESTAMP:
            return answer(0, -1, role.high_watermark, role.leader_epoch)
        if wanted == EARLIEST_TIMESTAMP:
            return answer(0, -1, log.log_start_offset, role.leader_epoch)
        if wanted < 0 and wanted != MAX_TIMESTAMP:
            return answer(KafkaErrorCode.INVALID_REQUEST)
        try:
            found = (
                log.offset_of_max_timestamp()
                if wanted == MAX_TIMESTAMP
                else log.offset_for_timestamp(wanted)
            )
        except (StorageError, OSError) as error:
            self._log.error("lookup_failed", partition=replica.key, error=str(error))
            return answer(KafkaErrorCode.KAFKA_STORAGE_ERROR)
        if found is None or found.offset >= role.high_watermark:
            return answer(0)
        return answer(0, found.timestamp_ms, found.offset, found.leader_epoch)

    # ---- upkeep --------------------------------------------------------------------------------

    def high_watermarks(self) -> dict[TopicPartition, int]:
        """Of all partitions led here."""
        return {
            replica.key: replica.role.high_watermark
            for replica in self._replicas.values()
            if isinstance(replica.role, Leading)
        }

    def expire_producers(self, expiration_ms: int) -> None:
        """Forget producers that were idle for so long."""
        now_ms = self._clock.now_ms()
        for replica in self._replicas.values():
            replica.producers.expire(now_ms, expiration_ms)

    @property
    def led_count(self) -> int:
        """Partitions led here."""
        return sum(isinstance(replica.role, Leading) for replica in self._replicas.values())

    @property
    def count(self) -> int:
        """Partitions held here."""
        return len(self._replicas)


def _refused(code: int, message: str, leader: LeaderAndEpoch = _NOBODY) -> Appended:
    return Appended(int(code), message, NO_OFFSET, NO_OFFSET, -1, -1, leader)


def _unread(code: int, leader: LeaderAndEpoch) -> Read:
    return Read(int(code), -1, -1, None, leader)
