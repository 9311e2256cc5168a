"""What the server counts for its operators: requests, latencies, the disk's times.

Plain integers, added to once for each batch: a read of a connection, a group that went to the
disk. Averages, quantiles and text are made when somebody asks. ZooKeeper's names: `ServerStats`,
`ServerMetrics`, and the numbers a `ServerCnxn` keeps.

The time of a request runs from the read that brought it to the moment its reply is written, in
whole ms. All requests of one read share their arrival.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from operator import add
from typing import Any, Final, NamedTuple

from zkserver.core.connection import Connection
from zkserver.core.tally import Tally

WINDOW: Final = 1024
"""Batches that quantiles are taken from: the latest ones."""
QUANTILES: Final = (0.5, 0.95, 0.99, 0.999)
NO_OPERATION: Final = 0
"""`last_operation` of a connection that asked for nothing since its numbers were reset."""


class Summary(Tally):
    """A tally that can also tell the quantiles of what came lately."""

    __slots__ = ("_window",)

    def __init__(self) -> None:
        super().__init__()
        self._window: deque[tuple[int, int]] = deque(maxlen=WINDOW)
        """The latest batches: (value, times)."""

    def add(self, value: int, times: int = 1) -> None:
        """`value` was seen, so many times."""
        # As in Tally, without the cost of a second call.
        self.max = max(self.max, value)
        if value < self.min or self.count == 0:
            self.min = value
        self.count += times
        self.total += value * times
        self._window.append((value, times))

    def add_all(self, values: Sequence[int]) -> None:
        """As `add`, for several values, at least one."""
        self.max = max(self.max, *values)
        self.min = min(values) if self.count == 0 else min(self.min, *values)
        self.count += len(values)
        self.total += sum(values)
        self._window.extend([(value, 1) for value in values[-WINDOW:]])

    def quantiles(self) -> Mapping[float, int]:
        """Quantile -> value over the window, each batch with its weight; 0 while it is empty."""
        ordered = sorted(self._window)
        total = sum(times for _, times in ordered)
        found = dict.fromkeys(QUANTILES, 0)
        below, waiting = 0, list(QUANTILES)
        for value, times in ordered:
            below += times
            while waiting and below >= waiting[0] * total:
                found[waiting.pop(0)] = value
        return found

    def clear(self) -> None:
        """Begin anew."""
        super().clear()
        self._window.clear()


class ServerStats:
    """Numbers of the whole server; `clear` is the word `srst`."""

    def __init__(self) -> None:
        self.packets_received = 0
        self.packets_sent = 0
        """Replies and watch events."""
        self.read_latency = Summary()
        """Of requests that needed no write, in ms."""
        self.update_latency = Summary()
        """Of requests that came together with writes, in ms."""
        self.bytes_received = 0
        """By connections that have ended; those that live are asked. As is `bytes_sent`."""
        self.bytes_sent = 0
        self.connections_attached = 0
        """Connections that got a session."""
        self.connections_rejected = 0
        """Connections refused for a limit on their number."""
        self.connections_throttled = 0
        """Connections refused because too many came in a short time."""
        self.sessionless_expired = 0
        """Connections closed because no session came in time."""

    @property
    def latency(self) -> Tally:
        """Of all requests, in ms."""
        return self.read_latency.plus(self.update_latency)

    def clear(self) -> None:
        """Begin anew."""
        for name, value in vars(self).items():
            if isinstance(value, Tally):
                value.clear()
            else:
                setattr(self, name, 0)


class WrittenGroup(NamedTuple):
    """A group that was written, and how long it took."""

    records: int
    waiting: int
    """Records that waited when it was taken, its own among them."""
    queue_ms: int
    """From the arrival of its first record until it was taken."""
    sync_ms: int
    """Its write and sync; in the loop without what the core did meanwhile."""
    flush_ms: int
    """From when it was taken until it was known to be durable."""


class DiskStats:
    """Times and sizes of the groups that go to the disk, and of snapshots, in ms."""

    def __init__(self) -> None:
        self._groups: list[WrittenGroup] = []
        """Those that are not in the summaries yet, at most `WINDOW`: counting them one by one is
        what a write in the loop would wait for."""
        self.fsync_time = Summary()
        self.batch_size = Summary()
        """Records of a group."""
        self.queue_size = Summary()
        """Records that wait when a group is taken."""
        self.queue_time = Summary()
        """From the arrival of a group's first record until the group is taken."""
        self.flush_time = Summary()
        """From there until it is durable."""
        self.queue_and_flush_time = Summary()
        self.records = 0
        self.slow_fsyncs = 0
        """Syncs that took longer than the warning's threshold."""
        self.snapshot_time = Summary()
        self.last_snapshot_zxid = 0
        self.last_snapshot_wall_ms = 0
        """When the last snapshot was finished; 0: none since the start."""
        self.init_time = Tally()
        """From opening the directory's files to a recovered state."""
        self.snapshot_load_time = Tally()
        self.log_load_time = Tally()
        self.records_loaded = Tally()

    def wrote(self, group: WrittenGroup) -> None:
        """A group is durable."""
        self._groups.append(group)
        if len(self._groups) == WINDOW:
            self.count_groups()

    def count_groups(self) -> None:
        """Bring the summaries up to date; to be called before they are read."""
        if not self._groups:
            return
        records, waiting, queue_ms, sync_ms, flush_ms = zip(*self._groups, strict=True)
        self._groups.clear()
        self.records += sum(records)
        self.batch_size.add_all(records)
        self.queue_size.add_all(waiting)
        self.queue_time.add_all(queue_ms)
        self.fsync_time.add_all(sync_ms)
        self.flush_time.add_all(flush_ms)
        self.queue_and_flush_time.add_all(list(map(add, queue_ms, flush_ms)))


