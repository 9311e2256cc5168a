"""Back-pressure: whose socket is not read because too much is outstanding.

Owns the limits on what was taken and not yet answered, of a connection and in total, and who is
paused for them. Reading goes on at half of every limit, so that it does not flutter. Source:
ZooKeeper `globalOutstandingLimit`; reliability.md 11.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from .config import CoreConfig
from .connection import Connection
from .proposals import Proposals


class Flow:
    """The connections that are not read for now."""

    def __init__(self, config: CoreConfig, proposals: Proposals) -> None:
        self._config = config
        self._proposals = proposals
        self.paused: Final[dict[Connection, None]] = {}
        """Connections that are not read, in the order in which they were paused; changed here only.
        """
        self.waiting_bytes = 0
        """Data of the writes that wait behind a barrier, all connections together."""
        self.forwarded_count = 0
        """Requests that were forwarded to the leader and are not answered."""
        self.forwarded_bytes = 0
        """As they are forwarded."""

    def must_pause(self, connection: Connection) -> bool:
        """Whether to stop reading a connection now; it counts as paused then."""
        config = self._config
        if (
            connection.outstanding_count() < config.max_outstanding_per_connection
            and connection.waiting_bytes < config.max_waiting_bytes_per_connection
            and not self._is_loaded(1)
        ):
            return False
        if connection.paused or connection.closed:
            return False
        connection.paused = True
        self.paused[connection] = None
        return True

    def resumed(self) -> Iterator[Connection]:
        """Connections to read again; they no longer count as paused."""
        if self._is_loaded(2):
            return
        config = self._config
        for connection in list(self.paused):
            if (
                2 * connection.outstanding_count() < config.max_outstanding_per_connection
                and 2 * connection.waiting_bytes < config.max_waiting_bytes_per_connection
            ):
                connection.paused = False
                del self.paused[connection]
                yield connection

    def unheard(self, max_backlog_bytes: int) -> Iterator[Connection]:
        """Connections that are paused for our own load, not because they do not read."""
        for connection in self.paused:
            if connection.backlog_bytes < max_backlog_bytes:
                yield connection

    def forget(self, connection: Connection) -> None:
        """The connection has ended."""
        self.paused.pop(connection, None)

    def clear(self) -> None:
        """No connection is left, and nothing is outstanding."""
        self.paused.clear()
        self.waiting_bytes = self.forwarded_count = self.forwarded_bytes = 0

    def _is_loaded(self, share: int) -> bool:
        """Whether as much is outstanding as the limits allow, divided by `share`."""
        config = self._config
        return (
            share * (self._proposals.count + self.forwarded_count)
            >= config.max_outstanding_requests
            or share * (self._proposals.bytes_count + self.waiting_bytes + self.forwarded_bytes)
            >= config.max_outstanding_bytes
        )
