"""What the simulated disk is made of: file images, pending operations, what a crash leaves of them.

Owns the crash semantics of one file's content and of one operation on names, as plain values; it
knows no paths, handles or fault plans (`disk.py`). A file has the image that readers see, the
image on the platter, and the operations between the two; nothing is copied until a crash.

Legal results follow `runtime/duolog_runtime/files.py`: each pending operation is kept, dropped or
torn, independently. Bytes outside a torn write are never touched (powersafe overwrite, as SQLite
calls it); inside it, what did not arrive is the old content, zeros or garbage.
"""

from __future__ import annotations

import random
from typing import Final, NamedTuple

WRITE: Final = 0
RESIZE: Final = 1
EXTEND: Final = 2

SECTOR_BYTES: Final = 512
PAGE_BYTES: Final = 4096

Op = tuple[int, int, bytes]
"""(WRITE, position, data), (RESIZE, size, b"") or (EXTEND, least size, b"")."""


class Image:
    """Content and size of a file. Zeros behind the last written byte are not stored."""

    __slots__ = ("data", "size_bytes")

    def __init__(self, data: bytearray, size_bytes: int) -> None:
        self.data = data
        self.size_bytes = size_bytes

    def copy(self) -> Image:
        return Image(self.data[:], self.size_bytes)

    def read(self, size_bytes: int, position: int) -> bytes:
        end = min(position + size_bytes, self.size_bytes)
        if position >= end:
            return b""
        with memoryview(self.data) as view:
            found = bytes(view[position:end])
        return found if len(found) == end - position else found.ljust(end - position, b"\0")

    def apply(self, op: Op) -> None:
        kind, position, payload = op
        data = self.data
        if kind == WRITE:
            if not payload:
                return
            have = len(data)
            if position > have:
                data.extend(bytes(position - have))
            end = position + len(payload)
            data[position:end] = payload
            self.size_bytes = max(self.size_bytes, end)
        elif kind == RESIZE:
            del data[position:]
            self.size_bytes = position
        else:
            self.size_bytes = max(self.size_bytes, position)


class FileNode:
    """A file without its name."""

    __slots__ = ("durable", "handles", "image", "linked", "pending", "sync_failed")

    def __init__(self) -> None:
        self.image = Image(bytearray(), 0)
        self.durable = Image(bytearray(), 0)
        """What the platter has; `pending` leads from it to `image`, unless a sync failed."""
        self.pending: list[Op] = []
        self.handles = 0
        self.linked = True
        """It has a name that a reader can find."""
        self.sync_failed = False
        """The system gave up on some writes and forgot them: a later sync proves nothing."""

    def settle(self) -> None:
        """All pending operations reach the platter."""
        for op in self.pending:
            self.durable.apply(op)
        self.pending.clear()

    def revert(self) -> None:
        """Only the platter is left."""
        assert not self.pending, len(self.pending)
        self.image = self.durable.copy()
        self.sync_failed = False
        self.handles = 0


class DirectoryNode:
    """Names, as readers see them and as the platter has them."""

    __slots__ = ("durable", "entries")

    def __init__(self) -> None:
        self.entries: dict[str, Node] = {}
        self.durable: dict[str, Node] = {}


Node = FileNode | DirectoryNode
Place = tuple[DirectoryNode, str]


class NameOp:
    """A pending creation, removal or rename."""

    __slots__ = ("node", "source", "target")

    def __init__(self, node: Node, source: Place | None, target: Place | None) -> None:
        self.node = node
        self.source = source
        """The name that goes; None for a creation."""
        self.target = target
        """The name that comes; None for a removal."""

    @property
    def places(self) -> list[Place]:
        return [place for place in (self.source, self.target) if place is not None]

    def apply(self) -> None:
        """Let the platter have it. A rename is one step: old or new, never both or neither."""
        if self.source is not None:
            directory, name = self.source
            if directory.durable.get(name) is self.node:
                del directory.durable[name]
        if self.target is not None:
            directory, name = self.target
            directory.durable[name] = self.node


