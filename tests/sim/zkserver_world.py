"""zkserver on a simulated disk: power cuts, torn groups, full disks, failed syncs.

One seed is one history: several lives of one server on one disk. In each the real `Engine` drives
the real core, log and snapshots; sockets are lists, the disk thread is stepped by hand, so that a
crash can fall between a sync and the event that reports it.

Invariants, checked at every start:

    NoAckedWriteLost    the log reaches at least to the zxid of the last acknowledged write
    ExactState          the tree is the one that the former life had at that zxid, to the byte
    RefusedNeverAppears a write that was answered STORAGE_FULL is not there
    NothingFromNowhere  a znode holds a value that its only writer has sent
    SessionsLive        sessions that were acknowledged and not closed are there, with ephemerals
    SyncNeverRetried    a file whose sync failed is not used again by that process
"""

from __future__ import annotations

import hashlib
import random
from typing import Any, Final

from duolog_cluster.sim.disk import DiskFaults, PowerLoss, SimDisk
from duolog_protocol import zk_messages as zk
from duolog_protocol.apis import read_response
from duolog_protocol.codec import Piece, cursor_of
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.errors import StorageError
from duolog_protocol.frames import FrameDecoder
from duolog_protocol.types import OPEN_ACL_UNSAFE
from duolog_protocol.zk_codec import NativeCodec
from duolog_protocol.zk_decoder import NativeDecoder
from duolog_runtime.clocks import ManualClock
from duolog_runtime.disk import InlineDisk
from duolog_runtime.logs import RecordingLogger
from zkserver.core.config import CoreConfig
from zkserver.core.connection import Connection
from zkserver.core.core import ZkCore
from zkserver.core.events import ConnectionLost, Drained, Received
from zkserver.server.engine import Engine
from zkserver.server.stepping import EngineOptions
from zkserver.storage.recovery import FAILED_SYNC_FILE, DataDirectory
from zkserver.storage.txnlog import LogOptions

from .violation import Violation

DIRECTORY: Final = "/zk"
LIVES: Final = 4
STEPS: Final = 80
CLIENTS: Final = 3


