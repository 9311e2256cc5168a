"""One client connection as the core sees it: its session, its order, what it still waits for.

Replies leave in the order of the requests. A write is answered when its Txn is applied; a read is
answered at once unless writes of the same connection are outstanding, then it waits behind them
(ZooKeeper's FIFO promise, `CommitProcessor`). Owns no socket: `link` is the shell's.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from duolog_protocol.zk_codec import ZnodeView

    from .sasl_digest import DigestExchange
    from .session_tracker import Session


class Codec(Protocol):
    """How replies go to one kind of client; its decoder has made the requests."""

    known_peer: bool
    """The client has a session: larger requests may be decoded."""

    def append_data(
        self, out: list[bytes], correlation_id: int, zxid: int, node: ZnodeView
    ) -> None:
        """Add the reply that shows a node's data and Stat."""

    def append_stat(
        self, out: list[bytes], correlation_id: int, zxid: int, node: ZnodeView
    ) -> None:
        """Add the reply that shows a node's Stat."""

    def empty(self, correlation_id: int, zxid: int) -> bytes:
        """A reply without fields."""

    def reply(self, api_key: int, correlation_id: int, zxid: int, message: Any) -> bytes:
        """Any reply without error."""

    def error(self, correlation_id: int, code: int, zxid: int, message: str = "") -> bytes:
        """A reply with an error."""

    def event(self, zxid: int, event_type: int, path: str) -> bytes:
        """A watch event."""


class Connection:
    """State of one connection; made by the shell, changed by the core only."""

    __slots__ = (
        "backlog_bytes",
        "barrier_count",
        "closed",
        "codec",
        "completed",
        "event_count",
        "identities",
        "last_request_taken",
        "link",
        "out",
        "paused",
        "peer",
        "sasl",
        "session",
        "stats",
        "submitted",
        "waiting",
        "waiting_bytes",
        "waiting_count",
        "watched",
    )

    def __init__(
        self,
        codec: Codec,
        peer: str,
        link: Any = None,
        identities: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.codec = codec
        self.peer = peer
        """Address of the other end, for logs."""
        self.link = link
        """The shell's handle; opaque here."""
        self.identities = identities
        """Who the client is: (scheme, id) of its address, certificate and credentials."""
        self.sasl: DigestExchange | None = None
        """Its SASL exchange, once it began one: a connection has one."""
        self.session: Session | None = None
        self.out: list[bytes] = []
        """Pieces of this step, in the order in which they must leave."""
        self.submitted = 0
        """Writes and syncs of this connection that were ever taken."""
        self.completed = 0
        """Those of them that were answered; completed <= submitted."""
        self.waiting: deque[tuple[int, Any]] = deque()
        """What waits for its turn: see `turns`."""
        self.waiting_bytes = 0
        """Data of the writes in it."""
        self.waiting_count = 0
        """Requests in it."""
        self.barrier_count = 0
        """Requests in `waiting` that no write may overtake."""
        self.backlog_bytes = 0
        """Long replies that were sent since the socket was last seen to be drained."""
        self.watched: dict[tuple[int, str], None] = {}
        """The watches it has: (kind, path)."""
        self.paused = False
        """It has too much outstanding and is not read."""
        self.last_request_taken = False
        """After a CloseSession or a request that cannot be trusted, nothing more is taken."""
        self.event_count = 0
        """Watch events it was ever told."""
        self.stats: Any = None
        """The shell's numbers about it; opaque here."""
        self.closed = False
        """It ended, or was told to: nothing it sends counts any more."""

    def outstanding_count(self) -> int:
        """Requests that were taken and not answered."""
        return self.submitted - self.completed + self.waiting_count

    def __repr__(self) -> str:
        session_id = self.session.session_id if self.session is not None else 0
        return f"<Connection {self.peer} session {session_id:#x}>"
