"""A semaphore: at most so many leases of one path at a time.

Whoever wants a lease takes a lock first; only the holder of that lock looks at the leases and
watches them, so that a lease that is given back wakes one contender. A lease is created in one
transaction with a check of the lock, so that two can never both take the last one. The znodes are
kazoo's: leases below the path, the lock at `<path>-__lock__`, the number in the path's data.

Source: kazoo `Semaphore`, Curator `InterProcessSemaphoreV2`.
"""

from __future__ import annotations

import asyncio
from typing import Self

from duolog.zk import ZkClient
from duolog_protocol.errors import (
    BadVersionError,
    Error,
    LockTimeoutError,
    NodeExistsError,
    NoNodeError,
)

from .claims import Change, Claim, Pauses, Validity, finish
from .lock import Lock


class Semaphore:
    """`async with Semaphore(zk, "/db/connections", max_leases=10) as lease: ...`

    While the session is SUSPENDED the lease may be given to another: `lost` is set at once; after
    LOST it is gone. `token` is the zxid of the lease. One object holds one lease and may be
    acquired again after its release.
    """

    def __init__(self, zk: ZkClient, path: str, identifier: str = "", max_leases: int = 1) -> None:
        """`path`: parent of the leases. `identifier`: what `lease_holders()` shows.

        `max_leases` must be the same everywhere: it is kept as the data of `path`.
        """
        assert max_leases > 0, max_leases
        self.path = path
        self.data = identifier.encode()
        self.max_leases = max_leases
        self._zk = zk
        self._lock = Lock(zk, f"{path}-__lock__", identifier)
        self._lease: Claim | None = None
        self._validity = Validity(zk)
        self._checked = False
        self.is_acquired = False
        """It was acquired and not released; whether it may be relied on is `lost`'s to say."""

    @property
    def lost(self) -> asyncio.Event:
        """Set once the lease that is held may be somebody else's; cleared by `acquire`."""
        return self._validity.lost

    @property
    def token(self) -> int:
        """zxid of the lease. Raises RuntimeError unless it is acquired."""
        if self._lease is None or not self.is_acquired:
            raise RuntimeError(f"no lease of {self.path} is held")
        return self._lease.czxid

    async def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Wait for a lease; false when none is free and `blocking` is false.

        `timeout`: seconds. Raises LockTimeoutError when it runs out, ValueError when the path is
        used with another `max_leases`. Lost connections and sessions are waited out. Cancelling
        withdraws the claim.
        """
        if self.is_acquired:
            raise RuntimeError(f"a lease of {self.path} is held already")
        try:
            async with asyncio.timeout(timeout):
                self.is_acquired = await self._acquire(blocking=blocking)
        except TimeoutError:
            raise LockTimeoutError(f"no lease of {self.path} in {timeout} s") from None
        finally:
            if not self.is_acquired:
                self._withdraw()
        return self.is_acquired

    async def _acquire(self, *, blocking: bool) -> bool:
        pauses = Pauses(self._zk)
        while True:
            try:
                await self._check_max_leases()
                if not await self._lock.acquire(blocking=blocking):
                    return False
                try:
                    if await self._take(blocking=blocking):
                        return True
                    if not blocking:
                        return False
                finally:
                    await self._lock.release()
            except NoNodeError:
                self._checked = False  # the lock was lost, or the path deleted: begin again
            except Error as error:
                await pauses.after(error)

    async def _take(self, *, blocking: bool) -> bool:
        """With the lock: wait until a lease is free, and create ours. False: begin again."""
        await finish(self._withdraw())  # of a try that failed: it must not count
        while not self._lock.lost.is_set():
            async with Change(self._zk) as change:
                names = await self._zk.get_children(self.path, change.watch(self.path))
                if len(names) < self.max_leases:
                    break
                if not blocking:
                    return False
                await self._until(change)
        else:
            return False
        lease = self._lease = Claim(
            self._zk, self.path, "", self.data, sequence=False, guard=self._lock.node
        )
        await lease.create()
        return await self._validity.begin(lease)

    async def _until(self, change: Change) -> None:
        """Until something changed, or the lock is in doubt."""
        waits = [
            asyncio.ensure_future(change.wait()),
            asyncio.ensure_future(self._lock.lost.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()

    async def _check_max_leases(self) -> None:
        wanted = str(self.max_leases).encode()
        while not self._checked:
            try:
                await self._zk.create(self.path, wanted, makepath=True)
            except NodeExistsError:
                data, stat = await self._zk.get(self.path)
                if not data and stat.version == 0 and not await self._first_set(wanted):
                    continue
                if data and data.isdigit() and data != wanted:
                    raise ValueError(
                        f"{self.path} has {data.decode()} leases, not {self.max_leases}"
                    ) from None
            self._checked = True

    async def _first_set(self, wanted: bytes) -> bool:
        try:
            await self._zk.set(self.path, wanted, 0)
        except BadVersionError:
            return False
        return True

    async def release(self) -> bool:
        """Give the lease back; false when none is held. Cancelling leaves that to a task."""
        if not self.is_acquired:
            return False
        self.is_acquired = False
        await finish(self._withdraw())
        return True

    def _withdraw(self) -> asyncio.Task[None] | None:
        self._validity.end()
        lease, self._lease = self._lease, None
        return lease.withdraw() if lease is not None else None

    async def lease_holders(self) -> list[str]:
        """Identifiers of those that hold a lease, in no order."""
        found: list[str] = []
        try:
            names = await self._zk.get_children(self.path)
        except NoNodeError:
            return []
        for name in names:
            try:
                data, _ = await self._zk.get(f"{self.path}/{name}")
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
