"""The session of a coordination client: its deadlines, its hosts, its identity.

Pure; time comes in as `now_ms`.

    CONNECTING  -> CONNECTED   a server accepted the session
    CONNECTED   -> SUSPENDED   the connection ended, or the server was silent for 2/3 of the timeout
    SUSPENDED   -> CONNECTED   another connection was accepted with the same session
    SUSPENDED   -> LOST        a server said expired, or nobody was reached for 4/3 of the timeout
    LOST        -> CONNECTED   a new session was opened
    any         -> AUTH_FAILED the server refused a credential; nothing follows

Source: ZooKeeper `ClientCnxn`; the client's own verdict after 4/3 is ZOOKEEPER-4508; states as
kazoo names them.
"""

from __future__ import annotations

import random
from enum import Enum
from typing import Final, NamedTuple

from duolog_protocol.errors import ConfigError
from duolog_protocol.paths import path_problem
from duolog_protocol.zk_messages import PASSWORD_BYTES, ConnectRequest, ConnectResponse

from .backoff import Backoff

DEFAULT_PORT: Final = 2181
RECONNECT_FIRST_MS: Final = 10
RECONNECT_LAST_MS: Final = 1_000
STABLE_MS: Final = 1_000
"""A connection that lasted this long is replaced at once."""


class SessionState(Enum):
    """What the client knows of its session."""

    CONNECTED = "connected"
    SUSPENDED = "suspended"
    """The connection is lost, the session may live."""
    LOST = "lost"
    """There is no session: ephemeral znodes and watches are gone."""
    AUTH_FAILED = "auth_failed"
    """A credential was refused: the client is of no more use."""


class Hosts(NamedTuple):
    """Where the servers are, and below which path the client lives."""

    addresses: tuple[tuple[str, int], ...]
    chroot: str


def parse_hosts(text: str) -> Hosts:
    """`HOST[:PORT][,HOST[:PORT]...][/chroot]`. Raises ConfigError."""
    servers, slash, rest = text.partition("/")
    chroot = slash + rest.rstrip("/")
    problem = path_problem(chroot) if chroot else None
    if problem is not None:
        raise ConfigError("hosts", text, f"chroot: {problem}")
    addresses: list[tuple[str, int]] = []
    for each in servers.split(","):
        host, colon, port = each.strip().rpartition(":")
        if not colon or each.strip().endswith("]"):
            host, port = each.strip(), str(DEFAULT_PORT)
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise ConfigError("hosts", text, "must be HOST[:PORT][,HOST[:PORT]...][/chroot]")
        addresses.append((host, int(port)))
    return Hosts(tuple(addresses), "" if chroot == "/" else chroot)


