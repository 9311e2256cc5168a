"""From a request to a Txn: validation against the tree plus everything that is outstanding.

Owns the rules of every write and the order in which its errors win. Changes no replicated state.
Source: ZooKeeper `PrepRequestProcessor`; reference B.2.

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
    MAX_TTL_MS,
    Body,
    TxnKind,
    close_session_path_bytes,
    encode_acl,
    encode_body,
)
from duolog_protocol.types import OPEN_ACL_UNSAFE, Acl, CreateMode
from duolog_protocol.zk_codec import MAX_ERROR_CHARS
from duolog_protocol.zk_messages import MultiKind, MultiOp

from .auth import InvalidAcl, acl_allows, resolve_acl
from .config import MAX_ACL_BYTES, CoreConfig
from .connection import Connection
from .datatree import (
    ADMIN,
    CONFIG_PATH,
    CREATE,
    DELETE,
    READ,
    SYSTEM_PATHS,
    WRITE,
    next_version,
    wrap_int32,
)
from .outstanding import Outstanding, OutstandingNode
from .pending import Failure
from .quota import Usage, is_usage_path
from .session_tracker import Session
from .state import ReplicatedState


class Rejected(Exception):
    """The request fails, with a zxid: an error Txn is logged."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def failure(self) -> Failure:
        """What is kept of it until it is answered."""
        return Failure(self.code, self.message[:MAX_ERROR_CHARS])


class Refused(Rejected):
    """The request is not taken at all."""


_SET_DATA: Final = TxnKind.SET_DATA
_FLAGS: Final[dict[int, tuple[int, bool, bool]]] = {
    CreateMode.PERSISTENT: (TxnKind.CREATE, False, False),
    CreateMode.EPHEMERAL: (TxnKind.CREATE, True, False),
    CreateMode.PERSISTENT_SEQUENTIAL: (TxnKind.CREATE, False, True),
    CreateMode.EPHEMERAL_SEQUENTIAL: (TxnKind.CREATE, True, True),
    CreateMode.CONTAINER: (TxnKind.CREATE_CONTAINER, False, False),
    CreateMode.PERSISTENT_WITH_TTL: (TxnKind.CREATE_TTL, False, False),
    CreateMode.PERSISTENT_SEQUENTIAL_WITH_TTL: (TxnKind.CREATE_TTL, False, True),
}
"""Mode -> (kind of Txn, ephemeral, sequential)."""


