"""What is logged and not yet applied, in zxid order, and the zxids that come next.

Owns the assignment of zxids (each one more than the last, or counter 0 of the next epoch), the
records of this step's Append, and the bookkeeping of what is outstanding. Alone, logged is
proposed: told <= durable <= logged.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from duolog_protocol.txns import Body, TxnKind, encode_set, encode_txn
from duolog_protocol.types import ZXID_COUNTER_LAST, ZXID_EPOCH_LAST, epoch_of, make_zxid
from duolog_protocol.zk_messages import SET_DATA

from .config import CoreConfig
from .connection import Connection
from .events import Append
from .pending import Pending, PendingFields

_U32_LAST: Final = (1 << 32) - 1
_LEFT_FOR_THE_END: Final = 1 << 20
_SET_DATA_KEY: Final = SET_DATA.key


class Proposals:
    """The outstanding Txns of one server."""

    def __init__(self, config: CoreConfig) -> None:
        self._counter_last = config.zxid_counter_last
        self.last_logged_zxid = 0
        self.wall_ms = 0
        """Stamped into every Txn."""
        self.pending: deque[PendingFields] = deque()
        """In zxid order; what is at the left is applied next. Syncs wait among them."""
        self.count = 0
        """Txns in `pending`."""
        self.bytes_count = 0
        """Their records."""
        self.epochs_are_used_up = False
        """The last epoch's counter is full: the server must not go on."""
        self.rolls_epochs = True
        """A full counter opens the next epoch. Alone; the leader of an ensemble steps down."""
        self.term_is_full = False
        """The epoch that we lead in has (almost) no zxid left."""
        self.new_records: list[bytes] = []
        """Logged since the last `take_append`."""
        self._first_zxid = 0
        """Of `new_records`."""

    def begin_term(self, last_logged_zxid: int) -> None:
        """Nothing is outstanding any more; what comes next follows `last_logged_zxid`."""
        self.pending.clear()
        self.new_records = []
        self.count = self.bytes_count = 0
        self.last_logged_zxid = last_logged_zxid
        self.rolls_epochs = self.term_is_full = False
        # Some are left for what was taken before the step down.
        self._counter_last = min(self._counter_last, ZXID_COUNTER_LAST - _LEFT_FOR_THE_END)

    def next_zxid(self) -> int:
        """The zxid of the next Txn; opens an epoch where the counter of this one is full."""
        last = self.last_logged_zxid
        if last & ZXID_COUNTER_LAST >= self._counter_last:
            if not self.rolls_epochs:
                self.term_is_full = True
                assert last & ZXID_COUNTER_LAST < ZXID_COUNTER_LAST, f"{last:#x} has no successor"
                return last + 1
            epoch = epoch_of(last) + 1
            if epoch > ZXID_EPOCH_LAST:
                self.epochs_are_used_up = True
            self.add(make_zxid(epoch, 0), 0, (TxnKind.NEW_EPOCH, b""))
            last = self.last_logged_zxid
        return last + 1

    def add(
        self,
        zxid: int,
        session_id: int,
        body: Body,
        connection: Connection | None = None,
        correlation_id: int = 0,
        api_key: int = 0,
        note: Any = None,
    ) -> None:
        """Log a Txn; see `Pending` for what is kept until it is applied."""
        assert zxid > self.last_logged_zxid, (zxid, self.last_logged_zxid)
        wall_ms = self.wall_ms
        record = encode_txn(zxid, session_id, correlation_id & _U32_LAST, wall_ms, body)
        size = len(record)
        if not self.new_records:
            self._first_zxid = zxid
        self.new_records.append(record)
        self.last_logged_zxid = zxid
        self.count += 1
        self.bytes_count += size
        self.pending.append(
            (zxid, session_id, wall_ms, body, connection, correlation_id, api_key, note, size)
        )

    def add_set(
        self, session_id: int, body: Body, connection: Connection | None, correlation_id: int
    ) -> None:
        """As `add` at the next zxid, for a SetData that a client asked for.

        Its lines are those of `add` once more: most of what is logged comes through here.
        """
        last = self.last_logged_zxid
        zxid = last + 1 if last & ZXID_COUNTER_LAST < self._counter_last else self.next_zxid()
        wall_ms = self.wall_ms
        record = encode_set(zxid, session_id, correlation_id & _U32_LAST, wall_ms, body)
        if not self.new_records:
            self._first_zxid = zxid
        self.new_records.append(record)
        self.last_logged_zxid = zxid
        self.count += 1
        size = len(record)
        self.bytes_count += size
        self.pending.append(
            (zxid, session_id, wall_ms, body, connection, correlation_id, _SET_DATA_KEY, None, size)
        )

    def add_sync(
        self, connection: Connection, correlation_id: int, api_key: int, message: Any
    ) -> None:
        """A sync takes its place behind everything that is logged now."""
        zxid = self.last_logged_zxid
        self.pending.append((zxid, 0, 0, None, connection, correlation_id, api_key, message, 0))

    def take_append(self) -> Append:
        """The Append of `new_records`, of which there are some."""
        assert self.new_records, "nothing was logged"
        append = Append(self.new_records, self._first_zxid, self.last_logged_zxid)
        self.new_records = []
        return append

    def on_applied(self, count: int, bytes_count: int) -> None:
        """So many Txns that were taken from `pending` are applied."""
        self.count -= count
        self.bytes_count -= bytes_count

    def take_back(self, first_zxid: int, last_applied_zxid: int) -> list[Pending]:
        """Nothing from `first_zxid` on will ever be durable: forget it, zxids and all."""
        assert last_applied_zxid < first_zxid, (last_applied_zxid, first_zxid)
        taken = list(map(Pending._make, self.pending))
        for each in taken:
            assert each.body is None or each.zxid >= first_zxid, f"{each.zxid:#x} is durable"
        self.pending.clear()
        self.last_logged_zxid = last_applied_zxid
        self.count = self.bytes_count = 0
        return taken

    def check_invariants(self, last_applied_zxid: int) -> None:
        """Compare everything that is kept twice; for tests and the simulator."""
        pending = list(map(Pending._make, self.pending))
        zxids = [each.zxid for each in pending if each.body is not None]
        assert zxids == sorted(set(zxids)), zxids
        assert not zxids or zxids[0] > last_applied_zxid, zxids
        assert not zxids or zxids[-1] == self.last_logged_zxid, zxids
        assert len(zxids) == self.count, (zxids, self.count)
        sizes = sum(each.size_bytes for each in pending)
        assert sizes == self.bytes_count, (sizes, self.bytes_count)
