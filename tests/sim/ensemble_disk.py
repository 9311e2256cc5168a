"""The disk thread of a simulated server: one job after the other, each in two halves.

The work is done on the simulated disk at one moment, its end is told to the peer at a later one, so
that a crash, a pause or another message may come between. Appends that stand behind one another may
share a group and a sync. Reading history for a learner is a job like the others, in its turn.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from duolog_cluster.sim.scheduler import Scheduler
from duolog_protocol.errors import DiskFullError
from zkserver.core.peer_events import (
    AcceptEpoch,
    AdoptEpoch,
    AppendRecords,
    EpochAccepted,
    EpochAdopted,
    Logged,
    LogRefused,
    PeerEvent,
    Truncated,
    TruncateLog,
)
from zkserver.storage.recovery import DataDirectory

from .ensemble_records import count_up_to, zxid_of

RETRY_US = 20_000
"""An epoch file is written again after so long where there was no space for it."""


@dataclass(slots=True)
class DiskPace:
    """How long the disk takes; may be changed at any time."""

    mean_work_us: int = 2_000
    mean_notice_us: int = 300
    """From the end of the work to the event that tells it."""
    stall_rate: float = 0.0
    """Share of jobs that take up to half a second more."""
    most_grouped: int = 8
    """Appends that may share a sync."""

    def heal(self) -> None:
        """Be as fast as a disk usually is."""
        self.mean_work_us, self.mean_notice_us = 2_000, 300
        self.stall_rate, self.most_grouped = 0.0, 16


class ReadHistory(NamedTuple):
    """Read the records in (`after_zxid`, `last_zxid`] for a learner."""

    link: Any
    after_zxid: int
    last_zxid: int


Job = AcceptEpoch | AdoptEpoch | AppendRecords | TruncateLog | ReadHistory


class DiskOwner(Protocol):
    """The life of a server whose disk this is."""

    durable: list[bytes]
    """What its log holds on the disk, whatever happens."""
    is_paused: bool

    def guarded(self, callback: Callable[[], None]) -> Callable[[], None]:
        """The callback, of a life that may be over, and that it may end."""

    def crash_point(self, place: str) -> None:
        """May raise PowerLoss."""

    def disk_done(self, event: PeerEvent) -> None:
        """A job has ended."""

    def history_read(self, link: Any, records: list[bytes]) -> None:
        """A ReadHistory has ended."""

    def disk_changed(self, what: str) -> None:
        """Some work was done; its end was not told yet."""


class DiskQueue:
    """The jobs of one life, in order."""

    def __init__(
        self,
        owner: DiskOwner,
        data: DataDirectory,
        scheduler: Scheduler,
        rng: random.Random,
        pace: DiskPace,
    ) -> None:
        self._owner = owner
        self._data = data
        self._scheduler = scheduler
        self._rng = rng
        self._pace = pace
        self._jobs: deque[Job] = deque()
        self._is_working = False
        self._is_refusing = False
        """The disk was full, and the peer does not know it yet."""
        self._last_notice_us = 0

    def put(self, job: Job) -> None:
        """Do a job behind those that are waiting."""
        if self._is_refusing and not isinstance(job, ReadHistory):
            assert isinstance(job, AppendRecords | AdoptEpoch), job
            return
        self._jobs.append(job)
        self.go_on()

    def go_on(self) -> None:
        """Start the next job, unless one is being done; nothing new starts in a paused process."""
        if self._jobs and not self._is_working and not self._owner.is_paused:
            self._is_working = True
            rng, pace = self._rng, self._pace
            delay = int(rng.expovariate(1) * pace.mean_work_us)
            if rng.random() < pace.stall_rate:
                delay += rng.randrange(500_000)
            self._scheduler.after(delay, self._owner.guarded(self._work))

    def _work(self) -> None:
        job = self._jobs.popleft()
        retry_us = 0
        match job:
            case AppendRecords():
                self._append([job, *self._take_appends()])
            case ReadHistory():
                self._read(job)
            case _:
                try:
                    self._do(job)
                except DiskFullError:
                    self._jobs.appendleft(job)
                    retry_us = RETRY_US
        self._owner.disk_changed(type(job).__name__)
        self._owner.crash_point("between work and notice")
        if retry_us:
            self._scheduler.after(retry_us, self._owner.guarded(self._work))
        else:
            self._is_working = False
            self.go_on()

    def _take_appends(self) -> list[AppendRecords]:
        """Those that share the sync of the one before them."""
        found: list[AppendRecords] = []
        most = self._rng.randrange(self._pace.most_grouped)
        while self._jobs and len(found) < most:
            job = self._jobs[0]
            if not isinstance(job, AppendRecords):
                break
            found.append(job)
            self._jobs.popleft()
        return found

    def _append(self, jobs: list[AppendRecords]) -> None:
        records = [record for job in jobs for record in job.records]
        try:
            self._data.log.append_durably(records, jobs[-1].last_zxid)
        except DiskFullError:
            self._refuse(jobs[0].first_zxid)
            return
        self._owner.durable += records
        told = jobs if self._rng.random() < 0.5 else jobs[-1:]
        for job in told:
            self._notice(Logged(job.last_zxid))

    def _refuse(self, first_zxid: int) -> None:
        """Nothing behind what was refused is done, but for reading."""
        self._is_refusing = True
        self._jobs = deque(job for job in self._jobs if isinstance(job, ReadHistory))
        self._notice(LogRefused(first_zxid))

    def refusal_is_known(self) -> None:
        """The peer knows that the disk was full: what it asks for from now on is tried."""
        self._is_refusing = False

    def _do(self, job: AcceptEpoch | AdoptEpoch | TruncateLog) -> None:
        match job:
            case AcceptEpoch(epoch=epoch):
                self._data.epochs.accept(epoch)
                self._notice(EpochAccepted(epoch))
            case AdoptEpoch(epoch=epoch):
                self._data.epochs.adopt(epoch)
                self._notice(EpochAdopted(epoch))
            case TruncateLog(zxid=zxid):
                durable = self._owner.durable
                del durable[count_up_to(durable, zxid) :]  # from now on a crash may lose them
                self._data.log.truncate_to(zxid)
                self._notice(Truncated(zxid))

    def _read(self, job: ReadHistory) -> None:
        log = self._data.log
        assert job.last_zxid <= log.durable_zxid, (job, log.durable_zxid)
        records = []
        for record in log.read_from(job.after_zxid):
            if zxid_of(record) > job.last_zxid:
                break
            records.append(record)
        self._later(lambda: self._owner.history_read(job.link, records))

    def _notice(self, event: PeerEvent) -> None:
        self._later(lambda: self._owner.disk_done(event))

    def _later(self, callback: Callable[[], None]) -> None:
        delay = int(self._rng.expovariate(1) * self._pace.mean_notice_us)
        moment = max(self._scheduler.now_us + delay, self._last_notice_us)
        self._last_notice_us = moment
        self._scheduler.at(moment, self._owner.guarded(callback))
