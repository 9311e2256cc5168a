"""A broker's data side on a simulated disk: power cuts, torn writes, full disks, failed syncs.

One seed is one history: several lives of one broker on one disk. In each the real `LogManager` and
`ReplicaManager` append, sync, read and tidy up; the disk thread is stepped by hand, so that a
crash can fall between a sync and the event that reports it. A life ends in a power cut (often at a
crash point right around a sync), in the death of the process, or in order.

Invariants, checked at the next start and while reading:

    NoAckedWriteLost      durability=fsync: what was acknowledged, or seen by a consumer, is there
    ProcessDeathLosesNothing   both durabilities: without a power cut the log ends where it ended
    SuffixOnly            what is there is a prefix of what was appended: no hole, no other record
    RefusedNeverAppears   a batch that was refused is never there
    DuplicatesRecognised  a batch that survived is answered with its old offset when sent again
    SyncNeverRetried      a file whose sync failed is not used again
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Final

from duolog_cluster.sim.disk import DiskFaults, PowerLoss, SimDisk
from duolog_protocol.broker_messages import FetchPartition, ProducePartition
from duolog_protocol.error_codes import KafkaErrorCode
from duolog_protocol.errors import StorageError
from duolog_protocol.record_decoding import decode_records
from duolog_protocol.records import BatchBuilder, iter_headers
from duolog_protocol.types import TopicPartition
from duolog_runtime.clocks import ManualClock
from duolog_runtime.disk import InlineDisk
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
from kbroker.server.log_manager import FAILED_SYNC_FILE, LogManager
from kbroker.server.replica_manager import Appended, ReplicaManager

from .violation import Violation

DIRECTORY: Final = "/data"
LIVES: Final = 4
STEPS: Final = 60
PRODUCERS: Final = 2
READ_BYTES: Final = 2_000


@dataclass
class Batch:
    """A batch that was appended."""

    values: list[int]
    appended: Appended
    request: bytes
    producer: tuple[int, int] | None
    """(producer id, base sequence)"""


@dataclass
class Ledger:
    """What the world knows of one partition."""

    durability: str
    appended: dict[int, int] = field(default_factory=dict)
    """Offset -> value, of the log as the broker last had it."""
    acknowledged_end: int = 0
    """Exclusive; everything below was acknowledged or seen."""
    refused: set[int] = field(default_factory=set)
    pending: list[Batch] = field(default_factory=list)
    batches: dict[int, Batch] = field(default_factory=dict)
    """Base offset -> batch, of idempotent producers."""
    next_sequence: dict[int, int] = field(default_factory=dict)


class BrokerWorld:
    """One history; `run` raises Violation."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(f"{seed} world")
        faults_rng = random.Random(f"{seed} faults")
        self.faults = DiskFaults(cache_miss_rate=faults_rng.choice([0.0, 0.3]))
        if faults_rng.random() < 0.2:
            self.faults.full_at_write = faults_rng.randrange(1, 150)
            self.faults.full_for_writes = faults_rng.choice([1, 1, 5, 40])
        if faults_rng.random() < 0.08:
            self.faults.fail_at_sync = faults_rng.randrange(1, 60)
        self.crash_rate = faults_rng.choice([0.0, 0.005, 0.02, 0.05])
        self.crash_rng = random.Random(f"{seed} crash points")
        self.disk = SimDisk(
            random.Random(f"{seed} disk"), self.faults, crash_points=self._crash_point
        )
        self.clock = ManualClock()
        self.ledgers = {
            TopicPartition(f"{durability}-topic", number): Ledger(durability)
            for durability in ("fsync", "replicated")
            for number in range(2)
        }
        self.next_value = 0
        self.epoch = 0
        self.settings = {
            "segment.bytes": str(faults_rng.choice([1024, 1500, 100_000])),
            "index.interval.bytes": str(faults_rng.choice([0, 200, 4096])),
            "file.delete.delay.ms": "1000",
        }
        if faults_rng.random() < 0.3:
            self.settings["retention.bytes"] = "1500"
            self.settings["segment.bytes"] = "1024"
        self.power_was_cut = False
        self.sync_failed = False
        self.used_at_halt = 0
        self.marks: dict[str, int] = {}
        """Rare situations that were reached, for the coverage of all seeds together."""

    # ---- the history ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Live, die, and live again; then check once more."""
        for _ in range(LIVES):
            try:
                await self._boot()
                self._check_after_start()
                self._live()
            except PowerLoss:
                self._mark("crash point")
                self.power_was_cut = True
            self._die()
        self.faults.full_at_write = self.faults.fail_at_sync = None
        self.crash_rate = 0.0
        await self._boot()
        if self.halted:
            raise Violation(f"a healthy disk did not start: {self.halted[0]}")
        self._check_after_start()

    async def _boot(self) -> None:
        self.epoch += 1
        self.work = InlineDisk(immediate=False)
        self.purgatory = Purgatory(1_000)
        self.log = RecordingLogger()
        self.halted: list[StorageError] = []
        self.logs = LogManager(
            self.disk,
            DIRECTORY,
            self.work,
            defer=lambda callback: callback(),
            clock=self.clock,
            rng=random.Random(f"{self.seed} manager {self.epoch}"),
            log=self.log,
            memory_tail_bytes=self.rng.choice([0, 500, 10_000]),
            memory_tails_bytes=20_000,
            max_producer_ids=10,
            halt=self._on_halt,
        )
        self.replicas = ReplicaManager(
            self.logs,
            self.work,
            self.purgatory,
            TopicConfig(),
            clock=self.clock,
            log=self.log,
        )
        try:
            await self._start()
        except (StorageError, OSError) as error:
            self._mark("start failed")  # a full disk or a failed sync: the process would end
            self._on_halt(StorageError(str(error)))

    async def _start(self) -> None:
        self.logs.open_directory()
        self.replicas.identify(1)
        opening = asyncio.ensure_future(self.replicas.apply_image(self._image()))
        try:
            while not opening.done():
                self.work.run_pending()
                await asyncio.sleep(0)
        finally:
            opening.cancel()
        opening.result()
        self.replicas.unfence(self.epoch)

    def _image(self) -> MetadataImage:
        state = PartitionImage((1,), 1, self.epoch, (1,), self.epoch, 1, self.epoch)
        topics = {
            f"{durability}-topic": TopicImage(
                f"{durability}-topic",
                durability[0].upper() * 22,
                {0: state, 1: state},
                {**self.settings, "durability": durability},
            )
            for durability in ("fsync", "replicated")
        }
        broker = BrokerInfo(1, "127.0.0.1", 9092, None, self.epoch)
        return EMPTY_IMAGE._replace(brokers={1: broker}, topics=topics)

    def _live(self) -> None:
        if self.halted:
            return
        actions = [self._produce] * 8 + [self._step_disk] * 8 + [self._settle_pending] * 3
        actions += [self._consume, self._send_again, self._tick, self._checkpoint, self._tidy]
        for _ in range(self.rng.randrange(STEPS)):
            self.rng.choice(actions)()
            if self.halted:
                self._mark("halted")
                return

    def _die(self) -> None:
        """The end of a life: in order, by the death of the process, or by a power cut."""
        if self.halted and self.disk.used_after_failed_sync_count != self.used_at_halt:
            raise Violation("SyncNeverRetried: a file was used after its sync had failed")
        self._settle_pending()
        how = self.rng.choice(["order", "process", "power", "power", "power"])
        if self.power_was_cut:
            how = "power"
        if how == "order" and not self.halted:
            try:
                self.work.run_pending()
                self._settle_pending()
                self.logs.close(self.epoch)
                self._mark("clean stop")
            except PowerLoss:
                how, self.power_was_cut = "power", True
            except (StorageError, OSError):
                how = "process"
        for ledger in self.ledgers.values():
            ledger.pending.clear()
        self.work.abandon()
        if self.sync_failed:
            how = "power"  # only a reboot makes the page cache tell the truth again
        if how == "power":
            self.power_was_cut = True
            self.disk.crash(lose_unsynced=self.rng.random() < 0.2)
        else:
            self.disk.kill()
        if self.sync_failed:
            self._take_mark_away()

    def _take_mark_away(self) -> None:
        """A person has looked at the disk; the mark itself need not have survived the reboot."""
        self.sync_failed = False
        self._mark("failed sync")
        crash_rate, self.crash_rate = self.crash_rate, 0.0
        if self.disk.exists(f"{DIRECTORY}/{FAILED_SYNC_FILE}"):
            self.disk.unlink(f"{DIRECTORY}/{FAILED_SYNC_FILE}")
            self.disk.sync_dir(DIRECTORY)
        self.crash_rate = crash_rate

    def _on_halt(self, error: StorageError) -> None:
        """The broker knows now; what it did before it knew was never acknowledged."""
        if not self.halted:
            self.used_at_halt = self.disk.used_after_failed_sync_count
        self.halted.append(error)
        fail_at = self.faults.fail_at_sync
        self.sync_failed = fail_at is not None and self.disk.sync_count >= fail_at

    def _crash_point(self, _when: str, _kind: str, _path: str) -> None:
        if self.crash_rng.random() < self.crash_rate:
            raise PowerLoss

    # ---- actions -------------------------------------------------------------------------------

    def _produce(self) -> None:
        key = self.rng.choice(list(self.ledgers))
        ledger = self.ledgers[key]
        values = [self.next_value + index for index in range(self.rng.randint(1, 4))]
        self.next_value += len(values)
        producer: tuple[int, int] | None = None
        if self.rng.random() < 0.6:
            producer_id = self.rng.randrange(PRODUCERS)
            producer = producer_id, ledger.next_sequence.get(producer_id, 0)
        request = _encode(values, self.clock.wall_ms(), producer)
        appended = self.replicas.append(ProducePartition(key.topic, key.partition, request))
        if appended.error_code:
            ledger.refused.update(values)
            self._mark(f"refused {KafkaErrorCode(appended.error_code).name}")
            return
        batch = Batch(values, appended, request, producer)
        for index, value in enumerate(values):
            ledger.appended[appended.base_offset + index] = value
        if producer is not None:
            ledger.next_sequence[producer[0]] = producer[1] + len(values)
            ledger.batches[appended.base_offset] = batch
        ledger.pending.append(batch)

    def _step_disk(self) -> None:
        if self.rng.random() < 0.5:
            self.work.run_work()
        else:
            self.work.deliver()

    def _settle_pending(self) -> None:
        for key, ledger in self.ledgers.items():
            left = []
            for batch in ledger.pending:
                code = self.replicas.acknowledgement((key.topic, key.partition), batch.appended)
                if code is None:
                    left.append(batch)
                elif code == 0:
                    ledger.acknowledged_end = max(
                        ledger.acknowledged_end, batch.appended.end_offset
                    )
            ledger.pending = left

    def _consume(self) -> None:
        key = self.rng.choice(list(self.ledgers))
        ledger = self.ledgers[key]
        offset = self.rng.randrange(max(len(ledger.appended), 1) + 1)
        request = FetchPartition(key.topic, key.partition, self.epoch, offset, -1, -1, READ_BYTES)
        found = self.replicas.read(request, READ_BYTES, min_one_batch=True)
        if found.slice is None:
            return
        buffers = found.slice.read_cached()
        if buffers is None:
            self._mark("read from the disk")
            buffers = found.slice.read()
        for at, value in _decode(b"".join(buffers)).items():
            if ledger.appended.get(at) != value:
                raise Violation(f"{key}: a consumer saw {value} at {at}: {ledger.appended.get(at)}")
            ledger.acknowledged_end = max(ledger.acknowledged_end, at + 1)

    def _send_again(self) -> None:
        key = self.rng.choice(list(self.ledgers))
        ledger = self.ledgers[key]
        if not ledger.batches:
            return
        base_offset = max(ledger.batches)
        batch = ledger.batches[base_offset]
        assert batch.producer is not None
        last = ledger.next_sequence[batch.producer[0]]
        if batch.producer[1] + len(batch.values) != last:
            return
        again = self.replicas.append(ProducePartition(key.topic, key.partition, batch.request))
        if again.error_code == 0 and again.base_offset != base_offset:
            raise Violation(
                f"DuplicatesRecognised: {key}: batch at {base_offset} sent again landed at "
                f"{again.base_offset}"
            )
        self._mark("duplicate")

    def _tick(self) -> None:
        self.clock.advance(self.rng.randrange(5_000))

    def _checkpoint(self) -> None:
        self.logs.checkpoint(self.replicas.high_watermarks())

    def _tidy(self) -> None:
        if self.logs.apply_retention(self.replicas.high_watermarks()):
            self._mark("segments deleted")
        self.logs.unlink_deleted()

    # ---- invariants ----------------------------------------------------------------------------

    def _check_after_start(self) -> None:
        power_was_cut, self.power_was_cut = self.power_was_cut, False
        for key, ledger in self.ledgers.items():
            log = self.logs.logs.get(key)
            if log is None or log.offline is not None:
                self._mark("partition not opened")
                self.power_was_cut = power_was_cut
                continue
            self._check_log(key, ledger, power_was_cut)

    def _check_log(self, key: TopicPartition, ledger: Ledger, power_was_cut: bool) -> None:
        log = self.logs.logs[key]
        start, end = log.log_start_offset, log.log_end_offset
        found: dict[int, int] = {}
        offset = start
        while offset < end:
            piece = log.read(offset, max_bytes=READ_BYTES, end_offset=end)
            found.update(_decode(b"".join(piece.read())))
            if piece.end_offset <= offset:
                raise Violation(f"SuffixOnly: {key}: nothing at {offset} below the end {end}")
            offset = piece.end_offset
        before = len(ledger.appended)
        if sorted(each for each in found if each >= start) != list(range(start, end)):
            raise Violation(f"SuffixOnly: {key}: a hole in [{start}, {end}): {sorted(found)}")
        for at, value in found.items():
            if value in ledger.refused:
                raise Violation(f"RefusedNeverAppears: {key}: {value} at {at}")
            if ledger.appended.get(at) != value:
                raise Violation(
                    f"SuffixOnly: {key}: {value} at {at}, appended was {ledger.appended.get(at)}"
                )
        if not power_was_cut and end < before:
            raise Violation(f"ProcessDeathLosesNothing: {key} ended at {before}, now at {end}")
        if ledger.durability == "fsync" and end < ledger.acknowledged_end:
            raise Violation(
                f"NoAckedWriteLost: {key} ends at {end}, acknowledged up to "
                f"{ledger.acknowledged_end}"
            )
        if end < before:
            self._mark("suffix lost")
        self._forget_lost(ledger, end)

    def _forget_lost(self, ledger: Ledger, end: int) -> None:
        """The log ends here now; what was lost is free to be appended again, as other records."""
        ledger.appended = {at: value for at, value in ledger.appended.items() if at < end}
        ledger.acknowledged_end = min(ledger.acknowledged_end, end)
        for base_offset in [base for base in ledger.batches if base >= end]:
            lost = ledger.batches.pop(base_offset)
            assert lost.producer is not None
            producer_id, sequence = lost.producer
            if ledger.next_sequence.get(producer_id, 0) > sequence:
                ledger.next_sequence[producer_id] = sequence

    def _mark(self, name: str) -> None:
        self.marks[name] = self.marks.get(name, 0) + 1


def _encode(values: list[int], timestamp: int, producer: tuple[int, int] | None) -> bytes:
    builder = BatchBuilder()
    for value in values:
        builder.append(timestamp, None, b"%d" % value + b"." * (value % 90))
    if producer is None:
        return builder.build()
    return builder.build(producer_id=producer[0], producer_epoch=0, base_sequence=producer[1])


def _decode(data: bytes) -> dict[int, int]:
    return {
        record.offset: int(record.value.rstrip(b"."))
        for position, _ in iter_headers(data)
        for record in decode_records(data, position)
    }
