"""One zkserver: the engine on an event loop, with a port.

Owns wiring, the one timer and the shutdown. Everything impure is given: loop, files, disk
executor, clocks, random source. Nothing here decides what a request means.

All events come as callbacks of one loop and are stepped at once, so there is no queue in front of
the core and none to bound; what is bounded is what the core has taken and not yet answered, by
pausing the sockets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Final

from duolog_protocol.codec import Piece
from duolog_protocol.errors import ConfigError, DataDirectoryError, LogOfflineError
from duolog_protocol.recent_reads import RecentReads
from duolog_protocol.zk_messages import MAX_FRAME_BYTES
from duolog_runtime.clocks import Clock
from duolog_runtime.connection import ServerLink, new_scratch
from duolog_runtime.disk import DiskExecutor, run_on_disk
from duolog_runtime.files import Files
from duolog_runtime.listening import close_servers, listen, port_of, stop_accepting
from duolog_runtime.logs import Logger
from duolog_runtime.tls import TlsLayer
from zkserver.config import ServerConfig
from zkserver.core.config import CoreConfig
from zkserver.core.connection import Connection
from zkserver.core.core import ZkCore
from zkserver.core.datatree import CONFIG_PATH
from zkserver.core.ensemble_core import EnsembleCore
from zkserver.core.events import Drained
from zkserver.core.leader import LONGEST_SYNC
from zkserver.core.members import config_data
from zkserver.core.peer_config import PeerConfig
from zkserver.core.state import ReplicatedState
from zkserver.security import load_auth, load_peer_tls, load_tls
from zkserver.storage.epoch_files import read_identity
from zkserver.storage.recovery import DataDirectory
from zkserver.storage.txnlog import LogOptions

from .admin import Admin
from .client_link import ClientLinks, LinkLimits, take_jute, take_native
from .engine import Engine
from .peer_links import PeerLinks
from .replica import Replica
from .stepping import EngineOptions
from .view import LISTEN_BACKLOG, ServerView

MAX_UNSENT_TO_PEER_BYTES: Final = 128 * 1024 * 1024
"""A server that leaves more unread of what its leader tells it is dropped, and comes again."""
HOLD_S: Final = 0.005
"""How long replies may wait for those of the writes behind them, to leave in one send: only when a
disk that has just been quick hesitates do they wait so long."""


class Node:
    """A running server.

    `start`, then `stop`, also after a failure.
    """

    def __init__(
        self,
        config: ServerConfig,
        core_config: CoreConfig,
        *,
        files: Files,
        disk: DiskExecutor,
        clock: Clock,
        rng: Random,
        log: Logger,
        on_halt: Callable[[], None],
    ) -> None:
        """Read the files that the settings name, take the data directory and recover. Blocks.

        `on_halt` is called when the server cannot go on; `failure` then says why.

        Raises ConfigError, DirectoryLockedError, DataDirectoryError, CorruptRecordError, OSError.
        """
        self._config = config
        self._core_config = core_config
        self._clock = clock
        self._disk = disk
        self._log = log
        self._loop: asyncio.AbstractEventLoop | None = None
        self._servers: list[asyncio.Server] = []
        """Empty before `start` and from `stop` on."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms = 0
        """When the timer fires (ms, monotonic); of meaning while there is one."""
        self._progress = asyncio.Event()
        """Set by everything that `stop` and `start` may wait for."""
        self._on_halt = on_halt
        self.failure = ""
        """Why the server cannot go on, or empty."""
        self.port = config.port
        """The port it listens on, after `start`."""
        self.tls_port = config.tls_port
        """The port for TLS only that it listens on, after `start`; None where there is none."""
        members = config.members
        if members:
            _check_place(config, core_config.server_id, files)
        self._peer_links: PeerLinks | None = None
        self._peer_rng = Random(rng.getrandbits(64))
        auth = load_auth(config, rng)
        self._tls = load_tls(config, clock, log)
        self._peer_tls = load_peer_tls(config, clock, log)
        self._data = DataDirectory(
            files,
            config.data_directory,
            core_config.server_id,
            Random(rng.getrandbits(64)),
            ensemble_id=config.ensemble_id,
            log_options=LogOptions(config.log_file_bytes, config.preallocate_bytes),
        )
        try:
            self._engine: Engine | Replica
            options = EngineOptions(
                config.snap_count, config.snap_retain_count, config.fsync_warning_ms
            )
            own_rng = Random(rng.getrandbits(64))
            if members:
                self._engine = Replica(
                    EnsembleCore(core_config, rng, auth, config_data(members, 0)),
                    self._data,
                    peer_config(config, core_config.server_id),
                    disk=disk,
                    clock=clock,
                    rng=own_rng,
                    shell=self,
                    log=log,
                    options=options,
                    read_only_after_ms=config.read_only_after_ms,
                )
            else:
                self._engine = Engine(
                    ZkCore(core_config, rng, auth),
                    self._data,
                    disk=disk,
                    clock=clock,
                    rng=own_rng,
                    shell=self,
                    log=log,
                    options=options,
                )
            self._engine.recover()
            if not members:
                _check_alone(self._data, self._engine.core.state)
        except BaseException:
            self._data.close()
            raise
        self._links = ClientLinks(
            self._engine,
            clock,
            LinkLimits(
                config.max_connections,
                config.max_connections_per_address,
                config.max_unknown_connections,
                config.handshake_timeout_ms,
                MAX_FRAME_BYTES,
                config.jute_max_frame_bytes,
                config.connection_tokens,
                config.connection_tokens_per_second,
            ),
            log,
            auth=auth,
            tls=self._tls,
        )
        view = ServerView(self._engine, self._links, config, core_config, clock)
        self._admin = Admin(view, self._data, disk, log, lambda: self.serving)
        self._links.words = self._admin

    async def start(self) -> None:
        """Open the epoch and the port. Raises ConfigError (port in use), LogOfflineError."""
        loop = self._loop = asyncio.get_running_loop()
        config = self._config
        scratch = new_scratch()
        links, tls = self._links, self._tls
        new_native_decoder = partial(take_native, RecentReads())

        def new_link() -> ServerLink:
            return ServerLink(
                loop,
                on_made=self._on_made,
                on_frames=links.on_frames,
                on_foreign=links.on_foreign,
                on_closed=self._on_closed,
                max_unsent_bytes=config.max_unsent_bytes,
                scratch=scratch,
                take_length_prefixed=take_jute,
                take_native=new_native_decoder,
            )

        def new_layer() -> TlsLayer:
            assert tls is not None
            return links.secure(new_link(), tls)

        plain = new_layer if config.tls_required else new_link
        self.port = await self._listen("port", config.port, plain)
        if config.tls_port is not None:
            self.tls_port = await self._listen("tls_port", config.tls_port, new_layer)
        if isinstance(self._engine, Replica):
            self._peer_links = await self._open_peer_links(self._engine)
            self._tell_if_settings_differ(self._engine)
            self._engine.start()
        else:
            self._engine.start()
            await self._until_idle()
            if self.failure:
                raise LogOfflineError(self.failure)
        self._admin.view.port, self._admin.view.tls_port = self.port, self.tls_port
        await self._admin.start()
        for server in self._servers:
            await server.start_serving()
        self._log.info("server_started", host=config.host, port=self.port, tls_port=self.tls_port)

    def _tell_if_settings_differ(self, replica: Replica) -> None:
        """The members are in the log; whoever writes others into the settings should know."""
        in_log, in_settings = replica.peer.membership.members, self._config.members
        if in_log and sorted(map(str, in_log)) != sorted(map(str, in_settings)):
            self._log.warning(
                "servers_setting_ignored",
                members=", ".join(map(str, in_log)),
                hint="the log says who the members are: change them with reconfig",
            )
        for each in in_log or in_settings:
            is_own = each.server_id == self._core_config.server_id
            if is_own and each.client_port not in (0, self.port, self.tls_port):
                self._log.warning(
                    "clients_are_told_another_port",
                    member=str(each),
                    port=self.port,
                    hint="the members say where clients find this server: is the port forwarded?",
                )

    async def _open_peer_links(self, replica: Replica) -> PeerLinks:
        """Listen for the other servers. Raises ConfigError."""
        config, server_id = self._config, self._core_config.server_id
        assert self._loop is not None
        links = PeerLinks(
            self._loop,
            server_id,
            self._data.identity.ensemble_id,
            {each.server_id: (each.host, each.peer_port) for each in config.members},
            replica,
            self._clock,
            self._peer_rng,
            self._log,
            dial_timeout_ms=config.sync_limit_ms,
            max_unsent_bytes=MAX_UNSENT_TO_PEER_BYTES,
            tls=self._peer_tls,
        )
        replica.links = links
        await links.start()
        return links

    async def _listen(
        self, field: str, port: int, factory: Callable[[], asyncio.BaseProtocol]
    ) -> int:
        """Take a port, without answering on it yet. Raises ConfigError."""
        host = self._config.host
        assert self._loop is not None
        server = await listen(
            self._loop, factory, host, port, field, backlog=LISTEN_BACKLOG, start_serving=False
        )
        self._servers.append(server)
        return port_of(server)

    @property
    def http_port(self) -> int:
        """The port of metrics and commands, after `start`; -1: there is none."""
        return self._admin.view.http_port

    @property
    def serving(self) -> bool:
        """Clients are taken and answered."""
        return (
            bool(self._servers)
            and self._engine.core.is_serving
            and all(server.is_serving() for server in self._servers)
            and not self.failure
        )

    @property
    def mode(self) -> str:
        """leader, follower, observer, standalone, read-only; empty while nobody is served."""
        return self._engine.mode

    @property
    def epoch(self) -> int:
        """Of the server's leader; 0: it stands alone, or has none."""
        member = self._engine.member_status()
        return 0 if member is None else member.epoch

    async def abandon(self) -> None:
        """Break every connection where it is, as the end of the process would: nothing is finished
        or answered. `stop` is still to be called. Idempotent."""
        await self._stop_listening()
        self._links.abort_all()
        if self._peer_links is not None:
            await self._peer_links.close()

    async def _stop_listening(self) -> None:
        servers, self._servers = self._servers, []
        if self._loop is not None:
            stop_accepting(self._loop, servers)
        self._links.pause_all()
        await close_servers(servers)

    async def stop(self) -> None:
        """Stop accepting, finish what is on its way to the disk, answer, close. Idempotent."""
        await self._stop_listening()
        try:
            async with asyncio.timeout(self._config.stop_timeout_ms / 1000):
                await self._until_idle()
                self._links.close_all()
                await self._until(lambda: not len(self._links))
        except TimeoutError:
            self._log.warning("stop_timed_out", connections=len(self._links))
        finally:
            self._links.abort_all()
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None
            await self._admin.close()
            if self._peer_links is not None:
                await self._peer_links.close()
            await self._leave_disk()
        self._log.info("server_stopped")

    async def _leave_disk(self) -> None:
        """Let go of the directory, after what was submitted; of a disk that hangs at once."""
        try:
            async with asyncio.timeout(self._config.stop_timeout_ms / 1000):
                await run_on_disk(self._disk, _nothing)  # what was submitted before has ended
                self._engine.close()
                await run_on_disk(self._disk, self._data.close)
        except TimeoutError:
            self.failure = self.failure or "the disk did not answer while the server stopped"
            self._log.error("disk_hangs", waited_ms=self._config.stop_timeout_ms)

    # What the engine asks for

    def send(
        self, connection: Connection, pieces: list[Piece], more: bool, zxid: int, now_ms: int
    ) -> None:
        """Write to a client; what may wait for more leaves in `HOLD_S` at the latest."""
        if more and not self._links.holds_any:
            assert self._loop is not None
            self._loop.call_later(HOLD_S, self._links.release_held)
        self._links.send(connection, pieces, more, zxid, now_ms)

    def session_attached(self, connection: Connection) -> None:
        """A client has a session."""
        self._links.session_attached(connection)

    def close(self, connection: Connection, reason: str) -> None:
        """Close a client's connection once what was sent is out."""
        self._log.info("connection_closed", peer=connection.peer, reason=reason)
        connection.link.close()

    def pause_reading(self, connection: Connection) -> None:
        """Back-pressure on a client."""
        connection.link.pause_reading()

    def resume_reading(self, connection: Connection) -> None:
        """Read on, unless the server stops."""
        if self._servers:
            connection.link.resume_reading()

    def await_drain(self, connection: Connection) -> None:
        """Tell the engine once a client's socket has taken what was sent."""
        connection.link.when_drained(lambda: self._engine.step(Drained(connection)))

    def call_soon(self) -> None:
        """The engine wants to hear of the end of this loop turn."""
        assert self._loop is not None
        self._loop.call_soon(self._engine.end_turn)

    def arm(self, deadline_ms: int | None) -> None:
        """Follow the earliest deadline; a timer that is early enough stays."""
        self._progress.set()
        late_ms = self._links.next_deadline_ms()
        if deadline_ms is None or (late_ms is not None and late_ms < deadline_ms):
            deadline_ms = late_ms
        if deadline_ms is None or self._loop is None or not self._servers:
            return
        if self._timer is not None:
            if self._timer_ms <= deadline_ms:
                return
            self._timer.cancel()
        delay_ms = max(0, deadline_ms - self._clock.now_ms())
        self._timer_ms = deadline_ms
        self._timer = self._loop.call_later(delay_ms / 1000, self._on_timer)

    def halt(self, reason: str) -> None:
        """The server cannot go on."""
        self._log.error("server_halted", reason=reason)
        self.failure = reason
        self._progress.set()
        self._links.abort_all()
        self._on_halt()

    def drop_clients(self) -> None:
        """Close every client's connection: this server does not serve any more."""
        self._links.close_all()

    def call_later(self, delay_ms: int, callback: Callable[[], None]) -> None:
        """Call back once, unless the server stops before."""

        def run() -> None:
            if self._servers:
                callback()

        assert self._loop is not None
        self._loop.call_later(delay_ms / 1000, run)

    def _on_made(self, link: ServerLink) -> None:
        self._links.on_made(link)
        self.arm(self._engine.deadline_ms())

    def _on_closed(self, link: ServerLink, reason: BaseException | None) -> None:
        self._links.on_closed(link, reason)
        self._progress.set()

    def _on_timer(self) -> None:
        # Read the sockets first, for one whole turn: no session expires because the loop was busy.
        loop = self._loop
        assert loop is not None
        loop.call_soon(loop.call_soon, self._fire)

    def _fire(self) -> None:
        self._timer = None
        if not self._servers:
            return
        self._links.drop_late()
        deadline_ms = self._engine.deadline_ms()
        # A client that was just heard has moved the deadline; the one of this timer has come.
        if deadline_ms is not None and min(deadline_ms, self._timer_ms) <= self._clock.now_ms():
            self._engine.fire_timer()
        self.arm(self._engine.deadline_ms())

    async def _until_idle(self) -> None:
        await self._until(lambda: self._engine.idle)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._progress.clear()
            await self._progress.wait()


