"""Which containers and TTL nodes have had their time.

A container goes when its last child has gone, or when it never had one for some minutes; a TTL
node when it has no children and was not changed for its time to live. Owns when to look and how
much at a time; the deletion is an ordinary Txn of the server's own. Ages are differences of wall
times: `mtime` was stamped by the leader, and so is the time it is compared with. Source: ZooKeeper
`ContainerManager`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from .config import CoreConfig
from .datatree import CONTAINER_TTL, DataTree, Node

MAX_EXAMINED_PER_STEP: Final = 10_000
"""Nodes that one step looks at, so that a million of them do not hold up the others."""
_NEXT_SLICE_MS: Final = 10


class Reaper:
    """Looks through the tree's `reapable` nodes, a slice at a time."""

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        self._look_ms: int | None = None
        """When to look next (ms, monotonic); None while there is nothing to look at."""
        self._waiting: deque[str] = deque()
        """Paths that this round has still to look at."""
        self._left = 0
        """Deletions that this round may still make."""

    def deadline_ms(self, tree: DataTree, now_ms: int) -> int | None:
        """When `take` has something to look at."""
        if not tree.reapable:
            self._look_ms = None
        elif self._look_ms is None:
            self._look_ms = now_ms + self._config.reap_interval_ms
        return self._look_ms

    def take(self, tree: DataTree, now_ms: int, wall_ms: int) -> Iterator[str]:
        """Paths of nodes that have had their time; some at each call, once it is time to look."""
        if self._look_ms is None or now_ms < self._look_ms:
            return
        waiting = self._waiting
        if not waiting:
            waiting.extend(tree.reapable)
            self._left = self._config.max_reaped_per_interval
        for _ in range(min(len(waiting), MAX_EXAMINED_PER_STEP)):
            path = waiting.popleft()
            node = tree.reapable.get(path)
            if node is not None and self._left and self._has_had_its_time(node, wall_ms):
                self._left -= 1
                yield path
        if not self._left:
            waiting.clear()
        delay_ms = _NEXT_SLICE_MS if waiting else self._config.reap_interval_ms
        self._look_ms = now_ms + delay_ms

    def _has_had_its_time(self, node: Node, wall_ms: int) -> bool:
        if node.children:
            return False
        age_ms = wall_ms - node.mtime
        if node.ttl_ms != CONTAINER_TTL:
            return age_ms > node.ttl_ms
        unused_ms = self._config.never_used_container_ms
        return node.creates != 0 or (unused_ms > 0 and age_ms > unused_ms)
