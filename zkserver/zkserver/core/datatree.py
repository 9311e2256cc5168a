"""The tree of znodes.

Owns nodes, their exact Stat and the bookkeeping of sizes; decides nothing: what comes here was
validated by `prepare`, and is durable before anybody hears of it. Source: ZooKeeper `DataTree`,
`DataNode`.

Both dicts, `nodes` and each node's `children`, are in order of creation. That order is a function
of the history, survives a snapshot, and puts every parent before its children. Children are kept
as whole paths, the same strings that `nodes` has: a million names would take 60 MB more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from duolog_protocol.paths import parent_of
from duolog_protocol.types import OPEN_ACL_UNSAFE, Acl, Perms, Stat

if TYPE_CHECKING:
    from .snapshot import Snapshot

READ: Final = int(Perms.READ)
WRITE: Final = int(Perms.WRITE)
CREATE: Final = int(Perms.CREATE)
DELETE: Final = int(Perms.DELETE)
ADMIN: Final = int(Perms.ADMIN)
READ_ONLY_ACL: Final = (Acl(READ, "world", "anyone"),)
CONFIG_PATH: Final = "/zookeeper/config"
SYSTEM_PATHS: Final = ("/", "/zookeeper", "/zookeeper/quota", CONFIG_PATH)
"""They exist from the start and are never deleted."""

_SIGN: Final = 1 << 31
_WRAP: Final = (1 << 32) - 1


def wrap_int32(value: int) -> int:
    """A signed 32-bit counter goes on at the other end."""
    return ((value + _SIGN) & _WRAP) - _SIGN


def next_version(version: int) -> int:
    """The version after a change: wraps, and skips -1, which means "any" (ZOOKEEPER-4743)."""
    following = wrap_int32(version + 1)
    return 0 if following == -1 else following


def world_perms(acl: tuple[Acl, ...]) -> int:
    """What everybody may do under an ACL list."""
    perms = 0
    for entry in acl:
        if entry[1] == "world":
            perms |= entry[0]
    return perms


CONTAINER_TTL: Final = -1
"""`Node.ttl_ms` of a container."""


class AclTable:
    """The ACL lists in use, each of them once (ZooKeeper `ReferenceCountedACLCache`)."""

    def __init__(self) -> None:
        self._counts: dict[tuple[Acl, ...], list[Any]] = {}

    def take(self, acl: tuple[Acl, ...]) -> tuple[Acl, ...]:
        """The one object for an ACL list; `drop` it as often as it was taken."""
        if acl is OPEN_ACL_UNSAFE or acl == OPEN_ACL_UNSAFE:
            return OPEN_ACL_UNSAFE
        entry = self._counts.get(acl)
        if entry is None:
            entry = self._counts[acl] = [acl, 0]
        entry[1] += 1
        kept: tuple[Acl, ...] = entry[0]
        return kept

    def drop(self, acl: tuple[Acl, ...]) -> None:
        """A node has it no more."""
        if acl is OPEN_ACL_UNSAFE:
            return
        entry = self._counts[acl]
        entry[1] -= 1
        if not entry[1]:
            del self._counts[acl]

    def counts(self) -> dict[tuple[Acl, ...], int]:
        """How often each list is used; for tests."""
        return {acl: entry[1] for acl, entry in self._counts.items()}


class Node:
    """One znode."""

    __slots__ = (
        "acl",
        "aversion",
        "children",
        "creates",
        "ctime",
        "czxid",
        "data",
        "encoded_data",
        "encoded_stat",
        "ephemeral_owner",
        "jute_body",
        "mtime",
        "mzxid",
        "path",
        "perms",
        "pzxid",
        "saved_by",
        "ttl_ms",
        "version",
    )

    def __init__(
        self,
        path: str,
        data: bytes | None,
        acl: tuple[Acl, ...],
        ephemeral_owner: int,
        zxid: int,
        wall_ms: int,
        ttl_ms: int = 0,
    ) -> None:
        self.path = path
        self.data = data
        self.acl = acl
        self.perms = 31 if acl is OPEN_ACL_UNSAFE else world_perms(acl)
        """What the ACL list grants to everybody."""
        self.ephemeral_owner = ephemeral_owner
        """Session id, or 0."""
        self.ttl_ms = ttl_ms
        """> 0: deleted when it has no children and was not changed for so long; `CONTAINER_TTL`:
        when its last child has gone; 0: neither."""
        self.czxid = self.mzxid = self.pzxid = zxid
        self.ctime = self.mtime = wall_ms
        self.version = 0
        self.aversion = 0
        self.creates = 0
        """Children ever created: signed 32-bit, wraps, never goes back (ZOOKEEPER-1046)."""
        self.children: dict[str, None] | None = None
        """Their paths in order of creation; None where there never were any."""
        self.encoded_data: Any = None
        self.encoded_stat: bytes | None = None
        self.jute_body: bytes | None = None
        """Slots of the codecs; dropped by every change of the node."""
        self.saved_by: Snapshot | None = None
        """The running snapshot that has this node already."""

    def child_count(self) -> int:
        """Children that exist."""
        return len(self.children) if self.children is not None else 0

    def stat(self) -> Stat:
        """The Stat, with ZooKeeper's cversion: creations plus deletions of children."""
        return Stat._make(self.stat_fields())

    def stat_fields(self) -> tuple[int, ...]:
        """The fields of the Stat, for who packs them."""
        children, data = self.children, self.data
        if children is None:
            count, cversion = 0, 2 * self.creates
        else:
            count = len(children)
            cversion = 2 * self.creates - count
        if cversion >= _SIGN or cversion < -_SIGN:
            cversion = wrap_int32(cversion)
        return (
            self.czxid,
            self.mzxid,
            self.ctime,
            self.mtime,
            self.version,
            cversion,
            self.aversion,
            self.ephemeral_owner,
            len(data) if data is not None else 0,
            count,
            self.pzxid,
        )


