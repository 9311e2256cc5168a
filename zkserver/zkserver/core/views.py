"""What an operator may look at: sessions, their ephemerals, and who watches what.

Reads the core's tables and changes nothing. Everything that lists is bounded by the caller, and
walks no further than it lists: these are the questions that once stopped servers (CVE-2017-5637).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from .session_tracker import Session
from .state import ReplicatedState
from .tally import Tally
from .watches import Watches

if TYPE_CHECKING:
    from .core import ZkCore

K = TypeVar("K")
V = TypeVar("V")


class Listing(NamedTuple, Generic[K, V]):
    """Groups of values, as many as fit."""

    groups: list[tuple[K, list[V]]]
    complete: bool
    """Nothing was left out."""


class WatchSummary(NamedTuple):
    """How much is watched."""

    connections: int
    paths: int
    """A path counts once for each kind of watch on it."""
    watches: int


def views_of(core: ZkCore) -> Views:
    """Views of a core as it is now."""
    return Views(core.state, core._watches, core._credentials.failed_count)


class Views:
    """Views of one core, for one question: `state` may be another one later."""

    def __init__(
        self, state: ReplicatedState, watches: Watches, auth_failed_count: int = 0
    ) -> None:
        self._state = state
        self._watches = watches
        self.auth_failed_count = auth_failed_count
        """Credentials that proved nothing, since the start."""

    def session_deadlines(self, limit: int) -> Listing[int, int]:
        """Session ids by the time (ms, monotonic) at which they expire unless they are heard of."""
        buckets: dict[int, list[int]] = {}
        sessions = self._state.sessions
        for session, _ in zip(sessions.values(), range(limit), strict=False):
            buckets.setdefault(session.bucket_ms, []).append(session.session_id)
        return Listing(sorted(buckets.items()), len(sessions) <= limit)

    def ephemerals(self, limit: int) -> Listing[int, str]:
        """Paths of ephemeral nodes by session id."""
        return bounded(
            (
                (session.session_id, session.ephemerals)
                for session in self._state.sessions.values()
                if session.ephemerals
            ),
            limit,
        )

    def watches_by_session(self, limit: int) -> Listing[int, str]:
        """Watched paths by session id; a path with several kinds of watch is there once."""
        return bounded(
            (
                (session.session_id, dict.fromkeys(path for _, path in watched))
                for session, watched in self._watchers()
            ),
            limit,
        )

    def watches_by_path(self, limit: int) -> Listing[str, int]:
        """Ids of the watching sessions by path."""
        return bounded(
            (
                (path, (c.session.session_id for c in watchers if c.session is not None))
                for path, watchers in self._watches.by_path()
            ),
            limit,
        )

    def watch_summary(self) -> WatchSummary:
        """How much is watched, all kinds of watches together."""
        connections = sum(1 for _ in self._watchers())
        return WatchSummary(connections, self._watches.path_count, self._watches.count)

    @property
    def fired(self) -> dict[int, Tally]:
        """Connections told of each watch event, by kind of event."""
        return self._watches.fired

    def _watchers(self) -> Iterator[tuple[Session, Iterable[tuple[int, str]]]]:
        for session in self._state.sessions.values():
            connection = session.connection
            if connection is not None and connection.watched:
                yield session, connection.watched


def bounded(groups: Iterable[tuple[K, Iterable[V]]], limit: int) -> Listing[K, V]:
    """The first groups with `limit` values in all; the last group may be cut short."""
    taken: list[tuple[K, list[V]]] = []
    left = limit
    for key, values in groups:
        if left == 0:
            return Listing(taken, False)
        kept: list[V] = []
        for value in values:
            if left == 0:
                taken.append((key, kept))
                return Listing(taken, False)
            kept.append(value)
            left -= 1
        taken.append((key, kept))
    return Listing(taken, True)
