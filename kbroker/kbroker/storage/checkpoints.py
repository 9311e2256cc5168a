"""Small text files of a log directory, each replaced atomically and durably.

Owns `recovery-point-offset-checkpoint`, `log-start-offset-checkpoint`,
`replication-offset-checkpoint` (high watermarks), `meta.properties`, `.kafka_cleanshutdown` and
`partition.metadata`; the texts are Kafka's. Must never leave a half-written file under its own
name: content goes to `.tmp`, is synced, renamed, and the directory synced (KAFKA-16541).

Two orders that recovery relies on. A recovery point is written only after the data below it was
synced. The clean-shutdown mark is removed, durably, before any log is opened (KAFKA-10471).
"""

from __future__ import annotations

import base64
import binascii
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from duolog_protocol.errors import DataDirectoryError, StorageError
from duolog_protocol.types import TopicPartition
from duolog_runtime.files import Files

RECOVERY_POINT_FILE = "recovery-point-offset-checkpoint"
LOG_START_OFFSET_FILE = "log-start-offset-checkpoint"
HIGH_WATERMARK_FILE = "replication-offset-checkpoint"
META_PROPERTIES_FILE = "meta.properties"
CLEAN_SHUTDOWN_FILE = ".kafka_cleanshutdown"
PARTITION_METADATA_FILE = "partition.metadata"
TEMPORARY_SUFFIX = ".tmp"

_TABLE_VERSION = "0"
_META_VERSION = "0"


class CheckpointFormatError(StorageError):
    """A checkpoint file does not follow its format; it was damaged or written by other software."""

    def __init__(self, path: str, line: int, rule: str) -> None:
        super().__init__(f"{path}, line {line}: {rule}")
        self.path = path
        self.line = line


def write_atomically(files: Files, path: str, data: bytes) -> None:
    """Replace the file at `path` by `data`, durably. Raises OSError; the old file then stays."""
    temporary = path + TEMPORARY_SUFFIX
    try:
        file = files.open(temporary, create=True)
        try:
            file.truncate(0)
            file.pwrite(data, 0)
            file.sync()
        finally:
            file.close()
        files.rename(temporary, path)
    except OSError:
        with suppress(OSError):
            files.unlink(temporary)
        raise
    files.sync_dir(_parent(path))


def read_text(files: Files, path: str) -> str:
    """The whole file as text. Raises FileNotFoundError, CheckpointFormatError."""
    file = files.open(path)
    try:
        data = file.pread(file.size(), 0)
    finally:
        file.close()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CheckpointFormatError(path, 1, "text is not UTF-8") from error


def write_table(files: Files, path: str, rows: Sequence[Sequence[object]]) -> None:
    """Write Kafka's checkpoint form: `0`, the number of rows, then one row per line."""
    lines = [_TABLE_VERSION, str(len(rows)), *(" ".join(map(str, row)) for row in rows), ""]
    write_atomically(files, path, "\n".join(lines).encode())


def read_table(files: Files, path: str, *, columns: int) -> list[list[str]]:
    """The rows of a checkpoint file. Raises FileNotFoundError, CheckpointFormatError."""
    lines = read_text(files, path).split("\n")
    if lines[0] != _TABLE_VERSION:
        raise CheckpointFormatError(path, 1, f"version {lines[0][:20]!r} is not {_TABLE_VERSION!r}")
    if len(lines) < 3 or not lines[1].isascii() or not lines[1].isdecimal():
        raise CheckpointFormatError(path, 2, "no number of rows")
    rows = [line.split(" ") for line in lines[2:-1]]
    if len(rows) != int(lines[1]) or lines[-1]:
        raise CheckpointFormatError(path, 2, f"{lines[1][:20]} rows announced, {len(rows)} found")
    for number, row in enumerate(rows, 3):
        if len(row) != columns or not all(row):
            raise CheckpointFormatError(path, number, f"not {columns} columns")
    return rows