class Session:
    """One client's session and its deadlines."""

    def __init__(
        self,
        hosts: Hosts,
        timeout_ms: int,
        rng: random.Random,
        client_id: tuple[int, bytes] | None = None,
    ) -> None:
        assert timeout_ms > 0, timeout_ms
        self.state = SessionState.LOST
        self.wanted_timeout_ms = timeout_ms
        self.timeout_ms = timeout_ms
        """As negotiated."""
        self.session_id, self.password = client_id or (0, bytes(PASSWORD_BYTES))
        self.last_zxid_seen = 0
        self.told_zxid = 0
        """Every watch event up to here has come: from here the server goes on after a reconnect.
        `told_zxid <= last_zxid_seen`."""
        self._addresses = list(hosts.addresses)
        rng.shuffle(self._addresses)
        self._next = 0
        self._failures = 0
        self._backoff = Backoff(RECONNECT_FIRST_MS, RECONNECT_LAST_MS, rng)
        self._connected_ms = 0
        self._short_lived = 0
        """Connections in a row that ended soon after they were accepted."""
        self._last_heard_ms = 0
        self._last_sent_ms = 0
        self._lost_at_ms: int | None = None
        """When a suspended session must be taken for lost."""

    # ---- connecting ----------------------------------------------------------------------------

    def next_address(self) -> tuple[str, int]:
        """The server to try now."""
        address = self._addresses[self._next % len(self._addresses)]
        self._next += 1
        return address

    def connect_timeout_ms(self) -> int:
        """How long one server may take to accept the session."""
        return max(self.timeout_ms // len(self._addresses), 100)

    def retry_delay_ms(self) -> int:
        """How long to wait after a failed attempt; none until every server was tried once."""
        self._failures += 1
        rounds = self._failures // len(self._addresses)
        return self._backoff.delay_ms(rounds) if rounds else 0

    def reconnect_delay_ms(self) -> int:
        """How long to wait after a connection has ended: not at all, unless it is getting usual.

        Two clients of one session would otherwise take it from each other without end.
        """
        again = self._short_lived - 1
        return self._backoff.delay_ms(again) if again > 0 else 0

    def connect_request(self) -> ConnectRequest:
        """What to ask a server for."""
        return ConnectRequest(
            self.last_zxid_seen, self.wanted_timeout_ms, self.session_id, self.password, False
        )

    def on_connected(self, response: ConnectResponse, now_ms: int) -> bool:
        """A server accepted; true when it is another session than before."""
        is_new = response.session_id != self.session_id
        self.session_id = response.session_id
        self.password = response.password
        self.timeout_ms = response.timeout_ms
        self._connected_ms = self._last_heard_ms = self._last_sent_ms = now_ms
        return is_new

    def on_usable(self) -> bool:
        """The watches are there again; true when the state is news."""
        was, self.state = self.state, SessionState.CONNECTED
        self._failures = 0
        self._lost_at_ms = None
        return was is not SessionState.CONNECTED

    def on_disconnected(self, now_ms: int) -> bool:
        """The connection ended; true when the session is suspended by it."""
        is_short = now_ms - self._connected_ms < STABLE_MS
        self._short_lived = self._short_lived + 1 if is_short else 0
        if self.state is not SessionState.CONNECTED:
            return False
        self.state = SessionState.SUSPENDED
        self._lost_at_ms = max(self._last_heard_ms + 4 * self.timeout_ms // 3, now_ms)
        return True

    def on_expired(self) -> bool:
        """The session is gone; true when that is news. The next connection opens another one."""
        was = self.state
        self.state = SessionState.LOST
        had_session = self.session_id != 0
        self.session_id, self.password = 0, bytes(PASSWORD_BYTES)
        self._lost_at_ms = None
        return was is not SessionState.LOST or had_session

    def on_auth_failed(self) -> bool:
        """A credential was refused; true when the state is news."""
        was, self.state = self.state, SessionState.AUTH_FAILED
        self.session_id, self.password = 0, bytes(PASSWORD_BYTES)
        self._lost_at_ms = None
        return was is not SessionState.AUTH_FAILED

    def is_overdue(self, now_ms: int) -> bool:
        """Whether a suspended session must be taken for lost by now."""
        return self._lost_at_ms is not None and now_ms >= self._lost_at_ms

    # ---- connected -----------------------------------------------------------------------------

    def on_heard(self, now_ms: int) -> None:
        """The server sent something."""
        self._last_heard_ms = now_ms

    def on_sent(self, now_ms: int) -> None:
        """We sent something."""
        self._last_sent_ms = now_ms

    def saw(self, zxid: int) -> None:
        """A reply shows the server's state up to here; the events before it have come."""
        if zxid > self.told_zxid:
            self.told_zxid = zxid
            self.last_zxid_seen = max(self.last_zxid_seen, zxid)

    def saw_event(self, zxid: int) -> None:
        """An event of this transaction came, in the order of zxids; more of it may follow."""
        self.last_zxid_seen = max(self.last_zxid_seen, zxid)
        self.told_zxid = max(self.told_zxid, zxid - 1)

    def saw_past_event(self, zxid: int) -> None:
        """An event came while the past is being told: others before it may be missing."""
        self.last_zxid_seen = max(self.last_zxid_seen, zxid)

    def must_ping(self, now_ms: int) -> bool:
        """Whether the server would not hear from us in time."""
        return now_ms - self._last_sent_ms >= self.timeout_ms // 3

    def is_silent(self, now_ms: int) -> bool:
        """Whether the server has been silent for so long that another one must be tried."""
        return now_ms - self._last_heard_ms >= 2 * self.timeout_ms // 3

    def next_look_ms(self) -> int:
        """When `must_ping` or `is_silent` may change."""
        return min(
            self._last_sent_ms + self.timeout_ms // 3,
            self._last_heard_ms + 2 * self.timeout_ms // 3,
        )
