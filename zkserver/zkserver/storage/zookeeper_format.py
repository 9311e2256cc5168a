"""The bytes of Apache ZooKeeper's snapshots and transactions, decoded.

    snapshot = "ZKSN" version dbid sessions acls (path node)* "/" seal [digest seal] [zxid seal]
    record   = session_id cxid zxid time kind body [digest]

Owns the layouts and nothing else: bytes in, plain values out, no files, no tree. Every length is
checked against what is there before anything is made of it, and what does not decode is a
CorruptRecordError that names file and position. Source: `zookeeper.jute`, `SerializeUtils`,
`DataTree.serialize`, `SnapStream`; versions 3.4 to 3.9.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from duolog_protocol.errors import CorruptRecordError
from duolog_protocol.types import OPEN_ACL_UNSAFE, Acl

SNAPSHOT_MAGIC: Final = b"ZKSN"
LOG_MAGIC: Final = b"ZKLG"
FILE_VERSION: Final = 2
FILE_HEADER: Final = struct.Struct(">4siq")
MAX_FIELD_BYTES: Final = 64 * 1024 * 1024
"""A string or data; ZooKeeper's own limit, `jute.maxbuffer`, is 1 MiB unless raised."""
CONTAINER: Final = -1
"""`ttl_ms` of a container node."""
MAX_TTL_MS: Final = (1 << 40) - 1

_OPEN_ACL_ID: Final = -1
_CONTAINER_OWNER: Final = -(1 << 63)
_TTL_BYTE: Final = 0xFF
_TTL_RESERVED: Final = ((1 << 16) - 1) << 40
_I32: Final = struct.Struct(">i")
_I64: Final = struct.Struct(">q")
_BOOL: Final = struct.Struct(">B")
_SESSION: Final = struct.Struct(">qi")
_STAT: Final = struct.Struct(">qqqqqiiiqq")
_TXN_HEADER: Final = struct.Struct(">qiqqi")
_DIGEST: Final = struct.Struct(">iq")
_STRING_DIGEST_BELOW: Final = 2
_SEAL_BYTES: Final = 13
_ZXID_SECTION_BYTES: Final = 8 + _SEAL_BYTES
_MAX_SECTIONS_BYTES: Final = 256


class ForeignNode(NamedTuple):
    """A node of a snapshot."""

    path: str
    data: bytes | None
    acl: tuple[Acl, ...] | None
    """None: written after the snapshot's ACL table was; its own Txn in the log has it."""
    czxid: int
    mzxid: int
    ctime: int
    mtime: int
    version: int
    creates: int
    """Children ever created: what ZooKeeper persists as cversion."""
    aversion: int
    owner: int
    """Session id, 0, or a TTL or container in disguise: `special_ttl_ms`."""
    pzxid: int


class Create(NamedTuple):
    """A node is created."""

    path: str
    data: bytes | None
    acl: tuple[Acl, ...]
    ephemeral: bool
    ttl_ms: int
    """0, the TTL, or CONTAINER."""
    creates: int
    """The parent's create counter afterwards; -1: one more than before (3.3 and older)."""


class Delete(NamedTuple):
    """A node is deleted."""

    path: str


class SetData(NamedTuple):
    """A node's data is replaced; `version` is the one afterwards."""

    path: str
    data: bytes | None
    version: int


class SetAcl(NamedTuple):
    """A node's ACL list is replaced; `version` is its aversion afterwards."""

    path: str
    acl: tuple[Acl, ...]
    version: int


class OpenSession(NamedTuple):
    """A session is created."""

    timeout_ms: int


class EndSession(NamedTuple):
    """A session is closed; None where the Txn does not name its ephemerals."""

    paths: tuple[str, ...] | None


class Nothing(NamedTuple):
    """An error, or a check that held: it took a zxid."""


class Multi(NamedTuple):
    """All of it, or nothing: a failed one is empty."""

    ops: tuple[Create | Delete | SetData | SetAcl | Nothing, ...]


Op = Create | Delete | SetData | SetAcl | Nothing
Body = Op | OpenSession | EndSession | Multi


