"""Data directories with real Txns in them, for the tests of the offline tools."""

from __future__ import annotations

import io
import random
import shutil
from pathlib import Path

from duolog_protocol.txns import Body, TxnKind, decode_txn, encode_txn
from duolog_protocol.types import OPEN_ACL_UNSAFE, Acl, make_zxid
from duolog_runtime.files import RealFiles
from zkserver.core.snapshot import Snapshot
from zkserver.core.state import ReplicatedState
from zkserver.storage.recovery import DataDirectory
from zkserver.storage.snapshot import SnapshotWriter
from zkserver.storage.txnlog import LogOptions
from zkserver.tools.cli import run as run_words

OPTIONS = LogOptions(file_bytes=4096, preallocate_bytes=512)
READER = (Acl(1, "world", "anyone"), Acl(31, "digest", "ann:hash"))


class Maker:
    """A server's life in short: Txns in groups, snapshots, rolled files."""

    def __init__(self, directory: Path, seed: int = 1) -> None:
        self.data = DataDirectory(
            RealFiles(), str(directory), 1, random.Random(seed), log_options=OPTIONS
        )
        self.state = ReplicatedState()
        assert list(self.data.records()) == []
        self.wall_ms = 1_700_000_000_000

    def epoch(self, epoch: int) -> None:
        self.data.epochs.advance(epoch)
        self.group((0, (TxnKind.NEW_EPOCH, b"s" * 32)), zxid=make_zxid(epoch, 0))

    def group(self, *txns: tuple[int, Body], zxid: int = 0) -> None:
        """One group of (session_id, body); a CREATE_SESSION gets its zxid as its session."""
        records = []
        for session_id, body in txns:
            zxid = zxid or self.state.last_applied_zxid + 1
            own = zxid if body[0] == TxnKind.CREATE_SESSION else session_id
            self.wall_ms += 11
            record = encode_txn(zxid, own, 7, self.wall_ms, body)
            self.state.replay(decode_txn(record))
            self.state.changes.clear()
            records.append(record)
            zxid = 0
        self.data.log.append(records, self.state.last_applied_zxid)
        self.data.log.sync()

    def snapshot(self) -> None:
        self.data.log.roll()
        view = Snapshot(self.state)
        writer = SnapshotWriter(self.data.files, self.data.path, self.data.identity, view.zxid)
        for chunk in view.chunks(200):
            writer.write(chunk)
        writer.finish()
        view.close()

    def close(self) -> None:
        self.data.close()


def create(path: str, data: bytes | None, creates: int, *, ephemeral: int = 0) -> Body:
    return (TxnKind.CREATE, path, data, OPEN_ACL_UNSAFE, ephemeral, creates)


def make_directory(directory: Path) -> ReplicatedState:
    """Two snapshots and three log files; every kind of Txn is in them."""
    maker = Maker(directory)
    maker.epoch(1)
    maker.group((0, (TxnKind.CREATE_SESSION, 30_000)), (0, (TxnKind.CREATE_SESSION, 4_000)))
    first, second = list(maker.state.sessions)
    maker.group((first, create("/a", b"one", 1)), (first, create("/a/e", None, 1, ephemeral=1)))
    maker.group((second, (TxnKind.ERROR, -110)))
    maker.snapshot()
    maker.group((first, (TxnKind.SET_DATA, "/a", b"\xff\x00", 1)))
    maker.group(
        (second, (TxnKind.SET_ACL, "/a", READER, 1)),
        (second, (TxnKind.CREATE_CONTAINER, "/c d", b"", OPEN_ACL_UNSAFE, 0, 2)),
        (second, (TxnKind.CREATE_TTL, "/ttl", b"t", OPEN_ACL_UNSAFE, 5_000, 3)),
    )
    maker.group(
        (
            first,
            (
                TxnKind.MULTI,
                (
                    create("/m", b"", 4),
                    (TxnKind.CHECK, "/a", 1),
                    (TxnKind.DELETE, "/m"),
                    (TxnKind.SET_DATA, "/a", b"two", 2),
                ),
            ),
        ),
    )
    maker.snapshot()
    maker.group((second, create("/own", "größe".encode(), 5, ephemeral=1)))
    maker.group((second, (TxnKind.CLOSE_SESSION, 1, ("/own",))))
    maker.epoch(3)
    maker.group((first, create("/last", b"x" * 300, 6)))
    maker.close()
    return maker.state


def run(*words: object) -> tuple[int, str, str]:
    """Run a tool: exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    code = run_words([str(each) for each in words], out, err)
    return code, out.getvalue(), err.getvalue()


def content(directory: Path) -> dict[str, tuple[bytes, int]]:
    """Every file of a directory, with its time of change."""
    return {each.name: (each.read_bytes(), each.stat().st_mtime_ns) for each in directory.iterdir()}


def copy_of(directory: Path, name: str) -> Path:
    target = directory.parent / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(directory, target)
    return target
