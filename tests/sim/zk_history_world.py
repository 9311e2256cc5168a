"""Histories of zkserver's core, made in one process: many clients, one seed, no sockets.

Clients speak the jute protocol to the real core; bytes are handed over in pieces that the seed
decides, a write becomes durable when the seed says so, connections are cut with requests on their
way. Time is a counter of the steps. What comes out is a history for `checkers.zk_history`, with the
log's order of transactions.
"""

from __future__ import annotations

import random
from typing import Final

from duolog_protocol.jute_codec import JuteCodec
from duolog_protocol.jute_decoder import JuteDecoder
from duolog_protocol.txns import TxnKind, decode_txn
from tests.oracle import jute
from tests.oracle.tape import Tape
from tests.oracle.workload import Workload
from tests.sim.checkers.zk_records import History, Logged
from zkserver.core.config import CoreConfig
from zkserver.core.connection import Connection
from zkserver.core.core import ZkCore
from zkserver.core.events import (
    Append,
    Close,
    ConnectionLost,
    Durable,
    Effect,
    Received,
    Send,
    TimerFired,
)

CLIENTS: Final = 4
TIMEOUT_MS: Final = 20_000
XIDS_OF_A_CONNECTION: Final = 1_000
OPERATOR: Final = 1
"""Session of what no client of the history asks for; 0 is the server's own."""
_KINDS: Final = {
    TxnKind.CREATE_SESSION: "open",
    TxnKind.CLOSE_SESSION: "close",
    TxnKind.ERROR: "error",
    TxnKind.NEW_EPOCH: "other",
}


def logged(record: bytes) -> Logged:
    """A record of zkserver's log, for a history."""
    txn = decode_txn(record)
    kind = _KINDS.get(txn.body[0], "write" if txn.session_id > OPERATOR else "other")
    return Logged(txn.zxid, txn.session_id, txn.correlation_id, kind)