def peer_config(config: ServerConfig, server_id: int) -> PeerConfig:
    """A server's place among the members of its ensemble."""
    members = config.members
    return PeerConfig(
        server_id,
        frozenset(each.server_id for each in members if each.is_voter),
        frozenset(each.server_id for each in members if not each.is_voter),
        init_limit_ms=config.init_limit_ms,
        ping_interval_ms=config.ping_interval_ms,
        sync_limit_ms=config.sync_limit_ms,
        catch_up_limit_ms=LONGEST_SYNC * config.init_limit_ms,
    )


def _check_place(config: ServerConfig, server_id: int, files: Files) -> None:
    """Whether the server can be one of its ensemble. Raises ConfigError."""
    if all(each.server_id != server_id for each in config.members):
        rule = f"does not name server {server_id}, which this one is (server_id)"
        raise ConfigError("servers", ",".join(config.servers), rule)
    if not config.ensemble_id and read_identity(files, config.data_directory) is None:
        rule = "must be given for a new server of an ensemble: any number, the same for all of them"
        raise ConfigError("ensemble_id", 0, rule)


def _check_alone(data: DataDirectory, state: ReplicatedState) -> None:
    """Whether the directory is that of a server that stands alone. A member of an ensemble must
    not: what it acknowledges the others do not have, and they would have two histories of one
    epoch. Raises DataDirectoryError."""
    if data.epochs.was_member or state.members_are_joint or state.tree.nodes[CONFIG_PATH].data:
        raise DataDirectoryError(
            f"{data.path} belongs to a member of an ensemble, and the setting servers is not given "
            "(is --config missing?); to go on with one server alone, export the state and import it"
        )


def _nothing() -> None:
    """Work for the disk executor that only marks a place in its order."""
