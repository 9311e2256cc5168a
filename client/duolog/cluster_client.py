"""What producer, consumer and admin share: connections, metadata, and the rule when to renew it.

Owns one `ClusterMetadata`, refreshed by one task: when somebody asks, and when it is older than
metadata_max_age_ms. Requests to a given broker, to the controller or to any broker go through
here. Retries follow the flags of the error classes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from duolog_protocol.apis import AnyApi
from duolog_protocol.broker_messages import (
    MAX_TOPICS_PER_REQUEST,
    METADATA,
    MetadataRequest,
    MetadataResponse,
)
from duolog_protocol.errors import (
    ConnectionClosedError,
    ConnectionLostError,
    Error,
    LeaderNotAvailableError,
    NotControllerError,
    RequestTimeoutError,
    UnknownTopicOrPartitionError,
    broker_error,
)
from duolog_runtime.connection import ClientLink

from .clock import Clock
from .connection import Address, Connections, Purpose
from .core.backoff import Backoff
from .core.cluster_metadata import ClusterMetadata, TopicInfo
from .owned_tasks import OwnedTasks


class ClusterSettings(NamedTuple):
    """Settings that all three clients have, under Kafka's names."""

    client_id: str
    request_timeout_ms: int
    retry_backoff_ms: int
    retry_backoff_max_ms: int
    metadata_max_age_ms: int
    socket_connection_setup_timeout_ms: int
    reconnect_backoff_ms: int
    reconnect_backoff_max_ms: int


