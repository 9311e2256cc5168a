"""A naive model of ZooKeeper's tree: what each operation answers and changes.

Owns nodes and their Stat, without times, and knows no session but by the owner of a node. Written
for reading, not for speed, and independent of zkserver on purpose. Source: ZooKeeper
`PrepRequestProcessor` (order of the checks), `DataTree.processTxn` (results, order of the events).

It knows world ACLs only, no quotas and no TTLs: histories do not use them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from .zk_records import Stat

NO_NODE: Final = -101
NO_AUTH: Final = -102
BAD_VERSION: Final = -103
NO_CHILDREN_FOR_EPHEMERALS: Final = -108
NODE_EXISTS: Final = -110
NOT_EMPTY: Final = -111
RUNTIME_INCONSISTENCY: Final = -2

READ, WRITE, CREATE, DELETE, ADMIN = 1, 2, 4, 8, 16
OPEN_ACL: Final = ((31, "world", "anyone"),)
CREATED, DELETED, CHANGED = 1, 2, 3

EPHEMERAL_FLAG: Final = 1
SEQUENTIAL_FLAG: Final = 2


class Failure(Exception):
    """An operation fails with a code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Change(NamedTuple):
    """One change of the tree, for the watches."""

    type: int
    path: str


class Answer(NamedTuple):
    """What an operation answers."""

    error: int
    values: tuple[Any, ...] = ()


class Node:
    """One znode."""

    def __init__(self, data: bytes | None, acl: tuple[Any, ...], owner: int, zxid: int) -> None:
        self.data = data
        self.acl = acl
        self.owner = owner
        self.czxid = self.mzxid = self.pzxid = zxid
        self.version = 0
        self.aversion = 0
        self.creates = 0
        self.children: set[str] = set()

    def stat(self) -> Stat:
        """Its Stat; both times are 0."""
        count = len(self.children)
        size = len(self.data) if self.data is not None else 0
        return Stat(
            self.czxid,
            self.mzxid,
            *(0, 0),
            self.version,
            2 * self.creates - count,
            self.aversion,
            self.owner,
            size,
            count,
            self.pzxid,
        )


def parent_of(path: str) -> str:
    """The path above."""
    return path.rpartition("/")[0] or "/"


