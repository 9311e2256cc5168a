"""The header that every file of a data directory starts with.

Owns who a file belongs to: magic (its kind), format version, server id, ensemble id, one number
whose meaning is the kind's (a zxid, an epoch) and the marker of its groups. A file is read only
after its header was found to be ours; a file of another version or server is refused by name,
never reinterpreted. Layout and worked bytes: FORMAT.md.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from duolog_protocol.checksums import crc32c
from duolog_protocol.errors import CorruptRecordError, DataDirectoryError
from duolog_runtime.files import File, Files

FORMAT_VERSION: Final = 1
MARKER_BYTES: Final = 8
NO_MARKER: Final = bytes(MARKER_BYTES)

_FIELDS: Final = struct.Struct(">8sHHIQQ8s")
_CRC: Final = struct.Struct(">I")
HEADER_BYTES: Final = _FIELDS.size + _CRC.size


class Identity(NamedTuple):
    """Whose directory it is."""

    ensemble_id: int
    """Drawn once, at random, when the first server's directory is made; u64, not 0."""
    server_id: int

    def __str__(self) -> str:
        """In decimal, as the settings have them."""
        return f"server {self.server_id} of ensemble {self.ensemble_id}"


def encode_header(
    magic: bytes, identity: Identity, number: int, marker: bytes = NO_MARKER
) -> bytes:
    """The bytes of a header."""
    assert len(magic) == 8, magic
    fields = _FIELDS.pack(
        magic, FORMAT_VERSION, 0, identity.server_id, identity.ensemble_id, number, marker
    )
    return fields + _CRC.pack(crc32c(fields))


def decode_header(
    data: bytes, path: str, magic: bytes, identity: Identity | None
) -> tuple[Identity, int, bytes]:
    """The identity, number and marker of a header; `identity` None takes any.

    Raises CorruptRecordError, and DataDirectoryError for another version, server or ensemble.
    """
    if len(data) < HEADER_BYTES:
        raise CorruptRecordError(path, len(data), "the file ends inside its header")
    fields = data[: _FIELDS.size]
    found_magic, version, _, server_id, ensemble_id, number, marker = _FIELDS.unpack(fields)
    if found_magic != magic:
        raise CorruptRecordError(path, 0, f"it starts with {found_magic!r}, not with {magic!r}")
    if version != FORMAT_VERSION:
        raise DataDirectoryError(
            f"{path} has format version {version}, this server reads version {FORMAT_VERSION}"
        )
    if crc32c(fields) != _CRC.unpack_from(data, _FIELDS.size)[0]:
        raise CorruptRecordError(path, 0, "the checksum of the header is wrong")
    found = Identity(ensemble_id, server_id)
    if identity is not None and found != identity:
        raise DataDirectoryError(f"{path} belongs to {found}, this is {identity}")
    return found, number, marker


def read_header(file: File, magic: bytes, identity: Identity | None) -> tuple[Identity, int, bytes]:
    """As `decode_header`, of an open file."""
    return decode_header(file.pread(HEADER_BYTES, 0), file.path, magic, identity)


def write_small_file(files: Files, directory: str, name: str, data: bytes) -> None:
    """Replace a file so that a crash leaves the old or the new content, never anything else.

    Durable when it returns. Raises OSError; then the old content still counts.
    """
    path = f"{directory}/{name}"
    temporary = path + ".tmp"
    file = files.open(temporary, create=True)
    try:
        file.truncate(0)
        file.pwrite(data, 0)
        file.sync()
    finally:
        file.close()
    files.rename(temporary, path)
    files.sync_dir(directory)
