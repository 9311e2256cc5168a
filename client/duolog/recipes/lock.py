"""Locks: exclusive, and shared between readers or held by one writer.

Contenders queue up as sequential ephemeral znodes; each watches only the one before it. Names of
znodes are kazoo's: its locks and these exclude each other.

Source: the lock recipes of the ZooKeeper documentation; "How to do distributed locking"
(Kleppmann) for the fencing token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar, Self

from duolog.core.zk_contenders import EXCLUSIVE, SHARED, in_order, predecessor
from duolog.zk import Transaction, ZkClient
from duolog_protocol.errors import Error, LockTimeoutError, NoNodeError

from .claims import Change, Claim, Pauses, Validity, finish


class Lock:
    """An exclusive lock.

    ```
    async with Lock(zk, "/locks/printer") as lock:
        await print_page(fence=lock.token)
    ```

    While the session is SUSPENDED the server may expire it and give the lock to another: `lost` is
    set at once, and whoever holds the lock should stop. The lock is not given back by that; after
    a reconnect in the same session it is held still, and `lost` stays set as a warning that it was
    in doubt. After LOST it is gone. Work that must never be done by two at once carries `token` to
    where it is checked, or goes through `transaction()`.

    One object may be used by several tasks: they take turns. It is not re-entrant.
    """

    _kind: ClassVar[str] = EXCLUSIVE
    _blocked_by: ClassVar[tuple[str, ...]] = (EXCLUSIVE,)

    def __init__(
        self,
        zk: ZkClient,
        path: str,
        identifier: str = "",
        extra_lock_patterns: Sequence[str] = (),
    ) -> None:
        """`path`: the contenders' parent, created when it is missing. `identifier`: what
        `contenders()` shows. `extra_lock_patterns`: further kinds of names that go before us."""
        self.path = path
        self.data = identifier.encode()
        self._zk = zk
        self._blocking = (*self._blocked_by, *extra_lock_patterns)
        self._local = asyncio.Lock()
        self._claim: Claim | None = None
        self._validity = Validity(zk)
        self.is_acquired = False
        """It was acquired and not released; whether it may be relied on is `lost`'s to say."""

    @property
    def lost(self) -> asyncio.Event:
        """Set once the lock that is held may be somebody else's; cleared by `acquire`."""
        return self._validity.lost

    @property
    def token(self) -> int:
        """The fencing token: higher than that of everybody who had the lock before (a zxid).

        Raises RuntimeError unless the lock is acquired.
        """
        return self._held().czxid

    @property
    def node(self) -> str:
        """Path of this contender's znode. Raises RuntimeError unless the lock is acquired."""
        path = self._held().path
        assert path is not None
        return path

    def _held(self) -> Claim:
        if self._claim is None or not self.is_acquired:
            raise RuntimeError(f"the lock {self.path} is not acquired")
        return self._claim

    def transaction(self) -> Transaction:
        """A transaction that fails (NoNodeError) once this lock is no longer ours.

        Its first operation checks this contender's znode: two holders can never both commit.
        """
        return self._zk.transaction().check(self.node, -1)

    async def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Wait until the lock is ours; false when it is not free and `blocking` is false.

        `timeout`: seconds. Raises LockTimeoutError when it runs out, and errors that waiting does
        not heal (NoAuthError, ConnectionClosedError). Lost connections, and sessions that end
        while it waits, are waited out. Cancelling withdraws the claim, as does every error.
        """
        if not blocking and self._local.locked():
            return False
        try:
            async with asyncio.timeout(timeout):
                await self._local.acquire()
                try:
                    self.is_acquired = await self._contend(blocking=blocking)
                finally:
                    if not self.is_acquired:
                        self._withdraw()
                        self._local.release()
        except TimeoutError:
            raise LockTimeoutError(f"{self.path} was not acquired in {timeout} s") from None
        return self.is_acquired

    def _new_claim(self) -> Claim:
        return Claim(self._zk, self.path, self._kind, self.data, sequence=True)

    async def _contend(self, *, blocking: bool) -> bool:
        claim = self._claim = self._new_claim()
        pauses = Pauses(self._zk)
        while True:
            try:
                await claim.create()
                async with Change(self._zk) as change:
                    before = await self._before(claim)
                    if before is None:
                        if await self._validity.begin(claim):
                            return True
                    elif not blocking:
                        return False
                    else:
                        path = f"{self.path.rstrip('/')}/{before}"
                        await self._zk.get(path, change.watch(path))
                        await change.wait()
                        continue
            except NoNodeError:
                pass  # it has just gone; or ours was deleted by somebody
            except Error as error:
                await pauses.after(error)
                continue
            if claim.is_current and not await self._is_there(claim):
                claim.withdraw()
                claim = self._claim = self._new_claim()

    async def _before(self, claim: Claim) -> str | None:
        """Who must go before us. Raises NoNodeError when our own znode is gone."""
        names = await self._zk.get_children(self.path)
        if claim.name not in names:
            raise NoNodeError(f"{claim.path} was deleted")
        return predecessor(names, claim.name, own_kind=self._kind, blocked_by=self._blocking)

    async def _is_there(self, claim: Claim) -> bool:
        assert claim.path is not None
        try:
            return await self._zk.exists(claim.path) is not None
        except Error:
            return True  # not known: the next round asks again

    async def release(self) -> bool:
        """Give the lock back; false when it is not held.

        Returns once the server has deleted the znode, or the client has ended. Cancelling leaves
        that to a task of the client.
        """
        if not self.is_acquired:
            return False
        self.is_acquired = False
        task = self._withdraw()
        try:
            await finish(task)
        finally:
            self._local.release()
        return True

    def _withdraw(self) -> asyncio.Task[None] | None:
        self._validity.end()
        claim, self._claim = self._claim, None
        return claim.withdraw() if claim is not None else None

    async def contenders(self) -> list[str]:
        """Identifiers of all contenders, the holder (or holders) first."""
        kinds = {self._kind, *self._blocking}
        try:
            names = in_order(await self._zk.get_children(self.path), kinds)
        except NoNodeError:
            return []
        found: list[str] = []
        for name in names:
            try:
                data, _ = await self._zk.get(f"{self.path.rstrip('/')}/{name}")
            except NoNodeError:
                continue
            found.append((data or b"").decode(errors="replace"))
        return found

    async def __aenter__(self) -> Self:
        """Acquire, without a timeout (put `asyncio.timeout` around it)."""
        await self.acquire()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Release."""
        await self.release()


class WriteLock(Lock):
    """The writer's side of a shared lock: alone with the path, excluding readers and writers."""

    _blocked_by = (EXCLUSIVE, SHARED)


class ReadLock(Lock):
    """The reader's side of a shared lock: with other readers, excluding writers.

    A reader waits only for the youngest writer before it; a writer that waits holds up readers
    that come later, so that readers cannot starve it.
    """

    _kind = SHARED
    _blocked_by = (EXCLUSIVE,)
