"""The leader epochs of one log: which epoch starts at which offset.

Owns `leader-epoch-checkpoint`, Kafka's text file (`0`, a count, then `epoch start_offset` lines).
A line must be durable before a batch of its epoch can be acknowledged, so `assign` returns only
after the file is. Must never keep an entry beyond a truncation: the cache is cut with the log.

Source: KIP-101, KIP-279, Kafka LeaderEpochFileCache; KAFKA-7415, KAFKA-10706.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise

from duolog_runtime.files import Files
from kbroker.storage.checkpoints import CheckpointFormatError, read_table, write_table

FILE_NAME = "leader-epoch-checkpoint"
UNDEFINED_EPOCH = -1
UNDEFINED_OFFSET = -1

Entry = tuple[int, int]


def read_entries(files: Files, path: str) -> list[Entry] | None:
    """The (epoch, start_offset) lines of the file; None where it is missing or unreadable."""
    try:
        rows = read_table(files, path, columns=2)
        entries = [(int(epoch), int(start)) for epoch, start in rows]
    except (FileNotFoundError, CheckpointFormatError, ValueError):
        return None
    for (epoch, start), (next_epoch, next_start) in pairwise(entries):
        if next_epoch <= epoch or next_start < start:
            return None
    return entries


class EpochCache:
    """Entries (epoch, start_offset), both increasing; the file holds the same after each call."""

    __slots__ = ("_epochs", "_files", "_path", "_starts")

    def __init__(self, files: Files, path: str, entries: Sequence[Entry] = ()) -> None:
        self._files = files
        self._path = path
        self._epochs = [epoch for epoch, _ in entries]
        self._starts = [start for _, start in entries]

    @property
    def entries(self) -> list[Entry]:
        return list(zip(self._epochs, self._starts, strict=True))

    @property
    def latest_epoch(self) -> int:
        """The newest known epoch, -1 when there is none."""
        return self._epochs[-1] if self._epochs else UNDEFINED_EPOCH

    @property
    def latest_start_offset(self) -> int:
        """Where the newest known epoch starts, -1 when there is none."""
        return self._starts[-1] if self._starts else UNDEFINED_OFFSET

    def assign(self, epoch: int, start_offset: int) -> bool:
        """Record that `epoch` starts at `start_offset`, durably; False when it was known.

        Later entries that contradict it go away: epochs without data that an election left.
        Raises OSError; then neither file nor memory have changed.
        """
        assert epoch >= 0, epoch
        assert start_offset >= 0, (epoch, start_offset)
        if epoch == self.latest_epoch and self._starts[-1] <= start_offset:
            return False
        keep = min(bisect_left(self._epochs, epoch), bisect_left(self._starts, start_offset))
        entries = [*self.entries[:keep], (epoch, start_offset)]
        self._replace(entries)
        return True

    def end_offset_for(self, epoch: int, log_end_offset: int) -> Entry:
        """The largest known epoch not above `epoch`, and the offset where it ends (exclusive).

        Kafka's rules: the latest epoch ends at the log end; below the first known epoch the answer
        is (epoch, start of the first); above the latest, or for -1, it is undefined (-1, -1).
        """
        if epoch == UNDEFINED_EPOCH or not self._epochs or epoch > self._epochs[-1]:
            return UNDEFINED_EPOCH, UNDEFINED_OFFSET
        if epoch == self._epochs[-1]:
            return epoch, log_end_offset
        following = bisect_right(self._epochs, epoch)
        if following == 0:
            return epoch, self._starts[0]
        return self._epochs[following - 1], self._starts[following]

    def epoch_for_offset(self, offset: int) -> int:
        """The epoch in which the record at `offset` was written, -1 when unknown."""
        at = bisect_right(self._starts, offset) - 1
        return self._epochs[at] if at >= 0 else UNDEFINED_EPOCH

    def truncate_from_end(self, offset: int) -> None:
        """Forget the epochs that start at `offset` or later, durably."""
        keep = bisect_left(self._starts, offset)
        if keep < len(self._starts):
            self._replace(self.entries[:keep])

    def truncate_from_start(self, offset: int) -> None:
        """Forget the epochs that ended before `offset`; the one that holds it starts there now."""
        first = bisect_right(self._starts, offset) - 1
        if first < 0 or (first == 0 and self._starts[0] == offset):
            return
        entries = self.entries[first:]
        entries[0] = (entries[0][0], offset)
        self._replace(entries)

    def clear(self) -> None:
        """Forget every epoch, durably."""
        if self._epochs:
            self._replace([])

    def write(self) -> None:
        """Make the file say what memory says, durably."""
        self._replace(self.entries)

    def _replace(self, entries: list[Entry]) -> None:
        write_table(self._files, self._path, entries)
        self._epochs = [epoch for epoch, _ in entries]
        self._starts = [start for _, start in entries]
