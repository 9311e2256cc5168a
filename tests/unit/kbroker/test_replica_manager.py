"""The data side of a broker on real files, with the disk thread run by hand."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from duolog_protocol.broker_messages import (
    FetchPartition,
    ListOffsetsPartition,
    ProducePartition,
)
from duolog_protocol.error_codes import KafkaErrorCode
from duolog_protocol.errors import StorageError
from duolog_protocol.record_decoding import decode_records
from duolog_protocol.records import BatchBuilder, iter_headers
from duolog_protocol.types import TopicPartition
from duolog_runtime.clocks import ManualClock
from duolog_runtime.disk import InlineDisk
from duolog_runtime.files import RealFile, RealFiles
from duolog_runtime.logs import RecordingLogger
from kbroker.core.metadata_image import (
    EMPTY_IMAGE,
    BrokerInfo,
    MetadataImage,
    PartitionImage,
    TopicImage,
)
from kbroker.core.purgatory import Purgatory
from kbroker.core.topic_config import TopicConfig
from kbroker.server.log_manager import LogManager
from kbroker.server.replica_manager import Appended, ReplicaManager

TOPIC_ID = "A" * 22


class World:
    """One broker's data side; `restart` is a new process on the same directory."""

    def __init__(self, directory: Path, defaults: TopicConfig | None = None) -> None:
        self.directory = str(directory)
        self.defaults = defaults or TopicConfig()
        self.clock = ManualClock()
        self.halted: list[StorageError] = []
        self.start()

    def start(self) -> None:
        self.disk = InlineDisk()
        self.log = RecordingLogger()
        self.purgatory = Purgatory(100)
        self.deferred: list[object] = []
        self.logs = LogManager(
            RealFiles(),
            self.directory,
            self.disk,
            defer=lambda callback: callback(),
            clock=self.clock,
            rng=random.Random(1),
            log=self.log,
            memory_tail_bytes=10_000,
            memory_tails_bytes=100_000,
            max_producer_ids=100,
            halt=self.halted.append,
        )
        self.logs.open_directory()
        self.replicas = ReplicaManager(
            self.logs,
            self.disk,
            self.purgatory,
            self.defaults,
            clock=self.clock,
            log=self.log,
        )
        self.replicas.identify(1)

    async def lead(self, epoch: int, **configs: str) -> None:
        assert await self.replicas.apply_image(image(epoch, **configs))
        self.replicas.unfence(epoch + 1)

    def kill(self) -> None:
        for log in self.logs.logs.values():
            log.abandon()
        self.logs.release()

    def produce(self, *values: bytes, partition: int = 0, **batch: int) -> Appended:
        return self.replicas.append(ProducePartition("t", partition, encode(*values, **batch)))

    def read(self, offset: int = 0, epoch: int = -1) -> list[bytes]:
        request = FetchPartition("t", 0, epoch, offset, -1, -1, 1 << 20)
        found = self.replicas.read(request, 1 << 20, min_one_batch=True)
        assert found.error_code == 0, found
        if found.slice is None:
            return []
        data = b"".join(found.slice.read())
        return [
            record.value
            for position, _ in iter_headers(data)
            for record in decode_records(data, position, start_offset=offset)
        ]


def encode(*values: bytes, timestamp: int = 1_700_000_000_000, **batch: int) -> bytes:
    builder = BatchBuilder()
    for value in values:
        builder.append(timestamp, None, value)
    return builder.build(**batch)  # type: ignore[arg-type]


def image(epoch: int, *, topic_id: str = TOPIC_ID, **configs: str) -> MetadataImage:
    partition = PartitionImage((1,), 1, epoch, (1,), epoch, 1, epoch)
    settings = {name.replace("_", "."): value for name, value in configs.items()}
    topic = TopicImage("t", topic_id, {0: partition}, settings)
    broker = BrokerInfo(1, "127.0.0.1", 9092, None, epoch)
    return EMPTY_IMAGE._replace(brokers={1: broker}, topics={"t": topic})


@pytest.fixture
async def world(tmp_path: Path) -> World:
    found = World(tmp_path)
    await found.lead(0)
    return found


