"""How a server stops to listen.

asyncio accepts a connection in one turn of the loop and makes its transport in the next one. When
the server is closed in between, that fails, and the connection stays open, belonging to nobody: the
client waits for an answer until it is collected as garbage. Only asyncio's own loops are helped;
uvloop closes at once, as it always does. It matters where the process goes on without the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable


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