class Client:
    """One client of the world."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.tape = Tape()
        self.connection: Connection | None = None
        self.decoder: JuteDecoder | None = None
        self.received = bytearray()
        self.session = (0, bytes(16))
        self.connecting: tuple[int, int, int] | None = None
        """(connection, sent at, last zxid seen) while the answer to a connect is due."""
        self.last_xid = 0
        self.unheard: list[bytes] = []
        """What the server has sent and the client has not read."""


class HistoryWorld:
    """A core and its clients; `run` makes the history."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"{seed} history")
        self.core = ZkCore(CoreConfig(), random.Random(f"{seed} core"))
        self.clients = [Client(Workload(f"{seed}.{number}")) for number in range(CLIENTS)]
        self.now = 0
        self.now_ms = 1_000
        self.log: list[Logged] = []
        self.undurable: list[int] = []
        self.connection_count = 0
        self._perform(self.core.start(1, self.now_ms, self._wall_ms()))

    def run(self, operations: int) -> History:
        """About so many operations; then everything settles, and one client reads it all."""
        actions = (
            [self._request] * 10 + [self._durable] * 6 + [self._hear] * 8 + [self._cut, self._time]
        )
        while sum(len(client.tape.calls) for client in self.clients) < operations:
            self.rng.choice(actions)()
        for client in self.clients:
            self._settle(client)
        reader = self.clients[0]
        for path in sorted(self.core.state.tree.nodes):
            if not path.startswith("/zookeeper"):
                self._send(reader, "get_data", (path, False))
                self._send(reader, "get_children2", (path, False))
        self._settle(reader)
        return self.history()

    def history(self) -> History:
        """What has been recorded so far."""
        tapes = [client.tape for client in self.clients]
        return History(
            [call for tape in tapes for call in (*tape.calls, *tape.due)],
            [event for tape in tapes for event in tape.events],
            [opened for tape in tapes for opened in tape.connections],
            list(self.log),
        )

    # ---- the server ----------------------------------------------------------------------------

    def _wall_ms(self) -> int:
        return 1_700_000_000_000 + self.now_ms

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Append):
                self.log += map(logged, effect.records)
                self.undurable.append(effect.last_zxid)
            elif isinstance(effect, Send):
                client: Client = effect.connection.link
                if client.connection is effect.connection:
                    client.unheard.append(b"".join(map(bytes, effect.pieces)))
            elif isinstance(effect, Close):
                client = effect.connection.link
                if client.connection is effect.connection:
                    client.unheard.append(b"")

    def _durable(self) -> None:
        if self.undurable:
            upto = self.rng.randrange(len(self.undurable))
            zxid = self.undurable[upto]
            del self.undurable[: upto + 1]
            self._perform(self.core.step(Durable(zxid), self.now_ms))

    def _time(self) -> None:
        self.now_ms += self.rng.choice((1, 100, 3_000))
        deadline_ms = self.core.deadline_ms()
        if deadline_ms is not None and deadline_ms <= self.now_ms:
            self._perform(self.core.step(TimerFired(self._wall_ms()), self.now_ms))

    # ---- clients -------------------------------------------------------------------------------

    def _request(self) -> None:
        client = self.rng.choice(self.clients)
        if client.connecting is not None:
            return
        if client.connection is None:
            self._connect(client)
            return
        for _ in range(self.rng.choice((1, 1, 2, 5))):
            self._send(client, *client.workload.operation())
        if self.rng.random() < 0.04:
            self._send(client, "close", ())

    def _connect(self, client: Client) -> None:
        self.connection_count += 1
        self.now += 1
        client.decoder = JuteDecoder(1 << 20, memoryview(bytearray(1 << 16)))
        client.connection = Connection(
            JuteCodec(client.decoder), "127.0.0.1:1", client, (("ip", "127.0.0.1"),)
        )
        client.received.clear()
        client.unheard.clear()
        client.last_xid = self.connection_count * XIDS_OF_A_CONNECTION
        session_id, password = client.session
        seen = client.tape.last_zxid if session_id else 0
        client.connecting = self.connection_count, self.now, seen
        self._bytes(
            client,
            jute.encode_connect(seen, TIMEOUT_MS, session_id, password, read_only=False),
        )

    def _send(self, client: Client, name: str, arguments: tuple[object, ...]) -> None:
        if client.connection is None:
            return
        self.now += 1
        if name in jute.XIDS:
            xid = jute.XIDS[name]
        else:
            client.last_xid += 1
            xid = client.last_xid
        client.tape.sent(name, arguments, xid, self.now)
        self._bytes(client, jute.encode_request(name, xid, arguments))

    def _bytes(self, client: Client, data: bytes) -> None:
        assert client.decoder is not None and client.connection is not None
        buffer = client.decoder.get_buffer()
        buffer[: len(data)] = data
        requests = client.decoder.buffer_updated(len(data))
        event = Received(client.connection, requests, self._wall_ms())
        self._perform(self.core.step(event, self.now_ms))

    def _cut(self) -> None:
        client = self.rng.choice(self.clients)
        connection = client.connection
        if connection is None or client.connecting is not None:
            return
        for _ in range(self.rng.randrange(3)):
            self._hear_one(client)
        if client.connection is connection:
            self._lose(client)

    def _lose(self, client: Client) -> None:
        connection, client.connection = client.connection, None
        assert connection is not None
        client.tape.cut()
        client.unheard.clear()
        client.received.clear()
        self._perform(self.core.step(ConnectionLost(connection), self.now_ms))

    def _hear(self) -> None:
        self._hear_one(self.rng.choice(self.clients))

    def _hear_one(self, client: Client) -> None:
        """Read the next piece that the server has sent."""
        if not client.unheard:
            return
        self.now += 1
        piece = client.unheard.pop(0)
        if not piece:
            self._lose(client)
            return
        client.received += piece
        while len(client.received) >= 4:
            size = int.from_bytes(client.received[:4], "big")
            if len(client.received) < 4 + size:
                break
            body = bytes(client.received[4 : 4 + size])
            del client.received[: 4 + size]
            self._frame(client, body)

    def _frame(self, client: Client, body: bytes) -> None:
        tape = client.tape
        if client.connecting is not None:
            connection, sent, seen = client.connecting
            client.connecting = None
            answer = jute.decode_connected(body)
            asked, _ = client.session
            if answer.timeout_ms <= 0:
                tape.opened(connection, "expired", asked, sent, self.now, seen)
                client.session = (0, bytes(16))
                return
            assert answer.password is not None
            client.session = answer.session_id, answer.password
            outcome = "attached" if asked else "opened"
            tape.opened(connection, outcome, answer.session_id, sent, self.now, seen)
            if asked and self.rng.random() < 0.7:
                self._send(client, *client.workload.set_watches(tape.last_zxid))
        elif jute.is_event(body):
            tape.heard(jute.decode_event(body), self.now)
        else:
            call = tape.heard(jute.decode_reply(tape.due[0].name, body), self.now)
            if call is not None and call.name == "close":
                client.session = (0, bytes(16))

    def _settle(self, client: Client) -> None:
        """Until the client has heard everything; with a connection."""
        while client.connection is None or client.tape.due or client.connecting or client.unheard:
            if client.connection is None:
                self._connect(client)
            self._durable()
            self._hear_one(client)
