"""Quotas: how much a subtree may hold, and how much it does.

A quota on `/a` is the znode `/zookeeper/quota/a/zookeeper_limits`, which a client writes; what the
subtree uses stands in `/zookeeper/quota/a/zookeeper_stats`, which the server keeps. Owns the texts
of both and the arithmetic; the znodes are the tree's. Usage is changed by `apply` and so is a
function of the log (in ZooKeeper every server counts for itself). Source: ZooKeeper `Quotas`,
`StatsTrack`, `DataTree.updateQuotaStat`.

Of several quotas on one branch the deepest counts. A soft limit is only logged there and does
nothing here; a hard limit refuses, where the server enforces quotas.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from duolog_protocol.paths import parent_of

from .datatree import DataTree, Node

QUOTA_ROOT: Final = "/zookeeper/quota"
_LIMITS: Final = "/zookeeper_limits"
_STATS: Final = "/zookeeper_stats"
_UNLIMITED: Final = -1
_INT64_LAST: Final = (1 << 63) - 1
_MAX_TEXT_BYTES: Final = 1024
_PAIRS: Final = re.compile(r"(?:^|[,;=])[ ]*([A-Za-z]+)=(-?[0-9]{1,19})(?=[,;=]|$)")


class Limits(NamedTuple):
    """What one quota allows; -1 is no limit."""

    nodes: int = _UNLIMITED
    data_bytes: int = _UNLIMITED
    nodes_hard: int = _UNLIMITED
    bytes_hard: int = _UNLIMITED


class Usage(NamedTuple):
    """Znodes of a subtree, its root included, and the bytes of their data."""

    nodes: int
    data_bytes: int


def quota_problem(subject: str, limits: Limits, used: Usage, more: Usage) -> str | None:
    """Why a subtree that holds `used` may not take `more`, in words, or None."""
    nodes, data_bytes = used.nodes + more.nodes, used.data_bytes + more.data_bytes
    if more.nodes and limits.nodes_hard > _UNLIMITED and nodes > limits.nodes_hard:
        return f"{subject} may have {limits.nodes_hard} znodes, no more"
    if more.data_bytes and limits.bytes_hard > _UNLIMITED and data_bytes > limits.bytes_hard:
        return f"{subject} may hold {limits.bytes_hard} bytes of data, no more"
    return None


def parse_limits(data: bytes | None) -> Limits:
    """The limits that a znode's text tells; what cannot be read is no limit."""
    found = _numbers(data)
    return Limits(
        found.get("count", _UNLIMITED),
        found.get("bytes", _UNLIMITED),
        found.get("countHardLimit", _UNLIMITED),
        found.get("byteHardLimit", _UNLIMITED),
    )


def _numbers(data: bytes | None) -> dict[str, int]:
    """`name=number` pairs; a client writes the text, so whatever is not one is passed over."""
    text = (data or b"")[:_MAX_TEXT_BYTES].decode("utf-8", "replace")
    return {
        name: max(_UNLIMITED, min(int(number), _INT64_LAST))
        for name, number in _PAIRS.findall(text)
    }


def _usage_text(usage: Usage) -> bytes:
    return f"count={usage.nodes},bytes={usage.data_bytes}".encode()


class Quotas:
    """The quotas of one tree; made anew from the tree when a snapshot was loaded."""

    def __init__(self, tree: DataTree) -> None:
        self._tree = tree
        self.limited: set[str] = set()
        """Paths that have a quota; mostly none, and nothing here costs anything then."""
        for path in tree.nodes:
            subject = _subject(path, _LIMITS)
            if subject is not None:
                self.limited.add(subject)

    def covering(self, path: str) -> str | None:
        """The deepest path with a quota that is `path` or above it; never the root."""
        limited = self.limited
        while path != "/":
            if path in limited:
                return path
            path = parent_of(path)
        return None

    def limits(self, subject: str) -> Limits:
        """What the quota of a path allows."""
        node = self._tree.nodes.get(QUOTA_ROOT + subject + _LIMITS)
        return Limits() if node is None else parse_limits(node.data)

    def usage(self, subject: str) -> Usage | None:
        """What the subtree of a path with a quota holds; None where it is not counted."""
        node = self._tree.nodes.get(QUOTA_ROOT + subject + _STATS)
        return None if node is None else _usage_of(node)

    def on_created(self, node: Node) -> None:
        """A node was created: it may be a quota, and counts where one covers it."""
        path = node.path
        if path.startswith(QUOTA_ROOT):
            subject = _subject(path, _LIMITS)
            if subject is not None:
                self.limited.add(subject)
            subject = _subject(path, _STATS)
            if subject is not None:
                self._tree.set_usage(node, _usage_text(self._count(subject)))
        self._add(path, 1, _size(node))

    def on_deleted(self, node: Node) -> None:
        """A node was deleted."""
        subject = _subject(node.path, _LIMITS)
        if subject is not None:
            self.limited.discard(subject)
        self._add(node.path, -1, -_size(node))

    def on_changed(self, path: str, more_bytes: int) -> None:
        """A node's data grew by so much."""
        self._add(path, 0, more_bytes)

    def _add(self, path: str, count: int, data_bytes: int) -> None:
        if not self.limited:
            return
        subject = self.covering(path)
        if subject is None:
            return
        node = self._tree.nodes.get(QUOTA_ROOT + subject + _STATS)
        if node is not None:
            used = _usage_of(node)
            usage = Usage(used.nodes + count, used.data_bytes + data_bytes)
            self._tree.set_usage(node, _usage_text(usage))

    def _count(self, subject: str) -> Usage:
        nodes = self._tree.nodes
        count = data_bytes = 0
        waiting = [subject] if subject in nodes else []
        while waiting:
            node = nodes[waiting.pop()]
            count += 1
            data_bytes += _size(node)
            waiting += node.children or ()
        return Usage(count, data_bytes)


def is_usage_path(path: str) -> bool:
    """The znode that shows a quota's usage."""
    return _subject(path, _STATS) is not None


def _subject(path: str, suffix: str) -> str | None:
    """The path that a quota's znode speaks of, None for any other znode."""
    if path.startswith(QUOTA_ROOT + "/") and path.endswith(suffix):
        return path[len(QUOTA_ROOT) : -len(suffix)] or None
    return None


def _usage_of(node: Node) -> Usage:
    found = _numbers(node.data)
    return Usage(found.get("count", 0), found.get("bytes", 0))


def _size(node: Node) -> int:
    return len(node.data) if node.data is not None else 0
