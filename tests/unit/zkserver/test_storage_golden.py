"""The bytes on the disk never change by accident, and FORMAT.md tells the truth about them."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

from duolog_protocol.types import make_zxid
from tests.unit.kbroker.storage_support import MemoryFiles
from tests.unit.zkserver.storage_support import DIRECTORY, take_snapshot
from zkserver.storage.epoch_files import CURRENT_EPOCH, IDENTITY
from zkserver.storage.file_header import FORMAT_VERSION
from zkserver.storage.recovery import DataDirectory
from zkserver.storage.snapshot import snapshot_name
from zkserver.storage.txnlog import LogOptions, log_name

ROOT = Path(__file__).resolve().parents[3]
FORMAT = ROOT / "zkserver/zkserver/storage/FORMAT.md"


class FixedMarker(Random):
    def randbytes(self, n: int) -> bytes:
        return b"\xd1" * n


def all_bytes() -> dict[str, bytes]:
    """Every kind of file, written by a server 1 of ensemble 0xe5."""
    files = MemoryFiles()
    options = LogOptions(preallocate_bytes=16)
    data = DataDirectory(files, DIRECTORY, 1, FixedMarker(), ensemble_id=0xE5, log_options=options)
    assert list(data.records()) == []
    data.epochs.advance(1)
    first, second = make_zxid(1, 1), make_zxid(1, 2)
    data.log.append([first.to_bytes(8, "big") + b"one", second.to_bytes(8, "big")], second)
    data.log.sync()
    data.log.mark()
    take_snapshot(data, second, [b"abc", b"de"])
    names = {
        "identity": IDENTITY,
        "current_epoch": CURRENT_EPOCH,
        "log": log_name(0),
        "snapshot": snapshot_name(second),
    }
    return {kind: bytes(files.nodes[f"{DIRECTORY}/{n}"].data) for kind, n in names.items()}


def test_the_worked_examples_of_the_format_are_right() -> None:
    blocks = dict(re.findall(r"```golden (.+)\n((?:.*\n)+?)```", FORMAT.read_text()))
    actual = all_bytes()
    assert blocks.keys() == actual.keys()
    for name, block in blocks.items():
        written = "".join(line.partition(";")[0] for line in block.splitlines())
        assert bytes.fromhex(written) == actual[name], name


def test_the_version_is_the_first_one() -> None:
    """A change of any byte above needs a new version, and a reader for this one."""
    assert FORMAT_VERSION == 1


if __name__ == "__main__":
    for name, data in all_bytes().items():
        print(name, data.hex(" "))
