"""Several operations in one request: transactions of writes, and reads of one moment.

Owns how operations become a multi and how its results become values or exceptions, as kazoo's
`TransactionRequest` has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Self

from duolog_protocol import zk_messages as zk
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.errors import RolledBackError, ZkError, zk_error
from duolog_protocol.types import OPEN_ACL_UNSAFE, Acl, CreateMode

from .zk_keeper import SessionKeeper

NO_TTL: Final = -1


def create_request(
    path: str,
    data: bytes | None,
    acl: Sequence[Acl] | None,
    *,
    ephemeral: bool,
    sequence: bool,
    container: bool = False,
    ttl: float | None = None,
) -> zk.CreateRequest:
    """A create with its mode; `ttl` in seconds. Raises ValueError for modes that do not exist."""
    granted = tuple(acl) if acl is not None else OPEN_ACL_UNSAFE
    if container:
        if ephemeral or sequence or ttl is not None:
            raise ValueError("a container is neither ephemeral nor sequential nor has a ttl")
        return zk.CreateRequest(path, data, granted, CreateMode.CONTAINER, NO_TTL)
    if ttl is None:
        mode = CreateMode((1 if ephemeral else 0) | (2 if sequence else 0))
        return zk.CreateRequest(path, data, granted, mode, NO_TTL)
    if ephemeral:
        raise ValueError("an ephemeral znode has no ttl")
    ttl_ms = round(ttl * 1000)
    if ttl_ms < 1:
        raise ValueError(f"ttl must be at least a millisecond, not {ttl} s")
    mode = CreateMode.PERSISTENT_SEQUENTIAL_WITH_TTL if sequence else CreateMode.PERSISTENT_WITH_TTL
    return zk.CreateRequest(path, data, granted, mode, ttl_ms)


class Transaction:
    """Operations for one multi. Names are kazoo's; `commit` sends them.

    As a context manager it commits at the end of the block and raises what made it fail:

    ```
    async with zk.transaction() as transaction:
        transaction.check("/config", 3)
        transaction.set_data("/state", b"new")
    ```
    """

    def __init__(self, keeper: SessionKeeper) -> None:
        self._keeper = keeper
        self._ops: list[zk.MultiOp] = []
        self.results: list[Any] = []
        """What the last `commit` returned."""

    async def __aenter__(self) -> Self:
        """Begin."""
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, *_exc: object) -> None:
        """Commit, unless the block failed. Raises the ZkError of the operation that failed."""
        if exc_type is None:
            await self.commit()
            error = failure_of(self.results)
            if error is not None:
                raise error

    def create(
        self,
        path: str,
        value: bytes | None = b"",
        acl: Sequence[Acl] | None = None,
        ephemeral: bool = False,
        sequence: bool = False,
        include_data: bool = False,
        *,
        container: bool = False,
        ttl: float | None = None,
    ) -> Transaction:
        """Create a znode; its result is the path, with `include_data` (path, Stat)."""
        made = create_request(
            self._keeper.real(path),
            value,
            acl,
            ephemeral=ephemeral,
            sequence=sequence,
            container=container,
            ttl=ttl,
        )
        kind = zk.MultiKind.CREATE2 if include_data else zk.MultiKind.CREATE
        return self._add(zk.MultiOp(kind, *made, -1))

    def delete(self, path: str, version: int = -1) -> Transaction:
        """Delete a znode; its result is True."""
        real = self._keeper.real(path)
        return self._add(zk.MultiOp(zk.MultiKind.DELETE, real, None, None, 0, NO_TTL, version))

    def set_data(self, path: str, value: bytes | None, version: int = -1) -> Transaction:
        """Replace a znode's data; its result is the Stat."""
        real = self._keeper.real(path)
        return self._add(zk.MultiOp(zk.MultiKind.SET_DATA, real, value, None, 0, NO_TTL, version))

    def check(self, path: str, version: int) -> Transaction:
        """Demand a version (-1: only that the znode exists); its result is True."""
        real = self._keeper.real(path)
        return self._add(zk.MultiOp(zk.MultiKind.CHECK, real, None, None, 0, NO_TTL, version))

    def _add(self, op: zk.MultiOp) -> Transaction:
        self._ops.append(op)
        return self

    def copy(self) -> Transaction:
        """Another transaction with the operations so far."""
        other = Transaction(self._keeper)
        other._ops = list(self._ops)
        return other

    def __len__(self) -> int:
        """Operations so far."""
        return len(self._ops)

    async def commit(
        self, *, timeout: float | None = None, session_id: int | None = None
    ) -> list[Any]:
        """Apply all or nothing.

        Returns a result for each operation; where one failed, an exception for each: its own for
        the one that failed, RolledBackError for the others. `session_id`: only in this session,
        else SessionExpiredError. Cancelling does not withdraw what was sent.
        """
        request = zk.MultiRequest(tuple(self._ops))
        response = await self._keeper.call(zk.MULTI, request, timeout, session_id=session_id)
        self.results = [
            self._result(op, result) for op, result in zip(self._ops, response.results, strict=True)
        ]
        return self.results

    def _result(self, op: zk.MultiOp, result: zk.MultiResult) -> Any:
        if result.kind == -1:
            code = result.error_code or ZkErrorCode.RUNTIME_INCONSISTENCY
            return zk_error(code, "" if code == ZkErrorCode.RUNTIME_INCONSISTENCY else op.path)
        if op.kind == zk.MultiKind.CREATE:
            return self._keeper.shown(result.path or "")
        if op.kind == zk.MultiKind.CREATE2:
            return self._keeper.shown(result.path or ""), result.stat
        if op.kind == zk.MultiKind.SET_DATA:
            return result.stat
        return True


def failure_of(results: Sequence[Any]) -> ZkError | None:
    """What made a transaction fail, None for one that did not."""
    errors = [each for each in results if isinstance(each, ZkError)]
    causes = [each for each in errors if not isinstance(each, RolledBackError)]
    return next(iter(causes or errors), None)


class MultiRead:
    """Reads of several znodes as of one zxid; `commit` sends them.

    ```
    (data, stat), names = await zk.multi_read().get("/a").get_children("/b").commit()
    ```
    """

    def __init__(self, keeper: SessionKeeper) -> None:
        self._keeper = keeper
        self._ops: list[zk.ReadOp] = []

    def get(self, path: str) -> MultiRead:
        """Read data and Stat; its result is (data, Stat)."""
        self._ops.append(zk.ReadOp(zk.MultiKind.GET_DATA, self._keeper.real(path)))
        return self

    def get_children(self, path: str) -> MultiRead:
        """List children; its result is the names."""
        self._ops.append(zk.ReadOp(zk.MultiKind.GET_CHILDREN, self._keeper.real(path)))
        return self

    async def commit(self, *, timeout: float | None = None) -> list[Any]:
        """The result of each read; each fails or succeeds by itself: a failed one is a ZkError."""
        request = zk.MultiReadRequest(tuple(self._ops))
        response = await self._keeper.call(zk.MULTI_READ, request, timeout, reads=True)
        return [
            _read_result(op, result) for op, result in zip(self._ops, response.results, strict=True)
        ]


def _read_result(op: zk.ReadOp, result: zk.ReadResult) -> Any:
    if result.kind == -1:
        return zk_error(result.error_code or ZkErrorCode.RUNTIME_INCONSISTENCY, op.path)
    if op.kind == zk.MultiKind.GET_DATA:
        return result.data, result.stat
    joined = result.joined_names or b""
    return joined.decode().split("/") if joined else []
