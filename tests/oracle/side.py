"""One of the two servers that run the same program, and what the program's clients have there.

`send` begins a batch and `finish` collects what it brought, so that both servers work at the same
time. A batch is one step, or neighbouring requests of one slot that may be pipelined.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Any, Final

from . import jute
from .jute_client import CLOSED, Closed, Frame, JuteConnection, Silence
from .normal import Normaliser
from .programs import SLOTS, Seen, Step
from .settings import LONG_TIMEOUT_MS, MAX_BUFFER, MIN_TIMEOUT_MS, SUPER_CREDENTIAL

EXPIRY_DEADLINE_S: Final = 60.0
POLL_S: Final = 0.02
FORGOTTEN_S: Final = 2.0
"""Silence after which Apache is taken to have forgotten to close a connection."""
AUTH_FAILED: Final = -115
SYSTEM_PATHS: Final = ("/", "/zookeeper", "/zookeeper/config", "/zookeeper/quota")

Said = list[tuple[str | None, Any]]
"""(operation that is answered, frame in normal form)."""


class Slot:
    """One client of the program."""

    def __init__(self) -> None:
        self.connection: JuteConnection | None = None
        self.session: tuple[int, bytes] | None = None
        self.last_zxid = 0
        self.sessions_count = 0
        self.came_back = False
        """The connection is not the session's first. Apache may take the end of an older one for
        the end of this one, and then does not find it when it should close it."""

    @property
    def is_open(self) -> bool:
        """It has a connection with a session."""
        return self.connection is not None


class Side:
    """A server under test."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.port = port
        self._nudger = JuteConnection(port)
        self._nudger.connect(LONG_TIMEOUT_MS)
        self.is_original = name == "apache"
        self.nudges = 0
        self.forgotten = 0
        """Connections that it should have closed, and did not."""
        self.control = self._new_connection()
        """A super user's connection that looks after the tree between programs."""
        self.control.connect(LONG_TIMEOUT_MS)
        self.control.call("auth", 0, "digest", SUPER_CREDENTIAL.encode())
        self.normaliser = Normaliser(self.control.call("ping").zxid)
        self.slots = [Slot() for _ in range(SLOTS)]
        self._finish: Callable[[], Said] = list

    def close(self) -> None:
        """Drop every connection."""
        for slot in self.slots:
            if slot.connection is not None:
                slot.connection.drop()
        self.control.drop()
        self._nudger.drop()

    def _new_connection(self) -> JuteConnection:
        connection = JuteConnection(self.port)
        connection.nudge = self._nudge
        return connection

    def _nudge(self) -> None:
        """Wake a server that has forgotten a client; the reply is never read."""
        self.nudges += 1
        self._nudger.request("ping")
        self._nudger.flush()

    # ---- batches -------------------------------------------------------------------------------

    def send(self, batch: list[Step]) -> None:
        """Begin a batch; all its steps are of one slot and can be done (`possible`)."""
        first = batch[0]
        slot = self.slots[first.slot]
        match first.kind:
            case "call" | "raw":
                self._send_requests(slot, batch)
            case "open":
                self._open(slot, first.slot, *first.arguments)
            case "attach":
                self._attach(slot, *first.arguments)
            case "drop":
                self._forget(slot)
                self._finish = list
            case "frame":
                self._send_frame(slot, first.arguments[0])
            case "expire":
                self._expire(slot, *first.arguments)
            case _:
                raise AssertionError(first)

    def possible(self, step: Step) -> bool:
        """Whether the slot is in a state in which the step means something."""
        slot = self.slots[step.slot]
        if step.kind == "open":
            return slot.session is None
        if step.kind == "attach":
            return slot.session is not None
        return slot.is_open

    def finish(self) -> Said:
        """What the batch brought. Raises Silence, JuteError, Implausible."""
        return self._finish()

    def _send_frame(self, slot: Slot, data: bytes) -> None:
        connection = _connection_of(slot)
        said = self._flush(slot)
        connection.send(data)
        self._finish = lambda: said + self._after(slot, self._until_closed(connection))

    def _until_closed(self, connection: JuteConnection) -> list[Frame]:
        """Every frame that is still to come. Apache now and then forgets to close."""
        frames: list[Frame] = []
        if self.is_original:
            connection.timeout_s = FORGOTTEN_S
        try:
            while not frames or frames[-1] is not CLOSED:
                frames.append(connection.receive())
        except Silence:
            if not self.is_original:
                raise
            self.forgotten += 1
            frames.append(CLOSED)
        return frames

    def _flush(self, slot: Slot) -> Said:
        """Events that are on their way: Apache may lose them when it closes a connection."""
        if slot.connection is None:
            return []
        slot.connection.request("ping")
        return self._receive_due(slot, slot.connection, closes=False)

    def _send_requests(self, slot: Slot, batch: list[Step]) -> None:
        connection = _connection_of(slot)
        said = self._flush(slot) if too_large(batch[0]) else []
        for step in batch:
            if step.kind == "raw":
                code, body, name = step.arguments
                connection.request_raw(code, body, name=name)
            else:
                name, *arguments = step.arguments
                connection.request(name, *(self._resolve(slot, each) for each in arguments))
        connection.flush()
        closes = batch[0].arguments[0] == "close"
        self._finish = lambda: said + self._receive_due(slot, connection, closes=closes)

    def _receive_due(self, slot: Slot, connection: JuteConnection, *, closes: bool) -> Said:
        names = [name for _, name in connection.due]
        frames = connection.receive_due()
        closes = closes or _closes(names[-1], frames[-1])
        if closes and frames[-1] is not CLOSED:
            frames += self._until_closed(connection)
        if names[-1] == "close":
            slot.session = None
        return self._after(slot, frames, names)

    def _resolve(self, slot: Slot, value: Any) -> Any:
        if not isinstance(value, Seen):
            return value
        return self.normaliser.raw(self.normaliser.zxid(slot.last_zxid) - value.back)

    def _after(
        self, slot: Slot, frames: list[Frame], names: list[str | None] | None = None
    ) -> Said:
        """Normal form of a slot's frames; a closed connection is given up."""
        said: Said = []
        due = iter(names or ())
        for frame in frames:
            if isinstance(frame, jute.Reply):
                name = next(due)
                said.append((name, self.normaliser.frame(name, frame)))
                slot.last_zxid = max(slot.last_zxid, frame.zxid)
            elif isinstance(frame, Closed):
                said.append((None, CLOSED))
                self._forget(slot)
            else:
                said.append((None, self.normaliser.frame(None, frame)))
        return said

    def _forget(self, slot: Slot) -> None:
        if slot.connection is not None:
            slot.connection.drop()
            slot.connection = None

    # ---- sessions ------------------------------------------------------------------------------

    def _open(self, slot: Slot, number: int, timeout_ms: int, read_only: bool | None) -> None:
        connection = self._new_connection()
        connection.send_connect(timeout_ms, read_only=read_only)

        def finish() -> Said:
            answer = connection.receive_connected()
            said: Said = [("connect", self.normaliser.frame("connect", answer))]
            if isinstance(answer, Closed):
                connection.drop()
            else:
                slot.sessions_count += 1
                name = f"client {number}, session {slot.sessions_count}"
                self.normaliser.name_session(answer.session_id, name)
                slot.connection = connection
                slot.session = connection.session_id, connection.password
                slot.last_zxid, slot.came_back = 0, False
            return said

        self._finish = finish

    def _attach(self, slot: Slot, how: str, timeout_ms: int, seen: Seen) -> None:
        assert slot.session is not None
        session_id, password = slot.session
        last_zxid: int = self._resolve(slot, seen)
        said: Said = []
        if how == "right":
            said, old = self._flush(slot), slot.connection
            if old is None or slot.came_back:
                self._forget(slot)
                old = None
            slot.came_back = True
        else:
            old = None
            self._forget(slot)  # Apache would close it, ours would not: known.NOT_GENERATED
        if how == "wrong password":
            password = bytes([password[0] ^ 1]) + password[1:]
        elif how == "no password":
            password = b""
        elif how == "unknown session":
            session_id ^= 0x5555
        elif how == "zxid ahead":
            last_zxid = self.normaliser.base_zxid + (1 << 32)
        connection = self._new_connection()
        connection.send_connect(
            timeout_ms, session_id=session_id, password=password, last_zxid_seen=last_zxid
        )
        self._finish = lambda: said + self._attached(slot, connection, old)

    def _attached(self, slot: Slot, connection: JuteConnection, old: JuteConnection | None) -> Said:
        said: Said = []
        answer = connection.receive_connected()
        if old is not None:
            said += [("old", self.normaliser.frame(None, each)) for each in self._until_closed(old)]
        said.append(("connect", self.normaliser.frame("connect", answer)))
        if isinstance(answer, Closed) or answer.timeout_ms <= 0:
            if not isinstance(answer, Closed):
                frames = self._until_closed(connection)
                said += [(None, self.normaliser.frame(None, each)) for each in frames]
            connection.drop()
            slot.connection = None
        else:
            slot.connection = connection
        return said

    def _expire(self, slot: Slot, stay: bool) -> None:
        """Take the shortest timeout, then say nothing any more."""
        before = self.control.call("ping").zxid
        self._attach(slot, "right", MIN_TIMEOUT_MS, Seen(0))
        attached = self._finish

        def finish() -> Said:
            said = attached()
            connection = slot.connection
            slot.session = None
            if connection is None:
                return said
            if stay and not slot.came_back:
                self._until_closed(connection)  # Apache may or may not send the last events
                self._forget(slot)
                return [*said, (None, CLOSED)]
            self._forget(slot)
            deadline = time.monotonic() + EXPIRY_DEADLINE_S
            while self.control.call("ping").zxid == before:
                assert time.monotonic() < deadline, f"{self.name}: the session does not expire"
                select.select([], [], [], POLL_S)
            return said

        self._finish = finish

    # ---- between programs ----------------------------------------------------------------------

    def flush_events(self) -> Said:
        """What has come to every open slot without being asked for."""
        said: Said = []
        for slot in self.slots:
            said += self._flush(slot)
        return said

    def end_sessions(self) -> Said:
        """Close every session in order."""
        said: Said = []
        for slot in self.slots:
            if slot.session is not None and slot.connection is None:
                self._attach(slot, "right", LONG_TIMEOUT_MS, Seen(0))
                said += self.finish()
            if slot.connection is not None:
                slot.connection.request("close")
                said += self._receive_due(slot, slot.connection, closes=True)
        self.slots = [Slot() for _ in range(SLOTS)]
        return said

    def sweep(self) -> Said:
        """Show the whole tree, then put it back to its beginning."""
        paths = list(SYSTEM_PATHS)
        for path in paths:
            reply = self.control.call("get_children", path, False)
            for name in sorted(reply.values[0] if not reply.error else ()):
                child = f"{path.rstrip('/')}/{name}"
                if child not in paths:
                    paths.append(child)
        said: Said = []
        for path in sorted(paths):
            self.control.request("get_data", path, False)
            self.control.request("get_acl", path)
        for path in reversed(paths):
            if path not in SYSTEM_PATHS:
                self.control.request("delete", path, -1)
        self.control.request("set_acl", "/", jute.OPEN_ACL, -1)
        self.control.request("set_data", "/", b"", -1)
        names = [name for _, name in self.control.due]
        frames = self.control.receive_due()
        said += [
            (name, self.normaliser.frame(name, frame))
            for name, frame in zip(names, frames, strict=True)
        ]
        return said


def _connection_of(slot: Slot) -> JuteConnection:
    assert slot.connection is not None, "a step that is not possible"
    return slot.connection


def _closes(name: str | None, last: Frame) -> bool:
    """A server closes the connection after such a reply."""
    failed_auth = name == "auth" and isinstance(last, jute.Reply) and last.error == AUTH_FAILED
    return name is None or failed_auth


def too_large(step: Step) -> bool:
    """The request is near the limit of a frame; over it the server closes the connection."""
    return step.kind == "call" and _data_bytes(step.arguments) > MAX_BUFFER - 1_000


def _data_bytes(value: Any) -> int:
    if isinstance(value, bytes):
        return len(value)
    return sum(map(_data_bytes, value)) if isinstance(value, tuple) else 0