class Preparer:
    """Makes Txn bodies of requests, and notes what they will do as outstanding."""

    def __init__(
        self, config: CoreConfig, state: ReplicatedState, acl_schemes: frozenset[str]
    ) -> None:
        """`acl_schemes`: what ACL entries may name (`AuthProviders.schemes`)."""
        self._config = config
        self._acl_schemes = acl_schemes
        self._max_data_bytes = config.max_data_bytes
        self._state = state
        self._limited = state.quotas.limited
        self.shows_members = False
        """`/zookeeper/config` is what the ensemble goes by, and not for anybody to write."""
        self.outstanding = Outstanding(state)

    def rebuild(self, txns: Iterable[tuple[int, Body]]) -> None:
        """Start again from the tree and these outstanding Txns, (session_id, body) each."""
        self.outstanding.clear()
        for session_id, body in txns:
            self.outstanding.note(session_id, body)

    def plain_set(self, message: Any) -> Body | None:
        """Validate and note a SetData with nothing special about it; None: `set_data` decides."""
        path, data, version = message
        view = self.outstanding
        entry = view.entries.get(path)
        if entry is None:
            entry = view.find(path)
            if entry is None:
                return None
        following = entry.version + 1
        size = 0 if data is None else len(data)
        if (
            not entry.exists
            or not entry.perms & WRITE
            or version not in (-1, entry.version)
            or size > self._max_data_bytes
            or not 0 <= following <= 0x7FFFFFFF
            or self._limited
            or path == CONFIG_PATH
        ):
            return None
        entry.version = following
        entry.data_bytes = size
        return (_SET_DATA, path, data, following)

    def set_data(self, connection: Connection, message: Any) -> Body:
        """Validate and note a SetData. Raises Rejected, Refused."""
        view = self.outstanding
        path, data, version = message
        body = self._set_data(view, connection, path, data, version)
        view.note_set(view.entries[path], body)
        return body

    def create(self, connection: Connection, message: Any) -> Body:
        """Validate and note a create. Raises Rejected, Refused."""
        body = self._create(self.outstanding, connection, *message)
        self.outstanding.note(session_of(connection).session_id, body)
        return body

    def delete(self, connection: Connection, message: Any) -> Body:
        """Validate and note a delete. Raises Rejected."""
        path, version = message
        body = self._delete(self.outstanding, connection, path, version)
        self.outstanding.note(session_of(connection).session_id, body)
        return body

    def set_acl(self, connection: Connection, message: Any) -> Body:
        """Validate and note a SetAcl. Raises Rejected, Refused."""
        path, acl, version = message
        _require_legal(path)
        granted = self._legal_acl(connection, acl)
        entry = _require(self.outstanding, path)
        _require_perm(entry, ADMIN, path, connection)
        if version not in (-1, entry.aversion):
            text = f"the ACL of {path} has version {entry.aversion}, not {version}"
            raise Rejected(ZkErrorCode.BAD_VERSION, text)
        body = (TxnKind.SET_ACL, path, granted, next_version(entry.aversion))
        self.outstanding.note(0, body)
        return body

    def check(self, connection: Connection, message: Any) -> Body:
        """A check alone is a multi of one: it takes a zxid and its result is as of that zxid."""
        path, version = message
        return (TxnKind.MULTI, (self._check(self.outstanding, connection, path, version),))

    def multi(self, connection: Connection, message: Any) -> Body:
        """Validate and note a multi: all of it or nothing.

        Raises MultiRejected with the place of the operation that fails, Refused.
        """
        ops: tuple[MultiOp, ...] = message.ops
        if len(ops) > self._config.max_multi_ops:
            raise Refused(
                ZkErrorCode.BAD_ARGUMENTS,
                f"a multi of {len(ops)} operations is over the limit {self._config.max_multi_ops}",
            )
        session = session_of(connection)
        staged = Outstanding(self._state, self.outstanding)
        bodies: list[Body] = []
        for op in ops:
            try:
                body = self._operation(staged, connection, op)
            except Refused:
                raise
            except Rejected as error:
                raise MultiRejected(error.code, error.message, len(bodies), len(ops)) from None
            staged.note(session.session_id, body)
            bodies.append(body)
        if sum(map(counts_a_subtree, ops)) > 1:
            text = "a multi may begin to count one subtree, not several"
            raise Refused(ZkErrorCode.BAD_ARGUMENTS, text)
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

    def require_change_of_members(self, connection: Connection) -> None:
        """Whoever may write `/zookeeper/config` may change the members. Raises Rejected."""
        entry = _require(self.outstanding, CONFIG_PATH)
        _require_perm(entry, WRITE, CONFIG_PATH, connection)

    def change_members(self, data: bytes, *, is_joint: bool) -> Body:
        """Note who belongs to the ensemble from now on."""
        node = self._state.tree.nodes[CONFIG_PATH]
        if node.data != data:
            shown = (_SET_DATA, CONFIG_PATH, data, next_version(node.version))
            self.outstanding.note(0, shown)
        return (TxnKind.MEMBERS, int(is_joint), data)

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

    def reap(self, path: str) -> Body | None:
        """Note the deletion of a container or TTL node, where it still is one without children."""
        entry = self.outstanding.find(path)
        node = self._state.tree.nodes.get(path)
        if entry is None or node is None or entry.is_new:
            return None
        if entry.child_count or not entry.ttl_ms or entry.version != node.version:
            return None
        body = (TxnKind.DELETE, path)
        self.outstanding.note(0, body)
        return body

    def _operation(self, view: Outstanding, connection: Connection, op: MultiOp) -> Body:
        kind, path, data, acl, flags, ttl_ms, version = op
        if kind == MultiKind.SET_DATA:
            return self._set_data(view, connection, path, data, version)
        if kind in (MultiKind.CREATE, MultiKind.CREATE2):
            return self._create(view, connection, path, data, acl, flags, ttl_ms)
        if kind == MultiKind.DELETE:
            return self._delete(view, connection, path, version)
        if kind == MultiKind.CHECK:
            return self._check(view, connection, path, version)
        raise Refused(ZkErrorCode.UNIMPLEMENTED, f"operation {kind} is not known in a multi")

    def _set_data(
        self, view: Outstanding, connection: Connection, path: str, data: bytes | None, version: int
    ) -> Body:
        if data is not None and len(data) > self._max_data_bytes:
            raise _data_too_long(path, data, self._max_data_bytes)
        if view.find(path) is None:  # what exists has a legal path
            _require_legal(path)
        entry = _require(view, path)
        if path == CONFIG_PATH and self.shows_members:
            text = f"{path} shows the members of the ensemble: reconfig changes them"
            raise Rejected(ZkErrorCode.BAD_ARGUMENTS, text)
        _require_perm(entry, WRITE, path, connection)
        if self._limited and self._config.enforce_quota:
            size = len(data) if data is not None else 0
            _require_quota(view, path, Usage(0, size - entry.data_bytes))
        _require_version(entry, version, path)
        return (_SET_DATA, path, data, next_version(entry.version))

    def _create(
        self,
        view: Outstanding,
        connection: Connection,
        path: str,
        data: bytes | None,
        acl: tuple[Acl, ...] | None,
        flags: int,
        ttl_ms: int,
    ) -> Body:
        if data is not None and len(data) > self._max_data_bytes:
            raise _data_too_long(path, data, self._max_data_bytes)
        mode = _FLAGS.get(flags)
        if mode is None:
            raise Rejected(ZkErrorCode.BAD_ARGUMENTS, f"create flags {flags} are not known")
        kind, ephemeral, sequential = mode
        if kind == TxnKind.CREATE_TTL and not 0 < ttl_ms <= MAX_TTL_MS:
            text = f"a time to live of {ttl_ms} ms is not in [1, {MAX_TTL_MS}]"
            raise Rejected(ZkErrorCode.BAD_ARGUMENTS, text)
        at = path.rfind("/")
        if at < 0 or "\0" in path:
            raise Rejected(ZkErrorCode.BAD_ARGUMENTS, f"{path!r} is not an absolute path")
        granted = self._legal_acl(connection, acl)
        parent_path = path[:at] or "/"
        parent = _require(view, parent_path)
        _require_perm(parent, CREATE, parent_path, connection)
        if sequential:
            path = f"{path}{parent.creates:010d}"
        _require_legal(path)
        if len(path) > self._config.max_path_bytes // 4:
            self._require_path_length(path)
        if view.find(path) is not None:
            raise Rejected(ZkErrorCode.NODE_EXISTS, f"{path} exists")
        if parent.ephemeral_owner:
            raise Rejected(
                ZkErrorCode.NO_CHILDREN_FOR_EPHEMERALS, f"{parent_path} is an ephemeral node"
            )
        if self._state.quotas.limited and self._config.enforce_quota:
            _require_quota(view, path, Usage(1, len(data) if data is not None else 0))
        special = int(ephemeral)
        if ephemeral:
            session = session_of(connection)
            self._check_close_size(view, session, close_session_path_bytes(path))
        elif kind == TxnKind.CREATE_TTL:
            special = ttl_ms
        creates = wrap_int32(parent.creates + 1)
        return (kind, path, data, granted, special, creates)

    def _require_path_length(self, path: str) -> None:
        size, limit = len(path.encode()), self._config.max_path_bytes
        if size > limit:
            text = f"a path of {size} bytes is over the limit {limit}"
            raise Refused(ZkErrorCode.BAD_ARGUMENTS, text)

    def _delete(self, view: Outstanding, connection: Connection, path: str, version: int) -> Body:
        if "/" not in path or "\0" in path or path in SYSTEM_PATHS:
            raise Rejected(ZkErrorCode.BAD_ARGUMENTS, f"{path!r} cannot be deleted")
        parent_path = parent_of(path)
        parent = _require(view, parent_path)
        _require_perm(parent, DELETE, parent_path, connection)
        entry = _require(view, path)
        _require_version(entry, version, path)
        if entry.child_count:
            raise Rejected(ZkErrorCode.NOT_EMPTY, f"{path} has {entry.child_count} children")
        return (TxnKind.DELETE, path)

    def _check(self, view: Outstanding, connection: Connection, path: str, version: int) -> Body:
        _require_legal(path)
        entry = _require(view, path)
        _require_perm(entry, READ, path, connection)
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

    def _legal_acl(self, connection: Connection, acl: tuple[Acl, ...] | None) -> tuple[Acl, ...]:
        """The ACL list as it is stored: without duplicates, `auth` replaced by who asks."""
        if acl == OPEN_ACL_UNSAFE:
            return OPEN_ACL_UNSAFE
        if acl is not None and len(acl) > self._config.max_acl_entries:
            text = f"{len(acl)} ACL entries are over the limit {self._config.max_acl_entries}"
            raise Refused(ZkErrorCode.INVALID_ACL, text)
        try:
            granted = resolve_acl(acl, connection.identities, self._acl_schemes)
        except InvalidAcl as error:
            raise Rejected(ZkErrorCode.INVALID_ACL, str(error)) from None
        size = len(encode_acl(granted))
        if size > MAX_ACL_BYTES:
            text = f"an ACL list of {size} bytes is over the limit {MAX_ACL_BYTES}"
            raise Refused(ZkErrorCode.INVALID_ACL, text)
        return granted


