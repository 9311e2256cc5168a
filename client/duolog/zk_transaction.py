"""Transactions of the coordination client: several operations, all applied or none.

Owns how operations become one multi and how its results become values or exceptions, as kazoo's
`TransactionRequest` has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from duolog_protocol import zk_messages as zk
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.errors import zk_error
from duolog_protocol.types import OPEN_ACL_UNSAFE, Acl, CreateMode

from .zk_keeper import SessionKeeper


def create_request(
    path: str,
    data: bytes | None,
    acl: Sequence[Acl] | None,
    ephemeral: bool,
    sequence: bool,
) -> zk.CreateRequest:
    """A create with its mode."""
    mode = CreateMode((1 if ephemeral else 0) | (2 if sequence else 0))
    return zk.CreateRequest(path, data, tuple(acl or OPEN_ACL_UNSAFE), mode, -1)


class Transaction:
    """Operations for one multi. Names are kazoo's; `commit` sends them."""

    def __init__(self, keeper: SessionKeeper) -> None:
        self._keeper = keeper
        self._ops: list[zk.MultiOp] = []

    def create(
        self,
        path: str,
        data: bytes | None = b"",
        *,
        acl: Sequence[Acl] | None = None,
        ephemeral: bool = False,
        sequence: bool = False,
    ) -> Transaction:
        """Create a znode; its result is the path."""
        made = create_request(self._keeper.real(path), data, acl, ephemeral, sequence)
        op = zk.MultiOp(zk.MultiKind.CREATE, made.path, made.data, made.acl, made.flags, -1, -1)
        return self._add(op)

    def delete(self, path: str, version: int = -1) -> Transaction:
        """Delete a znode; its result is True."""
        real = self._keeper.real(path)
        return self._add(zk.MultiOp(zk.MultiKind.DELETE, real, None, None, 0, -1, version))

    def set_data(self, path: str, data: bytes | None, version: int = -1) -> Transaction:
        """Replace a znode's data; its result is the Stat."""
        real = self._keeper.real(path)
        return self._add(zk.MultiOp(zk.MultiKind.SET_DATA, real, data, None, 0, -1, version))

    def check(self, path: str, version: int) -> Transaction:
        """Demand a version; its result is True."""
        real = self._keeper.real(path)
        return self._add(zk.MultiOp(zk.MultiKind.CHECK, real, None, None, 0, -1, version))

    def _add(self, op: zk.MultiOp) -> Transaction:
        self._ops.append(op)
        return self

    async def commit(self, *, timeout: float | None = None) -> list[Any]:
        """Apply all or nothing.

        Returns a result for each operation; where one failed, an exception for each: its own for
        the one that failed, RolledBackError for the others.
        """
        request = zk.MultiRequest(tuple(self._ops))
        response = await self._keeper.call(zk.MULTI, request, timeout)
        return [self._result(result) for result in response.results]

    def _result(self, result: zk.MultiResult) -> Any:
        if result.kind == -1:
            return zk_error(result.error_code or ZkErrorCode.RUNTIME_INCONSISTENCY)
        if result.kind == zk.MultiKind.CREATE:
            return self._keeper.shown(result.path or "")
        if result.kind == zk.MultiKind.SET_DATA:
            return result.stat
        return True
