"""`zkserver check`: it finds what is wrong, changes nothing, and agrees with a start."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from duolog_protocol.errors import StorageError
from duolog_protocol.txns import TxnKind, encode_txn
from duolog_runtime.files import RealFiles
from tests.unit.zkserver.tools_support import (
    Maker,
    content,
    copy_of,
    create,
    make_directory,
    run,
)
from zkserver.core.snapshot import Snapshot
from zkserver.core.snapshot_loading import load_snapshot
from zkserver.core.state import ReplicatedState
from zkserver.storage.inspection import LogScan
from zkserver.storage.recovery import DataDirectory
from zkserver.storage.snapshot import SnapshotWriter
from zkserver.tools.json_lines import state_lines
from zkserver.tools.read_only import ReadOnlyFiles, decode, read_state, reading


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    make_directory(tmp_path / "zk")
    return tmp_path / "zk"


def logs(directory: Path) -> list[Path]:
    return sorted(directory.glob("log.*"))


def snapshots(directory: Path) -> list[Path]:
    return sorted(directory.glob("snapshot.*"))


def flip(path: Path, position: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)


def test_a_good_directory(directory: Path) -> None:
    before = content(directory)
    code, out, err = run("check", directory)
    assert (code, err) == (0, "")
    assert content(directory) == before
    lines = out.splitlines()
    assert lines[-1] == "good"
    names = [line.split()[0] for line in lines[:-1]]
    files = [each.name for each in (*snapshots(directory), *logs(directory))]
    assert names == ["identity", "accepted_epoch", "current_epoch", *files, "state"]
    assert "server 1 of ensemble" in lines[0]
    assert lines[1].split()[1:] == ["ok", "epoch", "3"]
    assert "at zxid 0x300000001: 9 nodes, 1 of them ephemeral, 1 sessions" in lines[-2]


def damage_identity(directory: Path) -> str:
    flip(directory / "identity", 20)
    return "identity +DAMAGED +at byte 0"


def remove_identity(directory: Path) -> str:
    (directory / "identity").unlink()
    return "identity +DAMAGED +the file is missing"


def damage_epoch(directory: Path) -> str:
    flip(directory / "current_epoch", 30)
    return "current_epoch +DAMAGED +at byte 0"


def remove_epoch(directory: Path) -> str:
    (directory / "accepted_epoch").unlink()
    return "accepted_epoch +DAMAGED +the file is missing"


def foreign_epoch(directory: Path) -> str:
    make_directory(directory.parent / "other")
    with (directory.parent / "other" / "identity").open("rb") as file:
        assert file.read() == (directory / "identity").read_bytes()
    other = directory.parent / "another"
    Maker(other, seed=9).close()
    shutil.copy(other / "accepted_epoch", directory)
    return "accepted_epoch +DAMAGED .*belongs to server 1 of ensemble"


def late_epoch(directory: Path) -> str:
    old = directory.parent / "old"
    maker = Maker(old)
    maker.epoch(1)
    maker.close()
    shutil.copy(old / "current_epoch", directory)
    return "current_epoch +DAMAGED +the log holds zxid 0x300000001 of a later epoch than 1"


def reversed_epochs(directory: Path) -> str:
    old = directory.parent / "old"
    maker = Maker(old)
    maker.epoch(1)
    maker.close()
    shutil.copy(old / "accepted_epoch", directory)
    return "accepted_epoch +DAMAGED +it is below current_epoch, 1 < 3"


def damage_snapshot(directory: Path) -> str:
    flip(snapshots(directory)[1], 300)
    return "snapshot.* DAMAGED +at byte [0-9]+: the checksum of a chunk is wrong\n +-> an older"


def cut_snapshot(directory: Path) -> str:
    path = snapshots(directory)[0]
    path.write_bytes(path.read_bytes()[:-3])
    return "snapshot.* DAMAGED +at byte [0-9]+: the footer does not fit"


def damage_log(directory: Path) -> str:
    flip(logs(directory)[0], 120)
    return "log.0000000000000000 +DAMAGED +at byte [0-9]+: .*\n +-> keep a copy .*log dump"


def damage_last_log(directory: Path) -> str:
    flip(logs(directory)[-1], 120)
    return "log.* DAMAGED +at byte 44: the group at byte [0-9]+ says"


def remove_middle_log(directory: Path) -> str:
    logs(directory)[1].unlink()
    return "DAMAGED +at byte [0-9]+: the records from here to zxid 0x[0-9a-f]+, where the next"


def remove_first_logs(directory: Path) -> str:
    for each in (*logs(directory)[:2], *snapshots(directory)):
        each.unlink()
    return (
        "log.* DAMAGED +the log begins after .* no good snapshot covers .*\\(the newest is at 0x0"
    )


def remove_last_log(directory: Path) -> str:
    for each in logs(directory)[1:]:
        each.unlink()
    return "state +DAMAGED +the log ends at zxid 0x[0-9a-f]+, but it was durable up to"


def remove_logs(directory: Path) -> str:
    for each in logs(directory):
        each.unlink()
    return r"log\.\* +DAMAGED +all log files are missing"


def failed_sync(directory: Path) -> str:
    (directory / "sync-failed").touch()
    return "sync-failed +DAMAGED +a sync has failed.*\n +-> check the disk"


def other_state(directory: Path) -> str:
    """A snapshot that is whole, but not of this history."""
    path = snapshots(directory)[1]
    zxid = int(path.name.removeprefix("snapshot."), 16)
    files = RealFiles()
    data = DataDirectory(files, str(directory), 1, random.Random(1))
    state = load_snapshot(data.snapshot_chunks())
    state.tree.nodes["/a"].data = b"another"
    path.unlink()
    writer = SnapshotWriter(files, str(directory), data.identity, zxid)
    for chunk in Snapshot(state).chunks(100):
        writer.write(chunk)
    writer.finish()
    data.close()
    return "snapshot.* DAMAGED +replaying the log from an older state gives another tree"


def impossible_record(directory: Path) -> str:
    files = RealFiles()
    data = DataDirectory(files, str(directory), 1, random.Random(1))
    list(data.records())
    zxid = data.log.last_zxid + 1
    data.log.append([encode_txn(zxid, 0, 0, 0, (TxnKind.DELETE, "/not there"))], zxid)
    data.log.sync()
    data.close()
    return "log.* DAMAGED +at byte [0-9]+: log record 0x300000002 does not fit the tree"


@pytest.mark.parametrize(
    "harm",
    [
        damage_identity,
        remove_identity,
        damage_epoch,
        remove_epoch,
        foreign_epoch,
        late_epoch,
        reversed_epochs,
        damage_snapshot,
        cut_snapshot,
        damage_log,
        damage_last_log,
        remove_middle_log,
        remove_first_logs,
        remove_last_log,
        remove_logs,
        failed_sync,
        other_state,
        impossible_record,
    ],
)
def test_harm_is_found_and_named(harm: Callable[[Path], str], directory: Path) -> None:
    words = harm(directory)
    before = content(directory)
    code, out, _ = run("check", directory)
    assert code == 1, out
    assert out.endswith("damaged\n")
    assert re.search(words, out), out
    assert re.search("DAMAGED.*\n +-> ", out), out
    assert content(directory) == before


def test_what_a_crash_leaves_is_no_damage(directory: Path) -> None:
    (directory / "snapshot.00000001000000aa.tmp").write_bytes(b"half")
    (directory / "notes.txt").write_text("mine")
    maker_log = logs(directory)[-1]
    raw = maker_log.read_bytes()
    data = DataDirectory(RealFiles(), str(directory), 1, random.Random(1))
    data.close()
    (directory / "snapshot.00000001000000aa.tmp").write_bytes(b"half")
    end = len(raw.rstrip(b"\0"))
    marker = raw[32:40]
    end = raw.rfind(marker)  # the mark behind the last group
    torn = raw[:end] + marker + bytes(8) + b"half a group"
    maker_log.write_bytes(torn)
    code, out, _ = run("check", directory)
    assert code == 0, out
    assert f"a half-written group follows at byte {end}" in out
    assert "half made by a process that ended" in out
    assert "notes.txt                  ok       not a file of zkserver" in out


def test_a_directory_of_something_else_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("hello")
    code, out, err = run("check", tmp_path)
    assert (code, out) == (2, "")
    assert "is no data directory of zkserver" in err
    assert run("check", tmp_path / "missing")[0] == 2


def test_a_fresh_directory_is_good(tmp_path: Path) -> None:
    Maker(tmp_path).close()
    assert run("check", tmp_path)[0] == 0


def test_a_running_server_keeps_the_tools_out_unless_live(directory: Path) -> None:
    data = DataDirectory(RealFiles(), str(directory), 1, random.Random(1))
    try:
        for words in (("check", directory), ("export", directory, "--json")):
            code, out, err = run(*words)
            assert (code, out) == (2, ""), out
            assert "in use by a server" in err
            assert run(*words, "--live")[0] == 0
        code, _, err = run("snapshot", "take", directory)
        assert code == 2
        assert "locked" in err
    finally:
        data.close()


def test_a_check_keeps_servers_out(directory: Path) -> None:
    with (
        reading(ReadOnlyFiles(), str(directory), live=False),
        pytest.raises(StorageError, match="locked"),
    ):
        DataDirectory(RealFiles(), str(directory), 1, random.Random(1))


def test_live_reading_while_a_server_appends(directory: Path) -> None:
    """What is half there at one moment and whole at the next is no damage."""
    maker_state = read_state(RealFiles(), str(directory))
    data = DataDirectory(RealFiles(), str(directory), 1, random.Random(1))
    list(data.records())
    scan = LogScan(RealFiles(), str(logs(directory)[-1]), data.identity, live=True)
    groups = scan.groups()
    next(groups)
    zxid = data.log.last_zxid
    count = maker_state.tree.nodes["/"].creates
    for index in range(3):
        zxid += 1
        body = create(f"/live{index}", b"", count + index + 1)
        data.log.append([encode_txn(zxid, 0, 0, 0, body)], zxid)
        data.log.sync()
    for group in groups:
        last = group.last_zxid
    data.close()
    assert last == zxid
    assert not scan.is_torn


def start(directory: Path) -> ReplicatedState:
    """What the daemon does when it starts."""
    data = DataDirectory(RealFiles(), str(directory), 1, random.Random(1))
    try:
        state = load_snapshot(data.snapshot_chunks()) if data.snapshot_zxid else ReplicatedState()
        for record in data.records():
            state.replay(decode(record))
        return state
    finally:
        data.close()


def test_it_agrees_with_a_start_about_every_flipped_bit(directory: Path) -> None:
    """Good: a start gives the whole state. A start that refuses: damaged."""
    whole = list(state_lines(start(copy_of(directory, "start"))))
    rng = random.Random(3)
    for path in sorted(directory.iterdir()):
        raw = path.read_bytes()
        for bit in rng.sample(range(8 * len(raw)), min(60, 8 * len(raw))):
            hurt = copy_of(directory, "hurt")
            flipped = bytearray(raw)
            flipped[bit // 8] ^= 1 << bit % 8
            (hurt / path.name).write_bytes(flipped)
            code, out, _ = run("check", hurt)
            assert code in (0, 1), (path.name, bit)
            try:
                state = start(hurt)
            except StorageError:
                assert code == 1, (path.name, bit, out)
            else:
                if code == 0 and "half-written" not in out:
                    assert list(state_lines(state)) == whole, (path.name, bit, out)
