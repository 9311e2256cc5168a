"""The broker as a whole: what it is made of, how it starts, how it stops.

Start: take the directory, listen, connect to zkserver (ending the session of this directory's
former process, so that nobody waits for it to expire), register, lead. The port is open before
the broker is registered, so that clients and `ApiVersions` need not wait for zkserver.

Stop: accept no more, finish requests, leave zkserver, close the logs, leave the clean mark.
A storage error that cannot be healed stops it at once, without that mark; one that comes while it
stops is told all the same.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final

from duolog.zk import SessionState, ZkClient
from duolog_protocol.broker_messages import MAX_FRAME_BYTES
from duolog_protocol.errors import (
    ConfigError,
    DiskFullError,
    Error,
    StorageError,
    TransportError,
)
from duolog_runtime.clocks import Clock
from duolog_runtime.disk import DiskExecutor, run_on_disk
from duolog_runtime.files import Files
from duolog_runtime.listening import listen, port_of
from duolog_runtime.logs import Logger
from duolog_runtime.metrics_http import MetricsServer
from duolog_runtime.tasks import first_of

from ..config import BrokerConfig
from ..core.purgatory import Purgatory
from ..metrics import collect
from ..storage.checkpoints import MetaProperties, write_atomically
from ..storage.log_types import NO_ROOM
from .apis import MAX_WAIT_MS, Apis
from .connections import Connections, Limits
from .controller_link import ControllerLink, Registration
from .log_manager import LogManager
from .replica_manager import ReplicaManager

SESSION_FILE: Final = "zookeeper-session"
STOP_SECONDS: Final = 5.0
PRODUCER_CHECK_SECONDS: Final = 600.0


class Broker:
    """One broker process, or one of several in a test's own process."""

    def __init__(
        self,
        config: BrokerConfig,
        files: Files,
        disk: DiskExecutor,
        *,
        clock: Clock,
        rng: random.Random,
        log: Logger,
        version: str,
    ) -> None:
        self.config = config
        self.host = config.host
        self.port = 0
        """The real port, once `serve` listens."""
        self._files = files
        self._disk = disk
        self._clock = clock
        self._rng = rng
        self._log = log
        self._version = version
        self._loop = asyncio.get_running_loop()
        self._halted: asyncio.Future[None] = self._loop.create_future()
        self._purgatory = Purgatory(config.max_delayed_operations)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms: int | None = None
        self._zk: ZkClient | None = None
        self._remembering = False
        self._remember_next: ZkClient | None = None
        topic_defaults = config.topic_defaults()
        self.logs = LogManager(
            files,
            config.data,
            disk,
            defer=self._defer,
            clock=clock,
            rng=rng,
            log=log,
            memory_tail_bytes=config.memory_tail_bytes,
            memory_tails_bytes=config.memory_tails_bytes,
            max_producer_ids=config.max_producer_ids_per_partition,
            halt=self._halt,
        )
        self.replicas = ReplicaManager(
            self.logs,
            disk,
            self._purgatory,
            topic_defaults,
            clock=clock,
            log=log,
        )
        self.connections: Connections | None = None
        self.control: ControllerLink | None = None
        self._metrics: MetricsServer | None = None

    async def serve(self, stop: asyncio.Event, on_listening: Callable[[], None]) -> None:
        """Serve until `stop` is set. `on_listening` is called once the port is open.

        Raises ConfigError (a port in use, an id that is taken), DataDirectoryError, StorageError.
        Cancelling stops without the clean mark.
        """
        try:
            owner = self.logs.open_directory()
            async with asyncio.TaskGroup() as tasks:
                await self._serve(tasks, stop, on_listening, owner)
        except BaseExceptionGroup as group:
            raise self._told(first_of(group)) from group
        except OSError as error:
            raise self._told(error) from error
        finally:
            self.logs.release()

    async def _serve(
        self,
        tasks: asyncio.TaskGroup,
        stop: asyncio.Event,
        on_listening: Callable[[], None],
        owner: MetaProperties | None,
    ) -> None:
        config = self.config
        broker_id = config.broker_id
        if owner is not None:
            if broker_id not in {-1, owner.broker_id}:
                rule = f"the data directory belongs to broker {owner.broker_id}"
                raise ConfigError("broker_id", broker_id, rule)
            broker_id = owner.broker_id
        zk = ZkClient(
            config.zookeeper,
            session_timeout=config.zookeeper_session_timeout_ms / 1000,
            rng=self._rng,
            clock=self._clock,
            client_name="kbroker",
        )
        connections = self._new_connections(tasks)
        self.connections = connections
        server = await self._listen(connections)
        try:
            self._wire(connections, zk, broker_id, None if owner is None else owner.cluster_id)
            on_listening()
            await self._run(tasks, zk, stop)
            server.close()
            connections.stop()
            await self._finish_requests()
            await connections.end_pending()
            connections.close()
            if await zk.close():
                self._forget_session()  # else the next process ends it: it is still registered
            await self._close_logs()
            if self._halted.done():
                self._halted.result()  # a sync has failed meanwhile: this was no orderly end
            self._log.info("broker_stopped")
        finally:
            server.close()
            connections.abort()
            zk.remove_listener(self._on_session_state)
            zk.abandon()  # after an orderly end there is nothing left of it
            self._cancel_timer()
            if self._metrics is not None:
                await self._metrics.close()

    def _told(self, error: BaseException) -> BaseException:
        """An error of the data directory that nobody could handle, in our words."""
        if not isinstance(error, OSError):
            return error
        kind = DiskFullError if error.errno in NO_ROOM else StorageError
        return kind(f"{self.config.data}: {error.strerror or error}")

    async def _start_metrics(self) -> None:
        config = self.config
        if config.metrics_port < 0:
            return
        self._metrics = MetricsServer(lambda: collect(self), self._log)
        port = await self._metrics.start(config.host, config.metrics_port, "metrics_port")
        self._log.info("metrics_served", port=port)

    @property
    def delayed_count(self) -> int:
        """Requests that wait for acknowledgements or data."""
        return len(self._purgatory)

    async def _run(self, tasks: asyncio.TaskGroup, zk: ZkClient, stop: asyncio.Event) -> None:
        """Connect to zkserver and serve until told to stop, or until the log directory fails."""
        assert self.control is not None
        await self._start_metrics()
        stopping = tasks.create_task(stop.wait(), name="stop")
        connecting = tasks.create_task(self._connect(zk), name="connect")
        await asyncio.wait({stopping, connecting}, return_when=asyncio.FIRST_COMPLETED)
        if not connecting.done():
            connecting.cancel()
            await asyncio.wait({connecting})
            return
        connecting.result()
        children = [
            tasks.create_task(self.control.run(), name="control"),
            tasks.create_task(self._upkeep(), name="upkeep"),
        ]
        ends: list[asyncio.Future[Any]] = [stopping, self._halted]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if self._halted.done():
            self._halted.result()
        self._log.info("broker_stopping")
        for child in children:
            child.cancel()
        await asyncio.wait(children)

    async def _connect(self, zk: ZkClient) -> None:
        await self._end_former_session()
        await zk.start(timeout=self.config.zookeeper_connection_timeout_ms / 1000)
        self._remember_session(zk)
        self._zk = zk
        zk.add_listener(self._on_session_state)

    def _new_connections(self, tasks: asyncio.TaskGroup) -> Connections:
        config = self.config
        limits = Limits(
            max_connections=config.max_connections,
            max_connections_per_ip=config.max_connections_per_ip,
            max_frame_bytes=min(config.socket_request_max_bytes, MAX_FRAME_BYTES),
            max_in_flight=config.max_in_flight_requests_per_connection,
            max_unsent_bytes=config.max_unsent_bytes,
            max_idle_ms=config.connections_max_idle_ms,
        )
        return Connections(self._loop, tasks, limits, self._log)

    async def _listen(self, connections: Connections) -> asyncio.Server:
        host, port = self.config.host, self.config.port
        server = await listen(self._loop, connections.new_link, host, port, "port", backlog=1024)
        self.port = port_of(server)
        return server

    def _wire(
        self, connections: Connections, zk: ZkClient, broker_id: int, cluster_id: str | None
    ) -> None:
        """Make control plane and apis: they need the real port."""
        config = self.config
        host = config.advertised_host or config.host
        self.control = ControllerLink(
            zk,
            Registration(broker_id, host, self.port, config.rack or None),
            self.replicas,
            config.topic_defaults(),
            default_partitions=config.num_partitions,
            known_cluster_id=cluster_id,
            clock=self._clock,
            rng=self._rng,
            log=self._log,
            on_identity=self._on_identity,
        )
        apis = Apis(
            self.replicas,
            self.control,
            self._purgatory,
            self._disk,
            arm_timer=self._arm_timer,
            clock=self._clock,
            version=self._version,
            max_frame_bytes=min(config.socket_request_max_bytes, MAX_FRAME_BYTES),
            max_fetch_bytes=config.fetch_max_bytes,
            auto_create_topics=config.auto_create_topics_enable,
            topic_defaults=config.topic_defaults(),
        )
        connections.handlers.update(apis.handlers)

    async def _on_identity(self, broker_id: int, cluster_id: str) -> None:
        self.logs.claim_directory(broker_id, cluster_id)
        self.replicas.identify(broker_id)
        self._log.info("broker_identified", broker_id=broker_id, cluster_id=cluster_id)

    # ---- the session of a former process -------------------------------------------------------

    async def _end_former_session(self) -> None:
        """Close the session that this directory's former process left behind.

        The lock on the directory proves that process gone; without this its registration would
        stay until the session expired. A failure costs only that time.
        """
        path = f"{self.config.data}/{SESSION_FILE}"
        if not self._files.exists(path):
            return
        file = self._files.open(path)
        try:
            text = file.pread(256, 0).decode("ascii", "replace")
        finally:
            file.close()
        number, _, password = text.strip().partition(":")
        try:
            client_id = int(number, 16), bytes.fromhex(password)
        except ValueError:
            self._log.warning("session_file_unreadable", path=path)
            return
        former = ZkClient(
            self.config.zookeeper,
            session_timeout=self.config.zookeeper_session_timeout_ms / 1000,
            rng=self._rng,
            clock=self._clock,
            client_name="kbroker",
            client_id=client_id,
        )
        try:
            await former.start(timeout=self.config.zookeeper_connection_timeout_ms / 1000)
            await former.close()
            self._log.info("former_session_closed", session_id=f"{client_id[0]:#x}")
        except TransportError as error:
            self._log.warning("former_session_not_closed", error=str(error))
        except Error as error:
            self._log.info("former_session_gone", reason=str(error))

    def _on_session_state(self, _state: SessionState) -> None:
        if self._zk is not None:
            self._remember_session(self._zk)

    def _remember_session(self, zk: ZkClient) -> None:
        """Note the session for the next process; one job at a time, the newest session last."""
        client_id = zk.client_id
        if client_id is None:
            return
        text = f"{client_id[0]:x}:{client_id[1].hex()}\n"
        path = f"{self.config.data}/{SESSION_FILE}"
        if self._remembering:
            self._remember_next = zk
            return

        def remembered(_result: None, error: BaseException | None) -> None:
            self._remembering = False
            if error is not None:
                self._log.warning("session_not_remembered", error=str(error))
            following, self._remember_next = self._remember_next, None
            if following is not None:
                self._remember_session(following)

        self._remembering = True
        self._disk.submit(lambda: write_atomically(self._files, path, text.encode()), remembered)

    def _forget_session(self) -> None:
        path = f"{self.config.data}/{SESSION_FILE}"
        if self._files.exists(path):
            self._files.unlink(path)

    def _defer(self, callback: Callable[[], None]) -> None:
        self._loop.call_soon(callback)

    # ---- time ----------------------------------------------------------------------------------

    async def _upkeep(self) -> None:
        """Periodic work of the logs, and the one timer of the purgatory."""
        config = self.config
        now_ms = self._clock.now_ms()
        retention_ms = now_ms + min(30_000, config.log_retention_check_interval_ms)
        checkpoint_ms = now_ms + config.log_flush_offset_checkpoint_interval_ms
        producers_ms = now_ms + int(PRODUCER_CHECK_SECONDS * 1000)
        while True:
            next_ms = min(retention_ms, checkpoint_ms, producers_ms)
            await asyncio.sleep(max(next_ms - self._clock.now_ms(), 1) / 1000)
            now_ms = self._clock.now_ms()
            if now_ms >= retention_ms:
                self.logs.apply_retention(self.replicas.high_watermarks())
                retention_ms = now_ms + config.log_retention_check_interval_ms
            if now_ms >= checkpoint_ms:
                self.logs.unlink_deleted()
                self.logs.checkpoint(self.replicas.high_watermarks())
                checkpoint_ms = now_ms + config.log_flush_offset_checkpoint_interval_ms
            if now_ms >= producers_ms:
                self.replicas.expire_producers(config.producer_id_expiration_ms)
                producers_ms = now_ms + int(PRODUCER_CHECK_SECONDS * 1000)

    def _arm_timer(self) -> None:
        """Wake up when the next delayed operation runs out of time."""
        deadline_ms = self._purgatory.deadline_ms()
        if deadline_ms is None or (self._timer_ms is not None and self._timer_ms <= deadline_ms):
            return
        self._cancel_timer()
        self._timer_ms = deadline_ms
        delay_ms = max(deadline_ms - self._clock.now_ms(), 0)
        self._timer = self._loop.call_later(delay_ms / 1000, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = self._timer_ms = None
        try:
            self._purgatory.expire(self._clock.now_ms())
        finally:
            self._arm_timer()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._timer_ms = None

    # ---- the end -------------------------------------------------------------------------------

    def _halt(self, error: StorageError) -> None:
        """A log cannot be trusted any more: stop at once, acknowledging nothing further."""
        self._log.error("log_directory_offline", error=str(error))
        if not self._halted.done():
            self._halted.set_exception(error)
            assert self.connections is not None
            self.connections.abort()

    async def _finish_requests(self) -> None:
        """Let what was accepted be answered, for a limited time."""
        assert self.connections is not None
        deadline = self._loop.time() + STOP_SECONDS
        while self.connections.in_flight_count and self._loop.time() < deadline:
            if not self._disk_is_busy():
                self._purgatory.expire(self._clock.now_ms() + MAX_WAIT_MS)
            await asyncio.sleep(0.005)

    def _disk_is_busy(self) -> bool:
        return self.logs.is_syncing

    async def _close_logs(self) -> None:
        epoch = self.replicas.broker_epoch
        await run_on_disk(self._disk, lambda: self.logs.close(epoch))