class DataTree:
    """All znodes. Changed by the replicated state only, through methods that cannot fail."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.acls = AclTable()
        self.reapable: dict[str, Node] = {}
        """Containers and TTL nodes: those that may go without a client's wish."""
        self.data_bytes = 0
        """Paths (in characters) and data of all nodes."""
        self.snapshot: Snapshot | None = None
        """The running snapshot; it is told of a node before the node changes."""

    def add_system_nodes(self) -> None:
        """A new tree, to the field as ZooKeeper 3.8.0 has it.

        Built-in children do not count as creations (`/` shows cversion -1); quotas are anybody's to
        set; the configuration is not, and its ACL list has the version -1.
        """
        assert not self.nodes, len(self.nodes)
        for path in SYSTEM_PATHS:
            acl = READ_ONLY_ACL if path == CONFIG_PATH else OPEN_ACL_UNSAFE
            self.put(Node(path, b"", acl, 0, 0, 0))
        self.nodes[CONFIG_PATH].aversion = -1

    def put(self, node: Node) -> None:
        """Put a node into its place; its parent is there."""
        path = node.path
        self.insert(node, None if path == "/" else self.nodes[parent_of(path)])

    def insert(self, node: Node, parent: Node | None) -> None:
        """Put a node into its place; `parent` is the node above it, None for the root's."""
        path = node.path
        assert path not in self.nodes, path
        if node.acl is not OPEN_ACL_UNSAFE:
            node.acl = self.acls.take(node.acl)
        self.nodes[path] = node
        data = node.data
        self.data_bytes += len(path) + (len(data) if data is not None else 0)
        if node.ttl_ms:
            self.reapable[path] = node
        if parent is not None:
            children = parent.children
            if children is None:
                parent.children = {path: None}
            else:
                children[path] = None

    def create(self, node: Node, creates: int) -> Node:
        """Create a node; `creates` is its parent's create counter afterwards.

        Returns the parent.
        """
        path = node.path
        parent = self.nodes[path[: path.rfind("/")] or "/"]
        assert parent.ephemeral_owner == 0, (path, parent.ephemeral_owner)
        if self.snapshot is not None:
            self.snapshot.save(parent)
        assert creates == wrap_int32(parent.creates + 1), (path, creates, parent.creates)
        self.insert(node, parent)
        parent.creates = creates
        parent.pzxid = node.czxid
        parent.encoded_data = parent.encoded_stat = parent.jute_body = None
        return parent

    def delete(self, path: str, zxid: int) -> Node:
        """Delete a node without children and return it."""
        node = self.nodes.pop(path)
        assert not node.children, (path, len(node.children or ()))
        parent = self.nodes[parent_of(path)]
        if self.snapshot is not None:
            self.snapshot.save(parent)
        self.acls.drop(node.acl)
        self.data_bytes -= len(path) + (len(node.data) if node.data is not None else 0)
        if node.ttl_ms:
            del self.reapable[path]
        assert parent.children is not None, path
        del parent.children[path]
        parent.pzxid = zxid
        self._forget_encoded(parent)
        return node

    def set_data(
        self, path: str, data: bytes | None, version: int, zxid: int, wall_ms: int
    ) -> Node:
        """Replace a node's data; `version` is the one afterwards."""
        node = self.nodes[path]
        if self.snapshot is not None:
            self.snapshot.save(node)
        old = node.data
        before = len(old) if old is not None else 0
        after = len(data) if data is not None else 0
        if after != before:
            self.data_bytes += after - before
        node.data = data
        node.version = version
        node.mzxid = zxid
        node.mtime = wall_ms
        node.encoded_data = node.encoded_stat = node.jute_body = None
        return node

    def set_acl(self, path: str, acl: tuple[Acl, ...], aversion: int) -> Node:
        """Replace a node's ACL list; `aversion` is the version of it afterwards."""
        node = self.nodes[path]
        if self.snapshot is not None:
            self.snapshot.save(node)
        kept = self.acls.take(acl)
        self.acls.drop(node.acl)
        node.acl = kept
        node.perms = world_perms(kept)
        node.aversion = aversion
        self._forget_encoded(node)
        return node

    def set_usage(self, node: Node, data: bytes) -> None:
        """Write what a quota counts into its znode: no version, time or zxid changes (B.10)."""
        self.set_data(node.path, data, node.version, node.mzxid, node.mtime)

    @staticmethod
    def _forget_encoded(node: Node) -> None:
        node.encoded_data = node.encoded_stat = node.jute_body = None
