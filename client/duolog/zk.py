"""`ZkClient`: a session with zkserver. Names and meanings are kazoo's, in asyncio.

Owns the life of the client and what it tells of its session. The operations are `zk_operations`',
the connection, and the order in which things are heard, `zk_keeper`'s.

Calls made while the connection is lost wait for the next one, up to their timeout. A call that was
in flight fails with ConnectionLostError unless it only reads: reads are sent again, writes never,
because they may have happened.

Source: ZooKeeper `ClientCnxn`, kazoo `KazooClient`; zookeeper.md A.9-A.11, B.7, B.8.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from duolog_protocol.errors import RequestTimeoutError
from duolog_runtime.connection import connect as connect_link

from .clock import Clock, SystemClock
from .core.zk_session import Session, SessionState, parse_hosts
from .core.zk_watches import WatchedEvent
from .retry import Retry
from .zk_events import WatchStream
from .zk_keeper import Connect, Listener, SessionKeeper
from .zk_operations import ZkOperations
from .zk_transaction import MultiRead, Transaction

T = TypeVar("T")

if TYPE_CHECKING:
    import ssl

DEFAULT_HOSTS: Final = "127.0.0.1:2181"

__all__ = [
    "MultiRead",
    "SessionState",
    "Transaction",
    "WatchStream",
    "WatchedEvent",
    "ZkClient",
]


class ZkClient(ZkOperations):
    """A session with zkserver.

    ```
    async with ZkClient("127.0.0.1:2181") as zk:
        await zk.create("/a", b"data")
    ```

    Every call takes `timeout=` in seconds (default: twice the session timeout) and raises
    RequestTimeoutError when it runs out, ConnectionLostError when the connection ended while a
    write was in flight, SessionExpiredError when the session is gone, and the ZkError that the
    server answered. Cancelling a call does not withdraw a request that was sent.
    """

    def __init__(
        self,
        hosts: str = DEFAULT_HOSTS,
        *,
        session_timeout: float = 10.0,
        client_id: tuple[int, bytes] | None = None,
        auth_data: Sequence[tuple[str, bytes | str]] = (),
        client_name: str = "duolog",
        ssl_context: ssl.SSLContext | None = None,
        rng: random.Random | None = None,
        clock: Clock | None = None,
        connect: Connect | None = None,
    ) -> None:
        """`hosts`: HOST[:PORT][,HOST[:PORT]...][/chroot]. `session_timeout`: seconds, as wished;
        the server has the last word. `client_id`: (session id, password) of a session to attach
        to. `auth_data`: (scheme, credential) pairs, as for `add_auth`. `ssl_context`: connect over
        TLS (`client_tls_context` makes one). `connect` opens a link to a server in another way.
        Raises ConfigError.
        """
        parsed = parse_hosts(hosts)
        self.chroot = parsed.chroot
        self.rng = rng or random.Random()
        self._session = Session(parsed, int(session_timeout * 1000), self.rng, client_id)
        self._keeper = SessionKeeper(
            self._session,
            chroot=parsed.chroot,
            client_name=client_name,
            clock=clock or SystemClock(),
            attach_only=client_id is not None,
            credentials=[
                (scheme, each.encode() if isinstance(each, str) else each)
                for scheme, each in auth_data
            ],
            connect=connect or partial(connect_link, ssl_context=ssl_context),
        )

    # ---- life ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Connect."""
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the session."""
        await self.close()

    async def start(self, timeout: float | None = None) -> None:
        """Connect and open (or attach to) the session.

        Raises RequestTimeoutError when no server accepted in time (default: the session timeout),
        SessionExpiredError when the session of `client_id` is gone.
        """
        await self._keeper.start(timeout)

    async def close(self) -> bool:
        """Close the session (its ephemeral znodes go at once) and the connection. Idempotent.

        Where the server cannot be reached the session is left to expire; true where it has
        confirmed that the session has ended.
        """
        return await self._keeper.close()

    @property
    def state(self) -> SessionState:
        """What is known of the session."""
        return self._session.state

    @property
    def connected(self) -> bool:
        """Whether the session is CONNECTED."""
        return self._session.state is SessionState.CONNECTED

    @property
    def client_id(self) -> tuple[int, bytes] | None:
        """(session id, password), None without a session."""
        session = self._session
        return (session.session_id, session.password) if session.session_id else None

    @property
    def negotiated_timeout(self) -> float:
        """The session timeout, in seconds, as the server granted it."""
        return self._session.timeout_ms / 1000

    @property
    def last_zxid_seen(self) -> int:
        """The last zxid of zkserver's state that this client has seen."""
        return self._session.last_zxid_seen

    def add_listener(self, listener: Listener) -> None:
        """Call `listener` with every new SessionState, at once, in the loop's thread."""
        self._keeper.listeners.append(listener)

    def remove_listener(self, listener: Listener) -> None:
        """Undo `add_listener`. Idempotent."""
        if listener in self._keeper.listeners:
            self._keeper.listeners.remove(listener)

    def abandon(self) -> None:
        """Stop at once and leave the session to expire, as a process that dies does. Idempotent."""
        self._keeper.abandon()

    async def states(self) -> AsyncIterator[SessionState]:
        """The current state, then every new one, until the client is closed."""
        seen: deque[SessionState] = deque([self.state])
        news = asyncio.Event()
        news.set()

        def listener(state: SessionState) -> None:
            seen.append(state)
            news.set()

        self.add_listener(listener)
        try:
            while not (self._keeper.closing and not seen):
                await news.wait()
                news.clear()
                while seen:
                    yield seen.popleft()
        finally:
            self.remove_listener(listener)

    async def wait_for(self, state: SessionState, timeout: float | None = None) -> None:
        """Wait until the session is in `state`. Raises RequestTimeoutError."""
        reached = asyncio.Event()

        def listener(now: SessionState) -> None:
            if now is state:
                reached.set()

        self.add_listener(listener)
        try:
            async with asyncio.timeout(timeout):
                while self.state is not state:
                    self._keeper.check_alive()
                    await reached.wait()
                    reached.clear()
        except TimeoutError:
            raise RequestTimeoutError(f"session not {state.value} in {timeout} s") from None
        finally:
            self.remove_listener(listener)

    # ---- for recipes ---------------------------------------------------------------------------

    def spawn(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine as a task of this client: it is cancelled when the client is closed.

        What it raises goes to the loop's exception handler.
        """
        return self._keeper.tasks.spawn(name, work)

    async def retry(self, func: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """Call `func` again while it raises retriable errors: `Retry` without a bound."""
        return await Retry(max_tries=None, rng=self.rng)(func, *args, **kwargs)
