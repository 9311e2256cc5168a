"""A claim: one ephemeral znode with a unique name that belongs to one object.

Owns that it is created once though answers get lost, that it belongs to the current session, and
that it goes away when it is no longer wanted, even when whoever wanted it was cancelled.

Source: the "recoverable errors and the GUID" of the ZooKeeper documentation, Curator's protected
creates.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Final

from duolog.core.backoff import Backoff
from duolog.core.zk_watches import Watcher
from duolog.zk import SessionState, WatchedEvent, ZkClient
from duolog_protocol.errors import (
    BadVersionError,
    Error,
    NodeExistsError,
    NoNodeError,
    SessionExpiredError,
)
from duolog_protocol.paths import name_of
from duolog_protocol.types import EventType

PAUSE_FIRST_MS: Final = 10
PAUSE_LAST_MS: Final = 1_000


class Pauses:
    """How a recipe goes on after an error: a growing pause, or the error itself."""

    def __init__(self, zk: ZkClient) -> None:
        self._backoff = Backoff(PAUSE_FIRST_MS, PAUSE_LAST_MS, zk.rng)
        self._failed = 0

    async def after(self, error: Error) -> None:
        """Wait before the next try. Raises `error` where another try is of no use."""
        if not error.retriable and not isinstance(error, SessionExpiredError):
            raise error
        await self.after_conflict()

    async def after_conflict(self) -> None:
        """Wait before the next try: somebody else was faster."""
        self._failed += 1
        await asyncio.sleep(self._backoff.delay_ms(self._failed) / 1000)


async def ensure_path(zk: ZkClient, path: str) -> None:
    """Create a znode and its parents where they are missing, over lost connections."""
    pauses = Pauses(zk)
    while True:
        try:
            await zk.ensure_path(path)
            return
        except Error as error:
            await pauses.after(error)


def session_of(zk: ZkClient) -> int:
    """Id of the current session, 0 while there is none."""
    client_id = zk.client_id
    return client_id[0] if client_id is not None else 0


class Claim:
    """One ephemeral znode. Its name begins with `<32 hex digits><kind>`."""

    def __init__(
        self,
        zk: ZkClient,
        parent: str,
        kind: str,
        data: bytes,
        *,
        sequence: bool,
        guard: str | None = None,
    ) -> None:
        """`guard`: a znode that must exist in the moment of creation."""
        self._zk = zk
        self._parent = parent.rstrip("/")
        self._data = data
        self._sequence = sequence
        self._guard = guard
        self._prefix = f"{uuid.uuid4().hex}{kind}"
        self._tried = False
        self.path: str | None = None
        """Where it is, once it was created."""
        self.czxid = 0
        """The transaction that created it: rises from claim to claim."""
        self._session_id = 0

    @property
    def name(self) -> str:
        """Its name below the parent."""
        assert self.path is not None, "the claim was not created"
        return name_of(self.path)

    @property
    def is_current(self) -> bool:
        """It was created in the session that the client has now."""
        return self.path is not None and self._session_id == session_of(self._zk)

    async def create(self) -> None:
        """Create it, unless it is there in this session. Raises NoNodeError for the guard only.

        Cancelling is safe when `withdraw` is called after it.
        """
        pauses = Pauses(self._zk)
        while not self.is_current:
            try:
                if self._tried and await self._find():
                    return
                self._tried = True
                await self._create_once()
            except NoNodeError:
                if await self._guard_is_gone():
                    raise
                await ensure_path(self._zk, self._parent or "/")
            except NodeExistsError:
                continue  # it is ours, the answer was lost: find it
            except Error as error:
                await pauses.after(error)

    async def _guard_is_gone(self) -> bool:
        return self._guard is not None and await self._zk.exists(self._guard) is None

    async def _create_once(self) -> None:
        transaction = self._zk.transaction()
        if self._guard is not None:
            transaction.check(self._guard, -1)
        transaction.create(
            f"{self._parent}/{self._prefix}",
            self._data,
            ephemeral=True,
            sequence=self._sequence,
            include_data=True,
        )
        async with transaction:
            pass
        self.path, stat = transaction.results[-1]
        self.czxid, self._session_id = stat.czxid, stat.ephemeral_owner

    async def _find(self) -> bool:
        """Look for it after a lost answer: what the lost request did is applied after a sync."""
        self.path = None
        session_id = session_of(self._zk)
        for path in await self._all():
            stat = await self._zk.exists(path)
            if stat is None:
                continue
            if stat.ephemeral_owner == session_id:
                self.path, self.czxid, self._session_id = path, stat.czxid, session_id
                return True
            await self._delete(path)  # of a former session that the server has not expired yet
        return False

    async def _all(self) -> list[str]:
        await self._zk.sync(self._parent or "/")
        try:
            names = await self._zk.get_children(self._parent or "/")
        except NoNodeError:
            return []
        return [f"{self._parent}/{name}" for name in names if name.startswith(self._prefix)]

    async def _delete(self, path: str) -> None:
        try:
            await self._zk.delete(path)
        except (NoNodeError, BadVersionError):
            return

    def forget(self) -> None:
        """Somebody has deleted it: `create` makes another one."""
        self.path = None

    def withdraw(self) -> asyncio.Task[None] | None:
        """Have it deleted in the background, also when it is not known whether it exists.

        Returns the task that does it, None when there is nothing to do. It goes on through
        reconnects; a claim that is left when the client is closed ends with the session.
        """
        if not self._tried:
            return None
        self._tried = False
        return self._zk.spawn(f"withdraw {self._prefix}", self._withdraw(self.path))

    async def _withdraw(self, path: str | None) -> None:
        self.path = None
        pauses = Pauses(self._zk)
        while True:
            try:
                for each in [path] if path is not None else await self._all():
                    await self._delete(each)
                return
            except Error as error:
                if not error.retriable and not isinstance(error, SessionExpiredError):
                    return  # the client has ended, and with it the session and the claim
                await pauses.after(error)


async def finish(task: asyncio.Task[None] | None) -> None:
    """Wait for a background task; cancelling this leaves it running."""
    if task is not None:
        await asyncio.wait({task})


class Change:
    """Waits for one change of some znodes, through one-shot watches.

    `async with Change(zk) as change: ... await zk.get(path, change.watch(path)) ... await
    change.wait()`. Leaving forgets the watches.
    """

    def __init__(self, zk: ZkClient) -> None:
        self._zk = zk
        self._happened = asyncio.Event()
        self._paths: set[str] = set()
        self.created_zxid = -1
        """The last creation that an event told of."""

    async def __aenter__(self) -> Change:
        """Begin."""
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Forget the watches."""
        self.forget()

    def forget(self) -> None:
        """Forget the watches. Idempotent."""
        for path in self._paths:
            self._zk.forget_watch(path, self._on_event)

    def watch(self, path: str) -> Watcher:
        """The callback to give to a read of `path`."""
        self._paths.add(path)
        return self._on_event

    def _on_event(self, event: WatchedEvent) -> None:
        if event.type is EventType.CREATED:
            self.created_zxid = max(self.created_zxid, event.zxid)
        self._happened.set()

    async def wait(self) -> None:
        """Return once something has changed, or the session has ended. Cancelling is safe."""
        await self._happened.wait()
        self._happened.clear()


