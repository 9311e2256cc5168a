"""Queues with priorities: one that hands entries out, one that locks them until they are done.

Entries are sequential znodes whose names sort by priority, then by age. The znodes are kazoo's.
An entry is put exactly once and taken by one consumer only, though answers get lost (`once.py`).
A consumer that waits holds a lock while it watches for entries, so that a new entry wakes one
consumer and not all of them.

Source: the queue recipe of the ZooKeeper documentation, kazoo `Queue`, `LockingQueue`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, NamedTuple, Self, TypeVar

from duolog.zk import Transaction, ZkClient
from duolog_protocol.errors import (
    Error,
    NodeExistsError,
    NoNodeError,
    SessionExpiredError,
    TransportError,
)

from .claims import Change, Pauses, ensure_path, session_of
from .lock import Lock
from .once import Journal

T = TypeVar("T")
PRIORITY_LAST: Final = 999


def _check(value: bytes, priority: int) -> None:
    if not isinstance(value, bytes):
        raise TypeError("an entry is bytes")
    if not isinstance(priority, int):
        raise TypeError("priority must be an int")
    if not 0 <= priority <= PRIORITY_LAST:
        raise ValueError(f"priority must be between 0 and {PRIORITY_LAST}")


class _Entries:
    """What both queues share: where entries are, how they are put, how one waits for some."""

    def __init__(self, zk: ZkClient, path: str, entries_path: str, prefix: str) -> None:
        self._zk = zk
        self._path = entries_path
        self._prefix = prefix
        self.journal = Journal(zk, path)
        self._turn = Lock(zk, f"{path}-__lock__")

    async def put_all(self, values: Sequence[bytes], priority: int) -> None:
        """Put all in one transaction."""
        for value in values:
            _check(value, priority)
        transaction = self._zk.transaction()
        for value in values:
            transaction.create(f"{self._path}/{self._prefix}{priority:03d}-", value, sequence=True)
        while True:
            try:
                await self.journal.commit(transaction)
                return
            except NoNodeError:
                await ensure_path(self._zk, self._path)

    async def names(self, change: Change | None = None) -> list[str]:
        """The entries, first come first. Creates the path."""
        while True:
            try:
                watch = change.watch(self._path) if change is not None else None
                return sorted(await self._zk.get_children(self._path, watch))
            except NoNodeError:
                await ensure_path(self._zk, self._path)

    async def size(self) -> int:
        """How many there are."""
        stat = await self._zk.exists(self._path)
        return stat.num_children if stat is not None else 0

    async def take(
        self,
        take_one: Callable[[Change | None], Awaitable[T | None]],
        timeout: float | None,
    ) -> T | None:
        """What `take_one` finds, at once or once something has changed; None after `timeout`."""
        waits = timeout is None or timeout > 0
        try:
            async with asyncio.timeout(timeout if waits else None):
                while True:
                    found = await self._retried(take_one, None)
                    if found is not None or not waits:
                        return found
                    await self._turn.acquire()
                    try:
                        found = await self._wait(take_one)
                    finally:  # without waiting: what was found must not be lost by it
                        self._zk.spawn(f"pass on {self._path}", self._turn.release())
                    if found is not None:
                        return found
        except TimeoutError:
            return None

    async def _wait(self, take_one: Callable[[Change | None], Awaitable[T | None]]) -> T | None:
        """With the turn: what is found once something has changed; None when the turn is lost."""
        while not self._turn.lost.is_set():
            async with Change(self._zk) as change:
                found = await self._retried(take_one, change)
                if found is not None:
                    return found
                await change.wait()
        return None

    async def _retried(
        self, take_one: Callable[[Change | None], Awaitable[T | None]], change: Change | None
    ) -> T | None:
        pauses = Pauses(self._zk)
        while True:
            try:
                return await take_one(change)
            except Error as error:
                await pauses.after(error)

    def close(self) -> None:
        self.journal.close()


class Queue:
    """A queue that hands each entry to one consumer, at most once.

    ```
    async with Queue(zk, "/jobs") as queue:
        await queue.put(b"job", priority=10)
        job = await queue.get(timeout=None)
    ```

    An entry is removed before it is returned: a consumer that fails after that loses it (use
    `LockingQueue` where that matters). While the session is SUSPENDED calls wait; entries do not
    depend on sessions.
    """

    def __init__(self, zk: ZkClient, path: str) -> None:
        """`path`: parent of the entries, created when it is missing."""
        self.path = path
        self._zk = zk
        self._entries = _Entries(zk, path, path, "entry-")
        self._kept: deque[bytes] = deque()
        """Entries whose getter was cancelled when they were already removed."""

    async def put(self, value: bytes, priority: int = 100) -> None:
        """Add an entry, exactly once. `priority`: 0 to 999, lower ones go first.

        Raises TransportError where it may have been added: the session ended meanwhile.
        Cancelling leaves it open whether it is added.
        """
        await self._entries.put_all([value], priority)

    async def get(self, timeout: float | None = 0) -> bytes | None:
        """Remove the first entry and return it, None when there is none.

        `timeout`: seconds to wait for one; None: for ever. Cancelling loses nothing: an entry that
        was removed is what the next `get` of this object returns. An entry whose removal was
        under way when the session ended may be lost.
        """
        if self._kept:
            return self._kept.popleft()
        found = await self._entries.take(self._take_first, timeout)
        if found is None and self._kept:
            return self._kept.popleft()
        return found

    async def _take_first(self, change: Change | None) -> bytes | None:
        for name in await self._entries.names(change):
            try:
                data, _ = await self._zk.get(f"{self.path}/{name}")
            except NoNodeError:
                continue
            removing = self._zk.spawn(f"take {name}", self._remove(name))
            try:
                await asyncio.wait({removing})
            except asyncio.CancelledError:
                removing.add_done_callback(partial(self._keep, data))
                raise
            if removing.cancelled():
                continue
            if removing.result():
                return data or b""
        return None

    async def _remove(self, name: str) -> bool:
        transaction = self._zk.transaction().delete(f"{self.path}/{name}")
        try:
            await self._entries.journal.commit(transaction)
        except NoNodeError:
            return False  # another consumer was faster
        return True

    def _keep(self, data: bytes | None, task: asyncio.Task[bool]) -> None:
        if not task.cancelled() and task.exception() is None and task.result():
            self._kept.append(data or b"")

    async def size(self) -> int:
        """Number of entries."""
        return len(self._kept) + await self._entries.size()

    async def __aenter__(self) -> Self:
        """Begin; nothing is created before the first call."""
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Delete this object's journal; the entries stay."""
        self._entries.close()


