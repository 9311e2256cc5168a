"""How a server begins to listen, and how it stops.

asyncio accepts a connection in one turn of the loop and makes its transport in the next one. When
the server is closed in between, that fails, and the connection stays open, belonging to nobody: the
client waits for an answer until it is collected as garbage. Only asyncio's own loops are helped;
uvloop closes at once, as it always does. It matters where the process goes on without the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from duolog_protocol.errors import ConfigError


async def listen(
    loop: asyncio.AbstractEventLoop,
    factory: Callable[[], asyncio.BaseProtocol],
    host: str,
    port: int,
    field: str,
    **options: Any,
) -> asyncio.Server:
    """Take a port, 0: any free one. `field` is the setting that it comes from, `options` are those
    of `create_server`. Raises ConfigError."""
    try:
        return await loop.create_server(factory, host, port, **options)
    except OSError as error:
        rule = f"cannot be listened on at {host}: {error.strerror or error}"
        raise ConfigError(field, port, rule) from error


def port_of(server: asyncio.Server) -> int:
    """The port that a server has taken."""
    port: int = server.sockets[0].getsockname()[1]
    return port


def stop_accepting(loop: asyncio.AbstractEventLoop, servers: Iterable[asyncio.Server]) -> None:
    """Accept nobody more, ahead of `close_servers`. Whoever was accepted in this turn still comes
    to the protocol factory, and its connection is to be ended there."""
    for server in servers:
        if not isinstance(loop, asyncio.SelectorEventLoop):
            server.close()
            continue
        for socket in server.sockets:
            loop.remove_reader(socket.fileno())


async def close_servers(servers: Iterable[asyncio.Server]) -> None:
    """Close them, a turn after `stop_accepting`."""
    await asyncio.sleep(0)
    for server in servers:
        server.close()