class ForeignTxn(NamedTuple):
    """A record of a log."""

    position: int
    """Where it starts in its file."""
    zxid: int
    session_id: int
    time_ms: int
    body: Body
    digest: int | None
    """ZooKeeper's digest of the tree afterwards, where the record carries one."""


class JuteReader:
    """Reads fields from a run of chunks. Every method raises CorruptRecordError."""

    __slots__ = ("_adler", "_at", "_base", "_chunks", "_summed", "_window", "path")

    def __init__(
        self, path: str, chunks: Iterable[bytes], *, position: int = 0, window: bytes = b""
    ) -> None:
        """`position` is that of the first byte, for messages; `window` comes before the chunks."""
        self.path = path
        self._chunks = iter(chunks)
        self._window = window
        self._at = 0
        self._base = position
        self._summed = 0
        self._adler = 1

    @property
    def position(self) -> int:
        """Where the next field starts."""
        return self._base + self._at

    @property
    def window_left(self) -> int:
        """Bytes at hand; without chunks, all that are left."""
        return len(self._window) - self._at

    def damaged(self, problem: str) -> CorruptRecordError:
        """The error to raise for what is at `position`."""
        return CorruptRecordError(self.path, self.position, problem)

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if not 0 <= size <= MAX_FIELD_BYTES:
            raise self.damaged(f"a field of {size} bytes")
        end = self._at + size
        if end > len(self._window):
            self._fill(size)
            end = self._at + size
        raw = self._window[self._at : end]
        self._at = end
        return raw

    def number(self, layout: struct.Struct) -> int:
        """The next field, of a fixed size."""
        value: int = layout.unpack(self.take(layout.size))[0]
        return value

    def fields(self, layout: struct.Struct) -> tuple[int, ...]:
        """The next fields, as a struct lays them out."""
        return layout.unpack(self.take(layout.size))

    def data(self) -> bytes | None:
        """Bytes with their length in front; -1 is null."""
        size = self.number(_I32)
        return None if size == -1 else self.take(size)

    def text(self) -> str:
        """A string; null reads as empty."""
        raw = self.data() or b""
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return self._java_text(raw)

    def count(self) -> int:
        """The number of items of a vector; null reads as 0."""
        count = self.number(_I32)
        if count < -1:
            raise self.damaged(f"a list of {count} items")
        return max(count, 0)

    def acl(self) -> tuple[Acl, ...]:
        """An ACL list."""
        entries = []
        for _ in range(self.count()):
            perms = self.number(_I32)
            if not 0 <= perms <= 31:
                raise self.damaged(f"permissions {perms} are not in [0, 31]")
            scheme = self.text()
            entries.append(Acl(perms, scheme, self.text()))
        return tuple(entries)

    def checksum(self) -> int:
        """Adler-32 of everything read so far."""
        self._adler = zlib.adler32(self._window[self._summed : self._at], self._adler)
        self._summed = self._at
        return self._adler

    def give_back(self, size: int) -> None:
        """Un-take the last `size` bytes, which the checksum has not seen."""
        assert self._summed <= self._at - size, (self._summed, self._at, size)
        self._at -= size

    def left(self, enough: int) -> int:
        """How many bytes are left, counted up to `enough` or a little more."""
        while self.window_left < enough:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._window += chunk
        return self.window_left

    def _fill(self, size: int) -> None:
        self.checksum()
        pieces = [self._window[self._at :]]
        have = len(pieces[0])
        while have < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise self.damaged(f"it ends here, inside a field of {size} bytes")
            pieces.append(chunk)
            have += len(chunk)
        self._base += self._at
        self._window = b"".join(pieces)
        self._at = self._summed = 0

    def _java_text(self, raw: bytes) -> str:
        """Java writes a character above U+FFFF as two surrogates of three bytes each."""
        try:
            halves = raw.decode(errors="surrogatepass")
            return halves.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise self.damaged(f"a string is not UTF-8: {error}") from error


