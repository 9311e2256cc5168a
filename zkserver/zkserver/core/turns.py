"""The order of one connection's requests and answers.

A client gets its answers in the order of its requests (ZooKeeper's FIFO promise). Writes are logged
as they come; a read waits until the writes before it are answered, and what has an effect on what
comes behind it (a session's end, for one) until everything before it is. Owns who waits, for what,
and the serving of what waits; who answers is the core's.

    waiting = (ordinal, run of reads | request)*    its turn comes once `completed` is the ordinal
    reads, ready answers                            nothing behind them depends on them
    the others are barriers                         while one waits, writes wait behind it, too

Reads that wait for the same write wait as one run, and are answered as one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from duolog_protocol import zk_messages as zk
from duolog_protocol.zk_codec import REFUSED

from .connection import Connection
from .events import Request
from .flow import Flow
from .reads import Reads

ANSWERED: Final = -2
"""Api key of an answer that is ready, its pieces, and waits for its turn."""

Take = Callable[[Connection, Request], None]


class Turns:
    """Lets requests wait, and serves them when their turn has come."""

    def __init__(self, reads: Reads, flow: Flow, take: Take, take_rare: Take) -> None:
        self._reads = reads
        self._flow = flow
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
        waiting = connection.waiting
        if self._reads.knows(request[0]):
            self.add_reads(connection, [request])
        else:
            waiting.append((connection.submitted, request))
            connection.waiting_count += 1
            size = _data_bytes(request)
            if size:
                connection.waiting_bytes += size
                self._flow.waiting_bytes += size
            if not _is_plain(request):
                connection.barrier_count += 1

    def add_reads(self, connection: Connection, run: list[Request]) -> None:
        """As `add`, for reads that came one after another."""
        waiting, ordinal = connection.waiting, connection.submitted
        connection.waiting_count += len(run)
        if waiting:
            last_ordinal, last = waiting[-1]
            if last_ordinal == ordinal and type(last) is list:
                last += run
                return
        waiting.append((ordinal, run))

    def serve(self, connection: Connection, *, forced: bool = False) -> None:
        """Take the requests whose turn has come, as far as the socket takes the replies.

        `forced` does not wait for the socket: a write of the connection is about to be applied,
        and what was asked before it must not see it.
        """
        waiting, reads = connection.waiting, self._reads
        while waiting and waiting[0][0] <= connection.completed:
            if connection.backlog_bytes >= reads.max_backlog_bytes and not forced:
                return
            ordinal, found = waiting.popleft()
            if type(found) is list:
                served = reads.serve_run(connection, found, forced=forced)
                connection.waiting_count -= served
                if served < len(found):
                    waiting.appendleft((ordinal, found[served:]))
                    return
            elif _is_plain(found):
                connection.waiting_count -= 1
                self._take_rare(connection, found)
            else:
                self._retake(connection, found)
                return

    def _retake(self, connection: Connection, request: Request) -> None:
        """A barrier falls: take it, then everything behind it anew."""
        rest = [request]
        for _, found in connection.waiting:
            if type(found) is list:
                rest += found
            else:
                rest.append(found)
        self.forget(connection)
        for each in rest:
            self._take(connection, each)
            if connection.last_request_taken:
                return

    def forget(self, connection: Connection) -> None:
        """Nothing waits any more."""
        connection.waiting.clear()
        self._flow.waiting_bytes -= connection.waiting_bytes
        connection.waiting_bytes = connection.waiting_count = connection.barrier_count = 0


def _is_plain(request: Request) -> bool:
    api_key, _, message = request
    if api_key == REFUSED:
        return not message.closes
    return api_key == ANSWERED


def _data_bytes(request: Request) -> int:
    """The data that a write carries, which it keeps in memory while it waits."""
    api_key, _, message = request
    if api_key in _DATA_SECOND:
        return len(message[1] or b"")
    if api_key == zk.MULTI.key:
        return sum(len(op.data or b"") for op in message.ops)
    return 0


_DATA_SECOND: Final = frozenset({zk.SET_DATA.key, zk.CREATE.key, zk.CREATE2_KEY})
