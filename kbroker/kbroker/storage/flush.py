"""One fsync round of a log: what has to become durable, carried to the disk thread and back.

The log makes a `FlushTarget` on its owner's thread, `sync` runs on the disk thread, and the owner
hands the target back to the log, which only then knows a larger `durable_end_offset`. A target
names exactly the bytes that were appended when it was made: what comes later is never reported.
"""

from __future__ import annotations

from collections.abc import Sequence

from duolog_runtime.files import File, Files
from kbroker.storage.segment import Segment


class FlushTarget:
    """Files to sync so that everything below `end_offset` is durable."""

    __slots__ = (
        "_files",
        "directory",
        "end_offset",
        "generation",
        "index_paths",
        "is_synced",
        "log_files",
        "segments",
        "sizes",
    )

    def __init__(
        self,
        files: Files,
        *,
        end_offset: int,
        generation: int,
        segments: Sequence[Segment],
        index_paths: Sequence[str],
        directory: str | None,
    ) -> None:
        self._files = files
        self.end_offset = end_offset
        self.generation = generation
        """The log's count of truncations when the target was made."""
        self.segments = segments
        self.sizes = [segment.size_bytes for segment in segments]
        self.log_files: list[File] = [segment.file for segment in segments]
        self.index_paths = index_paths
        """Index and snapshot files of segments sealed since the last round."""
        self.directory = directory
        """Set when a file name is not durable yet."""
        self.is_synced = False

    def sync(self) -> None:
        """Sync it all; blocking, safe beside appends. Raises OSError: the log is then lost."""
        for file in self.log_files:
            file.sync()
        for path in self.index_paths:
            try:
                file = self._files.open(path)
            except FileNotFoundError:
                continue  # deleted by retention or truncation meanwhile
            try:
                file.sync()
            finally:
                file.close()
        if self.directory is not None:
            self._files.sync_dir(self.directory)
        self.is_synced = True
