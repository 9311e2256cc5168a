"""One process of a served ensemble: the real Replica over a simulated disk and network.

It is the replica's shell and its links to the other servers. Whatever the daemon has a loop or a
thread for is stepped by the scheduler.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from duolog_cluster.sim.disk import SimDisk
from duolog_cluster.sim.network import Link
from duolog_cluster.sim.process_parts import SimClock, SimExecutor
from duolog_protocol.codec import Piece
from duolog_protocol.frames import frame_at
from duolog_protocol.quorum_codec import (
    MAX_PEER_FRAME_BYTES,
    MAX_SMALL_FRAME_BYTES,
    decode_message,
    encode_message,
)
from duolog_protocol.quorum_messages import PEER_VERSION, Notification, PeerMessage
from duolog_protocol.txns import LEVEL_LAST
from duolog_runtime.logs import RecordingLogger
from zkserver.core.config import CoreConfig
from zkserver.core.connection import Connection
from zkserver.core.ensemble_core import EnsembleCore
from zkserver.core.peer_config import PeerConfig
from zkserver.server.replica import Replica
from zkserver.server.stepping import EngineOptions
from zkserver.storage.recovery import DataDirectory
from zkserver.storage.txnlog import LogOptions

from .violation import Violation

if TYPE_CHECKING:
    from .served_world import ServedWorld

DIRECTORY: Final = "/zk"
ENSEMBLE_ID: Final = 7


def up_to(zxid: int, records: Iterable[bytes]) -> Iterator[bytes]:
    """Those of the records that are not after `zxid`."""
    return (each for each in records if int.from_bytes(each[:8], "big") <= zxid)


class Machine:
    """A disk, and the process that runs now."""

    def __init__(self, world: ServedWorld, config: PeerConfig, peer_version: int) -> None:
        """`peer_version`: the highest version of the messages between servers that it speaks."""
        self.world = world
        self.peer_version = peer_version
        self.config = config
        self.server_id = config.server_id
        self.disk = SimDisk(random.Random(f"{world.seed} disk {config.server_id}"))
        self.life: Life | None = None
        self.life_count = 0
        rng = random.Random(f"{world.seed} clock {config.server_id}")
        wall_offset_ms = rng.choice((0, 0, -86_400_000, 3_600_000))
        self.clock = SimClock(world.scheduler, wall_offset_ms, rng.choice((1.0, 1.0, 0.97, 1.03)))
        self.snapshots_received = 0

    def upgrade(self) -> bool:
        """From the next start on it is of the newest version; whether it was not."""
        is_level_old = self.config.level < LEVEL_LAST
        are_messages_old = self.peer_version < PEER_VERSION
        if is_level_old:
            self.world.mark("upgrade")
        if are_messages_old:
            self.world.mark("newer messages")
        self.peer_version = PEER_VERSION
        self.config = self.config._replace(level=LEVEL_LAST)
        return is_level_old or are_messages_old

    def boot(self) -> None:
        """Start the process."""
        assert self.life is None, self.server_id
        self.life_count += 1
        self.life = Life(self)
        self.life.start()


class Life:
    """A process, from its start to its crash."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.world = machine.world
        self.server_id = machine.server_id
        self.clock = machine.clock
        self.peer_version = machine.peer_version
        self.is_over = False
        self.is_paused = False
        self.log = RecordingLogger()
        self._inbox: list[Callable[[], None]] = []
        """What came while it was paused."""
        self._known: dict[Link, int] = {}
        """Open links, and the version that is spoken there."""
        self._timer_us = 0
        self._rng = random.Random(f"{self.world.seed} life {self.server_id} {machine.life_count}")
        self.replica: Replica

    def start(self) -> None:
        """Recover and look for a leader."""
        world, rng = self.world, self._rng
        data = DataDirectory(
            self.machine.disk,
            DIRECTORY,
            self.server_id,
            rng,
            ensemble_id=ENSEMBLE_ID,
            log_options=LogOptions(world.log_file_bytes, 512),
        )
        self.replica = Replica(
            EnsembleCore(
                CoreConfig(
                    server_id=self.server_id,
                    tick_ms=world.tick_ms,
                    zxid_counter_last=world.counter_last,
                ),
                rng,
                members_shown=self.world.members_shown,
            ),
            data,
            self.machine.config,
            disk=SimExecutor(self.after, rng, world.pace),
            clock=self.clock,
            rng=rng,
            shell=self,
            log=self.log,
            options=EngineOptions(world.snap_count, 3),
        )
        self.replica.links = self
        self._watch_commits(data)
        self.replica.recover()
        world.network.attach(self.server_id, self)
        self.replica.start()

    def _watch_commits(self, data: DataDirectory) -> None:
        """Tell the world what is committed: what is applied where clients are served, and what is
        applied, or is a new leader's, when they begin to be."""
        replica, world = self.replica, self.world
        unapplied, serve = replica._unapplied, replica._serve
        take_up_to = unapplied.take_up_to

        def watched_take(zxid: int) -> list[bytes]:
            records = take_up_to(zxid)
            is_serving, known = replica.core.is_serving, replica.peer.last_committed_zxid
            world.committed(up_to(zxid if is_serving else min(zxid, known), records))
            return records

        def watched_serve(epoch: int, leader_id: int) -> None:
            records = data.log.read_from(data.log.first_zxid_before)
            is_leader = leader_id == self.server_id
            world.committed(
                records if is_leader else up_to(replica.core.last_applied_zxid, records)
            )
            serve(epoch, leader_id)

        unapplied.take_up_to = watched_take  # type: ignore[method-assign]
        replica._serve = watched_serve  # type: ignore[method-assign]

    def end(self, *, power_lost: bool) -> None:
        """The process is gone."""
        self.is_over = True
        self.machine.snapshots_received += self.log.events.count("snapshot_received")
        self.world.network.detach(self.server_id, power_lost=power_lost)
        self._inbox.clear()

    def resume(self) -> None:
        """SIGCONT: what has come meanwhile comes now."""
        if self.is_paused and not self.is_over:
            self.is_paused = False
            inbox, self._inbox = self._inbox, []
            for callback in inbox:
                self.run(callback)
            self._fire_timer()

    def run(self, callback: Callable[[], None]) -> None:
        """Call it, now or once the process runs on; never after its end."""
        if self.is_over:
            return
        if self.is_paused:
            self._inbox.append(callback)
        else:
            callback()
            if self.replica.halted:
                text = f"server {self.server_id} has halted: {self.replica.halted}"
                raise Violation(text) from self._why()

    def _why(self) -> BaseException | None:
        """The exception that has halted the server, if one has."""
        errors = [values.get("exc_info") for _, _, values in self.log.records]
        return next((each for each in errors if isinstance(each, BaseException)), None)

    def after(self, delay_us: int, callback: Callable[[], None]) -> None:
        """As `run`, later."""
        self.world.scheduler.after(delay_us, lambda: self.run(callback))

    # ---- the network's endpoint -----------------------------------------------------------------

    def link_opened(self, link: Link, dialled: bool) -> None:
        """See Endpoint."""

        def take() -> None:
            self._known[link] = self._version_with(link.peer_address)
            self.replica.link_opened(link, link.peer_address if dialled else 0)

        self.run(take)

    def dial_failed(self, target: int) -> None:
        """See Endpoint."""
        self.run(lambda: self.replica.dial_failed(target))

    def message_received(self, link: Link, message: bytes) -> None:
        """See Endpoint."""
        self.run(lambda: self._take_bytes(link, message))

    def _take_bytes(self, link: Link, message: bytes) -> None:
        version = self._known.get(link)
        if version is None:
            return
        position, received = 0, []
        while (frame := frame_at(message, position, MAX_PEER_FRAME_BYTES)) is not None:
            received.append(decode_message(frame, version))
            position = frame[3]
        assert position == len(message), "half a frame"
        self.replica.messages_received(link, received)

    def link_lost(self, link: Link) -> None:
        """See Endpoint."""

        def take() -> None:
            if link in self._known:
                del self._known[link]
                self.replica.link_lost(link)

        self.run(take)

    def datagram_received(self, source: int, message: Notification) -> None:
        """See Endpoint."""
        self.run(lambda: self.replica.notification_received(source, message))

    def _version_with(self, server_id: int) -> int:
        """What two servers speak with each other."""
        return min(self.peer_version, self.world.machines[server_id - 1].peer_version)

    # ---- the replica's links --------------------------------------------------------------------

    def dial(self, server_id: int) -> None:
        """See Links."""
        self.world.network.dial(self.server_id, server_id)

    def notify(self, server_id: int, notification: Notification) -> None:
        """See Links."""
        version = self._version_with(server_id)
        sent = b"".join(encode_message(notification, 0, version))
        frame = frame_at(sent, 0, MAX_SMALL_FRAME_BYTES)
        assert frame is not None, sent
        heard, _ = decode_message(frame, version)
        self.world.network.send_datagram(self.server_id, server_id, heard)

    def tell(self, link: Link, message: PeerMessage, context: int = 0) -> None:
        """See Links."""
        if link in self._known:
            link.send(b"".join(encode_message(message, context, self._known[link])))

    def close_link(self, link: Link, reason: str) -> None:
        """See Links."""
        if link in self._known:
            del self._known[link]
            link.close()

    def set_members(self, addresses: Mapping[int, tuple[str, int]]) -> None:
        """See Links."""

    # ---- the replica's shell --------------------------------------------------------------------

    def send(
        self, connection: Connection, pieces: list[Piece], more: bool, zxid: int, now_ms: int
    ) -> None:
        """See Shell."""
        self.world.tell_client(connection, b"".join(map(bytes, pieces)))

    def session_attached(self, connection: Connection) -> None:
        """See Shell."""

    def close(self, connection: Connection, reason: str) -> None:
        """See Shell."""
        self.world.tell_client(connection, b"")

    def drop_clients(self) -> None:
        """See ReplicaShell."""
        self.world.drop_clients(self)

    def pause_reading(self, connection: Connection) -> None:
        """See Shell."""

    def resume_reading(self, connection: Connection) -> None:
        """See Shell."""

    def await_drain(self, connection: Connection) -> None:
        """See Shell."""

    def call_soon(self) -> None:
        """See Shell."""
        self.after(self._rng.randrange(200), self.replica.end_turn)

    def call_later(self, delay_ms: int, callback: Callable[[], None]) -> None:
        """See ReplicaShell."""
        self.after(delay_ms * 1_000, callback)

    def arm(self, deadline_ms: int | None) -> None:
        """See Shell."""
        if deadline_ms is None:
            return
        moment = max(self.clock.moment_us(deadline_ms), self.world.scheduler.now_us)
        if self._timer_us and self._timer_us <= moment:
            return
        self._timer_us = moment

        def fire() -> None:
            if self._timer_us == moment and not self.is_over:
                self._timer_us = 0
                if not self.is_paused:
                    self.run(self._fire_timer)

        self.world.scheduler.at(moment, fire)

    def _fire_timer(self) -> None:
        self.replica.fire_timer()
        self._timer_us = 0
        self.arm(self.replica.deadline_ms())

    def halt(self, reason: str) -> None:
        """See Shell."""