class ModelTree:
    """All znodes at one zxid."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        for path in ("/", "/zookeeper", "/zookeeper/quota", "/zookeeper/config"):
            self.nodes[path] = Node(b"", OPEN_ACL, 0, 0)
            if path != "/":
                self.nodes[parent_of(path)].children.add(path.rpartition("/")[2])
        self.changes: list[Change] = []
        """Of the last write."""
        self._undo: list[Callable[[], object]] = []

    # ---- writes --------------------------------------------------------------------------------

    def write(self, session: int, name: str, arguments: tuple[Any, ...], zxid: int) -> Answer:
        """Do a write at a zxid; `changes` are its changes. A multi happens as a whole or not."""
        self.changes = []
        self._undo = []
        if name == "multi":
            return self._multi(session, arguments[0], zxid)
        try:
            return Answer(0, self._one(session, name, arguments, zxid))
        except Failure as failure:
            self._take_back()
            return Answer(failure.code)

    def close_session(self, session: int, zxid: int) -> None:
        """Delete what the session owns."""
        self.changes = []
        for path in [path for path, node in self.nodes.items() if node.owner == session]:
            self._remove(path, zxid)

    def _multi(self, session: int, operations: tuple[Any, ...], zxid: int) -> Answer:
        results: list[tuple[int, int, tuple[Any, ...]]] = []
        for name, *arguments in operations:
            try:
                values = self._one(session, name, tuple(arguments), zxid)
            except Failure as failure:
                self._take_back()
                codes = [0] * len(results) + [failure.code]
                codes += [RUNTIME_INCONSISTENCY] * (len(operations) - len(codes))
                return Answer(0, (tuple((-1, code, (code,)) for code in codes),))
            # Apache answers a create2 of a multi as a create: the path only.
            results.append((_KINDS[name], 0, values[:1] if name == "create2" else values))
        return Answer(0, (tuple(results),))

    def _one(
        self, session: int, name: str, arguments: tuple[Any, ...], zxid: int
    ) -> tuple[Any, ...]:
        if name in {"create", "create2"}:
            path = self._create(session, *arguments, zxid)
            return (path,) if name == "create" else (path, self.nodes[path].stat())
        if name == "delete":
            self._delete(*arguments, zxid)
            return ()
        if name == "check":
            node = self._allowed(arguments[0], READ)
            _check_version(node.version, arguments[1])
            return ()
        assert name in {"set_data", "set_acl"}, name
        change = self._set_data if name == "set_data" else self._set_acl
        return (change(*arguments, zxid).stat(),)

    def _create(
        self, session: int, path: str, data: bytes | None, acl: Any, flags: int, zxid: int
    ) -> str:
        above = parent_of(path)
        parent = self._allowed(above, CREATE)
        if flags & SEQUENTIAL_FLAG:
            path += f"{parent.creates:010d}"
        if path in self.nodes:
            raise Failure(NODE_EXISTS)
        if parent.owner:
            raise Failure(NO_CHILDREN_FOR_EPHEMERALS)
        owner = session if flags & EPHEMERAL_FLAG else 0
        self._keep(parent, "creates", "pzxid")
        self.nodes[path] = Node(data, tuple(map(tuple, acl)), owner, zxid)
        name = path.rpartition("/")[2]
        parent.children.add(name)
        parent.creates += 1
        parent.pzxid = zxid
        self._undo += [lambda: self.nodes.pop(path), lambda: parent.children.discard(name)]
        self.changes.append(Change(CREATED, path))
        return path

    def _delete(self, path: str, version: int, zxid: int) -> None:
        self._allowed(parent_of(path), DELETE)
        node = self._node(path)
        _check_version(node.version, version)
        if node.children:
            raise Failure(NOT_EMPTY)
        self._remove(path, zxid)

    def _remove(self, path: str, zxid: int) -> None:
        parent = self.nodes[parent_of(path)]
        node = self.nodes.pop(path)
        name = path.rpartition("/")[2]
        self._keep(parent, "pzxid")
        parent.children.discard(name)
        parent.pzxid = zxid
        self._undo += [
            lambda: self.nodes.__setitem__(path, node),
            lambda: parent.children.add(name),
        ]
        self.changes.append(Change(DELETED, path))

    def _set_data(self, path: str, data: bytes | None, version: int, zxid: int) -> Node:
        node = self._allowed(path, WRITE)
        _check_version(node.version, version)
        self._keep(node, "data", "version", "mzxid")
        node.data = data
        node.version += 1
        node.mzxid = zxid
        self.changes.append(Change(CHANGED, path))
        return node

    def _set_acl(self, path: str, acl: Any, version: int, _zxid: int) -> Node:
        node = self._allowed(path, ADMIN)
        _check_version(node.aversion, version)
        self._keep(node, "acl", "aversion")
        node.acl = tuple(map(tuple, acl))
        node.aversion += 1
        return node

    def _keep(self, node: Node, *names: str) -> None:
        for name in names:
            before = getattr(node, name)
            self._undo.append(lambda name=name, before=before: setattr(node, name, before))

    def _take_back(self) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo = []
        self.changes = []

    # ---- reads ---------------------------------------------------------------------------------

    def read(self, session: int, name: str, arguments: tuple[Any, ...]) -> Answer:
        """What a read answers now."""
        try:
            return Answer(0, self._read(session, name, arguments))
        except Failure as failure:
            return Answer(failure.code)

    def _read(self, session: int, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if name == "exists":
            return (self._node(arguments[0]).stat(),)
        if name == "get_data":
            node = self._allowed(arguments[0], READ)
            return node.data, node.stat()
        if name in {"get_children", "get_children2"}:
            node = self._allowed(arguments[0], READ)
            names = tuple(sorted(node.children))
            return (names,) if name == "get_children" else (names, node.stat())
        if name == "get_acl":
            node = self._allowed(arguments[0], READ | ADMIN)
            return tuple(sorted(node.acl)), node.stat()
        if name == "get_all_children_number":
            self._allowed(arguments[0], READ)
            prefix = arguments[0].rstrip("/") + "/"
            return (sum(path.startswith(prefix) for path in self.nodes if path != "/"),)
        if name == "get_ephemerals":
            found = (path for path, node in self.nodes.items() if node.owner == session)
            return (tuple(sorted(path for path in found if path.startswith(arguments[0]))),)
        assert name == "multi_read", name
        results = []
        for each, path, _ in arguments[0]:
            answer = self.read(session, each, (path,))
            code = answer.error
            results.append((-1, code, (code,)) if code else (_KINDS[each], 0, answer.values))
        return (tuple(results),)

    def _node(self, path: str) -> Node:
        node = self.nodes.get(path)
        if node is None:
            raise Failure(NO_NODE)
        return node

    def _allowed(self, path: str, perms: int) -> Node:
        node = self._node(path)
        if not any(granted & perms for granted, scheme, _ in node.acl if scheme == "world"):
            raise Failure(NO_AUTH)
        return node


_KINDS: Final = {
    "create": 1,
    "create2": 1,
    "delete": 2,
    "get_data": 4,
    "set_data": 5,
    "get_children": 8,
    "check": 13,
}


def _check_version(found: int, wanted: int) -> None:
    if wanted not in (-1, found):
        raise Failure(BAD_VERSION)
