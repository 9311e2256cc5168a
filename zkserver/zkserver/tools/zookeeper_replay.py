"""From a ZooKeeper snapshot and the transactions after it to our state. Pure.

ZooKeeper takes its snapshots while writes go on: what is in them may be later than their zxid,
node by node, and the log is replayed over it. So every change must be idempotent, and none may be
asserted to fit: a create of what is there, a change of what is not, a delete of a node whose next
life is in the snapshot already. The rules are those of `DataTree.processTxn` and the issues behind
them (ZOOKEEPER-3125, -3127, -3145, -3249); what no fuzzy snapshot can explain is refused.
"""

from __future__ import annotations

import zlib
from struct import Struct
from typing import Final

from duolog_protocol.errors import StorageError
from duolog_protocol.paths import parent_of, path_problem
from duolog_protocol.types import Acl, counter_of, epoch_of
from zkserver.core.datatree import SYSTEM_PATHS, DataTree, Node, wrap_int32
from zkserver.core.quota import QUOTA_ROOT, Quotas
from zkserver.core.session_tracker import Session
from zkserver.core.state import ReplicatedState
from zkserver.storage.zookeeper_format import (
    Create,
    Delete,
    EndSession,
    ForeignNode,
    ForeignTxn,
    Multi,
    Op,
    OpenSession,
    SetAcl,
    SetData,
    special_owner,
    special_ttl_ms,
)

from .limits import acl_problem, node_problem

CONFIG: Final = "/zookeeper/config"
STATS: Final = "/zookeeper_stats"
_STAT: Final = Struct(">qqqqqiiiq")


