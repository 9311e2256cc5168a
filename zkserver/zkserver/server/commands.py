"""What `/commands/<name>` answers: ZooKeeper's AdminServer, its names and its JSON keys.

Owns the values of each command; lists are bounded by `max_listed`, and one that ends early has
`"truncated": true` beside it. A command that does something costly needs POST and a setting of
its own (CVE-2025-58457); none streams, restores or changes data. Source: Apache ZooKeeper 3.8.0,
asked side by side; `snapshot` after 3.9, without its stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from itertools import islice
from typing import Any, Final, NamedTuple

from duolog_runtime.connection import ServerLink
from zkserver.core.connection import Connection
from zkserver.core.views import Listing
from zkserver.metrics import monitor

from .stats import ConnectionStats
from .view import LISTEN_BACKLOG, ServerView, is_secure
from .words import OPERATIONS

Values = dict[str, Any]
Answer = Callable[[ServerView, Mapping[str, str]], Values]


class CommandRefused(Exception):
    """The command is known and was not carried out."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class Command(NamedTuple):
    """One command: its name, then those of the four-letter words that mean the same."""

    names: tuple[str, ...]
    answer: Answer
    methods: tuple[str, ...] = ("GET",)
    measured: bool = False
    """It shows sizes of files: the disk is asked first."""


def configuration(view: ServerView, _query: Mapping[str, str]) -> Values:
    """The settings: ZooKeeper's keys first, then all by their own names."""
    config, core = view.config, view.core_config
    return {
        "client_port": view.port,
        **({} if view.tls_port is None else {"secure_client_port": view.tls_port}),
        "data_dir": config.data_directory,
        "data_log_dir": config.data_directory,
        "tick_time": core.tick_ms,
        "max_client_cnxns": config.max_connections_per_address,
        "min_session_timeout": core.session_timeout_low_ms,
        "max_session_timeout": core.session_timeout_high_ms,
        "server_id": core.server_id,
        "client_port_listen_backlog": LISTEN_BACKLOG,
        "settings": view.settings(),
    }


def connections(view: ServerView, _query: Mapping[str, str]) -> Values:
    """Every connection with all its numbers."""
    return _connections(view, full=True)


def connection_stat_reset(view: ServerView, _query: Mapping[str, str]) -> Values:
    """Reset the numbers of the connections."""
    view.reset_connection_stats()
    return {}


def dirs(view: ServerView, _query: Mapping[str, str]) -> Values:
    """Sizes of snapshots and logs."""
    return {"datadir_size": view.sizes.snapshots, "logdir_size": view.sizes.logs}


def dump(view: ServerView, _query: Mapping[str, str]) -> Values:
    """Sessions by expiry (ms, monotonic) and their ephemerals."""
    deadlines = view.views.session_deadlines(view.limit)
    ephemerals = view.views.ephemerals(view.limit)
    values: Values = {
        "expiry_time_to_session_ids": {str(key): ids for key, ids in deadlines.groups},
        "session_id_to_ephemeral_paths": {str(key): paths for key, paths in ephemerals.groups},
    }
    return values | _truncated(deadlines.complete and ephemerals.complete)


def environment(view: ServerView, _query: Mapping[str, str]) -> Values:
    """The machine and the interpreter."""
    return {**view.environment()}


def get_trace_mask(view: ServerView, _query: Mapping[str, str]) -> Values:
    """The trace mask."""
    return {"tracemask": view.trace_mask}


def set_trace_mask(view: ServerView, query: Mapping[str, str]) -> Values:
    """Set the trace mask to the parameter `traceMask`."""
    try:
        mask = int(query["traceMask"])
    except (KeyError, ValueError):
        mask = 1 << 64
    if not -(1 << 63) <= mask < 1 << 63:
        text = "setTraceMask requires long traceMask argument"
        raise CommandRefused(HTTPStatus.BAD_REQUEST, text)
    view.trace_mask = mask
    return {"tracemask": mask}


def hash_(_view: ServerView, _query: Mapping[str, str]) -> Values:
    """The digests of the tree: none are kept."""
    return {"digests": []}


def initial_configuration(view: ServerView, _query: Mapping[str, str]) -> Values:
    """The settings as lines of text."""
    lines = [f"{name}={value}\n" for name, value in view.settings().items()]
    return {"initial_configuration": "".join(lines)}


def is_read_only(view: ServerView, _query: Mapping[str, str]) -> Values:
    """Whoever serves takes writes, unless there is no leader."""
    return {"read_only": view.mode == "read-only"}


