"""The four-letter words: their texts, in the shapes that monitoring tools and kazoo parse.

Owns the texts and nothing else; which words are allowed is `admin`'s. Lists are bounded by
`max_listed` and say so where they end early. Shapes: Apache ZooKeeper 3.8.0, side by side with
`tests/integration/compare_words.py`; source of the words: `org.apache.zookeeper.server.command`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, NamedTuple

from duolog_runtime.connection import ServerLink
from zkserver.core.connection import Connection
from zkserver.core.views import Listing
from zkserver.metrics import monitor

from .stats import ConnectionStats
from .view import LISTEN_BACKLOG, ServerView, unsigned_hex

NOT_ALLOWED: Final = "{word} is not executed because it is not in the whitelist.\n"
NOT_SERVING: Final = "This ZooKeeper instance is not currently serving requests\n"
CUT_SHORT: Final = "(more is not shown)"


class Word(NamedTuple):
    """How one word is answered."""

    text: Callable[[ServerView, bytes], str]
    argument_bytes: int = 0
    measured: bool = False
    """It shows sizes of files: the disk is asked first."""
    always: bool = False
    """It is answered also while the server waits for its ensemble."""


def conf(view: ServerView, _argument: bytes) -> str:
    """The settings: ZooKeeper's names first, then all by their own names; then the members."""
    config, core, sizes = view.config, view.core_config, view.sizes
    rows: dict[str, object] = {
        "clientPort": view.port,
        "secureClientPort": -1 if view.tls_port is None else view.tls_port,
        "dataDir": config.data_directory,
        "dataDirSize": sizes.snapshots,
        "dataLogDir": config.data_directory,
        "dataLogSize": sizes.logs,
        "tickTime": core.tick_ms,
        "maxClientCnxns": config.max_connections_per_address,
        "minSessionTimeout": core.session_timeout_low_ms,
        "maxSessionTimeout": core.session_timeout_high_ms,
        "clientPortListenBacklog": LISTEN_BACKLOG,
        "serverId": core.server_id,
    }
    rows |= view.settings()
    text = _lines(f"{name}={_plain(value)}" for name, value in rows.items())
    members = view.members_shown
    return text + f"membership: \n{members}\n" if members else text


def cons(view: ServerView, _argument: bytes) -> str:
    """Every connection with all its numbers."""
    return _clients(view, full=True) + "\n"


def crst(view: ServerView, _argument: bytes) -> str:
    """Reset the numbers of the connections."""
    view.reset_connection_stats()
    return "Connection stats reset.\n"


def dirs(view: ServerView, _argument: bytes) -> str:
    """Sizes of snapshots and logs."""
    return f"datadir_size: {view.sizes.snapshots}\nlogdir_size: {view.sizes.logs}\n"


def dump(view: ServerView, _argument: bytes) -> str:
    """Sessions by expiry, their ephemerals, connections by expiry."""
    status = view.status
    deadlines = view.views.session_deadlines(view.limit)
    lines = ["SessionTracker dump:", f"Session Sets ({len(deadlines.groups)})/({status.sessions}):"]
    for expiry_ms, ids in deadlines.groups:
        lines.append(f"{len(ids)} expire at {_date(view, expiry_ms)}:")
        lines += [f"\t{unsigned_hex(session_id)}" for session_id in ids]
    ephemerals = view.views.ephemerals(view.limit)
    lines += ["ephemeral nodes dump:", f"Sessions with Ephemerals ({len(ephemerals.groups)}):"]
    for session_id, paths in ephemerals.groups:
        lines += [f"{unsigned_hex(session_id)}:", *(f"\t{path}" for path in paths)]
    connections: dict[int, list[str]] = {}
    for link, connection in islice(view.connections(), view.limit):
        session = connection.session
        session_id = 0 if session is None else session.session_id
        line = f"\tip: /{link.peer} sessionId: {unsigned_hex(session_id)}"
        connections.setdefault(view.expiry_of(connection), []).append(line)
    lines += [
        "Connections dump:",
        f"Connections Sets ({len(connections)})/({view.connection_count}):",
    ]
    for expiry_ms, rows in sorted(connections.items()):
        lines += [f"{len(rows)} expire at {_date(view, expiry_ms)}:", *rows]
    complete = (deadlines.complete, ephemerals.complete, view.connection_count <= view.limit)
    return _lines(lines) + _end(all(complete))


def envi(view: ServerView, _argument: bytes) -> str:
    """The machine; kazoo reads the version here."""
    rows = (f"{name}={value}" for name, value in view.environment().items())
    return _lines(["Environment:", *rows])


def gtmk(view: ServerView, _argument: bytes) -> str:
    """The trace mask."""
    return str(view.trace_mask)


def stmk(view: ServerView, argument: bytes) -> str:
    """Set the trace mask to the eight bytes that follow."""
    view.trace_mask = int.from_bytes(argument, "big", signed=True)
    return str(view.trace_mask)


def ruok(_view: ServerView, _argument: bytes) -> str:
    """The process lives."""
    return "imok"


def isro(view: ServerView, _argument: bytes) -> str:
    """Whoever serves takes writes, unless there is no leader."""
    return {"": "null", "read-only": "ro"}.get(view.mode, "rw")


def srst(view: ServerView, _argument: bytes) -> str:
    """Reset the server's numbers."""
    view.reset_server_stats()
    return "Server stats reset.\n"


