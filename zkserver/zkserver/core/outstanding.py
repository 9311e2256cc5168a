"""The tree as it will be once everything that is logged is applied.

Owns an overlay that holds only what may differ from the tree, so that a request can be validated
before the ones in front of it are durable. Changes no replicated state. Source: ZooKeeper
`PrepRequestProcessor.outstandingChanges`, `ChangeRecord`.
"""

from __future__ import annotations

from typing import Final

from duolog_protocol.paths import parent_of
from duolog_protocol.txns import Body, TxnKind, close_session_path_bytes

from .datatree import Node, world_perms
from .quota import Usage, quota_problem
from .state import ReplicatedState


class OutstandingNode:
    """A node as it will be; `version`, `creates` and the rest after all outstanding Txns."""

    __slots__ = (
        "acl",
        "aversion",
        "child_count",
        "creates",
        "data_bytes",
        "ephemeral_owner",
        "exists",
        "is_new",
        "perms",
        "ttl_ms",
        "version",
    )

    def __init__(self, node: Node) -> None:
        self.exists = True
        self.is_new = False
        """Its Create was outstanding when the entry was made."""
        self.ttl_ms = node.ttl_ms
        self.version = node.version
        self.aversion = node.aversion
        self.creates = node.creates
        children = node.children
        self.child_count = len(children) if children is not None else 0
        self.ephemeral_owner = node.ephemeral_owner
        self.acl = node.acl
        self.perms = node.perms
        data = node.data
        self.data_bytes = len(data) if data is not None else 0

    def copy(self) -> OutstandingNode:
        """Another one like this."""
        twin = OutstandingNode.__new__(OutstandingNode)
        for name in OutstandingNode.__slots__:
            setattr(twin, name, getattr(self, name))
        return twin


_ABSENT: Final = Node("", None, (), 0, 0, 0)
MAX_KEPT_ENTRIES: Final = 4_096
"""Entries that are kept while nothing is outstanding: 1 MB."""
_CREATE_KINDS: Final = (TxnKind.CREATE, TxnKind.CREATE_CONTAINER, TxnKind.CREATE_TTL)