def last_snapshot(view: ServerView, _query: Mapping[str, str]) -> Values:
    """The newest snapshot: its zxid in hex, and when it was finished (s); -1: before the start."""
    disk = view.disk_stats
    taken_s = disk.last_snapshot_wall_ms // 1000 if disk.last_snapshot_wall_ms else -1
    return {"zxid": f"{disk.last_snapshot_zxid:x}", "timestamp": taken_s}


def leader(view: ServerView, _query: Mapping[str, str]) -> Values:
    """Who leads; an ensemble of one leads itself."""
    member, own_id = view.member, view.core_config.server_id
    if member is None:
        return {"is_leader": True, "leader_id": own_id, "leader_ip": view.config.host}
    hosts = {each.server_id: each.host for each in view.members}
    return {
        "is_leader": member.leader_id == own_id,
        "leader_id": member.leader_id,
        "leader_ip": hosts.get(member.leader_id, ""),
    }


def monitor_(view: ServerView, _query: Mapping[str, str]) -> Values:
    """The metrics."""
    return {**monitor(view)}


def observers(view: ServerView, _query: Mapping[str, str]) -> Values:
    """How many observers follow; a standalone server has none."""
    member = view.member
    return {"synced_observers": 0 if member is None else member.synced_observers, "observers": []}


def observer_connection_stat_reset(_view: ServerView, _query: Mapping[str, str]) -> Values:
    """Nothing: of observers nothing is counted that could be reset."""
    return {}


def ruok(_view: ServerView, _query: Mapping[str, str]) -> Values:
    """The process lives: the answer itself is the news."""
    return {}


def server_stats(view: ServerView, _query: Mapping[str, str]) -> Values:
    """The server at a glance."""
    status, stats, latency = view.status, view.stats, view.stats.latency
    buffers = {"last_buffer_size": -1, "min_buffer_size": -1, "max_buffer_size": -1}
    return {
        "version": view.version,
        "read_only": view.mode == "read-only",
        "server_stats": {
            "packets_sent": stats.packets_sent,
            "packets_received": stats.packets_received,
            "fsync_threshold_exceed_count": view.disk_stats.slow_fsyncs,
            "client_response_stats": buffers,
            "data_dir_size": view.sizes.snapshots,
            "log_dir_size": view.sizes.logs,
            "provider_null": False,
            "server_state": view.mode,
            "last_processed_zxid": status.zxid,
            "outstanding_requests": status.outstanding,
            "avg_latency": latency.average,
            "max_latency": latency.max,
            "min_latency": latency.min,
            "num_alive_client_connections": view.connection_count,
            "uptime": view.uptime_ms,
            "auth_failed_count": view.views.auth_failed_count,
        },
        "client_response": buffers,
        "node_count": status.node_count,
    }


def stats_(view: ServerView, query: Mapping[str, str]) -> Values:
    """As `server_stats`, with the clients."""
    return server_stats(view, query) | _connections(view, full=False)


def stat_reset(view: ServerView, _query: Mapping[str, str]) -> Values:
    """Reset the server's numbers."""
    view.reset_server_stats()
    return {}


def snapshot(view: ServerView, _query: Mapping[str, str]) -> Values:
    """Take a snapshot in the data directory; `last_snapshot` tells when it is finished."""
    if not view.config.admin_snapshot:
        text = "snapshots on request are off: see the setting admin_snapshot"
        raise CommandRefused(HTTPStatus.FORBIDDEN, text)
    wait_ms = view.snapshot_wait_ms()
    if wait_ms > 0:
        text = f"a snapshot was asked for lately: wait {wait_ms} ms"
        raise CommandRefused(HTTPStatus.TOO_MANY_REQUESTS, text)
    zxid = view.begin_snapshot()
    if zxid is None:
        raise CommandRefused(HTTPStatus.CONFLICT, "a snapshot is being taken")
    return {"last_zxid": f"{zxid:#x}"}


def system_properties(view: ServerView, _query: Mapping[str, str]) -> Values:
    """The interpreter, and the settings under `zkserver.`; secrets are masked."""
    settings = {f"zkserver.{name}": str(value) for name, value in view.settings().items()}
    return {**view.environment(), **settings}


def voting_view(view: ServerView, _query: Mapping[str, str]) -> Values:
    """The participants; a standalone server votes with nobody."""
    voters = [each for each in view.members if each.is_voter]
    return {"current_config": {str(each.server_id): str(each) for each in voters}}


