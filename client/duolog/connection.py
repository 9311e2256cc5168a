"""Connections to brokers: one link for each address and purpose, opened on demand.

Owns connecting, the ApiVersions handshake, reconnect with exponential backoff and jitter, and
deadlines of single calls. A long-polling fetch has a link of its own (`Purpose.FETCH`), so that
nothing queues behind it. Never retries a request: whoever sent it knows what that would mean.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

from duolog_protocol.apis import API_VERSIONS, AnyApi, ApiVersionsRequest, ApiVersionsResponse
from duolog_protocol.broker_messages import BROKER_APIS, MAX_FRAME_BYTES
from duolog_protocol.connection import Push
from duolog_protocol.errors import (
    ConnectionClosedError,
    ConnectionLostError,
    Error,
    RemoteProtocolError,
    RequestTimeoutError,
    broker_error,
)
from duolog_runtime.connection import ClientLink, connect, new_scratch

from .clock import Clock
from .core.backoff import Backoff
from .owned_tasks import OwnedTasks

Address = tuple[str, int]
"""(host, port)."""

SERVICE: Final = "kbroker"
SOFTWARE_NAME: Final = "duolog-python"
SOFTWARE_VERSION: Final = "0.1"
DEFAULT_PORT: Final = 9092
STABLE_MS: Final = 1000
"""A link that lasted this long may be opened again without delay."""


class Purpose(Enum):
    """What a link is for; links of different purposes never share a queue."""

    REQUESTS = "requests"
    FETCH = "fetch"


class _Endpoint:
    """One address and purpose: its link or the way to it."""

    __slots__ = ("connecting", "failures", "last_error", "link", "not_before_ms", "opened_ms")

    def __init__(self) -> None:
        self.link: ClientLink | None = None
        self.connecting: asyncio.Task[Any] | None = None
        self.failures = 0
        """Attempts in a row that gave no link, or one that did not last."""
        self.not_before_ms = 0
        """No attempt before this time."""
        self.opened_ms = 0
        self.last_error: Error | None = None


class Connections:
    """The links of one client object."""

    def __init__(
        self,
        *,
        client_id: str,
        tasks: OwnedTasks,
        clock: Clock,
        rng: random.Random,
        setup_timeout_ms: int,
        backoff_ms: int,
        backoff_max_ms: int,
        on_change: Callable[[], None],
    ) -> None:
        self._client_id = client_id
        self._tasks = tasks
        self._clock = clock
        self._setup_timeout_ms = setup_timeout_ms
        self._backoff = Backoff(backoff_ms, backoff_max_ms, rng)
        self._on_change = on_change
        """Called when a link was opened, was lost, or could not be opened."""
        self._endpoints: dict[tuple[Address, Purpose], _Endpoint] = {}
        self._scratch = new_scratch()
        self._closed = False

    def ready(self, address: Address, purpose: Purpose = Purpose.REQUESTS) -> ClientLink | None:
        """The open link, or None; then one is being opened, unless it is too early to try."""
        endpoint = self._endpoint(address, purpose)
        if endpoint.link is not None:
            return endpoint.link
        self._begin(address, purpose, endpoint)
        return None

    def is_open(self, address: Address) -> bool:
        """Whether there is an open link for requests."""
        endpoint = self._endpoints.get((address, Purpose.REQUESTS))
        return endpoint is not None and endpoint.link is not None

    def retry_at_ms(self, address: Address, purpose: Purpose = Purpose.REQUESTS) -> int:
        """When it is worth to ask `ready` again though nothing has changed."""
        return self._endpoint(address, purpose).not_before_ms

    async def get(self, address: Address, purpose: Purpose = Purpose.REQUESTS) -> ClientLink:
        """The open link; opens it, after waiting out the backoff of earlier failures.

        Put `asyncio.timeout` around it. Cancelling is safe. Raises ConnectionLostError,
        RemoteProtocolError, ConnectionClosedError.
        """
        endpoint = self._endpoint(address, purpose)
        if endpoint.link is not None:
            return endpoint.link
        wait_ms = endpoint.not_before_ms - self._clock.now_ms()
        if wait_ms > 0:
            await asyncio.sleep(wait_ms / 1000)
        self._begin(address, purpose, endpoint)
        if endpoint.connecting is not None:
            await asyncio.wait([endpoint.connecting])
        link = endpoint.link
        if link is None:
            if self._closed:
                raise ConnectionClosedError("the client was stopped")
            error = endpoint.last_error
            raise ConnectionLostError(
                f"no connection to {address[0]}:{address[1]}: {error}"
            ) from error
        return link

    async def call(
        self,
        address: Address,
        api: AnyApi,
        message: Any,
        *,
        timeout_ms: int,
        purpose: Purpose = Purpose.REQUESTS,
    ) -> Any:
        """Send a request and wait for its response.

        Cancelling does not withdraw the request. Raises BrokerError for an error response,
        TransportError.
        """
        link: ClientLink | None = None
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                link = await self.get(address, purpose)
                return (await link.call(api, message, broker_error)).message
        except TimeoutError as cause:
            error = RequestTimeoutError(
                f"no answer to {api.name} from {address[0]}:{address[1]} within {timeout_ms} ms"
            )
            if link is not None:
                link.abort(error)  # what came later on it would have to wait as long
            raise error from cause

    def reopen(self, address: Address, purpose: Purpose) -> None:
        """Drop a link whose outstanding answers are not wanted any more; no delay after it."""
        endpoint = self._endpoint(address, purpose)
        link = endpoint.link
        if link is not None:
            endpoint.link = None
            link.abort()

    async def close(self) -> None:
        """Close all links. The tasks that open some must be stopped before."""
        self._closed = True
        links = [each.link for each in self._endpoints.values() if each.link is not None]
        for link in links:
            link.close()
        for _ in range(3):  # let the transports report their end before the loop may be closed
            await asyncio.sleep(0)

    def _endpoint(self, address: Address, purpose: Purpose) -> _Endpoint:
        endpoint = self._endpoints.get((address, purpose))
        if endpoint is None:
            endpoint = self._endpoints[address, purpose] = _Endpoint()
        return endpoint

    def _begin(self, address: Address, purpose: Purpose, endpoint: _Endpoint) -> None:
        if self._closed or endpoint.connecting is not None:
            return
        if self._clock.now_ms() < endpoint.not_before_ms:
            return
        endpoint.connecting = self._tasks.spawn(
            f"connect {address[0]}:{address[1]} {purpose.value}", self._connect(address, endpoint)
        )

    async def _connect(self, address: Address, endpoint: _Endpoint) -> None:
        link: ClientLink | None = None
        try:
            async with asyncio.timeout(self._setup_timeout_ms / 1000):
                link = await self._open(address, endpoint)
                await self._handshake(link)
        except (Error, TimeoutError) as error:
            if link is not None:
                link.abort()
            endpoint.last_error = (
                error
                if isinstance(error, Error)
                else RequestTimeoutError(f"not connected within {self._setup_timeout_ms} ms")
            )
            endpoint.failures += 1
            delay_ms = self._backoff.delay_ms(endpoint.failures)
            endpoint.not_before_ms = self._clock.now_ms() + delay_ms
        else:
            if not link.closed:
                endpoint.link = link
                endpoint.opened_ms = self._clock.now_ms()
        finally:
            endpoint.connecting = None
            if endpoint.link is None and link is not None:
                link.abort()
        self._on_change()

    async def _open(self, address: Address, endpoint: _Endpoint) -> ClientLink:
        link: ClientLink

        def on_push(push: Push) -> None:
            link.abort(RemoteProtocolError(f"event {push.header.error_code} from a broker"))

        def on_closed(_reason: BaseException | None) -> None:
            if endpoint.link is link:
                endpoint.link = None
                now_ms = self._clock.now_ms()
                if now_ms - endpoint.opened_ms < STABLE_MS:  # a peer that takes and drops us
                    endpoint.failures += 1
                    endpoint.not_before_ms = now_ms + self._backoff.delay_ms(endpoint.failures)
                else:
                    endpoint.failures = 0
                self._on_change()

        link = await connect(
            *address,
            max_frame_bytes=MAX_FRAME_BYTES,
            on_push=on_push,
            on_closed=on_closed,
            scratch=self._scratch,
        )
        return link

    async def _handshake(self, link: ClientLink) -> None:
        request = ApiVersionsRequest(f"{SOFTWARE_NAME}/{self._client_id}"[:128], SOFTWARE_VERSION)
        response: ApiVersionsResponse = (
            await link.call(API_VERSIONS, request, broker_error)
        ).message
        if response.service != SERVICE:
            raise RemoteProtocolError(
                f"{link.peer} is a {response.service!r}, expected a {SERVICE!r}"
            )
        link.endpoint.learn_versions(response, BROKER_APIS)


def parse_servers(servers: str | list[str]) -> list[Address]:
    """Addresses from "host:port,host:port" or a list of them. Raises ValueError."""
    found: list[Address] = []
    for each in servers.split(",") if isinstance(servers, str) else servers:
        text = each.strip()
        host, colon, port = text.rpartition(":")
        if not colon or (":" in host and not host.startswith("[")):
            host, port = text, str(DEFAULT_PORT)
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"{text!r} is not host:port")
        found.append((host.strip("[]"), int(port)))
    if not found:
        raise ValueError("no address given")
    return found
