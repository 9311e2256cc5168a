"""Writes that are done exactly once though their answer may get lost.

A transaction gets one more operation: it sets the data of a znode of ours, the *journal*, to the
number of the transaction. When the answer is lost the journal tells whether it was applied. The
journal is ephemeral and lies beside what it serves, at `<path>-__once__/<unique>`.

What remains open: a session that ends before the question could be asked takes the journal with
it. Then the error of the lost answer is raised, which says that it may have happened.

Source: the idea is that of idempotent producers (KIP-98), in znodes.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from duolog.zk import Transaction, ZkClient
from duolog.zk_transaction import failure_of
from duolog_protocol.errors import Error, NoNodeError, SessionExpiredError

from .claims import Claim, Pauses, session_of

SUFFIX: Final = "-__once__"


class Journal:
    """The journal of one object of one client."""

    def __init__(self, zk: ZkClient, path: str) -> None:
        self._zk = zk
        self._claim = Claim(zk, f"{path}{SUFFIX}", "", b"0", sequence=False)
        self._number = 0
        self._turn = asyncio.Lock()
        """The journal knows one number: what is committed at once would hide each other's."""

    async def commit(
        self, transaction: Transaction, only_session: int | None = None
    ) -> list[Any] | None:
        """Apply a transaction once, over lost connections.

        Returns its results without the journal's; None when it was applied and the results were
        lost. Raises the ZkError that made it fail, and TransportError when the session ended
        before its fate was known. `only_session`: it is applied in this session or never
        (SessionExpiredError). Cancelling leaves it open whether it is applied. Several tasks take
        turns.
        """
        async with self._turn:
            return await self._commit(transaction, only_session)

    async def _commit(self, transaction: Transaction, only_session: int | None) -> list[Any] | None:
        pauses = Pauses(self._zk)
        while True:
            await self._claim.create()
            session_id = session_of(self._zk)
            if only_session is not None and only_session != session_id:
                raise SessionExpiredError(f"session {only_session:#x} has ended")
            self._number += 1
            number = b"%d" % self._number
            path = self._claim.path
            assert path is not None
            attempt = transaction.copy()
            attempt.set_data(path, number)
            try:
                results = await attempt.commit(session_id=session_id)
            except Error as error:
                if error.definite:
                    await pauses.after(error)
                elif await self._was_applied(path, number, session_id, error):
                    return None
                continue
            failure = failure_of(results)
            if failure is None:
                return results[:-1]
            if isinstance(failure, NoNodeError) and isinstance(results[-1], NoNodeError):
                self._claim.forget()  # it was deleted by somebody
                continue
            raise failure

    async def _was_applied(self, path: str, number: bytes, session_id: int, error: Error) -> bool:
        """Whether a transaction whose answer was lost is in the log. Raises `error` if unknown."""
        pauses = Pauses(self._zk)
        while True:
            try:
                await self._zk.sync(path)
                data, stat = await self._zk.get(path)
            except NoNodeError:
                raise error from None
            except Error as asking:
                try:
                    await pauses.after(asking)
                except Error:
                    raise error from asking
                continue
            if stat.ephemeral_owner != session_id or session_of(self._zk) != session_id:
                raise error
            return data == number

    def close(self) -> None:
        """Delete the journal in the background. Idempotent."""
        self._claim.withdraw()
