"""Parties: who takes part at the moment.

Source: kazoo `Party`, `ShallowParty`; group membership in the ZooKeeper documentation.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar, Self

from duolog.core.zk_watches import Watcher
from duolog.zk import SessionState, ZkClient
from duolog_protocol.errors import Error, NoNodeError

from .claims import Claim, Pauses, ensure_path, finish


class _Membership:
    """What both kinds share: joining, staying joined, leaving.

    A member that joined stays one until `leave`: after LOST it joins again by itself. Meanwhile,
    and while SUSPENDED (the server may expire the session), the others may not see it.
    """

    _marker: ClassVar[str] = ""

    def __init__(self, zk: ZkClient, path: str, identifier: str = "") -> None:
        """`path`: parent of the members, created when it is missing. `identifier`: what the
        others see of this member."""
        self.path = path
        self.identifier = identifier
        self._zk = zk
        self._claim: Claim | None = None
        self._again: asyncio.Task[None] | None = None

    @property
    def participating(self) -> bool:
        """Between `join` and `leave`."""
        return self._claim is not None

    @property
    def node(self) -> str | None:
        """Name of this member's znode, None while there is none."""
        claim = self._claim
        return claim.name if claim is not None and claim.path is not None else None

    def _new_claim(self) -> Claim:
        raise AssertionError("a subclass answers this")

    async def join(self) -> None:
        """Take part. Waits out lost connections; cancelling takes the membership back."""
        if self._claim is not None:
            return
        claim = self._claim = self._new_claim()
        self._zk.add_listener(self._on_state)
        try:
            await claim.create()
        except BaseException:
            self._stop()
            raise

    def _on_state(self, state: SessionState) -> None:
        claim, idle = self._claim, self._again is None or self._again.done()
        if state is SessionState.CONNECTED and claim is not None and idle:
            self._again = self._zk.spawn(f"join {self.path}", self._join_again(claim))

    async def _join_again(self, claim: Claim) -> None:
        pauses = Pauses(self._zk)
        while self._claim is claim and not claim.is_current:
            try:
                await claim.create()
            except Error as error:
                await pauses.after(error)

    async def leave(self) -> bool:
        """Take part no more; false when it did not. Cancelling leaves the rest to a task."""
        if self._claim is None:
            return False
        await finish(self._stop())
        return True

    def _stop(self) -> asyncio.Task[None] | None:
        self._zk.remove_listener(self._on_state)
        if self._again is not None:
            self._again.cancel()
            self._again = None
        claim, self._claim = self._claim, None
        return claim.withdraw() if claim is not None else None

    async def _names(self, watch: Watcher | None = None) -> list[str]:
        """The members' znodes. With `watch` the path is created when it is missing."""
        while True:
            try:
                names = await self._zk.get_children(self.path, watch)
                return sorted(name for name in names if self._marker in name)
            except NoNodeError:
                if watch is None:
                    return []
                await ensure_path(self._zk, self.path)

    async def size(self) -> int:
        """Number of members."""
        return len(await self._names())

    async def __aenter__(self) -> Self:
        """Join."""
        await self.join()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Leave."""
        await self.leave()


class Party(_Membership):
    """Members whose identifier is their znode's data: any text, a read for each member.

    `async with Party(zk, "/workers", "host-1") as party: print(await party.members())`
    """

    _marker = "__party__"

    def _new_claim(self) -> Claim:
        data = self.identifier.encode()
        return Claim(self._zk, self.path, self._marker, data, sequence=False)

    async def members(self) -> list[str]:
        """Identifiers of the members, in no order."""
        found: list[str] = []
        for name in await self._names():
            try:
                data, _ = await self._zk.get(f"{self.path.rstrip('/')}/{name}")
            except NoNodeError:
                continue
            found.append((data or b"").decode(errors="replace"))
        return found


class ShallowParty(_Membership):
    """Members whose identifier is part of their znode's name: all are read in one request.

    The identifier must be legal in a path.
    """

    def _new_claim(self) -> Claim:
        data = self.identifier.encode()
        return Claim(self._zk, self.path, f"-{self.identifier}", data, sequence=False)

    async def members(self, watch: Watcher | None = None) -> list[str]:
        """Identifiers of the members, in no order. `watch` is called once, when they change."""
        return [name.partition("-")[2] for name in await self._names(watch)]
