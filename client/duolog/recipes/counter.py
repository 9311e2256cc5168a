"""A shared counter.

Source: kazoo `Counter`; Curator `SharedCount` for the other format.
"""

from __future__ import annotations

import struct
from typing import Final, Generic, Self, TypeVar

from duolog.zk import ZkClient
from duolog_protocol.errors import BadVersionError, NoNodeError

from .claims import Pauses, ensure_path
from .once import Journal

Number = TypeVar("Number", int, float)
_CURATOR: Final = struct.Struct(">i")


class Counter(Generic[Number]):
    """`async with Counter(zk, "/hits") as hits: await hits.add(2)`

    An int or a float, as the default is. Every addition is applied exactly once, also when the
    connection is lost while it is under way; where the session ends before its fate is known,
    TransportError says that it may have happened. While the session is SUSPENDED calls wait.
    The znode is kazoo's: the number's `repr`, or with `support_curator` four bytes, big endian.
    """

    def __init__(
        self, zk: ZkClient, path: str, default: Number = 0, support_curator: bool = False
    ) -> None:
        """`default`: the value of a counter that does not exist yet; its type is the counter's."""
        if support_curator and type(default) is not int:
            raise TypeError("a counter of Curator holds an int")
        self.path = path
        self.default: Number = default
        self.support_curator = support_curator
        self._zk = zk
        self._journal = Journal(zk, path)
        self.pre_value: Number | None = None
        """The value before the last `add` of this object."""
        self.post_value: Number | None = None
        """The value after the last `add` of this object."""

    async def value(self) -> Number:
        """The value as the server we are connected to knows it."""
        try:
            data, _ = await self._zk.get(self.path)
        except NoNodeError:
            return self.default
        return self._decode(data)

    async def add(self, value: Number) -> Number:
        """Add and return the new value.

        Cancelling leaves it open whether it was added. Raises TypeError for another type.
        """
        if type(value) is not type(self.default):
            raise TypeError(f"{value!r} is not of the counter's type")
        pauses = Pauses(self._zk)
        while True:
            try:
                data, stat = await self._zk.get(self.path)
            except NoNodeError:
                await ensure_path(self._zk, self.path)
                continue
            before = self._decode(data)
            after = before + value
            transaction = self._zk.transaction()
            transaction.set_data(self.path, self._encode(after), stat.version)
            try:
                await self._journal.commit(transaction)
            except NoNodeError:
                continue  # somebody has deleted it
            except BadVersionError:
                await pauses.after_conflict()
                continue
            self.pre_value, self.post_value = before, after
            return after

    async def subtract(self, value: Number) -> Number:
        """Subtract and return the new value; as `add`."""
        return await self.add(-value)

    def _decode(self, data: bytes | None) -> Number:
        if not data:
            return self.default
        if self.support_curator:
            (number,) = _CURATOR.unpack(data)
            return type(self.default)(number)
        return type(self.default)(data.decode("ascii"))

    def _encode(self, value: Number) -> bytes:
        if self.support_curator:
            return _CURATOR.pack(value)
        return repr(value).encode("ascii")

    async def __aenter__(self) -> Self:
        """Begin; nothing is created before the first `add`."""
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Delete this object's journal; the counter stays."""
        self._journal.close()