async def test_records_come_back_with_their_offsets_and_epoch(world: World) -> None:
    assert world.produce(b"a", b"b")[:4] == (0, None, 0, 2)
    assert world.produce(b"c")[:4] == (0, None, 2, 3)
    assert world.read() == [b"a", b"b", b"c"]
    assert world.read(1) == [b"b", b"c"]
    assert world.read(3) == []


async def test_with_fsync_nothing_is_acknowledged_or_visible_before_the_sync(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    await world.lead(0)
    world.disk = InlineDisk(immediate=False)
    world.logs._disk = world.disk
    appended = world.produce(b"a")
    assert appended.error_code == 0
    assert world.replicas.acknowledgement(("t", 0), appended) is None
    assert world.read() == []
    second = world.produce(b"b")
    world.disk.run_pending()
    assert world.replicas.acknowledgement(("t", 0), appended) == 0
    assert world.replicas.acknowledgement(("t", 0), second) == 0
    assert world.read() == [b"a", b"b"]


async def test_with_replicated_an_append_is_enough(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.lead(0, durability="replicated")
    world.disk = InlineDisk(immediate=False)
    world.logs._disk = world.disk
    appended = world.produce(b"a")
    assert world.replicas.acknowledgement(("t", 0), appended) == 0
    assert world.read() == [b"a"]


async def test_bad_batches_are_refused_each_with_its_own_error(world: World) -> None:
    good = encode(b"a")
    damaged = bytearray(good)
    damaged[-1] ^= 1
    cases: list[tuple[bytes, KafkaErrorCode, str]] = [
        (bytes(damaged), KafkaErrorCode.CORRUPT_MESSAGE, "CRC"),
        (good[:-1], KafkaErrorCode.CORRUPT_MESSAGE, "are there"),
        (b"", KafkaErrorCode.CORRUPT_MESSAGE, "at least 61"),
        (good + good, KafkaErrorCode.CORRUPT_MESSAGE, "one batch"),
        (encode(b"a", attributes=0x20), KafkaErrorCode.INVALID_RECORD, "control"),
        (encode(b"a", producer_id=1), KafkaErrorCode.INVALID_RECORD, "sequence"),
        (encode(b"a", attributes=7), KafkaErrorCode.UNSUPPORTED_COMPRESSION_TYPE, "codec 7"),
        (encode(b"x" * 1_100_000), KafkaErrorCode.MESSAGE_TOO_LARGE, "max.message.bytes"),
        (encode(b"a", timestamp=1 << 50), KafkaErrorCode.INVALID_TIMESTAMP, "too far"),
    ]
    for records, code, words in cases:
        refused = world.replicas.append(ProducePartition("t", 0, records))
        assert refused.error_code == code, (refused, code)
        assert words in (refused.message or ""), refused
    assert world.produce(b"a").base_offset == 0
    unknown = world.replicas.append(ProducePartition("u", 0, good))
    assert unknown.error_code == KafkaErrorCode.UNKNOWN_TOPIC_OR_PARTITION


async def test_an_idempotent_producer_is_never_stored_twice(world: World) -> None:
    first = world.produce(b"a", b"b", producer_id=7, producer_epoch=0, base_sequence=0)
    again = world.produce(b"a", b"b", producer_id=7, producer_epoch=0, base_sequence=0)
    assert (again.base_offset, again.end_offset) == (first.base_offset, first.end_offset)
    gap = world.produce(b"d", producer_id=7, producer_epoch=0, base_sequence=3)
    assert gap.error_code == KafkaErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert world.produce(b"c", producer_id=7, producer_epoch=1, base_sequence=0).error_code == 0
    fenced = world.produce(b"d", producer_id=7, producer_epoch=0, base_sequence=2)
    assert fenced.error_code == KafkaErrorCode.INVALID_PRODUCER_EPOCH
    assert world.read() == [b"a", b"b", b"c"]


async def test_a_killed_process_keeps_records_and_producers(world: World) -> None:
    world.produce(b"a", producer_id=7, producer_epoch=0, base_sequence=0)
    world.produce(b"b", producer_id=7, producer_epoch=0, base_sequence=1)
    world.kill()
    world.start()
    await world.lead(1)
    assert "log_recovered" in world.log.events
    again = world.produce(b"b", producer_id=7, producer_epoch=0, base_sequence=1)
    assert (again.error_code, again.base_offset) == (0, 1)
    world.produce(b"c", producer_id=7, producer_epoch=0, base_sequence=2)
    assert world.read() == [b"a", b"b", b"c"]


async def test_a_clean_stop_needs_no_recovery(world: World) -> None:
    world.produce(b"a")
    world.logs.close(5)
    world.start()
    await world.lead(1)
    assert "log_recovered" not in world.log.events
    assert world.read() == [b"a"]


async def test_logs_that_were_not_opened_are_not_called_clean(world: World) -> None:
    """Killed; then stopped in order before it was registered; then the tail must be checked."""
    world.produce(b"a")
    world.kill()
    torn = Path(world.directory) / "t-0" / f"{0:020d}.log"
    torn.write_bytes(torn.read_bytes() + b"torn tail")
    world.start()
    world.logs.close(5)
    world.start()
    await world.lead(1)
    assert "log_recovered" in world.log.events
    assert world.produce(b"b").base_offset == 1
    assert world.read() == [b"a", b"b"]


async def test_a_second_broker_on_the_directory_is_refused(world: World) -> None:
    with pytest.raises(StorageError, match="in use by another broker"):
        World(Path(world.directory))


async def test_the_directory_of_another_broker_or_cluster_is_refused(world: World) -> None:
    world.logs.claim_directory(1, "cluster-a")
    world.logs.claim_directory(1, "cluster-a")
    with pytest.raises(StorageError, match="belongs to broker 1"):
        world.logs.claim_directory(2, "cluster-a")
    with pytest.raises(StorageError, match="belongs to cluster 'cluster-a'"):
        world.logs.claim_directory(1, "cluster-b")


async def test_a_fenced_broker_refuses_to_append_but_still_serves(world: World) -> None:
    world.produce(b"a")
    world.replicas.fence("the session expired")
    refused = world.produce(b"b")
    assert refused.error_code == KafkaErrorCode.BROKER_NOT_AVAILABLE
    assert world.read() == [b"a"]
    world.replicas.unfence(99)
    assert world.produce(b"b").error_code == 0


async def test_a_deleted_topic_is_gone_and_one_of_the_same_name_begins_empty(
    world: World,
) -> None:
    world.produce(b"a")
    await world.replicas.apply_image(EMPTY_IMAGE)
    assert world.produce(b"b").error_code == KafkaErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    assert not [name for name in Path(world.directory).iterdir() if name.name.startswith("t-")]
    await world.replicas.apply_image(image(0, topic_id="B" * 22))
    assert world.produce(b"c").base_offset == 0


async def test_a_log_of_a_topic_that_vanished_while_away_is_put_aside_not_deleted(
    world: World,
) -> None:
    world.produce(b"precious")
    world.kill()
    world.start()
    await world.replicas.apply_image(image(0, topic_id="B" * 22))
    strays = [each for each in Path(world.directory).iterdir() if each.name.endswith("-stray")]
    assert len(strays) == 1
    assert b"precious" in (strays[0] / f"{0:020d}.log").read_bytes()
    world.replicas.unfence(9)
    assert world.produce(b"c").base_offset == 0


async def test_leader_epochs_fence_old_and_unknown_requests(world: World) -> None:
    world.produce(b"a")
    assert await world.replicas.apply_image(image(3))
    for epoch, code in (
        (2, KafkaErrorCode.FENCED_LEADER_EPOCH),
        (4, KafkaErrorCode.UNKNOWN_LEADER_EPOCH),
    ):
        request = FetchPartition("t", 0, epoch, 0, -1, -1, 100)
        assert world.replicas.read(request, 100, min_one_batch=True).error_code == code
        lookup = ListOffsetsPartition("t", 0, epoch, -1)
        assert world.replicas.list_offset(lookup).error_code == code
    assert world.read(epoch=3) == [b"a"]


async def test_offsets_by_place_and_by_time(world: World) -> None:
    for index in range(5):
        world.produce(b"%d" % index, timestamp=1_700_000_000_000 + 1000 * index)

    def look_up(timestamp: int) -> int:
        found = world.replicas.list_offset(ListOffsetsPartition("t", 0, -1, timestamp))
        assert found.error_code == 0
        return found.offset

    assert (look_up(-2), look_up(-1), look_up(-3)) == (0, 5, 4)
    assert look_up(1_700_000_000_000) == 0
    assert look_up(1_700_000_001_001) == 2
    assert look_up(1_700_000_009_000) == -1


async def test_log_append_time_replaces_the_producers_timestamps(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.lead(0, message_timestamp_type="LogAppendTime")
    appended = world.produce(b"a", timestamp=5)
    assert appended.log_append_time_ms == world.clock.wall_ms()
    request = FetchPartition("t", 0, -1, 0, -1, -1, 1000)
    found = world.replicas.read(request, 1000, min_one_batch=True)
    assert found.slice is not None
    (record,) = decode_records(b"".join(found.slice.read()))
    assert (record.timestamp, record.timestamp_type) == (world.clock.wall_ms(), 1)


async def test_old_segments_go_and_the_log_start_follows(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.lead(0, segment_bytes="1024", retention_bytes="2048")
    for index in range(40):
        world.produce(b"%0200d" % index)
    deleted = world.logs.apply_retention(world.replicas.high_watermarks())
    assert deleted > 0
    log = world.logs.logs[TopicPartition("t", 0)]
    assert 0 < log.log_start_offset < 40
    out = world.replicas.read(FetchPartition("t", 0, -1, 0, -1, -1, 1000), 1000, min_one_batch=True)
    assert out.error_code == KafkaErrorCode.OFFSET_OUT_OF_RANGE
    assert out.log_start_offset == log.log_start_offset
    world.clock.advance(60_000)
    world.logs.unlink_deleted()
    assert not list(Path(world.directory).glob("t-0/*.deleted"))


async def test_each_topic_has_its_own_delay_until_deleted_segments_are_unlinked(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    settings = {"segment_bytes": "1024", "retention_bytes": "0", "file_delete_delay_ms": "5000"}
    await world.lead(0, **settings)
    for index in range(20):
        world.produce(b"%0200d" % index)
    assert world.logs.apply_retention(world.replicas.high_watermarks()) > 0
    world.clock.advance(4_999)
    world.logs.unlink_deleted()
    assert list(Path(world.directory).glob("t-0/*.deleted"))
    world.clock.advance(1)
    world.logs.unlink_deleted()
    assert not list(Path(world.directory).glob("t-0/*.deleted"))


async def test_records_of_a_directory_without_its_metadata_are_put_aside_not_deleted(
    world: World,
) -> None:
    """A restored backup, or a hand that cleaned up too much: whose they are is not known."""
    world.produce(b"precious")
    world.kill()
    (Path(world.directory) / "t-0" / "partition.metadata").unlink()
    world.start()
    await world.lead(1)
    (stray,) = [each for each in Path(world.directory).iterdir() if each.name.endswith("-stray")]
    assert b"precious" in (stray / f"{0:020d}.log").read_bytes()
    assert world.produce(b"new").base_offset == 0


async def test_a_directory_whose_creation_was_interrupted_is_made_again(world: World) -> None:
    world.kill()
    (Path(world.directory) / "t-0" / "partition.metadata").unlink()
    world.start()
    await world.lead(1)
    assert not [each for each in Path(world.directory).iterdir() if "stray" in each.name]
    assert world.produce(b"new").base_offset == 0


class FewFiles(RealFiles):
    """A process that may not open any more files while `exhausted`."""

    exhausted = False

    def open(self, path: str, *, create: bool = False, exclusive: bool = False) -> RealFile:
        if self.exhausted:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().open(path, create=create, exclusive=exclusive)


async def test_without_file_descriptors_a_partition_waits_and_an_append_that_rolls_is_refused(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    world.logs._files = files = FewFiles()
    files.exhausted = True
    assert not await world.replicas.apply_image(image(0, segment_bytes="1024"))
    assert "partition_not_opened" in world.log.events
    files.exhausted = False
    await world.lead(0, segment_bytes="1024")
    assert world.produce(b"a" * 600).error_code == 0
    files.exhausted = True
    refused = world.produce(b"b" * 600)
    assert refused.error_code == KafkaErrorCode.KAFKA_STORAGE_ERROR
    files.exhausted = False
    assert world.produce(b"b" * 600).base_offset == 1
    assert world.read() == [b"a" * 600, b"b" * 600]
    assert world.halted == []


async def test_upkeep_on_a_stalled_disk_does_not_pile_up(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.lead(0, segment_bytes="1024", retention_bytes="1024", file_delete_delay_ms="0")
    world.disk = world.logs._disk = InlineDisk(immediate=False)
    for _ in range(5):
        for index in range(10):
            world.produce(b"%0200d" % index)
        world.logs.apply_retention({TopicPartition("t", 0): 1 << 40})
        world.logs.unlink_deleted()
        world.logs.checkpoint({})
    assert world.disk.pending <= 3  # one round of syncs, one of unlinks, one checkpoint
    world.disk.run_pending()
    world.logs.unlink_deleted()
    world.disk.run_pending()
    assert not [each for each in (tmp_path / "t-0").iterdir() if each.suffix == ".deleted"]


async def test_a_sync_that_the_disk_does_not_take_halts_the_broker(world: World) -> None:
    world.disk = world.logs._disk = InlineDisk(immediate=False, max_pending=0)
    appended = world.produce(b"a")
    assert world.replicas.acknowledgement(("t", 0), appended) is None
    assert len(world.halted) == 1


async def test_a_topic_whose_znode_is_spoilt_keeps_its_records(world: World) -> None:
    world.produce(b"precious")
    spoilt = image(0)._replace(topics={}, unreadable=frozenset({"t"}))
    assert await world.replicas.apply_image(spoilt)
    assert world.read() == [b"precious"]
    world.kill()
    world.start()
    assert await world.replicas.apply_image(spoilt)
    assert world.replicas.count == 0
    await world.lead(1)
    assert world.read() == [b"precious"]


async def test_a_topic_with_settings_of_another_broker_is_offline_and_nothing_else(
    world: World,
) -> None:
    world.produce(b"precious")
    world.kill()
    world.start()
    for _ in range(2):
        assert await world.replicas.apply_image(image(1, cleanup_policy="compact"))
    assert world.log.events.count("topic_config_refused") == 1
    assert world.produce(b"x").error_code == KafkaErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    await world.lead(2)
    assert world.read() == [b"precious"]


async def test_a_partition_whose_listener_breaks_costs_no_other_its_sync(world: World) -> None:
    world.disk = world.logs._disk = InlineDisk(immediate=False)
    other = image(0)
    partition = other.topics["t"].partitions[0]
    topic = other.topics["t"]._replace(partitions={0: partition, 1: partition})
    world.replicas._disk = InlineDisk()
    await world.replicas.apply_image(other._replace(topics={"t": topic}))
    world.logs._defer = world.deferred.append  # type: ignore[assignment]
    first, second = world.produce(b"a"), world.produce(b"b", partition=1)
    broken = world.logs.logs[TopicPartition("t", 0)]

    def on_durable(_end_offset: int) -> None:
        raise ValueError("our bug")

    world.logs._dirty[broken] = on_durable
    world.logs._start_round()
    third = world.produce(b"c", partition=1)
    assert world.disk.run_work()
    with pytest.raises(ValueError, match="our bug"):
        world.disk.deliver()
    assert world.replicas.acknowledgement(("t", 0), first) is None
    assert world.replicas.acknowledgement(("t", 1), second) == 0
    assert world.replicas.acknowledgement(("t", 1), third) is None
    world.disk.run_pending()  # the next round has begun all the same
    assert world.replicas.acknowledgement(("t", 1), third) == 0


async def test_a_disk_that_cannot_be_read_is_an_error_of_the_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.produce(b"a")

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    log = world.logs.logs[TopicPartition("t", 0)]
    monkeypatch.setattr(type(log), "read", fail)
    monkeypatch.setattr(type(log), "offset_for_timestamp", fail)
    fetch = FetchPartition("t", 0, -1, 0, -1, -1, 1 << 20)
    code = KafkaErrorCode.KAFKA_STORAGE_ERROR
    assert world.replicas.read(fetch, 1 << 20, min_one_batch=True).error_code == code
    lookup = ListOffsetsPartition("t", 0, -1, 5)
    assert world.replicas.list_offset(lookup).error_code == code
