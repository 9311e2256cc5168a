"""The four-letter words on the client port: ruok, srvr, stat, mntr, isro, envi, conf.

Owns their texts, in the shapes that monitoring tools and kazoo parse (ZooKeeper 3.9
`org.apache.zookeeper.server.command`). It reads, and changes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from zkserver.core.status import Status

from .engine import Latency

VERSION_TEXT: Final = "3.9.0-duolog-{version}, built on 2026-11-24 00:00 GMT"
"""kazoo takes the first three numbers for the version of the protocol's features."""


class ServerFacts(NamedTuple):
    """What the words tell about the server."""

    version: str
    status: Status
    latency: Latency
    connection_count: int
    peers: Iterable[str]
    uptime_ms: int
    data_directory: str
    host: str
    port: int
    settings: dict[str, Any]


def answer(word: str, facts: ServerFacts) -> str | None:
    """The text for a word, None for one that is not known: then the connection just closes."""
    command = _COMMANDS.get(word)
    return None if command is None else command(facts)


def _ruok(_facts: ServerFacts) -> str:
    return "imok"


def _isro(_facts: ServerFacts) -> str:
    return "rw"


def _version(facts: ServerFacts) -> str:
    return VERSION_TEXT.format(version=facts.version)


def _srvr(facts: ServerFacts) -> str:
    return f"Zookeeper version: {_version(facts)}\n" + _server_lines(facts)


def _stat(facts: ServerFacts) -> str:
    clients = "".join(f" /{peer}[1]\n" for peer in facts.peers)
    return f"Zookeeper version: {_version(facts)}\nClients:\n{clients}\n" + _server_lines(facts)


def _server_lines(facts: ServerFacts) -> str:
    status = facts.status
    low, average, high = _latencies(facts.latency)
    return (
        f"Latency min/avg/max: {low}/{average}/{high}\n"
        f"Received: {status.packets_received}\n"
        f"Sent: {status.packets_sent}\n"
        f"Connections: {facts.connection_count}\n"
        f"Outstanding: {status.outstanding}\n"
        f"Zxid: {status.zxid:#x}\n"
        "Mode: standalone\n"
        f"Node count: {status.node_count}\n"
    )


def _mntr(facts: ServerFacts) -> str:
    status = facts.status
    low, average, high = _latencies(facts.latency)
    metrics = {
        "version": _version(facts),
        "server_state": "standalone",
        "avg_latency": average,
        "max_latency": high,
        "min_latency": low,
        "packets_received": status.packets_received,
        "packets_sent": status.packets_sent,
        "num_alive_connections": facts.connection_count,
        "outstanding_requests": status.outstanding,
        "uptime": facts.uptime_ms,
        "znode_count": status.node_count,
        "watch_count": status.watch_count,
        "ephemerals_count": status.ephemerals,
        "approximate_data_size": status.data_bytes,
        "global_sessions": status.sessions,
        "local_sessions": 0,
    }
    return "".join(f"zk_{name}\t{value}\n" for name, value in metrics.items())


def _envi(facts: ServerFacts) -> str:
    return (
        "Environment:\n"
        f"zookeeper.version={_version(facts)}\n"
        f"host.name={facts.host}\n"
        f"python.version={sys.version.split()[0]}\n"
        f"os.name={sys.platform}\n"
    )


def _conf(facts: ServerFacts) -> str:
    lines = [f"clientPort={facts.port}", f"dataDir={facts.data_directory}"]
    lines += [f"{name}={value}" for name, value in facts.settings.items()]
    return "\n".join(lines) + "\n"


def _latencies(latency: Latency) -> tuple[int, str, int]:
    average = latency.total_ms / latency.count if latency.count else 0.0
    return latency.min_ms, f"{average:.4g}" if average else "0.0", latency.max_ms


_COMMANDS: Final[dict[str, Callable[[ServerFacts], str]]] = {
    "ruok": _ruok,
    "srvr": _srvr,
    "stat": _stat,
    "mntr": _mntr,
    "isro": _isro,
    "envi": _envi,
    "conf": _conf,
}