def watches(view: ServerView, _query: Mapping[str, str]) -> Values:
    """Watched paths by session."""
    listing = view.views.watches_by_session(view.limit)
    return {"session_id_to_watched_paths": _object(listing)} | _truncated(listing.complete)


def watches_by_path(view: ServerView, _query: Mapping[str, str]) -> Values:
    """Watching sessions by path."""
    listing = view.views.watches_by_path(view.limit)
    return {"path_to_session_ids": _object(listing)} | _truncated(listing.complete)


def watch_summary(view: ServerView, _query: Mapping[str, str]) -> Values:
    """How much is watched."""
    summary = view.views.watch_summary()
    return {
        "num_connections": summary.connections,
        "num_paths": summary.paths,
        "num_total_watches": summary.watches,
    }


def zabstate(view: ServerView, _query: Mapping[str, str]) -> Values:
    """Whether it votes, and the phase: election or broadcast; a standalone server has none."""
    member = view.member
    if member is None:
        return {"voting": False, "zabstate": ""}
    phase = "election" if member.role in ("looking", "read-only") else "broadcast"
    return {"voting": member.role in ("leader", "follower"), "zabstate": phase}


COMMANDS: Final = (
    Command(("configuration", "conf", "config"), configuration),
    Command(("connection_stat_reset", "crst"), connection_stat_reset, ("GET", "POST")),
    Command(("connections", "cons"), connections),
    Command(("dirs",), dirs, measured=True),
    Command(("dump",), dump),
    Command(("environment", "env", "envi"), environment),
    Command(("get_trace_mask", "gtmk"), get_trace_mask),
    Command(("hash",), hash_),
    Command(("initial_configuration", "icfg"), initial_configuration),
    Command(("is_read_only", "isro"), is_read_only),
    Command(("last_snapshot", "lsnp"), last_snapshot),
    Command(("leader", "lead"), leader),
    Command(("monitor", "mntr"), monitor_),
    Command(
        ("observer_connection_stat_reset", "orst"), observer_connection_stat_reset, ("GET", "POST")
    ),
    Command(("observers", "obsr"), observers),
    Command(("ruok",), ruok),
    Command(("server_stats", "srvr"), server_stats, measured=True),
    Command(("set_trace_mask", "stmk"), set_trace_mask, ("GET", "POST")),
    Command(("snapshot", "snap"), snapshot, ("POST",)),
    Command(("stat_reset", "srst"), stat_reset, ("GET", "POST")),
    Command(("stats", "stat"), stats_, measured=True),
    Command(("system_properties", "sysp"), system_properties),
    Command(("voting_view",), voting_view),
    Command(("watch_summary", "wchs"), watch_summary),
    Command(("watches", "wchc"), watches),
    Command(("watches_by_path", "wchp"), watches_by_path),
    Command(("zabstate",), zabstate),
)
BY_NAME: Final = {name: command for command in COMMANDS for name in command.names}


def _connections(view: ServerView, *, full: bool) -> Values:
    plain: list[Values] = []
    secure: list[Values] = []
    for link, connection in islice(view.connections(), view.limit):
        shown = secure if is_secure(link) else plain
        shown.append(_connection(link, connection, full=full))
    values: Values = {"connections": plain, "secure_connections": secure}
    return values | _truncated(view.connection_count <= view.limit)


def _connection(link: ServerLink, connection: Connection, *, full: bool) -> Values:
    stats: ConnectionStats = connection.stats
    values: Values = {
        "remote_socket_address": link.peer,
        "interest_ops": int(link.is_reading),
        "outstanding_requests": connection.outstanding_count(),
        "packets_received": stats.packets_received,
        "packets_sent": stats.packets_sent,
    }
    session = connection.session
    if full and session is not None:
        values |= {
            "session_id": session.session_id,
            "last_operation": OPERATIONS.get(stats.last_operation, "NA"),
            "established": stats.established_wall_ms,
            "session_timeout": session.timeout_ms,
            "last_cxid": stats.last_cxid,
            "last_zxid": stats.last_zxid,
            "last_response_time": stats.last_response_ms,
            "last_latency": stats.last_latency,
            "min_latency": stats.latency.min,
            "avg_latency": int(stats.latency.average),
            "max_latency": stats.latency.max,
        }
    return values


def _object(listing: Listing[Any, Any]) -> Values:
    return {str(key): found for key, found in listing.groups}


def _truncated(complete: bool) -> Values:
    return {} if complete else {"truncated": True}