class OffsetCheckpoint:
    """One file of `topic partition offset` lines.

    `stage` belongs to the owner of the logs (the loop); `write` may run on any thread, one at a
    time, and makes durable what was staged when it started.
    """

    __slots__ = ("_files", "_lock", "_path", "_staged", "written")

    def __init__(self, files: Files, path: str) -> None:
        """Read the file where it exists. Raises CheckpointFormatError."""
        self._files = files
        self._path = path
        self._lock = threading.Lock()
        self._staged: dict[TopicPartition, int] = {}
        try:
            rows = read_table(files, path, columns=3)
        except FileNotFoundError:
            rows = []
        for number, (topic, partition, offset) in enumerate(rows, 3):
            try:
                self._staged[TopicPartition(topic, int(partition))] = int(offset)
            except ValueError as error:
                raise CheckpointFormatError(path, number, "not a number") from error
        self.written: Mapping[TopicPartition, int] = dict(self._staged)
        """What the file says now; never ahead of what was staged."""

    def stage(self, key: TopicPartition, offset: int | None) -> None:
        """Set the offset that the next `write` stores; None removes the line."""
        if offset is None:
            self._staged.pop(key, None)
        else:
            assert offset >= 0, (key, offset)
            self._staged[key] = offset

    def lower(self, key: TopicPartition, offset: int) -> None:
        """Make the stored offset at most `offset`, durably; a write under way cannot undo it."""
        staged = self._staged.get(key)
        if staged is not None:
            self._staged[key] = min(staged, offset)
        with self._lock:
            if self.written.get(key, 0) > offset:
                self._write()

    def write(self) -> None:
        """Make the staged offsets durable; does nothing when the file says so already."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        rows = dict(self._staged)
        if rows != self.written:
            write_table(self._files, self._path, [(*key, rows[key]) for key in sorted(rows)])
            self.written = rows


class LogDirCheckpoints:
    """The three offset checkpoints of a log directory."""

    __slots__ = ("high_watermarks", "log_start_offsets", "recovery_points")

    def __init__(self, files: Files, directory: str) -> None:
        self.recovery_points = OffsetCheckpoint(files, f"{directory}/{RECOVERY_POINT_FILE}")
        self.log_start_offsets = OffsetCheckpoint(files, f"{directory}/{LOG_START_OFFSET_FILE}")
        self.high_watermarks = OffsetCheckpoint(files, f"{directory}/{HIGH_WATERMARK_FILE}")

    def partition(self, topic_partition: TopicPartition) -> PartitionCheckpoints:
        return PartitionCheckpoints(self, topic_partition)

    def write(self) -> None:
        """Write all three. Start offsets first: a recovery point implies that one is known."""
        self.log_start_offsets.write()
        self.recovery_points.write()
        self.high_watermarks.write()

    def forget(self, keys: Iterable[TopicPartition]) -> None:
        """Drop the lines of deleted partitions, durably, before a new one may take the name."""
        for key in keys:
            for checkpoint in (self.recovery_points, self.log_start_offsets, self.high_watermarks):
                checkpoint.stage(key, None)
        self.recovery_points.write()
        self.log_start_offsets.write()
        self.high_watermarks.write()


class PartitionCheckpoints:
    """What one log reads from and writes to the checkpoints of its directory."""

    __slots__ = ("_all", "_key")

    def __init__(self, checkpoints: LogDirCheckpoints, key: TopicPartition) -> None:
        self._all = checkpoints
        self._key = key

    @property
    def recovery_point(self) -> int:
        """The durable recovery point; 0 when none was written."""
        return self._all.recovery_points.written.get(self._key, 0)

    @property
    def log_start_offset(self) -> int | None:
        """The durable log start offset; None when none was written."""
        return self._all.log_start_offsets.written.get(self._key)

    @property
    def high_watermark(self) -> int:
        """The checkpointed high watermark; 0 when none was written. Clamp it to the log."""
        return self._all.high_watermarks.written.get(self._key, 0)

    def stage(self, *, recovery_point: int, log_start_offset: int) -> None:
        """Note what the next periodic write stores."""
        self._all.log_start_offsets.stage(self._key, log_start_offset)
        self._all.recovery_points.stage(self._key, recovery_point)

    def stage_high_watermark(self, high_watermark: int) -> None:
        self._all.high_watermarks.stage(self._key, high_watermark)

    def lower_recovery_point(self, offset: int) -> None:
        """Make the recovery point at most `offset`, durably, before a truncation touches data."""
        self._all.recovery_points.lower(self._key, offset)

    def write_log_start_offset(self, offset: int) -> None:
        """Make the log start offset durable, before any segment below it is deleted."""
        self._all.log_start_offsets.stage(self._key, offset)
        self._all.log_start_offsets.write()

    def forget(self) -> None:
        self._all.forget([self._key])


@dataclass(frozen=True, slots=True)
class MetaProperties:
    """Whose log directory this is (`meta.properties`, version 0)."""

    broker_id: int
    cluster_id: str
    directory_id: str


def write_meta_properties(files: Files, directory: str, meta: MetaProperties) -> None:
    text = (
        f"version={_META_VERSION}\nbroker.id={meta.broker_id}\n"
        f"cluster.id={meta.cluster_id}\ndirectory.id={meta.directory_id}\n"
    )
    write_atomically(files, f"{directory}/{META_PROPERTIES_FILE}", text.encode())


def read_meta_properties(files: Files, directory: str) -> MetaProperties | None:
    """The owner of the directory; None for a new one.

    Raises CheckpointFormatError, and DataDirectoryError for a version we do not know.
    """
    path = f"{directory}/{META_PROPERTIES_FILE}"
    try:
        lines = read_text(files, path).splitlines()
    except FileNotFoundError:
        return None
    values: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals:
            raise CheckpointFormatError(path, number, "not name=value")
        values[name.strip()] = value.strip()
    if values.get("version") != _META_VERSION:
        raise DataDirectoryError(
            f"{path}: format version {values.get('version')!r}, this broker reads {_META_VERSION!r}"
        )
    try:
        return MetaProperties(
            int(values["broker.id"]), values["cluster.id"], values.get("directory.id", "")
        )
    except (KeyError, ValueError) as error:
        raise CheckpointFormatError(path, len(lines), f"bad or missing field: {error}") from error


def check_meta_properties(
    found: MetaProperties, *, directory: str, broker_id: int, cluster_id: str
) -> None:
    """Refuse the directory of another broker or cluster. Raises DataDirectoryError."""
    if found.cluster_id != cluster_id:
        raise DataDirectoryError(
            f"{directory} belongs to cluster {found.cluster_id!r}, this is {cluster_id!r}"
        )
    if found.broker_id != broker_id:
        raise DataDirectoryError(
            f"{directory} belongs to broker {found.broker_id}, this is broker {broker_id}"
        )


def write_clean_shutdown(files: Files, directory: str, broker_epoch: int) -> None:
    """Leave the mark of a clean shutdown: the last write, after every log was closed."""
    text = json.dumps({"version": 0, "brokerEpoch": broker_epoch}, separators=(",", ":"))
    write_atomically(files, f"{directory}/{CLEAN_SHUTDOWN_FILE}", text.encode())


def take_clean_shutdown(files: Files, directory: str) -> int | None:
    """Remove the mark, durably, and return its broker epoch (-1 unknown); None if there is none."""
    path = f"{directory}/{CLEAN_SHUTDOWN_FILE}"
    try:
        text = read_text(files, path)
    except FileNotFoundError:
        return None
    except CheckpointFormatError:
        text = ""
    files.unlink(path)
    files.sync_dir(directory)
    try:
        value = json.loads(text)
    except ValueError:
        return None
    epoch = value.get("brokerEpoch", -1) if isinstance(value, dict) else -1
    return epoch if isinstance(epoch, int) else -1


def write_partition_metadata(files: Files, directory: str, topic_id: str) -> None:
    """Bind a partition directory to its topic id (22 characters of base64url, as in znodes)."""
    assert _is_topic_id(topic_id), topic_id
    text = f"version: 0\ntopic_id: {topic_id}\n"
    write_atomically(files, f"{directory}/{PARTITION_METADATA_FILE}", text.encode())


def read_partition_metadata(files: Files, directory: str) -> str | None:
    """The topic id of a partition directory, None without the file.

    Raises CheckpointFormatError.
    """
    path = f"{directory}/{PARTITION_METADATA_FILE}"
    try:
        lines = read_text(files, path).splitlines()
    except FileNotFoundError:
        return None
    if not lines or lines[0] != "version: 0":
        raise CheckpointFormatError(path, 1, "version is not 0")
    name, _, topic_id = lines[1].partition(": ") if len(lines) > 1 else ("", "", "")
    if name != "topic_id" or not _is_topic_id(topic_id):
        raise CheckpointFormatError(path, 2, "no topic_id")
    return topic_id


def _is_topic_id(text: str) -> bool:
    try:
        return len(text) == 22 and len(base64.urlsafe_b64decode(text + "==")) == 16
    except (ValueError, binascii.Error):
        return False


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")
