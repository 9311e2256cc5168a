"""The running server as words, metrics and commands see it.

Reads the parts that the node has wired and changes nothing but the numbers that operators reset.
Everything here is answered from memory; the sizes of files are those of the last `measured`.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from duolog_runtime.clocks import Clock
from duolog_runtime.connection import ServerLink
from duolog_runtime.heap import resident_bytes
from duolog_runtime.tls import TlsLayer
from zkserver.config import ServerConfig
from zkserver.core.config import CoreConfig
from zkserver.core.connection import Connection
from zkserver.core.datatree import CONFIG_PATH
from zkserver.core.members import Member, config_data, parse_config
from zkserver.core.status import MemberStatus, Status
from zkserver.core.views import Views, views_of

from .client_link import ClientLinks
from .engine import Engine
from .replica import Replica
from .stats import DiskStats, ServerStats

VERSION_TEXT: Final = "3.9.0-duolog-{version}, built on 2026-11-24 00:00 GMT"
"""kazoo takes the first three numbers for the version of the protocol's features."""
LISTEN_BACKLOG: Final = 1024
DEFAULT_TRACE_MASK: Final = 0b100110010
"""ZooKeeper's. Kept because the words exist; there are no traces here."""


class DirectorySizes(NamedTuple):
    """Bytes of the files of the data directory."""

    snapshots: int = 0
    logs: int = 0


class ServerView:
    """One server, for as long as it runs."""

    def __init__(
        self,
        engine: Engine | Replica,
        links: ClientLinks,
        config: ServerConfig,
        core_config: CoreConfig,
        clock: Clock,
    ) -> None:
        self._engine = engine
        self._links = links
        self._clock = clock
        self._started_ms = clock.now_ms()
        self.config: Final = config
        self.core_config: Final = core_config
        self.port = config.port
        """The real one, once the server listens; as are `tls_port` and `http_port`."""
        self.tls_port = config.tls_port
        self.http_port = config.http_port
        self.sizes = DirectorySizes()
        self.trace_mask = DEFAULT_TRACE_MASK
        self._snapshot_asked_ms: int | None = None

    @property
    def version(self) -> str:
        """What clients take for ZooKeeper's version."""
        return VERSION_TEXT.format(version=self.core_config.server_version)

    @property
    def status(self) -> Status:
        """The core at this moment."""
        return self._engine.core.status()

    @property
    def mode(self) -> str:
        """standalone, leader, follower, observer, read-only; empty: clients are not served."""
        return self._engine.mode

    @property
    def member(self) -> MemberStatus | None:
        """This server among those of its ensemble; None: it stands alone."""
        return self._engine.member_status()

    @property
    def members(self) -> tuple[Member, ...]:
        """The members of the ensemble, as `members_shown` has them; none: it stands alone."""
        return parse_config(self.members_shown.encode())[0] if self.config.members else ()

    @property
    def members_shown(self) -> str:
        """The members of the ensemble, as `/zookeeper/config` holds them, or the settings as long
        as it does not; empty: it stands alone."""
        data = self._engine.core.state.tree.nodes[CONFIG_PATH].data
        members = self.config.members
        if members and not data:
            data = config_data(members, 0)
        return (data or b"").decode()

    @property
    def views(self) -> Views:
        """Lists of the core's sessions and watches."""
        return views_of(self._engine.core)

    @property
    def stats(self) -> ServerStats:
        """Requests and connections."""
        return self._links.stats

    @property
    def disk_stats(self) -> DiskStats:
        """Log and snapshots."""
        stats = self._engine.stats
        stats.count_groups()
        return stats

    @property
    def bytes_received(self) -> int:
        """From clients, since the start or the last reset."""
        return self._links.bytes_received

    @property
    def bytes_sent(self) -> int:
        """To clients, likewise."""
        return self._links.bytes_sent

    @property
    def connection_count(self) -> int:
        """Open connections, also those that have no session."""
        return len(self._links)

    @property
    def uptime_ms(self) -> int:
        """Since the server was made."""
        return self._clock.now_ms() - self._started_ms

    @property
    def limit(self) -> int:
        """Most entries of any list."""
        return self.config.max_listed

    @property
    def outstanding_handshakes(self) -> int:
        """Connections whose TLS handshake is not over."""
        return self._links.outstanding_handshakes

    def connections(self) -> Iterable[tuple[ServerLink, Connection]]:
        """Open connections, oldest first."""
        return self._links.items()

    def expiry_of(self, connection: Connection) -> int:
        """When a silent connection will be closed (ms, monotonic); 0: not for its silence."""
        session = connection.session
        return self._links.deadline_of(connection) if session is None else session.bucket_ms

    def wall_s_of(self, now_ms: int) -> float:
        """A monotonic time as seconds since 1970."""
        return (self._clock.wall_ms() + now_ms - self._clock.now_ms()) / 1000

    def settings(self) -> dict[str, Any]:
        """Every setting in effect; secrets are masked."""
        return {**self.config.visible_settings(), **dataclasses.asdict(self.core_config)}

    def environment(self) -> dict[str, str]:
        """The machine and the interpreter; no variable of the process's environment."""
        system = os.uname()
        return {
            "zookeeper.version": self.version,
            "host.name": system.nodename,
            "python.version": sys.version.split()[0],
            "python.implementation": sys.implementation.name,
            "python.executable": sys.executable,
            "os.name": system.sysname,
            "os.arch": system.machine,
            "os.version": system.release,
            "user.dir": _working_directory(),
            "os.memory.resident": f"{resident_bytes() // (1024 * 1024)}MB",
        }

    def reset_server_stats(self) -> None:
        """The word `srst`."""
        self._links.reset_server_stats()

    def reset_connection_stats(self) -> None:
        """The word `crst`."""
        self._links.reset_connection_stats()

    def snapshot_wait_ms(self) -> int:
        """How long until a snapshot may be asked for again; 0: now."""
        if self._snapshot_asked_ms is None:
            return 0
        passed_ms = self._clock.now_ms() - self._snapshot_asked_ms
        return max(0, self.config.admin_snapshot_interval_ms - passed_ms)

    def begin_snapshot(self) -> int | None:
        """Take a snapshot; the zxid it stands at, None while one is under way."""
        zxid = self._engine.begin_snapshot()
        if zxid is not None:
            self._snapshot_asked_ms = self._clock.now_ms()
        return zxid


def is_secure(link: ServerLink) -> bool:
    """Whether the connection is TLS."""
    return isinstance(link.transport, TlsLayer)


def unsigned_hex(number: int) -> str:
    """A 64-bit number as Java prints it: -1 is 0xffffffffffffffff."""
    return f"{number & 0xFFFF_FFFF_FFFF_FFFF:#x}"


def open_descriptors() -> int:
    """File descriptors of this process; -1 where the system does not tell."""
    for directory in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(directory))
        except OSError:
            continue
    return -1


def max_descriptors() -> int:
    """Most file descriptors that this process may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _working_directory() -> str:
    """Where the process is; empty once the directory is gone."""
    try:
        return os.getcwd()
    except OSError:
        return ""
