"""The replicated state: tree, sessions, the secret behind passwords, and the zxid it stands at.

State = f(prefix of the log). `apply` is the only thing that changes it, live and at recovery
alike; it asks no clock, draws nothing and cannot fail on a Txn that `prepare` made. What does not
fit is a damaged log, or a bug: recovery raises, a live server stops. Source: ZooKeeper
`DataTree.processTxn`, `ZKDatabase`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final, NamedTuple

from duolog_protocol.errors import StorageError
from duolog_protocol.paths import parent_of, path_problem
from duolog_protocol.txns import Body, Txn, TxnKind, close_session_path_bytes
from duolog_protocol.types import OPEN_ACL_UNSAFE, Acl, EventType, Stat, counter_of, epoch_of

from .datatree import (
    CONFIG_PATH,
    CONTAINER_TTL,
    READ,
    SYSTEM_PATHS,
    DataTree,
    Node,
    next_version,
    world_perms,
    wrap_int32,
)
from .quota import QUOTA_ROOT, Quotas
from .session_tracker import Session

AclList = tuple[Acl, ...]


Change = tuple[int, int, str, AclList | None, AclList | None]
"""One change, for the watches: (zxid, event type, path, ACL list of the node, of its parent).

Created, deleted or changed: what happened to the node. An ACL list is None where everybody may read
the node; otherwise only who it lets read hears of the event (CVE-2024-23944).
"""


class OpResult(NamedTuple):
    """What one operation of a multi did."""

    kind: int
    path: str | None
    stat: Stat | None


def _guard(node: Node) -> AclList | None:
    return None if node.perms & READ else node.acl


_SET_DATA: Final = TxnKind.SET_DATA
_CREATED: Final = int(EventType.CREATED)
_DELETED: Final = int(EventType.DELETED)
_CHANGED: Final = int(EventType.CHANGED)


class ReplicatedState:
    """Everything that a snapshot holds."""

    def __init__(self) -> None:
        self.tree = DataTree()
        self.tree.add_system_nodes()
        self.sessions: dict[int, Session] = {}
        """Open sessions in order of creation. Their ids ascend, but for those of an import."""
        self.opening: dict[int, Session] = {}
        """Sessions whose CreateSession is logged and not applied: `apply` takes them over."""
        self.secret = b""
        """Key of the session passwords; drawn once, by the first epoch."""
        self.last_applied_zxid = 0
        self.members_are_joint = False
        """Old and new members have agreed on the new ones, and have to go on to them alone. Never
        so in a snapshot."""
        self.level = 0
        """The feature level of the ensemble."""
        self.ephemeral_count = 0
        self.quotas = Quotas(self.tree)
        self.changes: list[Change] = []
        """Where `apply` notes what watches need; emptied by its reader."""

    def apply(self, zxid: int, session_id: int, wall_ms: int, body: Body) -> Any:
        """Apply a Txn: the next one after `last_applied_zxid`.

        Returns what the reply needs: the Node of a create or set, the list of OpResult of a multi,
        the Session of a CreateSession or CloseSession.
        """
        last = self.last_applied_zxid
        kind = body[0]
        assert zxid == last + 1 or (kind == TxnKind.NEW_EPOCH and zxid > last), (zxid, last, kind)
        self.last_applied_zxid = zxid
        if kind == _SET_DATA and not self.quotas.limited:
            # The commonest Txn, where nothing but the node changes. The change names the node's own
            # path: the request's, which is equal, need not be kept for as long as the history.
            _, path, data, version = body
            node = self.tree.set_data(path, data, version, zxid, wall_ms)
            guard = None if node.perms & READ else node.acl
            self.changes.append((zxid, _CHANGED, node.path, guard, None))
            return node
        return self._APPLY[kind](self, zxid, session_id, wall_ms, body)

    def give(self, session: Session, path: str) -> None:
        """An ephemeral node is the session's from now on."""
        session.ephemerals[path] = None
        session.ephemeral_bytes += close_session_path_bytes(path)
        self.ephemeral_count += 1

    def replay(self, txn: Txn) -> None:
        """Apply a Txn that was read from the log. Raises StorageError where it cannot follow."""
        zxid, session_id, _, wall_ms, body = txn
        last = self.last_applied_zxid
        if body[0] == TxnKind.NEW_EPOCH:
            follows = counter_of(zxid) == 0 and epoch_of(zxid) > epoch_of(last)
        else:
            follows = zxid == last + 1 and counter_of(zxid) != 0
        if not follows:
            raise StorageError(f"log record {zxid:#x} does not follow {last:#x}")
        try:
            self.apply(zxid, session_id, wall_ms, body)
        except (AssertionError, KeyError, ValueError) as error:
            raise StorageError(f"log record {zxid:#x} does not fit the tree: {error!r}") from error

    def _apply_set(self, zxid: int, session_id: int, wall_ms: int, body: Body) -> Node:
        """What `apply` has a short way for, also in a multi and where quotas count."""
        _, path, data, version = body
        before = len(self.tree.nodes[path].data or b"")
        node = self.tree.set_data(path, data, version, zxid, wall_ms)
        self.quotas.on_changed(path, len(data or b"") - before)
        self.changes.append((zxid, _CHANGED, node.path, _guard(node), None))
        return node

    def _apply_set_acl(self, zxid: int, session_id: int, wall_ms: int, body: Body) -> Node:
        _, path, acl, aversion = body
        node = self.tree.nodes[path]
        assert aversion == next_version(node.aversion), (path, aversion, node.aversion)
        return self.tree.set_acl(path, acl, aversion)

    def _apply_create(self, zxid: int, session_id: int, wall_ms: int, body: Body) -> Node:
        kind, path, data, acl, special, creates = body
        owner = ttl_ms = 0
        if kind == TxnKind.CREATE_TTL:
            ttl_ms = special
        elif kind == TxnKind.CREATE_CONTAINER:
            ttl_ms = CONTAINER_TTL
        elif special:
            owner = session_id
        node = Node(path, data, acl, owner, zxid, wall_ms, ttl_ms)
        if owner:
            session = self.sessions[owner]
        parent = self.tree.create(node, creates)
        if owner:
            self.give(session, path)
        if self.quotas.limited or path.startswith(QUOTA_ROOT):
            self.quotas.on_created(node)
        guard = None if node.perms & 1 else node.acl
        parent_guard = None if parent.perms & 1 else parent.acl
        self.changes.append((zxid, _CREATED, path, guard, parent_guard))
        return node

    def _apply_delete(self, zxid: int, session_id: int, wall_ms: int, body: Body) -> Node:
        path: str = body[1]
        node = self.tree.delete(path, zxid)
        owner = node.ephemeral_owner
        if owner:
            session = self.sessions[owner]
            del session.ephemerals[path]
            session.ephemeral_bytes -= close_session_path_bytes(path)
            self.ephemeral_count -= 1
        if self.quotas.limited:
            self.quotas.on_deleted(node)
        self._note(zxid, _DELETED, node)
        return node

    def _note(self, zxid: int, event_type: int, node: Node) -> None:
        parent = self.tree.nodes[parent_of(node.path)]
        self.changes.append((zxid, event_type, node.path, _guard(node), _guard(parent)))

    def _apply_multi(self, zxid: int, session_id: int, wall_ms: int, body: Body) -> list[OpResult]:
        results = []
        for each in body[1]:
            kind = each[0]
            if kind == TxnKind.CHECK:
                results.append(OpResult(kind, None, None))
                continue
            node: Any = self._APPLY[kind](self, zxid, session_id, wall_ms, each)
            if kind == TxnKind.DELETE:
                results.append(OpResult(kind, None, None))
            else:
                path = None if kind == TxnKind.SET_DATA else node.path
                results.append(OpResult(kind, path, node.stat()))
        return results

    def _apply_create_session(
        self, zxid: int, session_id: int, wall_ms: int, body: Body
    ) -> Session:
        assert session_id == zxid, (session_id, zxid)
        session = self.opening.pop(session_id, None) or Session(session_id, body[1])
        assert session.opened_timeout_ms == body[1], (session.opened_timeout_ms, body)
        self.sessions[session_id] = session
        return session

    def _apply_close_session(self, zxid: int, session_id: int, wall_ms: int, body: Body) -> Session:
        session = self.sessions[session_id]
        paths = body[2]
        for path in paths:
            assert path in session.ephemerals, (session_id, path)
            self._apply_delete(zxid, session_id, wall_ms, (TxnKind.DELETE, path))
        assert not session.ephemerals, (session_id, list(session.ephemerals))
        del self.sessions[session_id]
        return session

    def _apply_new_epoch(self, zxid: int, session_id: int, wall_ms: int, body: Body) -> None:
        if body[1]:
            self.secret = body[1]

    def _apply_members(self, zxid: int, session_id: int, wall_ms: int, body: Body) -> Node:
        """What is decided is shown: a joint membership is, once it is committed and applied."""
        _, is_joint, data = body
        self.members_are_joint = bool(is_joint)
        node = self.tree.nodes[CONFIG_PATH]
        if node.data == data:
            return node
        set_data = (TxnKind.SET_DATA, CONFIG_PATH, data, next_version(node.version))
        return self._apply_set(zxid, session_id, wall_ms, set_data)

    def _apply_level(self, zxid: int, session_id: int, wall_ms: int, body: Body) -> None:
        self.level = body[1]

    def _apply_error(self, zxid: int, session_id: int, wall_ms: int, body: Body) -> None:
        """A request that failed takes its zxid and changes nothing."""

    _APPLY: Final = {
        TxnKind.CREATE: _apply_create,
        TxnKind.CREATE_CONTAINER: _apply_create,
        TxnKind.CREATE_TTL: _apply_create,
        TxnKind.SET_ACL: _apply_set_acl,
        TxnKind.DELETE: _apply_delete,
        TxnKind.SET_DATA: _apply_set,
        TxnKind.MULTI: _apply_multi,
        TxnKind.CREATE_SESSION: _apply_create_session,
        TxnKind.CLOSE_SESSION: _apply_close_session,
        TxnKind.MEMBERS: _apply_members,
        TxnKind.NEW_EPOCH: _apply_new_epoch,
        TxnKind.LEVEL: _apply_level,
        TxnKind.ERROR: _apply_error,
    }

    def check_invariants(self) -> None:
        """Compare everything that is kept twice. O(nodes); for tests and the simulator."""
        nodes = self.tree.nodes
        for path in SYSTEM_PATHS:
            assert path in nodes, path
        owned: dict[int, list[str]] = {session_id: [] for session_id in self.sessions}
        counts = dict.fromkeys(nodes, 0)
        data_bytes = 0
        for path, node in nodes.items():
            assert node.path == path, (node.path, path)
            assert path_problem(path) is None, path
            assert node.version != -1, path
            zxids = (node.czxid, node.mzxid, node.pzxid)
            assert max(zxids) <= self.last_applied_zxid, (path, zxids, self.last_applied_zxid)
            assert node.czxid <= min(node.mzxid, node.pzxid), (path, zxids)
            data_bytes += len(path) + len(node.data or b"")
            if path != "/":
                parent = nodes.get(parent_of(path))
                assert parent is not None, f"{path} has no parent"
                assert parent.ephemeral_owner == 0, f"{path} is the child of an ephemeral"
                counts[parent.path] += 1
            if node.ephemeral_owner:
                assert node.ephemeral_owner in owned, (path, node.ephemeral_owner)
                owned[node.ephemeral_owner].append(path)
            assert node.perms == world_perms(node.acl), (path, node.perms, node.acl)
            assert (path in self.tree.reapable) == (node.ttl_ms != 0), path
        acls = Counter(node.acl for node in nodes.values() if node.acl != OPEN_ACL_UNSAFE)
        assert acls == self.tree.acls.counts(), acls
        assert data_bytes == self.tree.data_bytes, (data_bytes, self.tree.data_bytes)
        for path, count in counts.items():
            node = nodes[path]
            assert node.child_count() == count, (path, node.child_count(), count)
            assert node.stat().cversion == wrap_int32(2 * node.creates - count), path
        for session_id, paths in owned.items():
            session = self.sessions[session_id]
            assert sorted(session.ephemerals) == sorted(paths), (session_id, paths)
            expected = sum(map(close_session_path_bytes, paths))
            assert session.ephemeral_bytes == expected, (session_id, session.ephemeral_bytes)
        assert self.ephemeral_count == sum(map(len, owned.values())), self.ephemeral_count
