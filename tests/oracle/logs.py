"""The order of transactions, read from the log files of a server that has ended.

Apache ZooKeeper's format is that of `FileTxnLog`: a header of 16 bytes, then for each transaction a
checksum (i64), a length (i32), `TxnHeader{clientId i64, cxid i32, zxid i64, time i64, type i32}`, a
body and the byte 0x42; zeros behind the last one. zkserver's is read by its own recovery.
"""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Final

from duolog_runtime.files import RealFiles
from tests.sim.checkers.zk_records import Logged
from tests.sim.zk_history_world import logged
from zkserver.storage.recovery import DataDirectory

_FILE_HEADER_BYTES: Final = 16
_RECORD: Final = struct.Struct(">qi")
_TXN: Final = struct.Struct(">qiqqi")
_MULTI: Final = 14
_FIRST_OF_MULTI: Final = _TXN.size + 4
_ERROR: Final = struct.pack(">i", -1)
_KINDS: Final = {-1: "error", -10: "open", -11: "close"}


def apache_log(directory: Path) -> list[Logged]:
    """All transactions of Apache ZooKeeper's log files in a directory."""
    entries = []
    for path in sorted(directory.glob("log.*"), key=lambda each: int(each.suffix[1:], 16)):
        data = path.read_bytes()
        at = _FILE_HEADER_BYTES
        while at + _RECORD.size <= len(data):
            _, size = _RECORD.unpack_from(data, at)
            at += _RECORD.size
            if size == 0:
                break
            session, xid, zxid, _, kind = _TXN.unpack_from(data, at)
            if kind == _MULTI and data[at + _FIRST_OF_MULTI : at + _FIRST_OF_MULTI + 4] == _ERROR:
                kind = -1  # it has failed: it holds nothing but errors
            entries.append(Logged(zxid, session, xid, _KINDS.get(kind, "write")))
            at += size
            assert data[at : at + 1] == b"B", f"{path}: no end of a record at {at}"
            at += 1
    return entries


def zkserver_log(directory: Path, server_id: int = 1) -> tuple[list[Logged], bool]:
    """The transactions of zkserver's log, and whether it has its beginning: nothing was purged, and
    no snapshot of a leader has come in its place. The server must not run."""
    data = DataDirectory(RealFiles(), str(directory), server_id, random.Random(1))
    try:
        for _ in data.snapshot_chunks():
            pass
        after = [logged(record) for record in data.records(may_be_half=True)]
        before = [logged(record) for record in data.records_before_snapshot()]
        return before + after, data.log.first_zxid_before == 0
    finally:
        data.close()


def has_gap(log: list[Logged]) -> bool:
    """Whether something is missing before the last transaction, as zxids are counted in each epoch:
    Apache ZooKeeper's log lacks what a snapshot of the leader has brought."""
    last = 0
    for entry in log:
        is_new_epoch = entry.zxid >> 32 > last >> 32
        if entry.zxid != last + 1 and not (is_new_epoch and entry.zxid & 0xFFFFFFFF <= 1):
            return True
        last = entry.zxid
    return False
