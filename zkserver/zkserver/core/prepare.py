"""From a request to a Txn: validation against the tree plus everything that is outstanding.

Owns the view of the tree as it will be once all logged Txns are applied, kept only where it may
differ from the tree. Changes no replicated state. Source: ZooKeeper `PrepRequestProcessor`,
`ChangeRecord`; the order in which errors win is B.2 of its behaviour.

`Rejected`: the request is well formed and fails; it takes a zxid as an error Txn. `Refused`: it
is over a limit or not supported, and never reaches the log.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.paths import parent_of, path_problem
from duolog_protocol.txns import (
    CLOSE_SESSION_BYTES,
    HEADER_BYTES,
    Body,
    TxnKind,
    close_session_path_bytes,
    encode_body,
)
from duolog_protocol.types import Acl, CreateMode
from duolog_protocol.zk_messages import MultiKind, MultiOp

from .config import CoreConfig
from .datatree import (
    CREATE,
    DELETE,
    READ,
    SYSTEM_PATHS,
    WRITE,
    Node,
    next_version,
    world_perms,
    wrap_int32,
)
from .session_tracker import Session
from .state import ReplicatedState


class Rejected(Exception):
    """The request fails, with a zxid: an error Txn is logged."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Refused(Rejected):
    """The request is not taken at all."""


class OutstandingNode:
    """A node as it will be; `version`, `creates` and the rest after all outstanding Txns."""

    __slots__ = ("child_count", "creates", "ephemeral_owner", "exists", "perms", "version")

    def __init__(self, node: Node) -> None:
        self.exists = True
        self.version = node.version
        self.creates = node.creates
        children = node.children
        self.child_count = len(children) if children is not None else 0
        self.ephemeral_owner = node.ephemeral_owner
        self.perms = node.perms


_ABSENT: Final = Node("", None, (), 0, 0, 0)
_FLAGS: Final[dict[int, tuple[int, bool]]] = {
    CreateMode.PERSISTENT: (0, False),
    CreateMode.EPHEMERAL: (1, False),
    CreateMode.PERSISTENT_SEQUENTIAL: (0, True),
    CreateMode.EPHEMERAL_SEQUENTIAL: (1, True),
}