class MultiRejected(Rejected):
    """An operation of a multi fails, and so all of it."""

    def __init__(self, code: int, message: str, index: int, count: int) -> None:
        super().__init__(code, message)
        self.index = index
        """Place of the operation that fails."""
        self.count = count
        """Operations in all."""

    def failure(self) -> Failure:
        """What is kept of it until it is answered."""
        return Failure(self.code, self.message[:MAX_ERROR_CHARS], self.index, self.count)


def counts_a_subtree(op: MultiOp) -> bool:
    """Applying it walks a subtree: the price of a quota's begin."""
    return op.kind in (MultiKind.CREATE, MultiKind.CREATE2) and is_usage_path(op.path)


def session_of(connection: Connection) -> Session:
    """The session of a connection that has one."""
    session = connection.session
    assert session is not None, connection
    return session


def _require(view: Outstanding, path: str) -> OutstandingNode:
    entry = view.find(path)
    if entry is None:
        raise Rejected(ZkErrorCode.NO_NODE, f"{path} does not exist")
    return entry


def _require_legal(path: str) -> None:
    problem = path_problem(path)
    if problem is not None:
        raise Rejected(ZkErrorCode.BAD_ARGUMENTS, problem)


def _require_perm(entry: OutstandingNode, perm: int, path: str, connection: Connection) -> None:
    if not entry.perms & perm and not acl_allows(entry.acl, perm, connection.identities):
        raise Rejected(ZkErrorCode.NO_AUTH, f"the ACL of {path} does not allow it")


def _require_quota(view: Outstanding, path: str, more: Usage) -> None:
    problem = view.quota_problem(path, more)
    if problem is not None:
        raise Rejected(ZkErrorCode.QUOTA_EXCEEDED, problem)


def _require_version(entry: OutstandingNode, version: int, path: str) -> None:
    if version not in (-1, entry.version):
        text = f"{path} has version {entry.version}, not {version}"
        raise Rejected(ZkErrorCode.BAD_VERSION, text)


def _data_too_long(path: str, data: bytes, limit: int) -> Refused:
    return Refused(
        ZkErrorCode.REQUEST_TOO_LARGE,
        f"{len(data)} bytes of data for {path!r} are over the limit {limit}",
    )
