"""All invariants of an ensemble, told of everything that happens in one call each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from duolog_cluster.sim.network import Link
from duolog_protocol.quorum_messages import Notification

from .invariants import (
    CommittedByQuorum,
    CommittedLogDurability,
    CommittedLogMonotonicity,
    DurableLog,
    Ensemble,
    EpochOfLog,
    GlobalPrimaryOrder,
    HonestVote,
    Integrity,
    Invariant,
    LeaderLogCompleteness,
    Leadership,
    LinearizableSync,
    NoAckedWriteLost,
    PrefixConsistency,
    PrimaryIntegrity,
    ProcessConsistency,
    ServesCommitted,
    WholeSnapshot,
)
from .message_invariants import DurableBeforeSent, MessageLegal, PromisedOnce
from .situations import Situations

if TYPE_CHECKING:
    from .ensemble_server import Life

INVARIANTS: Final[tuple[type[Invariant], ...]] = (
    Leadership,
    PrefixConsistency,  # before all that look at the committed history, which it extends
    Integrity,
    GlobalPrimaryOrder,
    PrimaryIntegrity,
    CommittedByQuorum,
    CommittedLogMonotonicity,
    ProcessConsistency,
    LeaderLogCompleteness,
    NoAckedWriteLost,
    ServesCommitted,
    LinearizableSync,
    CommittedLogDurability,
    DurableLog,
    WholeSnapshot,
    HonestVote,
    EpochOfLog,
    DurableBeforeSent,
    MessageLegal,
    PromisedOnce,
)


class Checks:
    """The invariants, and who of them wants to hear of what."""

    def __init__(self, ensemble: Ensemble, mark: Callable[[str], None]) -> None:
        self.ensemble = ensemble
        self._invariants = [*(each(ensemble) for each in INVARIANTS), Situations(ensemble, mark)]
        self._booted = self._overriding("booted")
        self._proposes = self._overriding("proposes")
        self._appends = self._overriding("appends")
        self._truncates = self._overriding("truncates")
        self._applies = self._overriding("applies")
        self._tells = self._overriding("tells")
        self._notifies = self._overriding("notifies")
        self._leads = self._overriding("leads")
        self._confirmed = self._overriding("confirmed")
        self._installs = self._overriding("installs")
        self._stepped = self._overriding("stepped")

    def _overriding(self, name: str) -> list[Callable[..., None]]:
        return [
            getattr(each, name)
            for each in self._invariants
            if getattr(type(each), name) is not getattr(Invariant, name)
        ]

    def booted(self, life: Life, accepted_epoch: int, current_epoch: int) -> None:
        """See Invariant; so are all that follow."""
        for each in self._booted:
            each(life, accepted_epoch, current_epoch)

    def proposes(self, life: Life, records: list[bytes]) -> None:
        for each in self._proposes:
            each(life, records)

    def appends(self, life: Life, records: list[bytes]) -> None:
        for each in self._appends:
            each(life, records)

    def truncates(self, life: Life, zxid: int, kept: int) -> None:
        for each in self._truncates:
            each(life, zxid, kept)

    def applies(self, life: Life, index: int, record: bytes) -> None:
        for each in self._applies:
            each(life, index, record)

    def tells(self, life: Life, link: Link, message: Any) -> None:
        for each in self._tells:
            each(life, link, message)

    def notifies(self, life: Life, notification: Notification) -> None:
        for each in self._notifies:
            each(life, notification)

    def installs(self, life: Life, records: list[bytes]) -> None:
        for each in self._installs:
            each(life, records)

    def confirmed(self, life: Life, epoch: int, zxid: int) -> None:
        for each in self._confirmed:
            each(life, epoch, zxid)

    def stepped(self, life: Life) -> None:
        """A peer has taken an event; a leader that it made is told of, too."""
        is_leading = life.is_leading
        if is_leading and not life.was_leading:
            for each in self._leads:
                each(life)
        life.was_leading = is_leading
        for each in self._stepped:
            each(life)