class Outstanding:
    """Overlay of the tree.

    An entry stays right after its Txn was applied, since every later change passes through here,
    too; so entries are dropped all at once, whenever nothing is outstanding.
    """

    def __init__(self, state: ReplicatedState, base: Outstanding | None = None) -> None:
        self._nodes = state.tree.nodes
        self._sessions = state.sessions
        self._base = base
        self.entries: dict[str, OutstandingNode] = {}
        self.ephemerals: dict[int, dict[str, bool]] = {}
        """session id -> path -> it was created (True) or deleted, in order of the last change."""
        self._ephemeral_bytes: dict[int, int] = {}

    def find(self, path: str) -> OutstandingNode | None:
        """The entry of an existing node, made if there is none; owned by this overlay."""
        entry = self.entries.get(path)
        if entry is None:
            if self._base is not None:
                below = self._base.find(path)
                if below is None:
                    return None
                entry = OutstandingNode(_ABSENT)
                entry.version = below.version
                entry.creates = below.creates
                entry.child_count = below.child_count
                entry.ephemeral_owner = below.ephemeral_owner
                entry.perms = below.perms
            else:
                node = self._nodes.get(path)
                if node is None:
                    return None
                entry = OutstandingNode(node)
            self.entries[path] = entry
        return entry if entry.exists else None

    def note(self, session_id: int, body: Body) -> None:
        """Take over what a Txn will do. It was validated against this overlay."""
        kind = body[0]
        if kind == TxnKind.SET_DATA:
            entry = self.find(body[1])
            assert entry is not None, body[1]
            entry.version = body[3]
        elif kind == TxnKind.CREATE:
            self._note_create(session_id if body[4] else 0, body)
        elif kind == TxnKind.DELETE:
            self._note_delete(body[1])
        elif kind == TxnKind.MULTI:
            for each in body[1]:
                self.note(session_id, each)
        elif kind == TxnKind.CLOSE_SESSION:
            for path in body[2]:
                self._note_delete(path)

    def _note_create(self, owner: int, body: Body) -> None:
        _, path, _, acl, _, creates = body
        parent = self.find(parent_of(path))
        assert parent is not None, path
        parent.creates = creates
        parent.child_count += 1
        entry = OutstandingNode(_ABSENT)
        entry.perms = world_perms(acl)
        entry.ephemeral_owner = owner
        self.entries[path] = entry
        if owner:
            self._note_ephemeral(owner, path, created=True)

    def _note_delete(self, path: str) -> None:
        parent = self.find(parent_of(path))
        entry = self.find(path)
        assert parent is not None, path
        assert entry is not None, path
        parent.child_count -= 1
        entry.exists = False
        if entry.ephemeral_owner:
            self._note_ephemeral(entry.ephemeral_owner, path, created=False)

    def _note_ephemeral(self, owner: int, path: str, *, created: bool) -> None:
        paths = self.ephemerals.setdefault(owner, {})
        paths.pop(path, None)
        paths[path] = created
        size = close_session_path_bytes(path)
        self._ephemeral_bytes[owner] = self.ephemeral_bytes_of(owner) + (size if created else -size)

    def ephemeral_bytes_of(self, session_id: int) -> int:
        """What the ephemerals of a session add to the record of its CloseSession."""
        found = self._ephemeral_bytes.get(session_id)
        if found is not None:
            return found
        if self._base is not None:
            return self._base.ephemeral_bytes_of(session_id)
        session = self._sessions.get(session_id)
        return session.ephemeral_bytes if session is not None else 0

    def clear(self) -> None:
        """Everything noted was applied, or will not be."""
        self.entries.clear()
        self.ephemerals.clear()
        self._ephemeral_bytes.clear()


