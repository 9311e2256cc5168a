"""Barriers: one that somebody lifts, and one that opens when all have come.

Source: the barrier recipes of the ZooKeeper documentation, kazoo `Barrier`, `DoubleBarrier`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Final, Self

from duolog.zk import ZkClient
from duolog_protocol.errors import (
    BadVersionError,
    Error,
    LockTimeoutError,
    NodeExistsError,
    NoNodeError,
)

from .claims import Change, Claim, Pauses, finish

_READY: Final = "ready"


class Barrier:
    """Holds up whoever waits, as long as its znode exists.

    ```
    async with Barrier(zk, "/maintenance"):     # it is there while the block runs
        ...
    await Barrier(zk, "/maintenance").wait()    # elsewhere: returns when it was removed
    ```

    The znode is persistent: the end of a session does not lift the barrier. While the session is
    SUSPENDED or LOST `wait` goes on waiting.
    """

    def __init__(self, zk: ZkClient, path: str) -> None:
        """`path`: the znode that is the barrier."""
        self.path = path
        self._zk = zk

    async def create(self) -> None:
        """Put the barrier up, unless it is. Retries over lost connections."""
        await self._zk.retry(self._zk.ensure_path, self.path)

    async def remove(self) -> bool:
        """Lift the barrier; false when there was none (or the answer to its removal was lost)."""
        try:
            await self._zk.retry(self._zk.delete, self.path)
        except NoNodeError:
            return False
        return True

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until the barrier is lifted; false after `timeout` seconds. Cancelling is safe."""
        try:
            async with asyncio.timeout(timeout):
                await self._wait()
        except TimeoutError:
            return False
        return True

    async def _wait(self) -> None:
        pauses = Pauses(self._zk)
        while True:
            try:
                async with Change(self._zk) as change:
                    await self._zk.get(self.path, change.watch(self.path))
                    await change.wait()
            except NoNodeError:
                return
            except Error as error:
                await pauses.after(error)

    async def __aenter__(self) -> Self:
        """Put the barrier up."""
        await self.create()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Lift it."""
        await self.remove()


class DoubleBarrier:
    """Begin together, end together.

    ```
    async with DoubleBarrier(zk, "/job", 3):    # goes on when three have come
        ...                                     # returns when all have left
    ```

    Membership is an ephemeral znode: while the session is SUSPENDED it stays; after LOST it is
    gone, and the others no longer count this member: `enter` then joins again, in `leave` it has
    left. Its znodes are kazoo's: members and `ready` below the path.
    """

    def __init__(
        self, zk: ZkClient, path: str, num_clients: int, identifier: str | None = None
    ) -> None:
        """`num_clients`: how many must enter. `identifier`: default host and process id."""
        assert num_clients > 0, num_clients
        self.path = path
        self.num_clients = num_clients
        self._zk = zk
        self._data = (identifier or f"{socket.getfqdn()}-{os.getpid()}").encode()
        self._member: Claim | None = None
        self._opened_zxid = -1
        """czxid of the `ready` that let this member in."""
        self.participating = False
        """Between the return of `enter` and that of `leave`."""

    @property
    def _ready(self) -> str:
        return f"{self.path}/{_READY}"

    async def enter(self, timeout: float | None = None) -> None:
        """Wait until all have entered. `timeout`: seconds, then LockTimeoutError.

        Cancelling, or an error, takes this member away again.
        """
        if self.participating:
            raise RuntimeError(f"{self.path} was entered already")
        self._member = self._new_member()
        try:
            async with asyncio.timeout(timeout):
                await self._enter()
            self.participating = True
        except TimeoutError:
            raise LockTimeoutError(f"not all have entered {self.path} in {timeout} s") from None
        finally:
            if not self.participating:
                self._member.withdraw()
                self._member = None

    def _new_member(self) -> Claim:
        return Claim(self._zk, self.path, "", self._data, sequence=False)

    async def _enter(self) -> None:
        """Until `ready` is there, or was: who leaves first deletes it.

        The watch on `ready` is armed before this member is created and kept over lost
        connections, so that its creation is heard of even when it is gone again.
        """
        pauses = Pauses(self._zk)
        async with Change(self._zk) as change:
            while True:
                try:
                    if await self._is_open(change):
                        return
                except NoNodeError:
                    continue
                except Error as error:
                    await pauses.after(error)

    async def _is_open(self, change: Change) -> bool:
        """One look at the barrier; opens it when all are here, else waits for a change."""
        member = self._member
        assert member is not None
        if not member.is_current:
            await self._zk.exists(self._ready, change.watch(self._ready))
            await member.create()
        ready = await self._zk.exists(self._ready, change.watch(self._ready))
        names = await self._members()
        if member.name not in names:
            member.withdraw()
            self._member = self._new_member()
        elif change.created_zxid > member.czxid:
            self._opened_zxid = change.created_zxid
            return True
        elif ready is not None and await self._is_stale(ready.czxid, names):
            await self._remove_ready(ready.czxid)
        elif ready is not None:
            self._opened_zxid = ready.czxid
            return True
        elif len(names) >= self.num_clients:
            await self._open()  # and look again
        else:
            await change.wait()
        return False

    async def _open(self) -> None:
        try:
            await self._zk.create(self._ready)
        except NodeExistsError:
            return

    async def _is_stale(self, czxid: int, names: list[str]) -> bool:
        """Whether a `ready` is left of a round whose members died: all who are here came later."""
        for name in names:
            stat = await self._zk.exists(f"{self.path}/{name}")
            if stat is not None and stat.czxid < czxid:
                return False
        return True

    async def _remove_ready(self, czxid: int) -> None:
        """Delete the `ready` with this czxid, not one of a later round.

        A write shows which one it is, and gives it a version that a new one does not have.
        """
        try:
            stat = await self._zk.exists(self._ready)
            if stat is None or stat.czxid != czxid:
                return
            stat = await self._zk.set(self._ready, b"", stat.version)
            if stat.czxid == czxid:
                await self._zk.delete(self._ready, stat.version)
        except (NoNodeError, BadVersionError):
            return  # somebody else is at it

    async def _members(self) -> list[str]:
        try:
            names = await self._zk.get_children(self.path)
        except NoNodeError:
            return []
        return sorted(set(names) - {_READY})

    async def _delete(self, path: str) -> None:
        try:
            await self._zk.delete(path)
        except NoNodeError:
            return

    async def leave(self, timeout: float | None = None) -> None:
        """Wait until all have left. `timeout`: seconds, then LockTimeoutError.

        Cancelling, or an error, takes this member away without waiting for the others.
        """
        member, self._member = self._member, None
        if member is None:
            return
        try:
            async with asyncio.timeout(timeout):
                await self._leave(member)
        except TimeoutError:
            raise LockTimeoutError(f"not all have left {self.path} in {timeout} s") from None
        finally:
            self.participating = False
            member.withdraw()

    async def _leave(self, member: Claim) -> None:
        """Until those are gone who were here when this began: others belong to the next round."""
        name, path = member.name, member.path
        round_: frozenset[str] | None = None
        pauses = Pauses(self._zk)
        while True:
            try:
                if round_ is None:
                    await self._remove_ready(self._opened_zxid)
                    round_ = frozenset(await self._members())
                members = [each for each in await self._members() if each in round_]
                if not members:
                    return
                if members == [name]:
                    await finish(member.withdraw())
                    return
                first = members[0] == name
                if not first and name in members:
                    await self._delete(path or "")
                other = f"{self.path}/{members[-1] if first else members[0]}"
                async with Change(self._zk) as change:
                    await self._zk.get(other, change.watch(other))
                    await change.wait()
            except NoNodeError:
                continue
            except Error as error:
                await pauses.after(error)

    async def __aenter__(self) -> Self:
        """Enter, without a timeout (put `asyncio.timeout` around it)."""
        await self.enter()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Leave, and wait until all have left."""
        await self.leave()
