"""Snapshots of the ensemble's world: the state is a list of records, a snapshot is that list.

chunk = (length u32, record)*

Taken by the real `Snapshotting`, kept and purged by the real `DataDirectory`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from duolog_cluster.sim.process_parts import SimClock, SimExecutor
from duolog_protocol.errors import StorageError
from duolog_runtime.logs import RecordingLogger
from zkserver.server.snapshotting import Snapshotting
from zkserver.server.stats import DiskStats
from zkserver.storage.recovery import DataDirectory

from .ensemble_records import last_zxid_of

if TYPE_CHECKING:
    from .ensemble_server import Life


def encode_chunk(records: Iterable[bytes]) -> bytes:
    """A chunk of these."""
    return b"".join(len(each).to_bytes(4, "big") + each for each in records)


def decode_chunks(chunks: Iterable[bytes]) -> list[bytes]:
    """The records of a snapshot. Raises StorageError."""
    whole = b"".join(chunks)
    records: list[bytes] = []
    position = 0
    while position < len(whole):
        end = position + 4 + int.from_bytes(whole[position : position + 4], "big")
        if end > len(whole):
            raise StorageError("a snapshot ends within a record")
        records.append(whole[position + 4 : end])
        position = end
    return records


def records_on_disk(data: DataDirectory) -> list[bytes]:
    """What the newest snapshot and the log behind it hold."""
    zxid, chunks = data.newest_snapshot()
    records = decode_chunks(chunks)
    if last_zxid_of(records) != zxid:
        raise StorageError(f"a snapshot of {zxid:#x} ends at {last_zxid_of(records):#x}")
    return records + list(data.log.read_from(zxid))


class View:
    """A life's state at one moment."""

    def __init__(self, records: list[bytes], records_of_chunk: int) -> None:
        self.zxid = last_zxid_of(records)
        self._records = records
        self._step = records_of_chunk

    def chunks(self, max_bytes: int) -> Iterator[bytes]:
        """See SnapshotView; smaller ones, so that there are some."""
        for start in range(0, len(self._records), self._step):
            yield encode_chunk(self._records[start : start + self._step])

    def close(self) -> None:
        """See SnapshotView."""


def snapshotting_of(life: Life, data: DataDirectory, disk: SimExecutor) -> Snapshotting:
    """What takes the snapshots of a life."""
    world, rng = life.world, life.rng

    def begin() -> View:
        world.mark("snapshot begun")
        return View(list(life.state), rng.choice((3, 40)))

    return Snapshotting(
        data,
        disk,
        rng,
        RecordingLogger(),
        SimClock(world.scheduler),
        DiskStats(),
        begin=begin,
        halt=lambda reason, error: life.halt_for_disk(error),
        snap_count=world.mix.snap_count,
        retain_count=world.mix.snap_retain_count,
        on_purged=life.log_purged,
        may_purge=life.may_purge,
    )