class Validity:
    """Whether what is held may still be held: `lost` is set at the first doubt.

    Doubt is: the session is not CONNECTED, or the znode is gone. It stays set until `renew`.
    """

    def __init__(self, zk: ZkClient) -> None:
        self._zk = zk
        self.lost = asyncio.Event()
        self._path: str | None = None

    async def begin(self, claim: Claim) -> bool:
        """Watch over a claim that is ours; false when it is gone. Retriable errors pass."""
        self.end()
        self.lost.clear()
        self._path = claim.path
        assert self._path is not None
        self._zk.add_listener(self._on_state)
        try:
            stat = await self._zk.exists(self._path, self._on_event)
        except BaseException:
            self.end()
            raise
        connected = self._zk.state is SessionState.CONNECTED
        if stat is None or not claim.is_current or not connected or self.lost.is_set():
            self.end()
            return False
        return True

    def end(self) -> None:
        """Watch no more. Idempotent."""
        self._zk.remove_listener(self._on_state)
        if self._path is not None:
            self._zk.forget_watch(self._path, self._on_event)
            self._path = None

    def _on_state(self, state: SessionState) -> None:
        if state is not SessionState.CONNECTED:
            self.lost.set()

    def _on_event(self, event: WatchedEvent) -> None:
        self.lost.set()
