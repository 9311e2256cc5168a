"""A real zkserver in this process for tests of its client, and links that fail on purpose."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from duolog import ZkClient
from duolog_cluster.cluster import Cluster
from duolog_protocol import zk_messages as zk
from duolog_protocol.apis import API_VERSIONS, AnyApi, ApiVersionsRequest
from duolog_protocol.connection import Push, Response
from duolog_protocol.errors import ConnectionLostError, zk_error
from duolog_runtime.connection import ClientLink, connect

HANDSHAKE = {API_VERSIONS.key, zk.CONNECT.key, zk.PING.key, zk.SET_WATCHES.key, zk.AUTH.key}


class Zk(Cluster):
    """`async with Zk() as server:` a zkserver, and clients of it that are closed at the end."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(brokers=0, zk_settings={"tick_ms": 2_000, **settings})
        self.clients: list[ZkClient] = []

    async def client(self, **settings: Any) -> ZkClient:
        """A started client."""
        settings = {"rng": random.Random(len(self.clients)), **settings}
        client = ZkClient(self.zookeeper, **settings)
        self.clients.append(client)
        await client.start()
        return client

    async def __aexit__(self, *exc: object) -> None:
        for client in self.clients:
            await client.close()
        await super().__aexit__(*exc)

    async def expire(self, client: ZkClient) -> None:
        """End a client's session, as if it had been silent; the client is told when it returns."""
        client_id = client.client_id
        assert client_id is not None, client
        lost = asyncio.Event()

        def on_state(_state: object) -> None:
            if client.client_id is None or client.client_id[0] != client_id[0]:
                lost.set()

        client.add_listener(on_state)
        link = await connect(
            "127.0.0.1",
            self.zk.port,
            max_frame_bytes=zk.MAX_FRAME_BYTES,
            on_push=lambda _push: None,
            on_closed=lambda _reason: None,
        )
        hello = ApiVersionsRequest("expire", "0")
        attach = zk.ConnectRequest(0, 10_000, *client_id, False)
        async with asyncio.TaskGroup() as group:
            for api, message in (
                (API_VERSIONS, hello),
                (zk.CONNECT, attach),
                (zk.CLOSE_SESSION, zk.Empty()),
            ):
                group.create_task(link.call(api, message, zk_error, 0))
        link.abort()
        await lost.wait()
        client.remove_listener(on_state)


class FaultyConnect:
    """Opens links that break at chosen requests.

    `plan(number, api)` is asked for each request behind the handshake, numbered from 0: "before"
    breaks the connection instead of sending it, "after" when its answer has come, which the client
    never sees; "together" is "after" for all such requests under way: it breaks when the last of
    them is answered, and they all lose their answers. None lets it pass.
    """

    def __init__(self, plan: Callable[[int, AnyApi], str | None]) -> None:
        self.plan = plan
        self.sent: list[str] = []
        """Names of the requests so far."""
        self.links: list[ClientLink] = []

    async def __call__(
        self,
        host: str,
        port: int,
        *,
        max_frame_bytes: int,
        on_push: Callable[[Push], None],
        on_closed: Callable[[BaseException | None], None],
        ssl_context: object = None,
    ) -> ClientLink:
        assert ssl_context is None, "these links are plain"
        loop = asyncio.get_running_loop()

        def factory() -> ClientLink:
            return FaultyLink(
                self,
                loop,
                max_frame_bytes=max_frame_bytes,
                on_push=on_push,
                on_closed=on_closed,
            )

        try:
            _, link = await loop.create_connection(factory, host, port)
        except OSError as error:
            raise ConnectionLostError(str(error)) from error
        self.links.append(link)
        return link

    def cut(self) -> None:
        """Break the present connection."""
        self.links[-1].abort()


class FaultyLink(ClientLink):
    def __init__(self, faults: FaultyConnect, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._faults = faults
        self._losing: list[Callable[[Response | None], None]] = []
        self._unanswered = 0

    def send(
        self,
        api: AnyApi,
        message: Any,
        on_response: Callable[[Response | None], None] | None,
        version: int | None = None,
        *,
        at_once: bool = False,
    ) -> None:
        if api.key in HANDSHAKE or self.closed:
            super().send(api, message, on_response, version, at_once=at_once)
            return
        number = len(self._faults.sent)
        self._faults.sent.append(api.name)
        fault = self._faults.plan(number, api)
        if fault == "before":
            self.abort()
            raise ConnectionLostError("broken before it was sent")
        if fault == "after":
            assert on_response is not None
            told = on_response

            def lose(_response: Response | None) -> None:
                self.abort()
                told(None)

            super().send(api, message, lose, version, at_once=at_once)
            return
        if fault == "together":
            assert on_response is not None
            self._losing.append(on_response)
            self._unanswered += 1
            super().send(api, message, self._lose_together, version, at_once=at_once)
            return
        super().send(api, message, on_response, version, at_once=at_once)

    def _lose_together(self, _response: Response | None) -> None:
        self._unanswered -= 1
        if not self._unanswered:
            self.abort()
            losing, self._losing = self._losing, []
            for told in losing:
                told(None)


def no_faults(_number: int, _api: AnyApi) -> str | None:
    return None


def fault_at(wanted: int, kind: str) -> Callable[[int, AnyApi], str | None]:
    """One fault, at the request with this number."""
    return lambda number, _api: kind if number == wanted else None
