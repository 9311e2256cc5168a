"""Leases that end by the clock: for jobs that one machine at a time should do.

A lease outlives its session: it is a persistent znode that says who has it until when. It is only
as good as the machines' clocks agree; where that is not enough take a `Lock`. The znodes are
kazoo's: JSON in `lease_holder` below the path, changed under a lock at the path.

Source: kazoo `NonBlockingLease`, `MultiNonBlockingLease`.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

from duolog.zk import Transaction, ZkClient
from duolog.zk_transaction import failure_of
from duolog_protocol.errors import Error, NoNodeError

from .claims import Pauses
from .lock import Lock

VERSION: Final = 1
_FORMAT: Final = "%Y-%m-%dT%H:%M:%S"


def _utc_now() -> datetime:
    return datetime.now(UTC)


class NonBlockingLease:
    """A lease for one holder that is had at once or not at all.

    ```
    async with NonBlockingLease(zk, "/leases/cleanup", timedelta(minutes=70)) as lease:
        if lease.obtained:
            ...
    ```

    Leaving the block does not end the lease: it runs until `end`, and asking again with the same
    identifier renews it. SUSPENDED and LOST do not touch a lease that was obtained; while it is
    being obtained they are waited out.
    """

    def __init__(
        self,
        zk: ZkClient,
        path: str,
        duration: timedelta,
        identifier: str | None = None,
        utcnow: Callable[[], datetime] = _utc_now,
    ) -> None:
        """`identifier`: the holder, by default this host. `utcnow`: the wall clock, UTC."""
        self.path = path
        self.duration = duration
        self.identifier = identifier or socket.gethostname()
        self._zk = zk
        self._utcnow = utcnow
        self._lock = Lock(zk, path, self.identifier)
        self.obtained = False
        """Whether the last `obtain` got or renewed the lease."""
        self.end: datetime | None = None
        """When the lease that was obtained runs out, UTC."""

    @property
    def _holder_path(self) -> str:
        return f"{self.path}/lease_holder"

    async def obtain(self) -> bool:
        """Get or renew the lease; false when somebody else has it.

        Cancelling leaves it open whether it was obtained.
        """
        self.obtained = await self._locked(self._obtain)
        return self.obtained

    async def release(self) -> bool:
        """End the lease early; false when it is not ours."""
        self.obtained = False
        return await self._locked(self._release)

    async def _locked(self, work: Callable[[], Any]) -> bool:
        pauses = Pauses(self._zk)
        while True:
            try:
                async with self._lock:
                    done: bool = await work()
                    return done
            except NoNodeError:
                continue  # the lock was lost before the change was made: look again
            except Error as error:
                await pauses.after(error)

    async def _obtain(self) -> bool:
        now = self._utcnow().astimezone(UTC).replace(tzinfo=None)
        holder = await self._holder()
        if holder is not None:
            if holder.get("version") != VERSION:
                return False  # written by another program: it is not ours to judge
            try:
                held_until = datetime.strptime(str(holder.get("end")), _FORMAT)
            except ValueError:
                return False
            if holder.get("holder") != self.identifier and now < held_until:
                return False
        end = now + self.duration
        text = {"version": VERSION, "holder": self.identifier, "end": end.strftime(_FORMAT)}
        transaction = self._lock.transaction()
        if holder is not None:
            transaction.delete(self._holder_path)
        transaction.create(self._holder_path, json.dumps(text).encode())
        await self._commit(transaction)
        self.end = end.replace(microsecond=0, tzinfo=UTC)
        return True

    async def _release(self) -> bool:
        holder = await self._holder()
        if holder is None or holder.get("holder") != self.identifier:
            return False
        await self._commit(self._lock.transaction().delete(self._holder_path))
        return True

    async def _commit(self, transaction: Transaction) -> None:
        failure = failure_of(await transaction.commit())
        if failure is not None:
            raise failure

    async def _holder(self) -> dict[str, Any] | None:
        try:
            data, _ = await self._zk.get(self._holder_path)
        except NoNodeError:
            return None
        try:
            found = json.loads(data or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    async def __aenter__(self) -> Self:
        """Try to obtain it: see `obtained`."""
        await self.obtain()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Nothing: the lease runs on."""


class MultiNonBlockingLease:
    """Up to `count` holders: the first of so many leases that is free, or that is ours already.

    See `NonBlockingLease`; the leases are `<path>/0`, `<path>/1`, ...
    """

    def __init__(
        self,
        zk: ZkClient,
        count: int,
        path: str,
        duration: timedelta,
        identifier: str | None = None,
        utcnow: Callable[[], datetime] = _utc_now,
    ) -> None:
        """As `NonBlockingLease`."""
        assert count > 0, count
        self._leases = [
            NonBlockingLease(zk, f"{path}/{number}", duration, identifier, utcnow)
            for number in range(count)
        ]
        self._lease: NonBlockingLease | None = None

    @property
    def obtained(self) -> bool:
        """Whether the last `obtain` got or renewed a lease."""
        return self._lease is not None

    async def obtain(self) -> bool:
        """Get or renew a lease; false when others have them all."""
        self._lease = None
        for lease in self._leases:
            if await lease.obtain():
                self._lease = lease
                break
        return self.obtained

    async def release(self) -> bool:
        """End the lease early; false when it is not ours."""
        lease, self._lease = self._lease, None
        return await lease.release() if lease is not None else False

    async def __aenter__(self) -> Self:
        """Try to obtain one: see `obtained`."""
        await self.obtain()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Nothing: the lease runs on."""
