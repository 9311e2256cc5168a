"""Requests that wait: for acknowledgements, for data, or for their time to run out.

Pure. Owns the watch lists by key and one heap of deadlines for all of them; an operation is
completed exactly once, by whoever comes first. There is no timer and no task per operation.
Source: Kafka `DelayedOperationPurgatory`.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable
from typing import Protocol


class Delayed(Protocol):
    """An operation that waits."""

    def try_complete(self) -> bool:
        """Complete now if the condition holds, and say so. Called again after each change.

        An operation that raises is forgotten: it is not asked again.
        """
        ...

    def on_expired(self) -> None:
        """Time is up: complete with what there is."""
        ...


class Purgatory:
    """Operations by the keys whose changes may complete them."""

    def __init__(self, max_operations: int) -> None:
        self.max_operations = max_operations
        self._watched: dict[Hashable, dict[Delayed, None]] = {}
        self._keys: dict[Delayed, tuple[Hashable, ...]] = {}
        self._deadlines: list[tuple[int, int, Delayed]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def is_full(self) -> bool:
        """No further operation may wait: answer it at once."""
        return len(self._keys) >= self.max_operations

    def watch(self, operation: Delayed, keys: Iterable[Hashable], deadline_ms: int) -> None:
        """Let an operation wait that `try_complete` has just refused."""
        assert operation not in self._keys
        assert not self.is_full, self.max_operations
        watched = tuple(dict.fromkeys(keys))
        self._keys[operation] = watched
        for key in watched:
            self._watched.setdefault(key, {})[operation] = None
        self._count += 1
        heapq.heappush(self._deadlines, (deadline_ms, self._count, operation))
        if len(self._deadlines) > 2 * len(self._keys) + 64:
            self._deadlines = [entry for entry in self._deadlines if entry[2] in self._keys]
            heapq.heapify(self._deadlines)

    def on_changed(self, key: Hashable) -> int:
        """Something about `key` changed: complete what can be; returns how many were.

        Every operation is asked, whatever another one raises; the first error is raised at the end.
        """
        operations = self._watched.get(key)
        if not operations:
            return 0
        count = 0
        failure: Exception | None = None
        for operation in list(operations):
            done = True
            try:
                done = operation.try_complete()
            except Exception as error:
                failure = failure or error
            if done:
                self.forget(operation)
                count += 1
        if failure is not None:
            raise failure
        return count

    def expire(self, now_ms: int) -> int:
        """Complete what has run out of time; returns how many did. Raises as `on_changed`."""
        deadlines = self._deadlines
        count = 0
        failure: Exception | None = None
        while deadlines and deadlines[0][0] <= now_ms:
            _, _, operation = heapq.heappop(deadlines)
            if operation in self._keys:
                self.forget(operation)
                try:
                    operation.on_expired()
                except Exception as error:
                    failure = failure or error
                count += 1
        if failure is not None:
            raise failure
        return count

    def deadline_ms(self) -> int | None:
        """When `expire` has something to do."""
        deadlines = self._deadlines
        while deadlines and deadlines[0][2] not in self._keys:
            heapq.heappop(deadlines)
        return deadlines[0][0] if deadlines else None

    def forget(self, operation: Delayed) -> None:
        """Take an operation out without completing it. Idempotent."""
        for key in self._keys.pop(operation, ()):
            watched = self._watched[key]
            del watched[operation]
            if not watched:
                del self._watched[key]