class Outstanding:
    """Overlay of the tree.

    An entry stays right after its Txn was applied, since every later change passes through here,
    too; so entries are dropped all at once, at moments when nothing is outstanding. Those of nodes
    that were only set are kept a while: the next set finds them made.
    """

    def __init__(self, state: ReplicatedState, base: Outstanding | None = None) -> None:
        self._state = state
        self._nodes = state.tree.nodes
        self._sessions = state.sessions
        self._base = base
        self.entries: dict[str, OutstandingNode] = {}
        self.ephemerals: dict[int, dict[str, bool]] = {}
        """session id -> path -> it was created (True) or deleted, in order of the last change."""
        self._ephemeral_bytes: dict[int, int] = {}
        self._usage: dict[str, Usage] = {}
        """Path with a quota -> what its subtree will hold."""
        self._only_sets = True
        """Nothing but data and versions differs from the tree, or did."""

    def find(self, path: str) -> OutstandingNode | None:
        """The entry of an existing node, made if there is none; owned by this overlay."""
        entry = self.entries.get(path)
        if entry is None:
            if self._base is not None:
                below = self._base.find(path)
                if below is None:
                    return None
                entry = below.copy()
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
            self.note_set(entry, body)
            return
        self._only_sets = False
        if kind in _CREATE_KINDS:
            owner = session_id if kind == TxnKind.CREATE and body[4] else 0
            self._note_create(owner, body)
        elif kind == TxnKind.DELETE:
            self._note_delete(body[1])
        elif kind == TxnKind.SET_ACL:
            entry = self.find(body[1])
            assert entry is not None, body[1]
            entry.acl = body[2]
            entry.perms = world_perms(body[2])
            entry.aversion = body[3]
        elif kind == TxnKind.MULTI:
            for each in body[1]:
                self.note(session_id, each)
        elif kind == TxnKind.CLOSE_SESSION:
            for path in body[2]:
                self._note_delete(path)

    def note_set(self, entry: OutstandingNode, body: Body) -> None:
        """Take over a SetData of the node of `entry`."""
        data = body[2]
        size = len(data) if data is not None else 0
        entry.version = body[3]
        if self._state.quotas.limited:
            self._note_usage(body[1], Usage(0, size - entry.data_bytes))
        entry.data_bytes = size

    def _note_create(self, owner: int, body: Body) -> None:
        _, path, data, acl, _, creates = body
        parent = self.find(parent_of(path))
        assert parent is not None, path
        parent.creates = creates
        parent.child_count += 1
        entry = OutstandingNode(_ABSENT)
        entry.acl = acl
        entry.perms = world_perms(acl)
        entry.ephemeral_owner = owner
        entry.data_bytes = len(data) if data is not None else 0
        entry.is_new = True
        self.entries[path] = entry
        if owner:
            self._note_ephemeral(owner, path, created=True)
        if self._state.quotas.limited:
            self._note_usage(path, Usage(1, entry.data_bytes))

    def _note_delete(self, path: str) -> None:
        parent = self.find(parent_of(path))
        entry = self.find(path)
        assert parent is not None, path
        assert entry is not None, path
        parent.child_count -= 1
        entry.exists = False
        if entry.ephemeral_owner:
            self._note_ephemeral(entry.ephemeral_owner, path, created=False)
        if self._state.quotas.limited:
            self._note_usage(path, Usage(-1, -entry.data_bytes))

    def _note_ephemeral(self, owner: int, path: str, *, created: bool) -> None:
        paths = self.ephemerals.setdefault(owner, {})
        paths.pop(path, None)
        paths[path] = created
        size = close_session_path_bytes(path)
        self._ephemeral_bytes[owner] = self.ephemeral_bytes_of(owner) + (size if created else -size)

    def _note_usage(self, path: str, more: Usage) -> None:
        subject = self._state.quotas.covering(path)
        if subject is not None:
            used = self._usage_of(subject)
            if used is not None:
                self._usage[subject] = Usage(
                    used.nodes + more.nodes, used.data_bytes + more.data_bytes
                )

    def _usage_of(self, subject: str) -> Usage | None:
        found = self._usage.get(subject)
        if found is not None:
            return found
        base = self._base
        return self._state.quotas.usage(subject) if base is None else base._usage_of(subject)

    def quota_problem(self, path: str, more: Usage) -> str | None:
        """Why `path` may not take so much more, in words, or None."""
        quotas = self._state.quotas
        subject = quotas.covering(path)
        used = self._usage_of(subject) if subject is not None else None
        if subject is None or used is None:
            return None
        return quota_problem(subject, quotas.limits(subject), used, more)

    def ephemeral_bytes_of(self, session_id: int) -> int:
        """What the ephemerals of a session add to the record of its CloseSession."""
        found = self._ephemeral_bytes.get(session_id)
        if found is not None:
            return found
        if self._base is not None:
            return self._base.ephemeral_bytes_of(session_id)
        session = self._sessions.get(session_id)
        return session.ephemeral_bytes if session is not None else 0

    def settle(self) -> None:
        """Everything noted was applied: what the next sets can use stays, or nothing does."""
        if (
            not self._only_sets
            or len(self.entries) > MAX_KEPT_ENTRIES
            or self._state.quotas.limited  # what a quota counts is changed past this overlay
        ):
            self.clear()

    def clear(self) -> None:
        """Nothing that was noted counts any more."""
        self.entries.clear()
        self.ephemerals.clear()
        self._ephemeral_bytes.clear()
        self._usage.clear()
        self._only_sets = True

    def check_settled(self) -> None:
        """What is kept is what the tree has, while nothing is outstanding; for tests."""
        for path, entry in self.entries.items():
            fresh = OutstandingNode(self._nodes[path])
            for name in OutstandingNode.__slots__:
                kept, there = getattr(entry, name), getattr(fresh, name)
                assert kept == there, (path, name, kept, there)
        assert not self.ephemerals, self.ephemerals
        assert not self._usage, self._usage
