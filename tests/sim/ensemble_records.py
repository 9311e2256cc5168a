"""The records of the ensemble's world: each names who proposed it, so that content can be compared.

record = zxid (8 bytes, big-endian) "s" server " e" epoch " n" number

The number counts all proposals of a history, so that no two records are equal.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from duolog_protocol.txns import zxid_of
from duolog_protocol.types import counter_of, epoch_of, make_zxid


def make_record(zxid: int, server_id: int, epoch: int, number: int) -> bytes:
    """What `server_id` proposes while it leads `epoch`."""
    return zxid.to_bytes(8, "big") + b"s%d e%d n%d" % (server_id, epoch, number)


def number_of(record: bytes) -> int:
    """The number of a record among all that were proposed."""
    return int(record.rpartition(b"n")[2])


def last_zxid_of(records: Sequence[bytes]) -> int:
    """The last zxid of a log; 0 of an empty one."""
    return zxid_of(records[-1]) if records else 0


def before_epoch(records: list[bytes], epoch: int) -> list[bytes]:
    """Those of a log that are of earlier epochs.

    A leader that hears the last NEWLEADER ack late can be established after a later epoch was. It
    cannot commit anything, and knows nothing of what that one does: a leader is asked for what was
    before it.
    """
    return records[: count_up_to(records, make_zxid(epoch, 0) - 1)]


def count_up_to(records: Sequence[bytes], zxid: int) -> int:
    """How many records of a log have a zxid <= `zxid`."""
    return bisect_left(records, (zxid + 1).to_bytes(8, "big"))


def follows(zxid: int, previous_zxid: int) -> bool:
    """Whether a log that ends at `previous_zxid` may go on with `zxid`."""
    if epoch_of(zxid) == epoch_of(previous_zxid):
        return zxid == previous_zxid + 1
    return zxid > previous_zxid and counter_of(zxid) == 0


def tell(records: Sequence[bytes]) -> str:
    """For messages: the ends of a log."""
    if not records:
        return "[]"
    ends = f"{zxid_of(records[0]):#x}..{zxid_of(records[-1]):#x}"
    return f"[{len(records)} records {ends} {records[-1][8:].decode()!r}]"