class ClusterClient:
    """Connections and metadata of one client object."""

    def __init__(
        self,
        addresses: list[Address],
        settings: ClusterSettings,
        *,
        owner: str,
        allow_auto_topic_creation: bool,
        clock: Clock,
        rng: random.Random,
        on_change: Callable[[], None],
    ) -> None:
        self._bootstrap = addresses
        self.settings = settings
        self._allow_auto_topic_creation = allow_auto_topic_creation
        self._rng = rng
        self.clock = clock
        self._on_change = on_change
        """Called when metadata or a connection changed."""
        self.tasks = OwnedTasks(owner, self._task_failed)
        self.connections = Connections(
            client_id=settings.client_id,
            tasks=self.tasks,
            clock=clock,
            rng=rng,
            setup_timeout_ms=settings.socket_connection_setup_timeout_ms,
            backoff_ms=settings.reconnect_backoff_ms,
            backoff_max_ms=settings.reconnect_backoff_max_ms,
            on_change=on_change,
        )
        self.backoff = Backoff(settings.retry_backoff_ms, settings.retry_backoff_max_ms, rng)
        self.metadata = ClusterMetadata()
        self.topics: set[str] = set()
        """Topics that a refresh asks for."""
        self.failure: BaseException | None = None
        """What ended one of our tasks: a bug; everything fails from then on."""
        self._wanted = asyncio.Event()
        self._urgent = asyncio.Event()
        """A topic was asked for that the last answer could not contain."""
        self._refreshed: asyncio.Future[None] | None = None
        self._started = False

    async def start(self, timeout: float | None = None) -> None:
        """Get the first metadata from any bootstrap server. Raises TransportError.

        `timeout` in seconds; default: request_timeout_ms.
        """
        limit_ms = self.settings.request_timeout_ms if timeout is None else round(timeout * 1000)
        deadline_ms = self.clock.now_ms() + limit_ms
        attempt = 0
        while True:
            try:
                left_ms = max(deadline_ms - self.clock.now_ms(), 1)
                await self._refresh(left_ms)
                break
            except Error as error:
                attempt += 1
                delay_ms = self.backoff.delay_ms(attempt)
                if not error.retriable or self.clock.now_ms() + delay_ms >= deadline_ms:
                    raise
                await asyncio.sleep(delay_ms / 1000)
        self._started = True
        self.tasks.spawn("metadata", self._keep_fresh())

    async def stop(self) -> None:
        """End all tasks and connections. Idempotent."""
        if self.failure is None:
            self.failure = ConnectionClosedError("the client was stopped")
        self._wake_waiters()
        try:
            await self.tasks.stop()
        finally:
            await self.connections.close()

    def check(self) -> None:
        """Raise if the client is not in service."""
        if self.failure is not None:
            raise self.failure
        if not self._started:
            raise ConnectionClosedError("the client was not started")

    # -- metadata --------------------------------------------------------------------------

    def request_refresh(self) -> None:
        """Renew the metadata soon; asking again before that costs nothing."""
        self._wanted.set()

    async def refreshed(self) -> None:
        """Renew the metadata and wait until that was done. Put `asyncio.timeout` around it."""
        self.check()
        if self._refreshed is None:
            self._refreshed = asyncio.get_running_loop().create_future()
        self.request_refresh()
        await asyncio.shield(self._refreshed)
        self.check()

    async def topic(self, name: str, timeout_ms: int) -> TopicInfo:
        """A topic's partitions, waiting until the cluster tells them.

        Raises InvalidTopicError, and UnknownTopicOrPartitionError or another error of the
        broker when it is not told within the time.
        """
        known = self.metadata.topics.get(name)
        if known is not None and known.error_code == 0 and known.partitions:
            return known
        if name not in self.topics:
            self.topics.add(name)
            self._urgent.set()
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                while True:
                    await self.refreshed()
                    known = self.metadata.topics.get(name)
                    if known is not None and known.error_code == 0 and known.partitions:
                        return known
                    if known is not None and known.error_code != 0:
                        error = broker_error(known.error_code, f"topic {name!r}")
                        if not error.retriable:
                            self.topics.discard(name)
                            raise error
        except TimeoutError as cause:
            self.topics.discard(name)
            code = 0 if known is None else known.error_code
            late = f"topic {name!r} was not there within {timeout_ms} ms"
            if code == 0:
                raise UnknownTopicOrPartitionError(late) from cause
            raise broker_error(code, late) from cause

    async def _keep_fresh(self) -> None:
        failures = 0
        while True:
            try:
                async with asyncio.timeout(self.settings.metadata_max_age_ms / 1000):
                    await self._wanted.wait()
            except TimeoutError:
                self._wanted.set()  # old enough to be renewed unasked
            self._wanted.clear()
            self._urgent.clear()
            waiters, self._refreshed = self._refreshed, None
            try:
                await self._refresh()
                failures = 0
            except Error:
                # The reason shows in whatever waits for the metadata; here it is only tried again.
                failures += 1
                self._wanted.set()
            finally:
                if waiters is not None and not waiters.done():
                    waiters.set_result(None)
            self._on_change()
            # Never faster than the backoff, however often the same thing is asked for.
            try:
                async with asyncio.timeout(self.backoff.delay_ms(max(failures, 1)) / 1000):
                    await self._urgent.wait()
            except TimeoutError:
                continue

    async def _refresh(self, timeout_ms: int | None = None) -> None:
        names = tuple(sorted(self.topics))
        wanted = None if len(names) > MAX_TOPICS_PER_REQUEST else names
        await self.fetch_metadata(wanted, timeout_ms=timeout_ms)

    async def fetch_metadata(
        self, topics: tuple[str, ...] | None, *, timeout_ms: int | None = None
    ) -> MetadataResponse:
        """Ask any broker once, and take what it says. Raises Error."""
        request = MetadataRequest(topics, self._allow_auto_topic_creation, False)
        response: MetadataResponse = await self.call_any(METADATA, request, timeout_ms=timeout_ms)
        self.metadata.update(response, whole=topics is None)
        return response

    # -- requests --------------------------------------------------------------------------

    def address_of(self, node_id: int) -> Address | None:
        """Where a broker listens, None when it is not known."""
        broker = self.metadata.brokers.get(node_id)
        return None if broker is None else (broker.host, broker.port)

    def link_to(self, node_id: int, purpose: Purpose = Purpose.REQUESTS) -> ClientLink | None:
        """The open link to a broker, or None; then one is being opened."""
        address = self.address_of(node_id)
        return None if address is None else self.connections.ready(address, purpose)

    async def call_node(self, node_id: int, api: AnyApi, message: Any) -> Any:
        """Send a request to one broker. Raises Error."""
        address = self.address_of(node_id)
        if address is None:
            raise LeaderNotAvailableError(f"broker {node_id} is not known")
        timeout_ms = self.settings.request_timeout_ms
        return await self.connections.call(address, api, message, timeout_ms=timeout_ms)

    async def call_any(self, api: AnyApi, message: Any, *, timeout_ms: int | None = None) -> Any:
        """Send a request to brokers in random order, connected ones first, until one answers.

        `timeout_ms` bounds all attempts together, and each has an equal share of what is left, so
        that a broker that hangs leaves time for the others; without it each has
        request_timeout_ms. Raises the last error.
        """
        share_ms = self.settings.request_timeout_ms
        error: Error = ConnectionLostError("no broker is known")
        deadline_ms = self.clock.now_ms() + (timeout_ms or 0)
        addresses = self._any_order()
        for index, address in enumerate(addresses):
            if timeout_ms is not None:
                left_ms = deadline_ms - self.clock.now_ms()
                if left_ms <= 0:
                    break
                share_ms = max(left_ms // (len(addresses) - index), 1)
            try:
                return await self.connections.call(address, api, message, timeout_ms=share_ms)
            except Error as found:
                error = found
                if not found.retriable:
                    break
        raise error

    async def call_controller(self, api: AnyApi, message: Any, *, timeout_ms: int) -> Any:
        """Send a request to the controller, following it when it moves.

        Retried only when the answer or the lack of a connection proves that nothing happened.
        Raises Error; RequestTimeoutError when no controller was found in time.
        """
        error: Error | None = None
        attempt = 0
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                while True:
                    attempt += 1
                    address = self.address_of(self.metadata.controller_id)
                    if address is not None:
                        try:
                            await self.connections.get(address)
                        except Error as found:
                            error = found  # nothing was sent
                        else:
                            try:
                                return await self.connections.call(
                                    address, api, message, timeout_ms=timeout_ms
                                )
                            except NotControllerError as found:
                                error = found
                    await asyncio.sleep(self.backoff.delay_ms(attempt) / 1000)
                    await self.refreshed()
        except TimeoutError as cause:
            why = f": {error}" if error is not None else ": none is known"
            raise RequestTimeoutError(
                f"the controller did not answer {api.name} within {timeout_ms} ms{why}"
            ) from cause

    def _any_order(self) -> list[Address]:
        known = [(broker.host, broker.port) for broker in self.metadata.brokers.values()]
        self._rng.shuffle(known)
        known.sort(key=lambda address: not self.connections.is_open(address))
        extra = [address for address in self._bootstrap if address not in known]
        self._rng.shuffle(extra)
        return known + extra

    def _task_failed(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
        self._wake_waiters()
        self._on_change()

    def _wake_waiters(self) -> None:
        if self._refreshed is not None and not self._refreshed.done():
            self._refreshed.set_result(None)