class ConnectionStats:
    """Numbers of one connection; `clear` is the word `crst`."""

    __slots__ = (
        "_answered",
        "_arrivals",
        "_events",
        "_server",
        "_taken",
        "established_wall_ms",
        "last_cxid",
        "last_latency",
        "last_operation",
        "last_response_ms",
        "last_zxid",
        "latency",
        "packets_received",
        "packets_sent",
    )

    def __init__(self, server: ServerStats, established_wall_ms: int) -> None:
        self._server = server
        self.established_wall_ms = established_wall_ms
        self._taken = 0
        """Requests that ever came."""
        self._answered = 0
        """Those of them that are not outstanding any more."""
        self._events = 0
        """Of the connection's `event_count`, what was counted as sent."""
        self._arrivals: deque[tuple[int, int, int]] = deque()
        """Reads with unanswered requests: (`_taken` after it, ms, writes taken before it). One
        entry at least one request: bounded by what a connection may have outstanding."""
        self.latency = Tally()
        self.clear()

    def clear(self) -> None:
        """Begin anew, as a connection that has asked for nothing."""
        self.packets_received = 0
        self.packets_sent = 0
        self.last_operation = NO_OPERATION
        """Api key of the last request."""
        self.last_cxid = -1
        self.last_zxid = -1
        self.last_response_ms = 0
        """Monotonic, as in ZooKeeper."""
        self.last_latency = 0
        self.latency.clear()

    def took(
        self, connection: Connection, requests: list[tuple[int, int, Any]], now_ms: int
    ) -> None:
        """A read brought these requests; called before they are served."""
        count = len(requests)
        if count:
            self._taken += count
            self._arrivals.append((self._taken, now_ms, connection.submitted))
            self.packets_received += count
            self._server.packets_received += count
            self.last_operation, self.last_cxid, _ = requests[-1]

    def asked_a_word(self) -> None:
        """It is nobody's session: it sent a four-letter word."""
        self.packets_received += 1
        self._server.packets_received += 1

    def sent(self, connection: Connection, zxid: int, now_ms: int) -> None:
        """Something was written to the connection: settle what it answered."""
        events = connection.event_count - self._events
        self._events += events
        done = self._answered
        # `outstanding_count`, without the cost of a call.
        outstanding = connection.submitted - connection.completed + connection.waiting_count
        answered = self._taken - outstanding
        packets = events + answered - done
        self.packets_sent += packets
        server = self._server
        server.packets_sent += packets
        if answered <= done:
            return
        self._answered = answered
        self.last_zxid = zxid
        self.last_response_ms = now_ms
        arrivals, submitted = self._arrivals, connection.submitted
        while done < answered:
            end, since_ms, submitted_before = arrivals[0]
            if end <= answered:
                arrivals.popleft()
            else:
                end = answered
            self.last_latency = elapsed_ms = now_ms - since_ms
            self.latency.add(elapsed_ms, end - done)
            if submitted == submitted_before:
                server.read_latency.add(elapsed_ms, end - done)
            else:
                server.update_latency.add(elapsed_ms, end - done)
            done = end
