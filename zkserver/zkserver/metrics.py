"""zkserver's metrics, with ZooKeeper's names: for Prometheus, `mntr` and `/commands/monitor`.

Owns names and help texts; values are plain ints that others count, read when they are asked for.
Counters keep ZooKeeper's names, which do not end in `_total`; Prometheus is told "untyped" for
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from duolog_protocol.types import EventType
from duolog_runtime.heap import resident_bytes
from duolog_runtime.metrics_http import MetricRow, SummaryValue

from .core.tally import Tally
from .server.stats import Summary
from .server.view import max_descriptors, open_descriptors

if TYPE_CHECKING:
    from .server.view import ServerView

PROMETHEUS_QUANTILES: Final = (0.5, 0.95, 0.99)
_WATCH_EVENTS: Final = {
    EventType.CREATED: "created",
    EventType.DELETED: "deleted",
    EventType.CHANGED: "changed",
    EventType.CHILD: "children",
}


class Metric(NamedTuple):
    """One number, or a tally of many."""

    name: str
    help: str
    value: int | float | Tally
    is_counter: bool = False


def metrics(view: ServerView) -> Iterator[Metric]:
    """All metrics at this moment."""
    yield from _ensemble(view)
    yield from _server(view)
    yield from _requests(view)
    yield from _disk(view)
    yield from _watches(view)


def _ensemble(view: ServerView) -> Iterator[Metric]:
    """Of a member only."""
    member = view.member
    if member is None:
        return
    yield Metric("epoch", "Epoch of the leader; 0: there is none.", member.epoch)
    yield Metric("leader_id", "Server id of the leader; 0: there is none.", member.leader_id)
    if member.role == "leader":
        yield Metric("learners", "Servers connected to this leader.", member.learners)
        yield Metric("synced_followers", "Those that vote and are synced.", member.synced_followers)
        yield Metric("synced_observers", "Synced, without a vote.", member.synced_observers)


def _server(view: ServerView) -> Iterator[Metric]:
    status, stats = view.status, view.stats
    yield Metric("uptime", "Time since the start (ms).", view.uptime_ms)
    yield Metric("znode_count", "Znodes, built-in ones included.", status.node_count)
    yield Metric("ephemerals_count", "Ephemeral znodes.", status.ephemerals)
    yield Metric("watch_count", "Watches of all kinds.", status.watch_count)
    yield Metric("approximate_data_size", "Paths and data of all znodes.", status.data_bytes)
    yield Metric("global_sessions", "Sessions.", status.sessions)
    yield Metric("local_sessions", "Sessions known to this server only: none.", 0)
    yield Metric("num_alive_connections", "Open connections.", view.connection_count)
    yield Metric("open_file_descriptor_count", "Open file descriptors.", open_descriptors())
    yield Metric("max_file_descriptor_count", "Most of them.", max_descriptors())
    yield Metric("process_resident_memory_bytes", "Resident memory.", resident_bytes())
    handshakes = view.outstanding_handshakes
    yield Metric("outstanding_tls_handshake", "TLS handshakes that are not over.", handshakes)
    yield Metric("last_processed_zxid", "The zxid that the tree stands at.", status.zxid)
    for name, text, value in (
        ("auth_failed_count", "Credentials that proved nothing.", view.views.auth_failed_count),
        ("connection_request_count", "Connections that got a session.", stats.connections_attached),
        ("connection_rejected", "Connections over a limit on them.", stats.connections_rejected),
        ("connection_drop_count", "Connections that came too fast.", stats.connections_throttled),
        (
            "sessionless_connections_expired",
            "Connections closed because no session came in time.",
            stats.sessionless_expired,
        ),
    ):
        yield Metric(name, text, value, is_counter=True)


def _requests(view: ServerView) -> Iterator[Metric]:
    stats = view.stats
    yield Metric("outstanding_requests", "Requests not answered yet.", view.status.outstanding)
    yield Metric("avg_latency", "Mean time of a request (ms).", stats.latency.average)
    yield Metric("min_latency", "Shortest time of a request (ms).", stats.latency.min)
    yield Metric("max_latency", "Longest time of a request (ms).", stats.latency.max)
    for name, text, value in (
        ("packets_received", "Requests received.", stats.packets_received),
        ("packets_sent", "Replies and watch events sent.", stats.packets_sent),
        ("bytes_received_count", "Bytes received from clients.", view.bytes_received),
        ("response_bytes", "Bytes sent to clients.", view.bytes_sent),
    ):
        yield Metric(name, text, value, is_counter=True)
    yield Metric("readlatency", "Time of requests without writes (ms).", stats.read_latency)
    yield Metric("updatelatency", "Time of writes, and what came with them.", stats.update_latency)


def _disk(view: ServerView) -> Iterator[Metric]:
    disk = view.disk_stats
    for name, text, value in (
        ("sync_processor_request_queued", "Records given to the log.", disk.records),
        (
            "fsync_threshold_exceed_count",
            "Groups written and synced slower than the threshold.",
            disk.slow_fsyncs,
        ),
    ):
        yield Metric(name, text, value, is_counter=True)
    for name, text, tally in (
        (
            "fsynctime",
            "Time to write a group to the log and sync it (ms), without what is done meanwhile.",
            disk.fsync_time,
        ),
        ("snapshottime", "Time from beginning a snapshot to its end (ms).", disk.snapshot_time),
        ("sync_processor_batch_size", "Records that one sync covers.", disk.batch_size),
        ("sync_processor_queue_size", "Records waiting as a group is taken.", disk.queue_size),
        ("sync_processor_queue_time_ms", "Time in that queue.", disk.queue_time),
        (
            "sync_processor_queue_flush_time_ms",
            "Time to write and sync, with what is done meanwhile.",
            disk.flush_time,
        ),
        (
            "sync_processor_queue_and_flush_time_ms",
            "Time from the queue until durable.",
            disk.queue_and_flush_time,
        ),
        ("dbinittime", "Time of recovery (ms).", disk.init_time),
        ("startup_snap_load_time", "Time to load the snapshot (ms).", disk.snapshot_load_time),
        ("startup_txns_load_time", "Time to replay the log (ms).", disk.log_load_time),
        ("startup_txns_loaded", "Records replayed.", disk.records_loaded),
    ):
        yield Metric(name, text, tally)


def _watches(view: ServerView) -> Iterator[Metric]:
    fired = view.views.fired
    for event_type, name in _WATCH_EVENTS.items():
        text = f"Connections told of one event: {name}."
        yield Metric(f"node_{name}_watch_count", text, fired[event_type])


def collect(view: ServerView) -> Iterator[MetricRow]:
    """The metrics as rows of an exposition."""
    for name, text, value, is_counter in metrics(view):
        if isinstance(value, Tally):
            yield name, text, "summary", [({}, _summary(value))]
        else:
            yield name, text, "unknown" if is_counter else "gauge", [({}, value)]


def _summary(tally: Tally) -> SummaryValue:
    quantiles = tally.quantiles() if isinstance(tally, Summary) else {}
    shown = {each: float(quantiles[each]) for each in PROMETHEUS_QUANTILES if each in quantiles}
    return SummaryValue(tally.count, tally.total, shown)


def monitor(view: ServerView) -> dict[str, int | float | str]:
    """The metrics as `mntr` prints them, without its prefix `zk_`."""
    flat: dict[str, int | float | str] = {"version": view.version, "server_state": view.mode}
    member = view.member
    if member is not None:
        flat |= {
            "last_zxid": f"{member.last_zxid:#x}",
            "last_durable_zxid": f"{member.last_durable_zxid:#x}",
            "last_committed_zxid": f"{member.last_committed_zxid:#x}",
        }
    for name, _, value, _ in metrics(view):
        if not isinstance(value, Tally):
            flat[name] = value
            continue
        flat[f"avg_{name}"] = value.average
        flat[f"min_{name}"] = value.min
        flat[f"max_{name}"] = value.max
        flat[f"cnt_{name}"] = value.count
        flat[f"sum_{name}"] = value.total
        if isinstance(value, Summary):
            for quantile, each in value.quantiles().items():
                flat[f"p{str(quantile)[2:].ljust(2, '0')}_{name}"] = each
    return flat