class _Taken(NamedTuple):
    name: str
    value: bytes
    session_id: int


class LockingQueue:
    """A queue whose entries are locked when they are taken, and removed when they are done.

    ```
    async with LockingQueue(zk, "/jobs") as queue, queue.claim() as job:
        await work_on(job)      # done: consumed; an exception: given back
    ```

    The lock on an entry is ephemeral: after LOST another consumer may take it, and `consume`
    returns false (it can only succeed in the session that took the entry). While SUSPENDED that
    is not known yet. One object works on one entry at a time. The znodes are kazoo's: `entries`
    and `taken` below the path.
    """

    def __init__(self, zk: ZkClient, path: str) -> None:
        """`path`: parent of `entries` and `taken`, created when it is missing."""
        self.path = path
        self._zk = zk
        self._entries_path = f"{path}/entries"
        self._taken_path = f"{path}/taken"
        self._entries = _Entries(zk, path, self._entries_path, "entry-")
        self._id = uuid.uuid4().hex.encode()
        self._current: _Taken | None = None

    async def put(self, value: bytes, priority: int = 100) -> None:
        """Add an entry, exactly once. `priority`: 0 to 999, lower ones go first.

        Raises TransportError where it may have been added: the session ended meanwhile.
        Cancelling leaves it open whether it is added.
        """
        await self._entries.put_all([value], priority)

    async def put_all(self, values: Sequence[bytes], priority: int = 100) -> None:
        """Add several entries, all or none; as `put`."""
        await self._entries.put_all(values, priority)

    async def get(self, timeout: float | None = None) -> bytes | None:
        """Lock the first free entry and return it; the same one until it is consumed or released.

        `timeout`: seconds to wait for one, then None. Cancelling gives an entry back that was
        just locked.
        """
        if self._current is None:
            self._current = await self._entries.take(self._take_first, timeout)
        return self._current.value if self._current is not None else None

    async def _take_first(self, change: Change | None) -> _Taken | None:
        names = await self._entries.names(change)
        if not names:
            return None
        taken = await self._taken(change)
        for name in names:
            if name not in taken:
                found = await self._lock(name)
                if found is not None:
                    return found
        return None

    async def _taken(self, change: Change | None) -> set[str]:
        """The entries that are locked. Creates the path, so that a watch is always armed."""
        while True:
            try:
                watch = change.watch(self._taken_path) if change is not None else None
                return set(await self._zk.get_children(self._taken_path, watch))
            except NoNodeError:
                await ensure_path(self._zk, self._taken_path)

    async def _lock(self, name: str) -> _Taken | None:
        path = f"{self._taken_path}/{name}"
        try:
            locked = await self._create_lock(path)
            if locked is None:
                return None
            data, _ = await self._zk.get(f"{self._entries_path}/{name}")
        except NoNodeError:
            self._zk.spawn(f"give back {name}", self._give_back(path))
            return None  # it was consumed meanwhile
        except BaseException:
            self._zk.spawn(f"give back {name}", self._give_back(path))
            raise
        return _Taken(name, data or b"", locked)

    async def _create_lock(self, path: str) -> int | None:
        """The session in which the entry is locked by us, None when somebody else has it."""
        pauses = Pauses(self._zk)
        while True:
            try:
                _, stat = await self._zk.create(path, self._id, ephemeral=True, include_data=True)
                owner: int = stat.ephemeral_owner
                return owner
            except NodeExistsError:
                return await self._own_lock(path)
            except TransportError as error:
                await pauses.after(error)
                await self._zk.sync(path)  # from now on it exists or never will

    async def _own_lock(self, path: str) -> int | None:
        """The session of our lock: one that we made when its answer was lost."""
        try:
            data, stat = await self._zk.get(path)
        except NoNodeError:
            return None
        mine = data == self._id and stat.ephemeral_owner == session_of(self._zk)
        return stat.ephemeral_owner if mine else None

    async def _give_back(self, path: str) -> None:
        pauses = Pauses(self._zk)
        while True:
            try:
                await self._zk.sync(path)
                if await self._own_lock(path) is not None:
                    await self._zk.delete(path)
                return
            except NoNodeError:
                return
            except Error as error:
                if not error.retriable and not isinstance(error, SessionExpiredError):
                    return
                await pauses.after(error)

    async def holds_lock(self) -> bool:
        """Whether the entry that `get` returned is still locked for us."""
        current = self._current
        if current is None or current.session_id != session_of(self._zk):
            return False
        path = f"{self._taken_path}/{current.name}"
        await self._zk.sync(path)
        return await self._own_lock(path) is not None

    async def consume(self) -> bool:
        """Remove the entry that `get` returned: it is done. False when it is not ours any more.

        Cancelling leaves it open whether it was removed.
        """
        current = self._current
        if current is None:
            return False
        entry = f"{self._entries_path}/{current.name}"
        transaction = self._zk.transaction().delete(entry)
        transaction.delete(f"{self._taken_path}/{current.name}")
        done = await self._commit(transaction, current)
        self._current = None
        return done

    async def release(self) -> bool:
        """Give the entry that `get` returned back. False when it is not ours any more."""
        current = self._current
        if current is None:
            return False
        transaction = self._zk.transaction().delete(f"{self._taken_path}/{current.name}")
        done = await self._commit(transaction, current)
        self._current = None
        return done

    async def _commit(self, transaction: Transaction, current: _Taken) -> bool:
        try:
            await self._entries.journal.commit(transaction, only_session=current.session_id)
        except (NoNodeError, SessionExpiredError):
            return False
        return True

    @asynccontextmanager
    async def claim(self, timeout: float | None = None) -> AsyncIterator[bytes | None]:
        """`get`, then `consume` when the block ends well, `release` when it raises."""
        value = await self.get(timeout)
        try:
            yield value
        except BaseException:
            await self.release()
            raise
        await self.consume()

    async def size(self) -> int:
        """Number of entries, the locked ones included."""
        return await self._entries.size()

    async def __aenter__(self) -> Self:
        """Begin; nothing is created before the first call."""
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Give back an entry that is neither consumed nor released; delete the journal."""
        try:
            await self.release()
        finally:
            self._entries.close()