class Touched:
    """The names and directories that a run of name operations has touched.

    Operations on one name keep their order, and the removal of a directory comes after everything
    in it: otherwise a crash could lose a file that nobody ever removed.
    """

    def __init__(self) -> None:
        self._places: set[Place] = set()
        self._directories: set[DirectoryNode] = set()

    def add(self, op: NameOp) -> None:
        for place in op.places:
            self._places.add(place)
            self._directories.add(place[0])

    def hold(self, op: NameOp) -> bool:
        """Does `op` come after one of them? (For a later `op`.)"""
        if op.target is None and op.node in self._directories:
            return True
        return any(place in self._places for place in op.places)


def needed_with(pending: list[NameOp], directory: DirectoryNode) -> list[NameOp]:
    """The pending operations that are durable once `directory` is synced, in order."""
    directories: set[DirectoryNode] = {directory}
    places: set[Place] = set()
    needed: list[NameOp] = []
    for op in reversed(pending):
        if any(place in places or place[0] in directories for place in op.places):
            needed.append(op)
            places.update(op.places)
            if op.target is None and isinstance(op.node, DirectoryNode):
                directories.add(op.node)
    needed.reverse()
    return needed


class CrashPlan(NamedTuple):
    """How one crash treats pending operations."""

    drop_rate: float
    tear_rate: float
    zeros_rate: float
    garbage_rate: float
    in_order: bool
    """A file keeps a prefix of its operations, the next one torn: the gentle kind of disk."""


class Survivors:
    """Counts of what a crash did."""

    __slots__ = ("dropped", "kept", "torn")

    def __init__(self) -> None:
        self.kept = 0
        self.dropped = 0
        self.torn = 0


def survive(node: FileNode, plan: CrashPlan, rng: random.Random, counts: Survivors) -> None:
    """Let a part of the pending operations reach the platter; forget the others."""
    durable = node.durable
    cut = rng.randint(0, len(node.pending)) if plan.in_order else -1
    for number, op in enumerate(node.pending):
        if plan.in_order:
            kept = number < cut
            torn = number == cut and rng.random() < plan.tear_rate
        else:
            chance = rng.random()
            torn = chance < plan.tear_rate
            kept = chance >= plan.tear_rate + (1 - plan.tear_rate) * plan.drop_rate
        if torn and op[0] == WRITE and len(op[2]) > 1:
            counts.torn += 1
            for piece in tear(op, plan, rng):
                durable.apply(piece)
        elif kept:
            counts.kept += 1
            durable.apply(op)
        else:
            counts.dropped += 1
    node.pending.clear()


def tear(op: Op, plan: CrashPlan, rng: random.Random) -> list[Op]:
    """The pieces of one write that arrive, and what stands where the rest should be."""
    _, position, data = op
    cut = _cut(position, len(data), rng)
    first, second = (WRITE, position, data[:cut]), (WRITE, position + cut, data[cut:])
    if rng.random() < 0.25:  # the end arrived, the beginning did not
        first, second = second, first
    filler = rng.random()
    if filler < plan.zeros_rate:
        return [first, (WRITE, second[1], bytes(len(second[2])))]
    if filler < plan.zeros_rate + plan.garbage_rate:
        return [first, (WRITE, second[1], rng.randbytes(len(second[2])))]
    if len(first[2]) > PAGE_BYTES and rng.random() < 0.3:  # more than one piece is missing
        return tear(first, plan, rng)
    return [first]


def _cut(position: int, size_bytes: int, rng: random.Random) -> int:
    """Where a write is cut: at a page or sector of the file when one lies inside, or anywhere."""
    unit = rng.choice((1, SECTOR_BYTES, PAGE_BYTES))
    first = unit - position % unit
    if unit > 1 and first < size_bytes:
        return first + unit * rng.randrange((size_bytes - 1 - first) // unit + 1)
    return rng.randrange(1, size_bytes)
