"""The order of one connection's requests and answers.

A client gets its answers in the order of its requests (ZooKeeper's FIFO promise). Writes are logged
as they come; a read waits until the writes before it are answered, and what has an effect on what
comes behind it (a session's end, for one) until everything before it is. Owns who waits, for what,
and the serving of what waits; who answers is the core's.

    waiting = (ordinal, request)*      answered once `completed` has reached the ordinal
    plain requests                     reads and ready answers: nothing behind them depends on them
    the others are barriers            while one waits, writes wait behind it, too
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from duolog_protocol.zk_codec import REFUSED

from .connection import Connection
from .events import Request
from .reads import Reads

ANSWERED: Final = -2
"""Api key of an answer that is ready, its pieces, and waits for its turn."""

Take = Callable[[Connection, Request], None]


class Turns:
    """Lets requests wait, and serves them when their turn has come."""

    def __init__(self, reads: Reads, take: Take, take_rare: Take) -> None:
        self._reads = reads
        self._take = take
        self._take_rare = take_rare

    def must_wait(self, connection: Connection) -> bool:
        """Whether something before it, or the socket, holds up a request that comes now."""
        return (
            bool(connection.waiting)
            or connection.submitted != connection.completed
            or connection.backlog_bytes >= self._reads.max_backlog_bytes
        )

    def add(self, connection: Connection, request: Request) -> None:
        """Let a request wait behind everything that the connection asked before."""
        connection.waiting.append((connection.submitted, request))
        if not self._is_plain(request):
            connection.barrier_count += 1

    def serve(self, connection: Connection) -> None:
        """Take the requests whose turn has come, as far as the socket takes the replies."""
        waiting, reads = connection.waiting, self._reads
        while waiting and waiting[0][0] <= connection.completed:
            if connection.backlog_bytes >= reads.max_backlog_bytes:
                return
            _, request = waiting.popleft()
            if not self._is_plain(request):
                self._retake(connection, request)
                return
            if reads.knows(request[0]):
                reads.serve(connection, request)
            else:
                self._take_rare(connection, request)

    def hold_answer(self, connection: Connection, first_piece: int) -> None:
        """A write was answered by `out` from `first_piece` on; it is about to be completed.

        Where reads before it still wait for the socket, its answer waits behind them.
        """
        out, waiting = connection.out, connection.waiting
        if not waiting or waiting[0][0] > connection.completed:
            return
        answer = (ANSWERED, 0, out[first_piece:])
        del out[first_piece:]
        ordinal = connection.completed + 1
        at = next((at for at, each in enumerate(waiting) if each[0] >= ordinal), len(waiting))
        waiting.insert(at, (connection.completed, answer))

    def _retake(self, connection: Connection, request: Request) -> None:
        """A barrier falls: take it, then everything behind it anew."""
        rest = [each for _, each in connection.waiting]
        connection.waiting.clear()
        connection.barrier_count = 0
        for each in (request, *rest):
            self._take(connection, each)
            if connection.last_request_taken:
                return

    def _is_plain(self, request: Request) -> bool:
        api_key, _, message = request
        if api_key == REFUSED:
            return not message.closes
        return api_key == ANSWERED or self._reads.knows(api_key)
