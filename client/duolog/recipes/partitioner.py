"""Dividing a set among the members of a party, each item for one member at a time.

    ALLOCATING -> ACQUIRED    the party was stable for a while, and all locks of the share are held
    ALLOCATING -> FAILURE     an error that waiting does not heal
    ACQUIRED   -> RELEASE     the party has changed: the share must be given up
    ACQUIRED   -> RELEASE     the session was SUSPENDED or LOST: the locks are in doubt
    RELEASE    -> ALLOCATING  `release_set` was called
    any        -> FAILURE     `finish` was called, or the client was closed

Every item has a lock, so that it has one holder even while members see different parties. The
znodes are kazoo's: `party` and `locks` below the path.

Source: kazoo `SetPartitioner`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any, Final, Self

from duolog.core.zk_contenders import divide
from duolog.zk import SessionState, ZkClient
from duolog_protocol.errors import Error, LockTimeoutError

from .claims import Change, Pauses
from .lock import Lock
from .party import ShallowParty

PartitionFunc = Callable[[str, list[str], list[str]], list[str]]
"""(own identifier, all members, all items) -> own items."""
TIME_BOUNDARY_SECONDS: Final = 30.0
MAX_REACTION_SECONDS: Final = 1.0


class PartitionState(Enum):
    """Where a partitioner is; see the module."""

    ALLOCATING = "ALLOCATING"
    ACQUIRED = "ACQUIRED"
    RELEASE = "RELEASE"
    FAILURE = "FAILURE"


class SetPartitioner:
    """This member's share of a set.

    ```
    async with SetPartitioner(zk, "/queues", {"q1", "q2", "q3"}) as partitioner:
        while True:
            await partitioner.wait_for_acquire()
            work_on(list(partitioner))
            await partitioner.wait_for_release()
            await partitioner.release_set()
    ```

    After SUSPENDED or LOST the share must be released as after a change of the party; the new
    session joins and allocates again by itself.
    """

    def __init__(
        self,
        zk: ZkClient,
        path: str,
        set: Iterable[str],
        partition_func: PartitionFunc | None = None,
        identifier: str | None = None,
        time_boundary: float = TIME_BOUNDARY_SECONDS,
        max_reaction_time: float = MAX_REACTION_SECONDS,
    ) -> None:
        """`set`: the items, legal names of znodes, the same for all members. `identifier`: unique
        in the party; default host, process id and a random part. `time_boundary`: seconds for
        which the party must not change before its members allocate. `max_reaction_time`: seconds
        after which a member that waits for a lock looks whether the party has changed."""
        self._zk = zk
        self._items = list(set)
        self._partition_func = partition_func or _deal
        self._identifier = identifier or f"{socket.getfqdn()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._time_boundary = time_boundary
        self._max_reaction_time = max_reaction_time
        self._locks_path = f"{path}/locks"
        self._party = ShallowParty(zk, f"{path}/party", self._identifier)
        self._state = PartitionState.ALLOCATING
        self._state_changed = asyncio.Event()
        self._locks: list[Lock] = []
        self._releasing: list[asyncio.Task[bool]] = []
        self._share: list[str] = []
        self._task: asyncio.Task[None] | None = None
        self._released = asyncio.Event()

    # ---- what it is ----------------------------------------------------------------------------

    @property
    def state(self) -> PartitionState:
        """Where it is."""
        return self._state

    @property
    def allocating(self) -> bool:
        """Waiting for a share: see `wait_for_acquire`."""
        return self._state is PartitionState.ALLOCATING

    @property
    def acquired(self) -> bool:
        """The share is ours: iterate over it."""
        return self._state is PartitionState.ACQUIRED

    @property
    def release(self) -> bool:
        """The share must be given up: stop working on it, then call `release_set`."""
        return self._state is PartitionState.RELEASE

    @property
    def failed(self) -> bool:
        """It has ended for good."""
        return self._state is PartitionState.FAILURE

    def __iter__(self) -> Iterator[str]:
        """The items of our share, while it is acquired."""
        return iter(self._share if self.acquired else [])

    async def wait_for_acquire(self, timeout: float | None = None) -> bool:
        """Wait until a share is acquired (or it has failed); false after `timeout` seconds.

        Cancelling is safe.
        """
        return await self._wait(lambda: self.acquired or self.failed, timeout)

    async def wait_for_release(self, timeout: float | None = None) -> bool:
        """Wait until the share must be given up (or it has failed); false after `timeout` seconds.

        Cancelling is safe.
        """
        return await self._wait(lambda: self.release or self.failed, timeout)

    async def _wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    await self._state_changed.wait()
        except TimeoutError:
            return False
        return True

    async def release_set(self) -> None:
        """Give the share up; another one is allocated. Cancelling leaves the rest to a task."""
        if self._state in (PartitionState.RELEASE, PartitionState.ACQUIRED):
            self._share = []
            try:
                await self._release_locks()
            finally:
                self._become(PartitionState.ALLOCATING)
                self._released.set()

    async def finish(self) -> None:
        """Give the share up and leave the party. Idempotent. Cancelling leaves it to tasks."""
        self._become(PartitionState.FAILURE)
        task, self._task = self._task, None
        try:
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
            await self._release_locks()
        except asyncio.CancelledError:
            self._zk.spawn(f"leave {self._party.path}", self._party.leave())
            raise
        await self._party.leave()

    async def __aenter__(self) -> Self:
        """Join the party and begin to allocate."""
        await self._party.join()
        self._task = self._zk.spawn(f"partition {self._locks_path}", self._run())
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Give the share up and leave the party."""
        await self.finish()

    # ---- the task ------------------------------------------------------------------------------

    async def _run(self) -> None:
        pauses = Pauses(self._zk)
        try:
            while True:
                try:
                    await self._allocate()
                    pauses = Pauses(self._zk)
                except Error as error:
                    await self._release_locks()
                    await pauses.after(error)
        except Error:
            await self._release_locks()
        finally:
            self._start_release()
            self._become(PartitionState.FAILURE)

    async def _allocate(self) -> None:
        """From ALLOCATING to ACQUIRED to RELEASE and, once released, back."""
        async with Change(self._zk) as change:
            members = await self._stable_members(change)
            if self._identifier not in members:
                return  # our own membership is being renewed
            share = self._partition_func(self._identifier, members, self._items)
            party_changed = asyncio.ensure_future(change.wait())
            try:
                if not await self._acquire_locks(share, party_changed):
                    await self._release_locks()
                    return
                self._share = share
                self._released.clear()
                self._become(PartitionState.ACQUIRED)
                await self._until_in_doubt(party_changed)
            finally:
                party_changed.cancel()
        if self.acquired:
            self._become(PartitionState.RELEASE)
        await self._released.wait()

    async def _stable_members(self, change: Change) -> list[str]:
        """The party, once it has not changed for the time boundary."""
        while True:
            members = await self._party.members(change.watch(self._party.path))
            try:
                async with asyncio.timeout(self._time_boundary):
                    await change.wait()
            except TimeoutError:
                return members

    async def _acquire_locks(self, share: list[str], party_changed: asyncio.Future[None]) -> bool:
        for item in share:
            lock = Lock(self._zk, f"{self._locks_path}/{item}", self._identifier)
            self._locks.append(lock)
            while not party_changed.done():
                try:
                    await lock.acquire(timeout=self._max_reaction_time)
                    break
                except LockTimeoutError:
                    continue
        return not party_changed.done() and not any(lock.lost.is_set() for lock in self._locks)

    async def _until_in_doubt(self, party_changed: asyncio.Future[None]) -> None:
        """Until the share may not be ours any more, or was given up."""
        suspended = asyncio.Event()

        def on_state(state: SessionState) -> None:
            if state is not SessionState.CONNECTED:
                suspended.set()

        self._zk.add_listener(on_state)
        events = [suspended, self._released, *(lock.lost for lock in self._locks)]
        waits: list[asyncio.Future[Any]] = [party_changed]
        waits += [asyncio.ensure_future(event.wait()) for event in events]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._zk.remove_listener(on_state)
            for each in waits:
                each.cancel()

    def _start_release(self) -> None:
        """Release all locks in tasks: whoever waits for them may be cancelled."""
        locks, self._locks = self._locks, []
        for lock in locks:
            task = self._zk.spawn(f"release {lock.path}", lock.release())
            self._releasing.append(task)
            task.add_done_callback(self._releasing.remove)

    async def _release_locks(self) -> None:
        self._start_release()
        if self._releasing:
            await asyncio.wait(self._releasing)

    def _become(self, state: PartitionState) -> None:
        if self._state is PartitionState.FAILURE:
            return
        self._state = state
        changed, self._state_changed = self._state_changed, asyncio.Event()
        changed.set()


def _deal(identifier: str, members: list[str], items: list[str]) -> list[str]:
    return divide(items, members, identifier)
