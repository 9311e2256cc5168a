"""One partition as its leader sees it: epoch, durable end, high watermark, who may do what.

Pure. Owns the rules by which a record becomes visible and an acknowledgement may leave; never
touches a file. One class per role:

    Offline   -> Leading    the image names this broker, with a newer leader epoch
    Leading   -> Leading    elected again: a newer leader epoch
    Leading   -> Offline    another leader, or none; fenced requests from now on
    any       -> (dropped)  the topic is gone

Source: Kafka `Partition`, kafka.md B1-B3; the high watermark follows DESIGN's durability setting.
"""

from __future__ import annotations

from typing import Final

from duolog_protocol.error_codes import KafkaErrorCode
from duolog_protocol.types import LeaderAndEpoch

from .topic_config import Durability

NO_EPOCH: Final = -1


class Offline:
    """This broker does not lead the partition."""

    __slots__ = ("leader",)

    def __init__(self, leader: LeaderAndEpoch) -> None:
        self.leader = leader
        """Who does, as far as is known."""

    @property
    def leader_epoch(self) -> int:
        """The newest leader epoch this broker has heard of."""
        return self.leader.leader_epoch


class Leading:
    """This broker leads the partition, alone in its ISR."""

    __slots__ = (
        "durability",
        "durable_end_offset",
        "epoch_start_offset",
        "high_watermark",
        "isr",
        "leader",
        "log_end_offset",
    )

    def __init__(
        self,
        leader: LeaderAndEpoch,
        isr: tuple[int, ...],
        durability: Durability,
        *,
        log_end_offset: int,
        durable_end_offset: int,
    ) -> None:
        assert leader.leader_id in isr, (leader, isr)
        assert durable_end_offset <= log_end_offset, (durable_end_offset, log_end_offset)
        self.leader = leader
        self.isr = isr
        self.durability = durability
        self.epoch_start_offset = log_end_offset
        """log_end_offset when this epoch began."""
        self.log_end_offset = log_end_offset
        self.durable_end_offset = durable_end_offset
        """Exclusive; durable_end_offset <= log_end_offset."""
        self.high_watermark = 0
        """Exclusive; never goes back within an epoch; <= durable_end_offset with `fsync`."""
        self._maybe_advance()

    @property
    def leader_epoch(self) -> int:
        """The epoch of this leadership."""
        return self.leader.leader_epoch

    def on_appended(self, log_end_offset: int) -> bool:
        """The log has grown; true when the high watermark did, too."""
        assert log_end_offset >= self.log_end_offset, (log_end_offset, self.log_end_offset)
        self.log_end_offset = log_end_offset
        return self._maybe_advance()

    def on_durable(self, durable_end_offset: int) -> bool:
        """The log is on disk up to here; true when the high watermark has grown."""
        assert durable_end_offset >= self.durable_end_offset, (
            durable_end_offset,
            self.durable_end_offset,
        )
        assert durable_end_offset <= self.log_end_offset, (durable_end_offset, self.log_end_offset)
        self.durable_end_offset = durable_end_offset
        return self._maybe_advance()

    def is_acknowledged(self, end_offset: int) -> bool:
        """Whether records below `end_offset` may be acknowledged, with acks 1 or all.

        With one replica in sync both mean the same: synced with `fsync`, appended with
        `replicated`; that is what the high watermark says.
        """
        return self.high_watermark >= end_offset

    @property
    def needs_sync(self) -> bool:
        """Whether acknowledgements wait for a sync."""
        return self.durability is Durability.FSYNC

    def _maybe_advance(self) -> bool:
        end = self.durable_end_offset if self.needs_sync else self.log_end_offset
        if end <= self.high_watermark:
            return False
        self.high_watermark = end
        return True


Role = Offline | Leading


def epoch_problem(role: Role, current_leader_epoch: int) -> KafkaErrorCode | None:
    """What KIP-320 answers to a request that names a leader epoch; -1 is not checked."""
    if current_leader_epoch in {NO_EPOCH, role.leader_epoch}:
        return None
    if current_leader_epoch < role.leader_epoch:
        return KafkaErrorCode.FENCED_LEADER_EPOCH
    return KafkaErrorCode.UNKNOWN_LEADER_EPOCH