class Replay:
    """A tree that becomes ours: nodes of the snapshot, then Txns in order, then `finish`."""

    def __init__(self, zxid: int, sessions: dict[int, int]) -> None:
        self.last_zxid = zxid
        """The last Txn applied; first, the snapshot's."""
        self.dropped: list[str] = []
        """Ephemerals whose session is not there: as ZooKeeper, we drop them at the end."""
        self._tree = DataTree()
        self._nodes = self._tree.nodes
        self._sessions = dict(sessions)
        self._owned: dict[int, dict[str, None]] = {}
        self._unknown_acl: set[str] = set()
        """Nodes that got their ACL list while the snapshot was taken."""

    def load(self, found: ForeignNode) -> None:
        """Take a node of the snapshot. Raises StorageError."""
        path = found.path
        self._require_storable(path, found.data)
        if path in self._nodes:
            raise StorageError(f"{path!r} is there twice")
        if path != "/" and parent_of(path) not in self._nodes:
            raise StorageError(f"{path!r} has no parent")
        ttl_ms = 0 if found.owner in self._sessions else special_ttl_ms(found.owner)
        node = self._insert(
            path, found.data, found.acl, 0 if ttl_ms else found.owner, ttl_ms, found.czxid, 0
        )
        node.mzxid = found.mzxid
        node.pzxid = found.pzxid
        node.ctime = found.ctime
        node.mtime = found.mtime
        node.version = found.version
        node.creates = found.creates
        node.aversion = found.aversion

    def apply(self, txn: ForeignTxn) -> None:
        """Apply the next Txn. Raises StorageError."""
        last, zxid = self.last_zxid, txn.zxid
        opens_epoch = epoch_of(zxid) > epoch_of(last) and counter_of(zxid) <= 1
        if zxid != last + 1 and not opens_epoch:
            raise StorageError(f"zxid {zxid:#x} does not follow {last:#x}: records are missing")
        self.last_zxid = zxid
        match txn.body:
            case OpenSession(timeout_ms):
                if timeout_ms <= 0 or txn.session_id == 0:
                    raise StorageError(
                        f"session {txn.session_id:#x} with a timeout of {timeout_ms} ms"
                    )
                self._sessions[txn.session_id] = timeout_ms
            case EndSession(paths):
                for path in (*(paths or ()), *self._owned.get(txn.session_id, ())):
                    self._delete(path, zxid)
                self._sessions.pop(txn.session_id, None)
            case Multi(ops):
                for op in ops:
                    self._apply(op, txn)
            case op:
                self._apply(op, txn)

    def finish(self) -> ReplicatedState:
        """The state at `last_zxid`. Raises StorageError. To be called once."""
        if "/" not in self._nodes:
            raise StorageError("the root is missing")
        self._drop_orphans()
        for path in SYSTEM_PATHS:
            if path not in self._nodes:
                self._tree.put(_fresh(path))
        self._reset_config()
        self._check_whole()
        self._count_quotas()
        state = ReplicatedState()
        state.tree = self._tree
        state.quotas = Quotas(self._tree)
        state.last_applied_zxid = self.last_zxid
        for session_id, timeout_ms in sorted(self._sessions.items()):
            if session_id == 0 or timeout_ms <= 0:
                raise StorageError(f"session {session_id:#x} with a timeout of {timeout_ms} ms")
            state.sessions[session_id] = Session(session_id, timeout_ms)
        for path, node in self._nodes.items():
            if node.ephemeral_owner:
                state.give(state.sessions[node.ephemeral_owner], path)
        return state

    def digest(self) -> int:
        """ZooKeeper's digest of the tree: the sum of the nodes' CRC-32 (ZOOKEEPER-3114).

        Before `finish`, which changes what is ours.
        """
        return sum(
            _node_digest(path, node)
            for path, node in self._nodes.items()
            if not path.startswith("/zookeeper/")
        ) & ((1 << 64) - 1)

    def _apply(self, op: Op, txn: ForeignTxn) -> None:
        match op:
            case Create():
                self._create(op, txn)
            case Delete(path):
                self._delete(path, txn.zxid)
            case SetData(path, data, version):
                self._require_storable(path, data)
                node = self._nodes.get(path)
                if node is not None:
                    self._tree.set_data(path, data, version, txn.zxid, txn.time_ms)
            case SetAcl(path, acl, version):
                node = self._nodes.get(path)
                if node is not None:
                    self._set_acl(node, acl, version)

    def _create(self, op: Create, txn: ForeignTxn) -> None:
        path = op.path
        self._require_storable(path, op.data)
        if path == "/":
            raise StorageError("the root cannot be created")
        parent = self._nodes.get(parent_of(path))
        if parent is None:  # its parent is deleted later on, and was gone when the snapshot came by
            return
        creates = op.creates if op.creates != -1 else wrap_int32(parent.creates + 1)
        if wrap_int32(creates - parent.creates) > 0:  # the snapshot may have a later one
            parent.creates = creates
            parent.pzxid = txn.zxid
        there = self._nodes.get(path)
        if there is not None:
            if path in self._unknown_acl and there.czxid == txn.zxid:
                self._set_acl(there, op.acl, there.aversion)
            return
        owner = txn.session_id if op.ephemeral else 0
        self._insert(path, op.data, op.acl, owner, op.ttl_ms, txn.zxid, txn.time_ms)

    def _delete(self, path: str, zxid: int) -> None:
        if path == "/" or path_problem(path):
            raise StorageError(f"{path!r} cannot be deleted")
        parent = self._nodes.get(parent_of(path))
        if parent is None:
            return
        parent.pzxid = max(parent.pzxid, zxid)  # also when the node is gone: ZOOKEEPER-3125
        if path in self._nodes:
            self._remove(path, zxid)

    def _remove(self, path: str, zxid: int) -> None:
        """Remove a node and, where it is in its next life already, what that one has below it."""
        stack, below = [path], []
        while stack:
            each = stack.pop()
            below.append(each)
            node = self._nodes[each]
            if each != path and node.czxid < zxid:
                raise StorageError(f"{path!r} is deleted, but {each!r} is older and still there")
            stack += node.children or ()
        for each in reversed(below):
            node = self._nodes[each]
            parent = self._nodes[parent_of(each)]
            pzxid = parent.pzxid
            self._tree.delete(each, zxid)
            parent.pzxid = pzxid
            self._unknown_acl.discard(each)
            if node.ephemeral_owner:
                self._owned[node.ephemeral_owner].pop(each)

    def _insert(
        self,
        path: str,
        data: bytes | None,
        acl: tuple[Acl, ...] | None,
        owner: int,
        ttl_ms: int,
        zxid: int,
        time_ms: int,
    ) -> Node:
        self._require_storable_acl(path, acl or ())
        node = Node(path, data, acl or (), owner, zxid, time_ms, ttl_ms)
        self._tree.put(node)
        if acl is None:
            self._unknown_acl.add(path)
        if owner:
            self._owned.setdefault(owner, {})[path] = None
        return node

    def _set_acl(self, node: Node, acl: tuple[Acl, ...], aversion: int) -> None:
        self._require_storable_acl(node.path, acl)
        self._tree.set_acl(node.path, acl, aversion)
        self._unknown_acl.discard(node.path)

    @staticmethod
    def _require_storable_acl(path: str, acl: tuple[Acl, ...]) -> None:
        problem = acl_problem(acl)
        if problem is not None:
            raise StorageError(f"{path!r}: {problem}")

    @staticmethod
    def _require_storable(path: str, data: bytes | None) -> None:
        problem = node_problem(path, data)
        if problem is not None:
            raise StorageError(problem)

    def _drop_orphans(self) -> None:
        """As a server does when it starts: ephemerals of sessions that are not there."""
        for owner in [each for each in self._owned if each not in self._sessions]:
            for path in list(self._owned[owner]):
                self.dropped.append(path)
                self._delete(path, self.last_zxid)

    def _check_whole(self) -> None:
        """What a fuzzy snapshot left open must be settled by the log."""
        if self._unknown_acl:
            path = min(self._unknown_acl)
            raise StorageError(f"{path!r} has an ACL list that neither snapshot nor log knows")
        for path, node in self._nodes.items():
            latest = max(node.czxid, node.mzxid, node.pzxid)
            if latest > self.last_zxid:
                raise StorageError(
                    f"{path!r} has a change of zxid {latest:#x} from the snapshot, but the log "
                    f"ends at {self.last_zxid:#x}: its end is missing"
                )
            earliest = min(node.mzxid, node.pzxid)
            if not 0 <= node.czxid <= earliest or node.version == -1:
                raise StorageError(f"{path!r} has a Stat that cannot be")
            if node.ephemeral_owner and node.children:
                raise StorageError(f"{path!r} is an ephemeral node and has children")

    def _reset_config(self) -> None:
        """Ours instead of theirs: their membership means nothing here."""
        node, fresh = self._nodes[CONFIG], _fresh(CONFIG)
        self._tree.set_data(CONFIG, fresh.data, fresh.version, fresh.mzxid, fresh.mtime)
        self._set_acl(node, fresh.acl, fresh.aversion)

    def _count_quotas(self) -> None:
        """Usage is kept outside of the Txns, by every server for itself: count it anew."""
        for path, node in self._nodes.items():
            if path.startswith(QUOTA_ROOT + "/") and path.endswith(STATS):
                watched = path[len(QUOTA_ROOT) : -len(STATS)]
                if watched:
                    count, size = self._usage(watched)
                    self._tree.set_usage(node, f"count={count},bytes={size}".encode())

    def _usage(self, path: str) -> tuple[int, int]:
        """Nodes at and below a path, and bytes of their data."""
        count = size = 0
        stack = [path] if path in self._nodes else []
        while stack:
            node = self._nodes[stack.pop()]
            count += 1
            size += len(node.data or b"")
            stack += node.children or ()
        return count, size


def _fresh(path: str) -> Node:
    """A built-in node as a new server has it."""
    return ReplicatedState().tree.nodes[path]


def _node_digest(path: str, node: Node) -> int:
    owner = special_owner(node.ttl_ms) if node.ttl_ms else node.ephemeral_owner
    crc = zlib.crc32(path.encode() if path != "/" else b"")
    crc = zlib.crc32(node.data or b"", crc)
    stat = _STAT.pack(
        node.czxid,
        node.mzxid,
        node.pzxid,
        node.ctime,
        node.mtime,
        node.version,
        node.creates,
        node.aversion,
        owner,
    )
    return zlib.crc32(stat, crc)