def special_ttl_ms(owner: int) -> int:
    """What an `ephemeralOwner` says of a node's life: CONTAINER, its TTL, or 0 for neither.

    With a server id of 255 a TTL looks like a session; who knows the sessions must look first.
    """
    if owner == _CONTAINER_OWNER:
        return CONTAINER
    if owner >> 56 & 0xFF == _TTL_BYTE and not owner & _TTL_RESERVED:
        return owner & MAX_TTL_MS
    return 0


def special_owner(ttl_ms: int) -> int:
    """The `ephemeralOwner` of a container or TTL node."""
    assert ttl_ms == CONTAINER or 0 < ttl_ms <= MAX_TTL_MS, ttl_ms
    return _CONTAINER_OWNER if ttl_ms == CONTAINER else (_TTL_BYTE - 256) << 56 | ttl_ms


class SnapshotDecoder:
    """One snapshot, front to back: first this, then `nodes`, then what comes after them."""

    def __init__(self, path: str, chunks: Iterable[bytes]) -> None:
        """Read up to the nodes."""
        self._reader = reader = JuteReader(path, chunks)
        check_file_header(reader, SNAPSHOT_MAGIC)
        self.sessions: dict[int, int] = {}
        """Session id -> timeout (ms)."""
        for _ in range(reader.count()):
            session_id, timeout_ms = reader.fields(_SESSION)
            self.sessions[session_id] = timeout_ms
        self._acls: dict[int, tuple[Acl, ...]] = {_OPEN_ACL_ID: OPEN_ACL_UNSAFE}
        for _ in range(reader.count()):
            number = reader.number(_I64)
            self._acls[number] = reader.acl()
        self.digest: tuple[int, int] | None = None
        """A zxid and ZooKeeper's digest of the tree at it; known after the nodes."""

    def nodes(self) -> Iterator[tuple[int, ForeignNode]]:
        """The position of every node, and the node; parents come before their children.

        Only when the iteration has ended is the whole known to be right.
        """
        reader = self._reader
        while True:
            position = reader.position
            path = reader.text()
            if path == "/":
                break
            data = reader.data()
            acl_id, czxid, mzxid, ctime, mtime, version, creates, aversion, owner, pzxid = (
                reader.fields(_STAT)
            )
            acl = self._acls.get(acl_id)
            stat = (czxid, mzxid, ctime, mtime, version, creates, aversion, owner, pzxid)
            yield position, ForeignNode(path or "/", data, acl, *stat)
        self._seal()
        self._sections()

    def _sections(self) -> None:
        """The digest (3.6) and the last zxid (3.9), each with its seal, each optional."""
        reader = self._reader
        left = reader.left(_MAX_SECTIONS_BYTES)
        if left and left != _ZXID_SECTION_BYTES:
            zxid = reader.number(_I64)
            version = reader.number(_I32)
            if version < _STRING_DIGEST_BELOW:
                reader.text()
            else:
                self.digest = zxid, reader.number(_I64)
            self._seal()
            left = reader.left(1)
        if left:
            reader.number(_I64)
            self._seal()
        if reader.left(1):
            raise reader.damaged("there are bytes after the end")

    def _seal(self) -> None:
        reader = self._reader
        found = reader.checksum()
        position = reader.position
        if reader.number(_I64) != found or reader.text() != "/":
            problem = "the seal does not fit what is before it"
            raise CorruptRecordError(reader.path, position, problem)


def check_file_header(reader: JuteReader, magic: bytes) -> None:
    """Read the 16 bytes that a file starts with."""
    found, version, _ = FILE_HEADER.unpack(reader.take(FILE_HEADER.size))
    if found != magic:
        raise CorruptRecordError(reader.path, 0, f"it starts with {found!r}, not with {magic!r}")
    if version != FILE_VERSION:
        raise CorruptRecordError(
            reader.path, 4, f"format version {version}, only {FILE_VERSION} is known"
        )


