"""What one learner is sent before it is told what is proposed: a snapshot, and the log behind it.

    chunks of a snapshot    the next one once the last is stored
    parts of the log        the next one once the last but one is stored, up to what is durable

Owns how much of it may be on its way, so that neither server ever has more than that in memory,
however long the history is, and where it ends: where nothing that is durable is missing any more.
It gets there if the learner stores twice what is written meanwhile: a part has as much, wherever
that is more than a part has at least.

A piece is read in the disk thread, as a job of its own; everything else is for the loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from duolog_protocol.checksums import crc32c
from duolog_protocol.errors import StorageError
from duolog_protocol.quorum_messages import (
    LeaderMessage,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
)
from zkserver.core.peer_events import SendHistory, SendSnapshot
from zkserver.storage.log_cursor import LogCursor
from zkserver.storage.recovery import DataDirectory

MAX_PARTS_AHEAD: Final = 2
"""Parts of the log that were sent and that the learner has not said to have stored."""
LONGEST_PART_BYTES: Final = 16 * 1024 * 1024
"""Whatever is written meanwhile; but for a single record."""
LOST_BYTES_LAST: Final = 1024 * 1024 * 1024
"""Who has fallen behind by more than this since the log began to be sent will not get there."""


class HistoryGone(Exception):
    """It cannot be read: it was deleted, or is damaged."""

    def __init__(self, reason: str, snapshot_zxid: int = 0) -> None:
        """`snapshot_zxid`: of the log, which a snapshot of that zxid may stand for; 0: none may."""
        super().__init__(reason)
        self.snapshot_zxid = snapshot_zxid


class Piece(NamedTuple):
    """What was read at once."""

    messages: list[LeaderMessage]
    """Of a snapshot."""
    records: list[bytes]
    is_last: bool
    """These are all that was durable when they were read."""


class LearnerHistory:
    """The way of one learner to its leader's log."""

    __slots__ = (
        *("_awaits_chunk", "_chunk_count", "_chunks", "_crc", "_cursor", "_data"),
        *("_lost_bytes", "_part_bytes", "_snapshot_zxid", "_unstored", "_written_bytes"),
        *("is_reading", "is_wanted", "link"),
    )

    def __init__(
        self,
        effect: SendHistory | SendSnapshot,
        data: DataDirectory,
        part_bytes: int,
        written_bytes: int,
    ) -> None:
        """`part_bytes`: of a part while nothing is written. `written_bytes`: to the log so far."""
        self.link: Any = effect.link
        self.is_reading = False
        """The disk executor has it."""
        self.is_wanted = True
        self._data = data
        self._part_bytes = part_bytes
        self._written_bytes = written_bytes
        """When the last part was read."""
        self._lost_bytes = 0
        """How much more of the log is missing than when it began to be sent, up to then."""
        self._chunks: Iterator[bytes] | None = None
        """Of the snapshot, while it is being read."""
        self._chunk_count = self._crc = self._snapshot_zxid = 0
        self._cursor: LogCursor | None = None
        """In the log, once the snapshot is read, if there is one."""
        if isinstance(effect, SendHistory):
            self._cursor = LogCursor(data.log, effect.after_zxid)
        self._awaits_chunk = False
        """A chunk was sent, and is not stored."""
        self._unstored: deque[int] = deque()
        """The last zxid of each part that was sent, and is not stored."""

    @property
    def zxid(self) -> int:
        """What was read, and all before it, is sent."""
        return 0 if self._cursor is None else self._cursor.zxid

    @property
    def may_read(self) -> bool:
        """The learner may be sent another piece."""
        return not self._awaits_chunk and len(self._unstored) < MAX_PARTS_AHEAD

    def is_hopeless(self, written_bytes: int) -> bool:
        """So much more is missing than at first that the log need not be kept for it."""
        if self._cursor is None:
            return False  # a snapshot ends
        return self._lost_bytes + written_bytes - self._written_bytes > LOST_BYTES_LAST

    def sent(self, piece: Piece) -> None:
        """This is on its way."""
        if piece.messages and type(piece.messages[-1]) is SnapshotChunk:
            self._awaits_chunk = True
        if piece.records:
            self._unstored.append(int.from_bytes(piece.records[-1][:8], "big"))

    def chunk_stored(self) -> None:
        """The learner has stored a chunk. It may say so too often."""
        self._awaits_chunk = False

    def records_stored(self, zxid: int) -> None:
        """The learner has stored the log up to `zxid`."""
        unstored = self._unstored
        while unstored and unstored[0] <= zxid:
            unstored.popleft()

    def read(self, written_bytes: int) -> Piece:
        """In the disk thread: the next piece. Raises HistoryGone, OSError."""
        try:
            if self._cursor is None:
                self._written_bytes = written_bytes
                return Piece(self._read_snapshot(), [], False)
            since_bytes = written_bytes - self._written_bytes
            self._written_bytes = written_bytes
            part_bytes = min(2 * since_bytes, LONGEST_PART_BYTES)
            records, is_last = self._cursor.read(max(self._part_bytes, part_bytes))
            self._lost_bytes += since_bytes - sum(map(len, records))
            return Piece([], records, is_last)
        except (StorageError, FileNotFoundError) as error:
            raise HistoryGone(str(error), self._snapshot_instead()) from error

    def _snapshot_instead(self) -> int:
        """The zxid of a snapshot that stands for what cannot be read of the log; 0: none does."""
        if self._cursor is None:
            return 0
        zxid, _ = self._data.snapshot_to_send()
        return zxid if zxid > self._cursor.zxid else 0

    def _read_snapshot(self) -> list[LeaderMessage]:
        """The next chunk, with what begins or ends it all."""
        messages: list[LeaderMessage] = []
        data = self._data
        if self._chunks is None:
            zxid, self._chunks = data.snapshot_to_send()
            if zxid == 0:
                raise HistoryGone("there is no snapshot that can be read")
            self._snapshot_zxid = zxid
            messages.append(SnapshotBegin(zxid))
        zxid = self._snapshot_zxid
        try:
            chunk = next(self._chunks, None)
        except StorageError:
            data.verified.damaged(zxid)
            raise
        if chunk is None:
            messages.append(SnapshotEnd(zxid, self._chunk_count, self._crc))
            self._cursor = LogCursor(data.log, zxid)
        else:
            self._chunk_count += 1
            self._crc = crc32c(chunk, self._crc)
            messages.append(SnapshotChunk(chunk))
        return messages

    def close(self) -> None:
        """Idempotent; not while it is being read."""
        chunks, self._chunks = self._chunks, None
        if chunks is not None and hasattr(chunks, "close"):
            chunks.close()
        if self._cursor is not None:
            self._cursor.close()
