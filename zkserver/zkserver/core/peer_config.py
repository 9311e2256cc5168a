"""What a server knows of its ensemble, and how long it waits for the others."""

from __future__ import annotations

from typing import NamedTuple

from duolog_protocol.txns import LEVEL_LAST


class PeerConfig(NamedTuple):
    """One server's place in the ensemble, and its limits of time (ms, monotonic)."""

    server_id: int
    voters: frozenset[int]
    """Ids of the participants; `server_id` is one of them, or one of `observers`."""
    observers: frozenset[int] = frozenset()
    """Ids of the servers that replicate without a vote."""
    finalize_wait_ms: int = 20
    """How long a quorum's choice waits for a better vote, unless every voter agrees."""
    notification_first_ms: int = 50
    """After so much silence a looking server tells its vote again; doubled each time."""
    notification_last_ms: int = 1_600
    patience_ms: int = 1_600
    """Elections that may have come to nothing are begun anew after once to twice that time, and
    servers that have not served for so long vote for outsiders in some of them: see `Peer`."""
    init_limit_ms: int = 5_000
    """From a decided election to an established leader that serves, or the election is repeated."""
    ping_interval_ms: int = 250
    sync_limit_ms: int = 1_500
    """A peer that was not heard for so long is gone."""

    disk_limit_ms: int = 10_000
    """A server whose disk takes so long for one append neither leads nor follows any longer."""
    max_queued_bytes: int = 128 * 1024 * 1024
    """A follower for whose disk more records wait than this gives up its term: then it is sent what
    it lacks as fast as its disk takes it. More than the clients of a leader may have outstanding
    (`CoreConfig.max_outstanding_bytes`), so that a quorum does not get there."""
    catch_up_limit_ms: int = 120_000
    """A learner that is being sent what it lacks, and has stored nothing of it for so long, is
    dropped: the log is kept for it. To install a large snapshot takes its time."""
    back_off_first_ms: int = 100
    """A server whose terms fail one after the other waits before it looks for a leader again: so
    long after the third, doubled each time."""
    back_off_last_ms: int = 2_000
    level: int = LEVEL_LAST
    """The highest feature level that this server knows; lower only where an older one is played."""