def decode_txn(path: str, position: int, record: bytes, record_position: int) -> ForeignTxn:
    """The Txn of a record whose checksum was right; `position` is where its frame starts."""
    reader = JuteReader(path, (), position=record_position, window=record)
    session_id, _, zxid, time_ms, kind = reader.fields(_TXN_HEADER)
    if zxid <= 0:
        raise reader.damaged(f"zxid {zxid:#x} is not above 0")
    body: Body
    if kind == -10:
        body = OpenSession(reader.number(_I32))
    elif kind == -11:
        body = _end_session(reader)
    elif kind == 14:
        body = _multi(reader)
    else:
        body = _op(kind, reader)
    return ForeignTxn(position, zxid, session_id, time_ms, body, _digest(reader))


def _op(kind: int, reader: JuteReader) -> Op:
    """The body of a change of one node."""
    match kind:
        case 1 | 15:
            return _create(reader)
        case 19:
            path, data, acl = reader.text(), reader.data(), _acl_or_open(reader)
            return Create(path, data, acl, False, CONTAINER, reader.number(_I32))
        case 21:
            path, data, acl = reader.text(), reader.data(), _acl_or_open(reader)
            creates = reader.number(_I32)
            ttl_ms = reader.number(_I64)
            if not 0 < ttl_ms <= MAX_TTL_MS:
                raise reader.damaged(f"a TTL of {ttl_ms} ms")
            return Create(path, data, acl, False, ttl_ms, creates)
        case 2 | 20:
            return Delete(reader.text())
        case 5 | 16:
            path, data = reader.text(), reader.data()
            return SetData(path, data, reader.number(_I32))
        case 7:
            path, acl = reader.text(), _acl_or_open(reader)
            return SetAcl(path, acl, reader.number(_I32))
        case 13:
            reader.text()
            reader.number(_I32)
            return Nothing()
        case -1:
            reader.number(_I32)
            return Nothing()
    raise reader.damaged(f"a transaction of type {kind} is not known")


def _create(reader: JuteReader) -> Create:
    path, data, acl = reader.text(), reader.data(), _acl_or_open(reader)
    ephemeral = reader.number(_BOOL)
    if ephemeral > 1:
        raise reader.damaged(f"ephemeral is {ephemeral}, not 0 or 1")
    has_counter = reader.window_left not in (0, _DIGEST.size)
    creates = reader.number(_I32) if has_counter else -1
    return Create(path, data, acl, bool(ephemeral), 0, creates)


def _acl_or_open(reader: JuteReader) -> tuple[Acl, ...]:
    return reader.acl() or OPEN_ACL_UNSAFE


def _multi(reader: JuteReader) -> Multi:
    ops: list[Op] = []
    failed = False
    for _ in range(reader.count()):
        kind = reader.number(_I32)
        raw = reader.data() or b""
        start = reader.position - len(raw)
        inner = JuteReader(reader.path, (), position=start, window=raw)
        ops.append(_op(kind, inner))
        failed = failed or kind == -1
        if inner.window_left:
            raise inner.damaged(f"{inner.window_left} bytes after the last field")
    return Multi(() if failed else tuple(ops))


def _end_session(reader: JuteReader) -> EndSession:
    """The paths of the ephemerals, since 3.6 and not always; a digest alone looks much like them.

    Hence the whole must fit: a list of absolute paths, then nothing or a digest.
    """
    raw = reader.take(reader.window_left)
    attempt = JuteReader(reader.path, (), position=reader.position - len(raw), window=raw)
    try:
        paths = tuple([attempt.text() for _ in range(attempt.count())])
        fits = attempt.window_left in (0, _DIGEST.size)
    except CorruptRecordError:
        fits = False
    if fits and all(path.startswith("/") for path in paths):
        back, found = attempt.window_left, EndSession(paths)
    elif len(raw) in (0, _DIGEST.size):
        back, found = len(raw), EndSession(None)
    else:
        raise attempt.damaged("neither a list of paths nor a digest")
    reader.give_back(back)
    return found


def _digest(reader: JuteReader) -> int | None:
    """What may follow a body: the digest of the tree after it."""
    if reader.window_left == 0:
        return None
    if reader.window_left != _DIGEST.size:
        raise reader.damaged(f"{reader.window_left} bytes after the last field")
    version, digest = reader.fields(_DIGEST)
    return digest if version == 2 else None
