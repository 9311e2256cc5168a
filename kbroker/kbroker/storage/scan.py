"""Walk the batches of a log file: headers only, or whole batches with their checksum.

Owns how much is read at once. Headers are read in chunks, so that a run of small batches costs one
read for many and a big batch costs one read for its header, never its records. A walk ends quietly
at the first bytes that are no whole batch; the caller compares where it ended with where it should.
"""

from __future__ import annotations

from collections.abc import Iterator

from duolog_protocol.records import (
    HEADER_BYTES,
    BatchHeader,
    CorruptBatchError,
    check_batch,
    read_header,
)
from duolog_runtime.files import File

LOOKUP_CHUNK_BYTES = 4096
WALK_CHUNK_BYTES = 64 * 1024
VERIFY_CHUNK_BYTES = 1024 * 1024


def scan_headers(
    file: File, position: int, end_position: int, *, chunk_bytes: int = LOOKUP_CHUNK_BYTES
) -> Iterator[tuple[int, BatchHeader]]:
    """Yield (position, header) of the batches in [position, end_position), without checksums.

    Stops before the first bytes that are no header or whose batch reaches beyond `end_position`.
    """
    chunk = b""
    chunk_position = position
    while position + HEADER_BYTES <= end_position:
        at = position - chunk_position
        if at + HEADER_BYTES > len(chunk):
            chunk = file.pread(min(chunk_bytes, end_position - position), position)
            chunk_position, at = position, 0
            if len(chunk) < HEADER_BYTES:
                return
        try:
            header = read_header(chunk, at)
        except CorruptBatchError:
            return
        next_position = position + header.size_bytes
        if next_position > end_position:
            return
        yield position, header
        position = next_position


def scan_batches(
    file: File, position: int, end_position: int, *, chunk_bytes: int = VERIFY_CHUNK_BYTES
) -> Iterator[tuple[int, BatchHeader]]:
    """As `scan_headers`, but reads every byte and stops before the first bad checksum."""
    chunk = b""
    chunk_position = position
    while position + HEADER_BYTES <= end_position:
        at = position - chunk_position
        try:
            if at + HEADER_BYTES > len(chunk):
                chunk = file.pread(min(chunk_bytes, end_position - position), position)
                chunk_position, at = position, 0
            size_bytes = read_header(chunk, at).size_bytes
            if position + size_bytes > end_position:
                return
            if at + size_bytes > len(chunk):
                wanted = min(max(size_bytes, chunk_bytes), end_position - position)
                chunk = file.pread(wanted, position)
                chunk_position, at = position, 0
            header = check_batch(chunk, at, at + size_bytes)
        except CorruptBatchError:
            return
        yield position, header
        position += size_bytes