class Client:
    """One client: a connection of this life, and what it was told in all lives."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.connection: Connection | None = None
        self.decoder = FrameDecoder(1 << 22)
        self.session: tuple[int, bytes] | None = None
        self.asked: dict[int, tuple[Any, Any]] = {}
        """Correlation id -> (api, message)."""
        self.sent_values: set[bytes] = set()
        self.refused_values: set[bytes] = set()
        self.ephemerals: set[str] = set()
        """Acknowledged ephemerals of the session."""
        self.leaves = False
        """It has asked for the end of its session, in this life of the server."""

    def forget_session(self) -> None:
        """There is none any more."""
        self.session, self.ephemerals, self.leaves = None, set(), False

    @property
    def path(self) -> str:
        """The znode that only this client writes."""
        return f"/client-{self.number}"


class ServerWorld:
    """One history; `run` raises Violation. It is the engine's shell, too."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(f"{seed} world")
        faults_rng = random.Random(f"{seed} faults")
        self.faults = DiskFaults()
        if faults_rng.random() < 0.2:
            self.faults.full_at_write = faults_rng.randrange(1, 120)
            self.faults.full_for_writes = faults_rng.choice([1, 1, 5, 40])
        if faults_rng.random() < 0.08:
            self.faults.fail_at_sync = faults_rng.randrange(1, 60)
        self.crash_rate = faults_rng.choice([0.0, 0.005, 0.02, 0.05])
        self.crash_rng = random.Random(f"{seed} crash points")
        self.disk = SimDisk(
            random.Random(f"{seed} disk"),
            self.faults,
            crash_points=self._crash_point,
            latency=self._delay,
        )
        self.clock = ManualClock()
        self.snap_count = faults_rng.choice([4, 10, 30, 1_000])
        self.log_file_bytes = faults_rng.choice([2_048, 8_192, 65_536])
        self.clients = [Client(number) for number in range(CLIENTS)]
        self.sync_rng = random.Random(f"{seed} slow syncs")
        self.slow_sync_rate = faults_rng.choice([0.0, 0.05, 0.5, 1.0])
        self.digests: dict[int, str] = {}
        """zxid -> digest of the state that a former life had there."""
        self.acknowledged_zxid = 0
        self.next_value = 0
        self.next_id = 0
        self.life = 0
        self.turn_asked = False
        self.halted = ""
        self.sync_failed = False
        self.used_at_halt = 0
        self.marks: dict[str, int] = {}

    # ---- the history ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Live, die, and live again; then check once more on a healthy disk."""
        for _ in range(LIVES):
            self.data: DataDirectory | None = None
            power_was_cut = False
            try:
                self._boot()
                if not self.halted:
                    self._live()
            except PowerLoss:
                self._mark("crash point")
                power_was_cut = True
            self._die(power_was_cut)
        self.faults.full_at_write = self.faults.fail_at_sync = None
        self.crash_rate = 0.0
        self._boot()
        if self.halted:
            raise Violation(f"a healthy disk did not start: {self.halted}")

    def _boot(self) -> None:
        self.life += 1
        self.halted = ""
        self.turn_asked = False
        self.undrained: list[Connection] = []
        self.work = InlineDisk(immediate=False)
        self.log = RecordingLogger()
        rng = random.Random(f"{self.seed} server {self.life}")
        try:
            self.data = DataDirectory(
                self.disk,
                DIRECTORY,
                1,
                rng,
                log_options=LogOptions(self.log_file_bytes, 1_024),
            )
            self.core = ZkCore(CoreConfig(), rng)
            self.engine = Engine(
                self.core,
                self.data,
                disk=self.work,
                clock=self.clock,
                rng=rng,
                shell=self,
                log=self.log,
                options=EngineOptions(self.snap_count, 3),
            )
            self.engine.recover()
        except (StorageError, OSError) as error:
            self._mark("start failed")
            self.halt(str(error))
            return
        self._check_recovered()
        self.engine.start()
        self._settle()

    def _live(self) -> None:
        for client in self.clients:
            self._connect(client)
        actions = [self._write] * 8 + [self._step_disk] * 10 + [self._end_turn] * 6
        actions += [self._read, self._ephemeral, self._multi, self._tick, self._reconnect]
        actions += [self._write_alone] * 2 + [self._write_and_leave]
        for _ in range(self.rng.randrange(STEPS)):
            self.rng.choice(actions)()
            if self.halted:
                return

    def _die(self, power_was_cut: bool) -> None:
        if self.halted and self.disk.used_after_failed_sync_count != self.used_at_halt:
            raise Violation("SyncNeverRetried: a file was used after its sync had failed")
        how = self.rng.choice(["order", "process", "power", "power", "power"])
        if power_was_cut or self.sync_failed:
            how = "power"
        if how == "order" and not self.halted:
            try:
                self._settle()
                self.engine.close()
                assert self.data is not None
                self.data.close()
                self._mark("clean stop")
                if self.disk.exists(f"{DIRECTORY}/{FAILED_SYNC_FILE}"):
                    how, self.sync_failed = "power", True
            except PowerLoss:
                how = "power"
        self.work.abandon()
        if how == "power":
            self.disk.crash(lose_unsynced=self.rng.random() < 0.2)
        else:
            self.disk.kill()
        if self.sync_failed:
            self._take_mark_away()
        for client in self.clients:
            client.connection = None
            client.asked.clear()

    def _take_mark_away(self) -> None:
        """A person has looked at the disk and rebooted; the mark need not have survived that."""
        self.sync_failed = False
        self._mark("failed sync")
        crash_rate, self.crash_rate = self.crash_rate, 0.0
        path = f"{DIRECTORY}/{FAILED_SYNC_FILE}"
        if self.disk.exists(path):
            self.disk.unlink(path)
            self.disk.sync_dir(DIRECTORY)
        self.crash_rate = crash_rate

    def _delay(self, kind: str, _size_bytes: int) -> None:
        if kind == "sync" and self.sync_rng.random() < self.slow_sync_rate:
            self.clock.advance(3)

    def _crash_point(self, _when: str, _kind: str, _path: str) -> None:
        if self.crash_rng.random() < self.crash_rate:
            raise PowerLoss

    # ---- the engine's shell --------------------------------------------------------------------

    def send(
        self, connection: Connection, pieces: list[Piece], more: bool, zxid: int, now_ms: int
    ) -> None:
        """A reply or an event: what is in it counts from now on."""
        client: Client = connection.link
        if client.connection is connection:
            for frame in client.decoder.feed(b"".join(pieces)):
                self._hear(client, frame)
        if not self.halted:
            self.digests[self.core.last_applied_zxid] = self._digest()

    def session_attached(self, connection: Connection) -> None:
        """Nothing to do: frames here have no limit."""

    def close(self, connection: Connection, reason: str) -> None:
        """The server closes a connection."""
        client: Client = connection.link
        if client.connection is connection:
            client.connection = None
        self.engine.step(ConnectionLost(connection))

    def pause_reading(self, connection: Connection) -> None:
        """These clients never send too much."""

    def resume_reading(self, connection: Connection) -> None:
        """See `pause_reading`."""

    def await_drain(self, connection: Connection) -> None:
        """A socket takes what it gets, at some later time."""
        self.undrained.append(connection)

    def call_soon(self) -> None:
        """The end of the loop turn is an action of its own."""
        self.turn_asked = True

    def arm(self, deadline_ms: int | None) -> None:
        """Time passes in `_tick` only."""

    def halt(self, reason: str) -> None:
        """The server cannot go on."""
        if not self.halted:
            self.halted = reason
            self._mark("halted")
            fail_at = self.faults.fail_at_sync
            self.sync_failed = fail_at is not None and self.disk.sync_count >= fail_at
            self.used_at_halt = self.disk.used_after_failed_sync_count

    # ---- actions -------------------------------------------------------------------------------

    def _ask(self, client: Client, api: Any, message: Any) -> None:
        if client.connection is None:
            return
        self.next_id += 1
        client.asked[self.next_id] = (api, message)
        request = (api.key, self.next_id, message)
        self.engine.step(Received(client.connection, [request], self.clock.wall_ms()))

    def _connect(self, client: Client) -> None:
        codec = NativeCodec(NativeDecoder(1 << 22))
        client.connection = Connection(codec, f"client-{client.number}", client)
        client.decoder = FrameDecoder(1 << 22)
        session_id, password = client.session or (0, bytes(16))
        self._ask(client, zk.CONNECT, zk.ConnectRequest(0, 20_000, session_id, password, False))

    def _value(self, client: Client) -> bytes:
        self.next_value += 1
        value = b"%d" % self.next_value + b"." * (self.next_value % 120)
        client.sent_values.add(value)
        return value

    def _write(self) -> None:
        client = self.rng.choice(self.clients)
        value = self._value(client)
        if self.rng.random() < 0.2:
            self._ask(
                client, zk.CREATE, zk.CreateRequest(client.path, value, OPEN_ACL_UNSAFE, 0, -1)
            )
        else:
            self._ask(client, zk.SET_DATA, zk.SetDataRequest(client.path, value, -1))

    def _write_alone(self) -> None:
        """Nothing else goes on, so that the engine may write it here, and wait for the disk."""
        self._settle()
        if not self.halted:
            self._write()
            self._end_turn()

    def _write_and_leave(self) -> None:
        """A write and the end of the session in one read: the end is logged once it is answered."""
        client = self.rng.choice(self.clients)
        self._settle()
        if self.halted or client.connection is None or client.asked:
            return
        requests = []
        for api, message in (
            (zk.SET_DATA, zk.SetDataRequest(client.path, self._value(client), -1)),
            (zk.CLOSE_SESSION, zk.Empty()),
        ):
            self.next_id += 1
            client.asked[self.next_id] = (api, message)
            requests.append((api.key, self.next_id, message))
        client.leaves = True
        self.engine.step(Received(client.connection, requests, self.clock.wall_ms()))
        self._settle()
        if not self.halted and client.asked:
            raise Violation(f"EveryRequestAnswered: {list(client.asked)} of a quiet server")

    def _ephemeral(self) -> None:
        client = self.rng.choice(self.clients)
        path = f"/e-{client.number}-{self.next_id}"
        self._ask(client, zk.CREATE, zk.CreateRequest(path, b"", OPEN_ACL_UNSAFE, 1, -1))

    def _multi(self) -> None:
        client = self.rng.choice(self.clients)
        value = self._value(client)
        ops = (
            zk.MultiOp(zk.MultiKind.CHECK, client.path, None, None, 0, -1, -1),
            zk.MultiOp(zk.MultiKind.SET_DATA, client.path, value, None, 0, -1, -1),
            zk.MultiOp(zk.MultiKind.CREATE, "/seq-", value, OPEN_ACL_UNSAFE, 2, -1, -1),
        )
        self._ask(client, zk.MULTI, zk.MultiRequest(ops))

    def _read(self) -> None:
        client = self.rng.choice(self.clients)
        self._ask(client, zk.GET_DATA, zk.GetDataRequest(client.path, True))

    def _reconnect(self) -> None:
        client = self.rng.choice(self.clients)
        if client.connection is not None:
            old, client.connection = client.connection, None
            client.asked.clear()
            self.engine.step(ConnectionLost(old))
        self._connect(client)

    def _tick(self) -> None:
        self.clock.advance(self.rng.randrange(500))
        deadline = self.engine.deadline_ms()
        if deadline is not None and deadline <= self.clock.now_ms():
            self.engine.fire_timer()

    def _step_disk(self) -> None:
        if self.rng.random() < 0.5:
            self.work.run_work()
        else:
            self.work.deliver()

    def _end_turn(self) -> None:
        undrained, self.undrained = self.undrained, []
        for connection in undrained:
            self.engine.step(Drained(connection))
        if self.turn_asked:
            self.turn_asked = False
            pending, before = self.work.pending, self._logged_zxid()
            self.engine.end_turn()
            if self._logged_zxid() > before:
                self._mark("written in the loop")
            elif self.work.pending > pending:
                self._mark("written by the disk thread")

    def _logged_zxid(self) -> int:
        return 0 if self.halted or self.data is None else self.data.log.last_zxid

    def _settle(self) -> None:
        """Run until nothing is left to do."""
        while not self.halted:
            self._end_turn()
            if not self.work.pending and not self.turn_asked:
                return
            self.work.run_pending()

    # ---- what clients hear, and what must hold -------------------------------------------------

    def _hear(self, client: Client, frame: Any) -> None:
        header = read_response(frame)
        if header.correlation_id == 0:
            return
        api, message = client.asked.pop(header.correlation_id)
        code = header.error_code
        if code == ZkErrorCode.STORAGE_FULL:
            self._mark("refused")
            for value in _values_of(message):
                client.refused_values.add(value)
            return
        if api is zk.CONNECT and code == ZkErrorCode.SESSION_EXPIRED:
            self._mark("expired")
            client.forget_session()
            return
        self.acknowledged_zxid = max(self.acknowledged_zxid, header.context)
        if code:
            return
        if api is zk.CLOSE_SESSION:
            self._mark("left")
            client.forget_session()
            return
        reply = api.decode_response(header.values, 0, cursor_of(frame))
        if api is zk.CONNECT:
            client.session = reply.session_id, reply.password
        elif api is zk.CREATE and message.flags == 1:
            client.ephemerals.add(reply.path)

    def _check_recovered(self) -> None:
        core = self.core
        core.check_invariants()
        zxid = core.last_applied_zxid
        if zxid < self.acknowledged_zxid:
            raise Violation(
                f"NoAckedWriteLost: acknowledged up to {self.acknowledged_zxid:#x}, "
                f"recovered {zxid:#x}"
            )
        known = self.digests.get(zxid)
        if known is not None:
            self._mark("state compared")
            if known != self._digest():
                raise Violation(f"ExactState: the state at {zxid:#x} is another one")
        for later in [each for each in self.digests if each > zxid]:
            del self.digests[later]
        nodes = core.state.tree.nodes
        for client in self.clients:
            node = nodes.get(client.path)
            if node is not None and node.data not in client.sent_values:
                raise Violation(f"NothingFromNowhere: {client.path} holds {node.data!r}")
            if client.leaves and client.session and client.session[0] not in core.state.sessions:
                client.forget_session()  # it has not heard that it has left
            client.leaves = False
            if client.session is not None and client.session[0] in core.state.sessions:
                missing = [path for path in client.ephemerals if path not in nodes]
                if missing:
                    raise Violation(f"SessionsLive: ephemerals are gone: {missing}")
            elif client.session is not None and not self._may_have_expired():
                raise Violation(f"SessionsLive: session {client.session[0]:#x} is gone")
        stored = {node.data for node in nodes.values()}
        for client in self.clients:
            wrong = stored & client.refused_values
            if wrong:
                raise Violation(f"RefusedNeverAppears: {wrong}")

    def _may_have_expired(self) -> bool:
        """Sessions may end in the log without the client having heard of it."""
        return self.clock.now_ms() > 20_000

    def _digest(self) -> str:
        state = self.core.state
        found = hashlib.sha256()
        for path in sorted(state.tree.nodes):
            node = state.tree.nodes[path]
            found.update(repr((path, node.data, node.stat(), node.acl)).encode())
        found.update(repr(list(state.sessions)).encode() + state.secret)
        return found.hexdigest()

    def _mark(self, name: str) -> None:
        self.marks[name] = self.marks.get(name, 0) + 1


def _values_of(message: Any) -> list[bytes]:
    if isinstance(message, zk.MultiRequest):
        return [op.data for op in message.ops if op.data]
    data = getattr(message, "data", None)
    return [data] if data else []
