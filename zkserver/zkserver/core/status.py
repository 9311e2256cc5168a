"""The core at one moment, as metrics, four-letter words and tests see it."""

from __future__ import annotations

from typing import NamedTuple


class MemberStatus(NamedTuple):
    """One server of an ensemble, as itself, at one moment."""

    role: str
    """leader, follower, observer; read-only, without a leader; or looking: nobody is served."""
    epoch: int
    """The one it leads or follows in; 0: none."""
    leader_id: int
    """0: nobody."""
    last_zxid: int
    """The end of its log, on the disk or on its way there."""
    last_durable_zxid: int
    last_committed_zxid: int
    synced_followers: int = 0
    """Of a leader: those that have adopted its epoch and are still there."""
    synced_observers: int = 0
    learners: int = 0
    """Of a leader: all that are connected."""


class Status(NamedTuple):
    """The core at one moment, for metrics and words."""

    zxid: int = 0
    epoch: int = 0
    node_count: int = 0
    watch_count: int = 0
    sessions: int = 0
    ephemerals: int = 0
    outstanding: int = 0
    data_bytes: int = 0
