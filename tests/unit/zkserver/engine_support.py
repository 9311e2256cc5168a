"""The smallest core that has a state, and an engine that drives it on a simulated disk.

Each request adds its id, and the reply tells that it is durable. The simulation drives the real
core the same way.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from duolog_cluster.sim.disk import DiskFaults, SimDisk
from duolog_protocol.codec import Piece
from duolog_protocol.types import make_zxid
from duolog_runtime.clocks import ManualClock
from duolog_runtime.disk import InlineDisk
from duolog_runtime.logs import RecordingLogger
from zkserver.core.connection import Codec, Connection
from zkserver.core.events import (
    Append,
    AppendRefused,
    ConnectionLost,
    Durable,
    Effect,
    Event,
    Received,
    Send,
)
from zkserver.server.engine import Engine
from zkserver.server.stepping import EngineOptions
from zkserver.storage.recovery import DataDirectory
from zkserver.storage.txnlog import LogOptions

CONNECTION = Connection(cast(Codec, None), "test")


class View:
    def __init__(self, zxid: int, ids: list[int]) -> None:
        self.zxid = zxid
        self._ids = list(ids)
        self.closed = False

    def chunks(self, max_bytes: int) -> Iterator[bytes]:
        yield self.zxid.to_bytes(8, "big")
        for each in self._ids:
            yield each.to_bytes(8, "big")

    def close(self) -> None:
        self.closed = True


class CountingCore:
    """State = the ids of all durable requests, in order."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.zxid = 0
        self.next_zxid = 0
        self.outstanding: dict[int, int] = {}
        self.refused: list[int] = []
        self.deadline: int | None = None
        self.views: list[View] = []
        self.logs_when_durable = 0
        """The number of a record that the next `Durable` makes the core log."""

    @property
    def last_applied_zxid(self) -> int:
        return self.zxid

    def load_snapshot(self, chunks: Iterable[bytes]) -> None:
        numbers = [int.from_bytes(chunk, "big") for chunk in chunks]
        self.zxid, self.ids = numbers[0], numbers[1:]

    def replay(self, record: bytes) -> int:
        zxid = int.from_bytes(record[:8], "big")
        assert zxid > self.zxid, (zxid, self.zxid)
        self.zxid = zxid
        if len(record) > 8:
            self.ids.append(int.from_bytes(record[8:16], "big"))
        return zxid

    def start(self, epoch: int, now_ms: int, wall_ms: int) -> list[Effect]:
        zxid = make_zxid(epoch, 1)
        assert zxid > self.zxid, (zxid, self.zxid)
        self.next_zxid = zxid + 1
        self.outstanding[zxid] = 0
        return [Append([zxid.to_bytes(8, "big")], zxid, zxid)]

    def step(self, event: Event, now_ms: int) -> list[Effect]:
        match event:
            case Received():
                first = self.next_zxid
                records = []
                for _, number, _ in event.requests:
                    self.outstanding[self.next_zxid] = number
                    pad = bytes(number % 50)
                    records.append(
                        self.next_zxid.to_bytes(8, "big") + number.to_bytes(8, "big") + pad
                    )
                    self.next_zxid += 1
                return [Append(records, first, self.next_zxid - 1)]
            case Durable() if self.logs_when_durable:
                number, self.logs_when_durable = self.logs_when_durable, 0
                written = self.step(event, now_ms)
                return written + self.step(Received(CONNECTION, [(1, number, None)], 0), now_ms)
            case Durable():
                pieces: list[Piece] = []
                while self.outstanding and next(iter(self.outstanding)) <= event.zxid:
                    zxid = next(iter(self.outstanding))
                    number = self.outstanding.pop(zxid)
                    self.zxid = zxid
                    if number:
                        self.ids.append(number)
                        pieces.append(number.to_bytes(8, "big"))
                assert self.zxid == event.zxid, (self.zxid, event.zxid)
                return [Send(CONNECTION, pieces, more=False)] if pieces else []
            case AppendRefused():
                gone = [z for z in self.outstanding if z >= event.first_zxid]
                self.refused += [self.outstanding.pop(zxid) for zxid in gone]
                self.next_zxid = event.first_zxid
                return []
            case ConnectionLost():
                raise KeyError("a bug")
            case _:
                return []

    def deadline_ms(self) -> int | None:
        return self.deadline

    def begin_snapshot(self) -> View:
        self.views.append(View(self.zxid, self.ids))
        return self.views[-1]


class Life:
    """One life of a process on a disk; it is its engine's shell."""

    def __init__(
        self,
        files: SimDisk,
        seed: int,
        *,
        snap_count: int = 100_000,
        file_bytes: int = 1 << 20,
        reserved_bytes: int = 512,
    ) -> None:
        self.core = CountingCore()
        self.disk = InlineDisk(immediate=False)
        self.clock = ManualClock()
        self.log = RecordingLogger()
        self.acknowledged: list[int] = []
        self.halted = ""
        self.turns: list[int] = []
        self.sync_ms = 0
        """What a sync of the log takes."""
        self.data = DataDirectory(
            files,
            "/data",
            1,
            random.Random(seed),
            log_options=LogOptions(file_bytes, reserved_bytes),
        )
        log = self.data.log
        for name in ("append_durably", "sync"):
            setattr(log, name, self._timed(getattr(log, name)))
        self.engine = Engine(
            cast(Any, self.core),
            self.data,
            disk=self.disk,
            clock=self.clock,
            rng=random.Random(seed),
            shell=self,
            log=self.log,
            options=EngineOptions(snap_count, 3),
        )
        self.engine.recover()
        self.recovered = list(self.core.ids)
        self.engine.start()

    def _timed(self, write: Callable[..., None]) -> Callable[..., None]:
        def timed(*given: Any) -> None:
            self.clock.advance(self.sync_ms)
            write(*given)

        return timed

    def send(
        self, connection: Connection, pieces: list[Piece], more: bool, zxid: int, now_ms: int
    ) -> None:
        self.acknowledged += [int.from_bytes(piece, "big") for piece in pieces]

    def close(self, connection: Connection, reason: str) -> None: ...

    def pause_reading(self, connection: Connection) -> None: ...

    def resume_reading(self, connection: Connection) -> None: ...

    def await_drain(self, connection: Connection) -> None: ...

    def call_soon(self) -> None:
        self.turns.append(1)

    def arm(self, deadline_ms: int | None) -> None: ...

    def halt(self, reason: str) -> None:
        self.halted = reason

    def write(self, *numbers: int) -> None:
        requests = [(1, number, None) for number in numbers]
        self.engine.step(Received(CONNECTION, requests, self.clock.wall_ms()))

    def end_turn(self) -> None:
        while self.turns:
            self.turns.pop()
            self.engine.end_turn()

    def settle(self) -> None:
        self.end_turn()
        while self.disk.pending:
            self.disk.run_pending()
            self.end_turn()


def new_disk(seed: int = 1, faults: DiskFaults | None = None) -> SimDisk:
    return SimDisk(random.Random(seed), faults)