class Preparer:
    """Makes Txn bodies of requests. Nothing is noted until the caller says so."""

    def __init__(self, config: CoreConfig, state: ReplicatedState) -> None:
        self._config = config
        self._max_data_bytes = config.max_data_bytes
        self._state = state
        self.outstanding = Outstanding(state)

    def rebuild(self, txns: Iterable[tuple[int, Body]]) -> None:
        """Start again from the tree and these outstanding Txns, (session_id, body) each."""
        self.outstanding.clear()
        for session_id, body in txns:
            self.outstanding.note(session_id, body)

    def set_data(self, path: str, data: bytes | None, version: int) -> Body:
        """Validate and note a SetData. Raises Rejected, Refused."""
        view = self.outstanding
        body = self._set_data(view, path, data, version)
        view.entries[path].version = body[3]
        return body

    def create(self, session: Session, message: Any) -> Body:
        """Validate and note a create. Raises Rejected, Refused."""
        path, data, acl, flags, _ttl_ms = message
        body = self._create(self.outstanding, session, path, data, acl, flags)
        self.outstanding.note(session.session_id, body)
        return body

    def delete(self, session: Session, message: Any) -> Body:
        """Validate and note a delete. Raises Rejected."""
        body = self._delete(self.outstanding, *message)
        self.outstanding.note(session.session_id, body)
        return body

    def check(self, message: Any) -> Body:
        """A check alone is a multi of one: it takes a zxid and its result is as of that zxid."""
        return (TxnKind.MULTI, (self._check(self.outstanding, *message),))

    def multi(self, session: Session, ops: tuple[MultiOp, ...]) -> Body:
        """Validate and note a multi: all of it or nothing.

        Raises MultiRejected with the place of the operation that fails, Refused.
        """
        if len(ops) > self._config.max_multi_ops:
            raise Refused(
                ZkErrorCode.BAD_ARGUMENTS,
                f"a multi of {len(ops)} operations is over the limit {self._config.max_multi_ops}",
            )
        staged = Outstanding(self._state, self.outstanding)
        bodies: list[Body] = []
        for op in ops:
            try:
                body = self._operation(staged, session, op)
            except Refused:
                raise
            except Rejected as error:
                raise MultiRejected(error.code, error.message, len(bodies), len(ops)) from None
            staged.note(session.session_id, body)
            bodies.append(body)
        whole = (TxnKind.MULTI, tuple(bodies))
        size = HEADER_BYTES + len(encode_body(whole))
        if size > self._config.max_txn_bytes:
            raise Refused(
                ZkErrorCode.REQUEST_TOO_LARGE,
                f"a transaction of {size} bytes is over the limit {self._config.max_txn_bytes}",
            )
        self._check_close_size(staged, session)
        self.outstanding.note(session.session_id, whole)
        return whole

    def close_session(self, session: Session, reason: int) -> Body:
        """Note the end of a session, with all ephemerals it will have had by then."""
        paths = dict(session.ephemerals)
        for path, created in self.outstanding.ephemerals.get(session.session_id, {}).items():
            paths.pop(path, None)
            if created:
                paths[path] = None
        body = (TxnKind.CLOSE_SESSION, reason, tuple(paths))
        self.outstanding.note(session.session_id, body)
        return body

    def _operation(self, view: Outstanding, session: Session, op: MultiOp) -> Body:
        kind, path, data, acl, flags, _ttl_ms, version = op
        if kind == MultiKind.SET_DATA:
            return self._set_data(view, path, data, version)
        if kind == MultiKind.CREATE:
            return self._create(view, session, path, data, acl, flags)
        if kind == MultiKind.DELETE:
            return self._delete(view, path, version)
        if kind == MultiKind.CHECK:
            return self._check(view, path, version)
        raise Refused(ZkErrorCode.UNIMPLEMENTED, f"operation {kind} is not known in a multi")

    def _set_data(self, view: Outstanding, path: str, data: bytes | None, version: int) -> Body:
        if data is not None and len(data) > self._max_data_bytes:
            raise _data_too_long(path, data, self._max_data_bytes)
        entry = view.entries.get(path)
        if entry is None or not entry.exists:
            entry = view.find(path)
            if entry is None:
                _require_legal(path)
                raise Rejected(ZkErrorCode.NO_NODE, f"{path} does not exist")
        if not entry.perms & WRITE:
            raise _not_allowed(path)
        if version not in (-1, entry.version):
            raise _wrong_version(path, entry.version, version)
        following = entry.version + 1
        if following == 0 or following > 0x7FFFFFFF:
            following = next_version(entry.version)
        return (5, path, data, following)

    def _create(
        self,
        view: Outstanding,
        session: Session,
        path: str,
        data: bytes | None,
        acl: tuple[Acl, ...] | None,
        flags: int,
    ) -> Body:
        if data is not None and len(data) > self._max_data_bytes:
            raise _data_too_long(path, data, self._max_data_bytes)
        mode = _FLAGS.get(flags)
        if mode is None:
            if flags in (4, 5, 6):
                raise Refused(
                    ZkErrorCode.UNIMPLEMENTED,
                    f"{CreateMode(flags).name} nodes are not supported by this version",
                )
            raise Rejected(ZkErrorCode.BAD_ARGUMENTS, f"create flags {flags} are not known")
        ephemeral, sequential = mode
        at = path.rfind("/")
        if at < 0 or "\0" in path:
            raise Rejected(ZkErrorCode.BAD_ARGUMENTS, f"{path!r} is not an absolute path")
        granted = _legal_acl(acl)
        parent_path = path[:at] or "/"
        parent = _require(view, parent_path)
        _require_perm(parent, CREATE, parent_path)
        if sequential:
            path = f"{path}{parent.creates:010d}"
        _require_legal(path)
        if len(path.encode()) > self._config.max_path_bytes:
            raise Refused(
                ZkErrorCode.BAD_ARGUMENTS,
                f"a path of {len(path.encode())} bytes is over the limit "
                f"{self._config.max_path_bytes}",
            )
        if view.find(path) is not None:
            raise Rejected(ZkErrorCode.NODE_EXISTS, f"{path} exists")
        if parent.ephemeral_owner:
            raise Rejected(
                ZkErrorCode.NO_CHILDREN_FOR_EPHEMERALS, f"{parent_path} is an ephemeral node"
            )
        if ephemeral:
            self._check_close_size(view, session, close_session_path_bytes(path))
        creates = wrap_int32(parent.creates + 1)
        return (TxnKind.CREATE, path, data, granted, ephemeral, creates)

    def _delete(self, view: Outstanding, path: str, version: int) -> Body:
        if "/" not in path or "\0" in path or path in SYSTEM_PATHS:
            raise Rejected(ZkErrorCode.BAD_ARGUMENTS, f"{path!r} cannot be deleted")
        parent_path = parent_of(path)
        parent = _require(view, parent_path)
        entry = _require(view, path)
        _require_perm(parent, DELETE, parent_path)
        _require_version(entry, version, path)
        if entry.child_count:
            raise Rejected(ZkErrorCode.NOT_EMPTY, f"{path} has {entry.child_count} children")
        return (TxnKind.DELETE, path)

    def _check(self, view: Outstanding, path: str, version: int) -> Body:
        _require_legal(path)
        entry = _require(view, path)
        _require_perm(entry, READ, path)
        _require_version(entry, version, path)
        return (TxnKind.CHECK, path, version)

    def _check_close_size(self, view: Outstanding, session: Session, more: int = 0) -> None:
        """The CloseSession that this session will need one day must fit in a Txn, too."""
        session_id = session.session_id
        size = CLOSE_SESSION_BYTES + view.ephemeral_bytes_of(session_id) + more
        if size > self._config.max_txn_bytes:
            raise Refused(
                ZkErrorCode.QUOTA_EXCEEDED,
                f"the ephemeral nodes of session {session_id:#x} would need a transaction of "
                f"{size} bytes to delete, over the limit {self._config.max_txn_bytes}",
            )