def srvr(view: ServerView, _argument: bytes) -> str:
    """The server at a glance."""
    return f"Zookeeper version: {view.version}\n" + _server_lines(view)


def stat(view: ServerView, _argument: bytes) -> str:
    """As `srvr`, with the clients."""
    clients = _clients(view, full=False)
    return f"Zookeeper version: {view.version}\nClients:\n{clients}\n" + _server_lines(view)


def mntr(view: ServerView, _argument: bytes) -> str:
    """The metrics."""
    return _lines(f"zk_{name}\t{value}" for name, value in monitor(view).items())


def hash_(_view: ServerView, _argument: bytes) -> str:
    """The digests of the tree: none are kept, which ZooKeeper says with nothing at all."""
    return ""


def wchs(view: ServerView, _argument: bytes) -> str:
    """How much is watched."""
    summary = view.views.watch_summary()
    return (
        f"{summary.connections} connections watching {summary.paths} paths\n"
        f"Total watches:{summary.watches}\n"
    )


def wchc(view: ServerView, _argument: bytes) -> str:
    """Watched paths by session."""
    listing = view.views.watches_by_session(view.limit)
    return _listed(
        Listing([(unsigned_hex(key), paths) for key, paths in listing.groups], listing.complete)
    )


def wchp(view: ServerView, _argument: bytes) -> str:
    """Watching sessions by path."""
    listing = view.views.watches_by_path(view.limit)
    return _listed(
        Listing(
            [(path, [unsigned_hex(each) for each in ids]) for path, ids in listing.groups],
            listing.complete,
        )
    )


WORDS: Final[dict[str, Word]] = {
    "conf": Word(conf, measured=True),
    "cons": Word(cons),
    "crst": Word(crst),
    "dirs": Word(dirs, measured=True),
    "dump": Word(dump),
    "envi": Word(envi, always=True),
    "gtmk": Word(gtmk, always=True),
    "hash": Word(hash_),
    "isro": Word(isro, always=True),
    "mntr": Word(mntr),
    "ruok": Word(ruok, always=True),
    "srst": Word(srst),
    "srvr": Word(srvr),
    "stat": Word(stat),
    "stmk": Word(stmk, argument_bytes=8, always=True),
    "wchc": Word(wchc),
    "wchp": Word(wchp),
    "wchs": Word(wchs),
}


def _server_lines(view: ServerView) -> str:
    status, stats = view.status, view.stats
    latency = stats.latency
    return (
        f"Latency min/avg/max: {latency.min}/{latency.average}/{latency.max}\n"
        f"Received: {stats.packets_received}\n"
        f"Sent: {stats.packets_sent}\n"
        f"Connections: {view.connection_count}\n"
        f"Outstanding: {status.outstanding}\n"
        f"Zxid: {status.zxid:#x}\n"
        f"Mode: {view.mode}\n"
        f"Node count: {status.node_count}\n"
    )


def _clients(view: ServerView, *, full: bool) -> str:
    shown = islice(view.connections(), view.limit)
    lines = [_client(link, connection, full=full) for link, connection in shown]
    return _lines(lines) + _end(view.connection_count <= view.limit)


def _client(link: ServerLink, connection: Connection, *, full: bool) -> str:
    stats: ConnectionStats = connection.stats
    queued = connection.outstanding_count()
    text = f"queued={queued},recved={stats.packets_received},sent={stats.packets_sent}"
    session = connection.session
    if full and session is not None:
        latency = stats.latency
        operation = OPERATIONS.get(stats.last_operation, "NA")
        text += f",sid={unsigned_hex(session.session_id)},lop={operation}"
        text += f",est={stats.established_wall_ms},to={session.timeout_ms}"
        if stats.last_cxid >= 0:
            text += f",lcxid={stats.last_cxid:#x}"
        text += f",lzxid={unsigned_hex(stats.last_zxid)},lresp={stats.last_response_ms}"
        text += f",llat={stats.last_latency},minlat={latency.min}"
        text += f",avglat={int(latency.average)},maxlat={latency.max}"
    return f" /{link.peer}[{int(link.is_reading)}]({text})"


def _date(view: ServerView, now_ms: int) -> str:
    """As Java prints a date, in UTC."""
    return time.strftime("%a %b %d %H:%M:%S UTC %Y", time.gmtime(view.wall_s_of(now_ms)))


def _listed(listing: Listing[str, str]) -> str:
    lines: list[str] = []
    for key, values in listing.groups:
        lines += [key, *(f"\t{value}" for value in values)]
    return _lines(lines) + _end(listing.complete) + "\n"


def _end(complete: bool) -> str:
    return "" if complete else CUT_SHORT + "\n"


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else value


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


OPERATIONS: Final = {
    1000: "SESS",
    1001: "CREA",
    1002: "DELE",
    1003: "EXIS",
    1004: "GETD",
    1005: "SETD",
    1006: "GETA",
    1007: "SETA",
    1008: "GETC",
    1009: "SYNC",
    1011: "PING",
    1012: "GETC",
    1013: "CHEC",
    1014: "MULT",
    1015: "CREA",
    1016: "RECO",
    1017: "CHKW",
    1018: "REMW",
    1022: "MLTR",
    1100: "AUTH",
    1101: "SETW",
    1102: "SASL",
    1103: "GETE",
    1104: "GETACN",
    1105: "STW2",
    1106: "ADDW",
    1107: "HOMI",
    1111: "CLOS",
}
"""Api key -> what ZooKeeper calls the operation in `lop`; our keys are its op codes plus 1000."""
