"""Leader election: a lock whose holder is the leader.

Source: the leader election recipe of the ZooKeeper documentation, kazoo `Election`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from duolog.zk import ZkClient

from .lock import Lock

T = TypeVar("T")


class Election:
    """Contend for leadership.

    ```
    election = Election(zk, "/service/leader", "host-1")
    async with election as term:          # waits until elected; term.token, term.lost
        ...
    result = await election.run(lead)     # or: calls lead(), again after each lost term
    ```

    While the session is SUSPENDED another leader may be elected: `term.lost` is set and `run`
    stops the leader function. `term.token` rises from leader to leader: it is the epoch that
    fences what a former leader still has on its way.
    """

    def __init__(self, zk: ZkClient, path: str, identifier: str = "") -> None:
        """`path`: parent of the contenders' znodes. `identifier`: what `contenders()` shows."""
        self.lock = Lock(zk, path, identifier)

    async def run(self, func: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """Await `func(*args, **kwargs)` as the leader and return its result.

        When leadership is in doubt (`lost`) the function is cancelled, and, once it has ended,
        this contender stands for election again: only after that can somebody else's term and
        ours have met, so keep its clean-up short. What the function raises is raised.
        Cancelling ends the function and gives leadership up.
        """
        while True:
            async with self.lock as term:
                done, result = await _while_valid(term.lost, func, *args, **kwargs)
            if done:
                leading: T = result
                return leading

    async def contenders(self) -> list[str]:
        """Identifiers of all contenders, the leader first."""
        return await self.lock.contenders()

    async def leader(self) -> str | None:
        """Identifier of the leader, None while there is none."""
        return next(iter(await self.contenders()), None)

    async def __aenter__(self) -> Lock:
        """Wait until elected, and return the term."""
        await self.lock.acquire()
        return self.lock

    async def __aexit__(self, *_exc: object) -> None:
        """Give leadership up."""
        await self.lock.release()


async def _while_valid(
    lost: asyncio.Event, func: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any
) -> tuple[bool, Any]:
    """(true, result) of the function, or (false, None) when it was cancelled by `lost`."""

    async def work() -> T:
        return await func(*args, **kwargs)

    leading = asyncio.ensure_future(work())
    doubt = asyncio.ensure_future(lost.wait())
    try:
        await asyncio.wait({leading, doubt}, return_when=asyncio.FIRST_COMPLETED)
        if leading.done():
            return True, leading.result()
        leading.cancel()
        await asyncio.wait({leading})
        if leading.cancelled():
            return False, None
        return True, leading.result()
    finally:
        doubt.cancel()
        if not leading.done():
            leading.cancel()
            await asyncio.wait({leading})
            if not leading.cancelled():
                leading.exception()  # our own end is what is raised