class MultiRejected(Rejected):
    """An operation of a multi fails, and so all of it."""

    def __init__(self, code: int, message: str, index: int, count: int) -> None:
        super().__init__(code, message)
        self.index = index
        """Place of the operation that fails."""
        self.count = count
        """Operations in all."""


def _require(view: Outstanding, path: str) -> OutstandingNode:
    entry = view.find(path)
    if entry is None:
        raise Rejected(ZkErrorCode.NO_NODE, f"{path} does not exist")
    return entry


def _require_legal(path: str) -> None:
    problem = path_problem(path)
    if problem is not None:
        raise Rejected(ZkErrorCode.BAD_ARGUMENTS, problem)


def _require_perm(entry: OutstandingNode, perm: int, path: str) -> None:
    if not entry.perms & perm:
        raise _not_allowed(path)


def _require_version(entry: OutstandingNode, version: int, path: str) -> None:
    if version not in (-1, entry.version):
        raise _wrong_version(path, entry.version, version)


def _not_allowed(path: str) -> Rejected:
    return Rejected(ZkErrorCode.NO_AUTH, f"the ACL of {path} does not allow it")


def _wrong_version(path: str, found: int, wanted: int) -> Rejected:
    return Rejected(ZkErrorCode.BAD_VERSION, f"{path} has version {found}, not {wanted}")


def _data_too_long(path: str, data: bytes, limit: int) -> Refused:
    return Refused(
        ZkErrorCode.REQUEST_TOO_LARGE,
        f"{len(data)} bytes of data for {path!r} are over the limit {limit}",
    )


def _legal_acl(acl: tuple[Acl, ...] | None) -> tuple[Acl, ...]:
    """The ACL list without duplicates."""
    if not acl:
        raise Rejected(ZkErrorCode.INVALID_ACL, "the ACL list is empty")
    for entry in acl:
        if entry.scheme != "world" or entry.id != "anyone":
            raise Rejected(
                ZkErrorCode.INVALID_ACL,
                f"{entry.scheme}:{entry.id} is not supported, only world:anyone",
            )
    return tuple(dict.fromkeys(acl))
