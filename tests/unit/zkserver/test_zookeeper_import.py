"""Import of ZooKeeper's files: what a real server left, and what no server should.

The golden directories are explained in `tests/data/zookeeper-3.8.0/generate.py`.
"""

from __future__ import annotations

import base64
import contextlib
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from duolog_protocol.errors import CorruptRecordError, DataDirectoryError, StorageError
from duolog_protocol.types import Acl
from tests.unit.zkserver import zookeeper_support as zk
from zkserver.core.state import ReplicatedState
from zkserver.tools.importing import read_zookeeper
from zkserver.tools.read_only import ReadOnlyFiles

NOT_OURS = {"/zookeeper/config"}
"""Theirs tells of their ensemble, ours of ours."""


def read(directory: Path | str, **options: bool) -> tuple[ReplicatedState, list[str]]:
    notes: list[str] = []
    imported = read_zookeeper(ReadOnlyFiles(), str(directory), None, note=notes.append, **options)
    imported.state.check_invariants()
    return imported.state, notes


def assert_is_expected(state: ReplicatedState, scenario: str) -> None:
    expected = zk.expected_of(scenario)
    assert state.last_applied_zxid == expected["zxid"]
    sessions = [[s.session_id, s.opened_timeout_ms] for s in state.sessions.values()]
    assert sessions == expected["sessions"]
    assert set(state.tree.nodes) == {each["path"] for each in expected["nodes"]}
    for each in expected["nodes"]:
        path = each["path"]
        if path in NOT_OURS:
            continue
        node = state.tree.nodes[path]
        data = each["data64"]
        assert node.data == (None if data is None else base64.b64decode(data)), path
        assert node.acl == tuple(Acl(*entry) for entry in each["acl"]), path
        assert node.stat()._asdict() == each["stat"], path
        assert node.ttl_ms == each["ttl_ms"], path


@pytest.mark.parametrize("scenario", zk.SCENARIOS)
def test_a_directory_of_a_real_server_gives_the_tree_that_it_served(scenario: str) -> None:
    state, notes = read(zk.GOLDEN / scenario)
    assert not notes
    assert_is_expected(state, scenario)


@pytest.mark.parametrize("scenario", zk.SCENARIOS)
def test_every_older_snapshot_and_the_log_give_the_same(scenario: str, tmp_path: Path) -> None:
    shutil.copytree(zk.GOLDEN / scenario, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "version-2"
    snapshots = sorted(folder.glob("snapshot.*"), key=lambda each: int(each.name.split(".")[1], 16))
    while len(snapshots) > 1:
        snapshots.pop().unlink()
        state, notes = read(tmp_path)
        assert not notes
        assert_is_expected(state, scenario)


def test_the_digest_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zkserver.tools.zookeeper_replay.Replay.digest", lambda _: 1)
    for scenario in zk.SCENARIOS:
        if scenario == "no-digest":
            continue
        with pytest.raises(StorageError, match="digest"):
            read(zk.GOLDEN / scenario)
        read(zk.GOLDEN / scenario, check_digest=False)


def test_the_epochs_of_an_ensemble_are_taken_over() -> None:
    imported = read_zookeeper(
        ReadOnlyFiles(), str(zk.GOLDEN / "ensemble"), None, note=lambda _: None
    )
    assert imported.epoch == zk.expected_of("ensemble")["epoch"] == 2


def test_a_damaged_newest_snapshot_is_passed_over(tmp_path: Path) -> None:
    shutil.copytree(zk.GOLDEN / "plain", tmp_path, dirs_exist_ok=True)
    newest = max(
        (tmp_path / "version-2").glob("snapshot.*"), key=lambda each: int(each.name[9:], 16)
    )
    raw = newest.read_bytes()
    newest.write_bytes(raw[: len(raw) // 2])
    state, notes = read(tmp_path)
    assert_is_expected(state, "plain")
    assert len(notes) == 1
    assert str(newest) in notes[0]
    assert "damaged at byte" in notes[0]


def test_a_log_in_a_directory_of_its_own(tmp_path: Path) -> None:
    shutil.copytree(zk.GOLDEN / "plain", tmp_path / "data")
    (tmp_path / "logs" / "version-2").mkdir(parents=True)
    for log in (tmp_path / "data" / "version-2").glob("log.*"):
        log.rename(tmp_path / "logs" / "version-2" / log.name)
    imported = read_zookeeper(
        ReadOnlyFiles(), str(tmp_path / "data"), str(tmp_path / "logs"), note=lambda _: None
    )
    assert_is_expected(imported.state, "plain")


@pytest.mark.parametrize("seed", range(150))
def test_fuzzy_snapshots(seed: int, tmp_path: Path) -> None:
    """A snapshot whose nodes are of different moments, and the log over it."""
    rng = random.Random(seed)
    model = zk.Model()
    for _ in range(rng.randint(0, 40)):
        model.step(rng)
    first = model.zxid
    snapshot = zk.FuzzySnapshot(model)
    model.on_op = lambda: rng.random() < 0.3 and snapshot.step()
    while snapshot.step():
        for _ in range(rng.choice((0, 0, 1, 2, 3))):
            model.step(rng)
    for _ in range(rng.randint(0, 5)):
        model.step(rng)
    (tmp_path / f"snapshot.{first:x}").write_bytes(snapshot.finish())
    start = rng.randint(0, first)
    if start < len(model.records):
        (tmp_path / f"log.{start + 1:x}").write_bytes(zk.log_file(model.records[start:]))
    state, notes = read(tmp_path)
    assert not notes
    assert state.last_applied_zxid == model.zxid
    assert zk.state_tree(state) == zk.model_tree(model)
    found = {s.session_id: s.opened_timeout_ms for s in state.sessions.values()}
    assert found == model.sessions


def test_fuzzy_snapshots_need_the_log_that_was_written_meanwhile(tmp_path: Path) -> None:
    model = zk.Model()
    model.log(1, b"")
    model.records[-1] = zk.record(1, 1, model.create("/a", b"", zk.OPEN, 0))
    raw = zk.FuzzySnapshot(model).finish()
    (tmp_path / "snapshot.0").write_bytes(raw)
    with pytest.raises(StorageError, match="its end is missing"):
        read(tmp_path)


def small_directory(folder: Path) -> zk.Model:
    """A snapshot at 3, a log from 1 to 8."""
    model = zk.Model()
    rng = random.Random(7)
    for _ in range(3):
        model.step(rng)
    (folder / "snapshot.3").write_bytes(zk.FuzzySnapshot(model).finish())
    for _ in range(5):
        model.step(rng)
    (folder / "log.1").write_bytes(zk.log_file(model.records))
    return model


def test_a_torn_tail_is_told_and_left_out(tmp_path: Path) -> None:
    model = small_directory(tmp_path)
    whole = zk.log_file(model.records, 0)
    last = zk.frame(model.records[-1])
    for cut in (1, 11, 12, len(last) // 2, len(last) - 1):
        for zeros in (0, 50):
            raw = whole[: len(whole) - len(last) + cut] + bytes(zeros)
            (tmp_path / "log.1").write_bytes(raw)
            state, notes = read(tmp_path)
            assert state.last_applied_zxid == 7
            assert len(notes) == (0 if not any(last[:cut]) else 1), notes


def test_a_bad_record_with_good_ones_behind_it_is_damage(tmp_path: Path) -> None:
    model = small_directory(tmp_path)
    raw = bytearray(zk.log_file(model.records))
    position = 16 + sum(len(zk.frame(each)) for each in model.records[:4])
    for at in (position + 3, position + 9, position + 11, position + 30):
        hurt = bytearray(raw)
        hurt[at] ^= 0x10
        (tmp_path / "log.1").write_bytes(hurt)
        with pytest.raises(CorruptRecordError) as caught:
            read(tmp_path)
        assert caught.value.position == position
        assert caught.value.path == str(tmp_path / "log.1")


def test_missing_records_are_refused(tmp_path: Path) -> None:
    model = small_directory(tmp_path)
    (tmp_path / "log.1").write_bytes(zk.log_file(model.records[:4]))
    (tmp_path / "log.6").write_bytes(zk.log_file(model.records[5:]))
    with pytest.raises(CorruptRecordError, match=r"log\.6.*0x6 does not follow 0x4"):
        read(tmp_path)


def test_a_log_without_a_snapshot_is_refused(tmp_path: Path) -> None:
    small_directory(tmp_path)
    (tmp_path / "snapshot.3").unlink()
    with pytest.raises(DataDirectoryError, match="no snapshot of ZooKeeper"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("kind", "body", "problem"),
    [
        (99, b"", "type 99 is not known"),
        (1, zk.create_body("/x", b"", 1)[:-5], "it ends here"),
        (1, zk.create_body("/x", b"", 1) + b"abc", "3 bytes after the last field"),
        (1, zk.create_body("relative", b"", 1), "must start with /"),
        (1, zk.create_body("/x", b"", 1, acl=((32, "world", "anyone"),)), "permissions 32"),
        (2, zk.text("/"), "cannot be deleted"),
        (-10, bytes(4), "timeout of 0 ms"),
        (21, zk.create_body("/x", b"", 1)[:-5] + bytes(12), "a TTL of 0 ms"),
        (14, b"\x00\x00\x00\x01\x00\x00\x00\x63" + zk.data(b""), "type 99 is not known"),
        (2, b"\x00\x00\x00\x02\xff\xff", "not UTF-8"),
        (5, zk.text("/x") + zk.data(bytes(1 << 20)) + b"1" + bytes(4), "1 bytes after"),
        (5, zk.text("/x") + zk.data(bytes((1 << 20) + 1)) + bytes(4), "over the limit"),
    ],
)
def test_transactions_that_cannot_be(kind: int, body: bytes, problem: str, tmp_path: Path) -> None:
    model = small_directory(tmp_path)
    raw = zk.log_file([*model.records, zk.record(9, kind, body)])
    (tmp_path / "log.1").write_bytes(raw)
    with pytest.raises(CorruptRecordError, match=problem) as caught:
        read(tmp_path)
    start = 16 + sum(len(zk.frame(each)) for each in model.records)
    assert start <= caught.value.position < len(raw) - 64


def hostile(path: Path, edit: Callable[[bytes, int], bytes], positions: range) -> None:
    """Whatever is done to a file: a state, or one of the errors that are declared."""
    raw = path.read_bytes()
    for position in positions:
        path.write_bytes(edit(raw, position))
        with contextlib.suppress(StorageError):
            read_zookeeper(ReadOnlyFiles(), str(path.parent), None, note=lambda _: None)
    path.write_bytes(raw)


def flipped(raw: bytes, bit: int) -> bytes:
    hurt = bytearray(raw)
    hurt[bit // 8] ^= 1 << bit % 8
    return bytes(hurt)


def test_every_truncation(tmp_path: Path) -> None:
    small_directory(tmp_path)
    for name in ("log.1", "snapshot.3"):
        path = tmp_path / name
        hostile(path, lambda raw, size: raw[:size], range(path.stat().st_size))


def test_every_bit_flip(tmp_path: Path) -> None:
    small_directory(tmp_path)
    for name in ("log.1", "snapshot.3"):
        path = tmp_path / name
        hostile(path, flipped, range(0, 8 * path.stat().st_size, 3))


@pytest.mark.parametrize("scenario", ["gzip", "snappy"])
def test_hostile_compressed_snapshots(scenario: str, tmp_path: Path) -> None:
    source = zk.GOLDEN / scenario / "version-2"
    name = max((p.name for p in source.glob("snapshot.*")), key=lambda n: int(n.split(".")[1], 16))
    path = tmp_path / name
    shutil.copy(source / name, path)
    for log in source.glob("log.*"):
        shutil.copy(log, tmp_path)
    hostile(path, lambda raw, size: raw[:size], range(0, path.stat().st_size, 5))
    hostile(path, flipped, range(0, 8 * path.stat().st_size, 17))


def test_rehashed_garbage_in_records(tmp_path: Path) -> None:
    """Checksums that are right over bytes that are not."""
    model = small_directory(tmp_path)
    rng = random.Random(5)
    for _ in range(600):
        records = list(model.records)
        index = rng.randrange(len(records))
        hurt = bytearray(records[index])
        for _ in range(rng.randint(1, 3)):
            hurt[rng.randrange(len(hurt))] = rng.choice((0, 0xFF, 0x7F, rng.randrange(256)))
        records[index] = bytes(hurt)
        (tmp_path / "log.1").write_bytes(zk.log_file(records))
        with contextlib.suppress(StorageError):
            read(tmp_path)


SEAL_SECTIONS = {
    "3.5 and older": (),
    "3.6, by a string": (struct.pack(">qi", 3, 1) + zk.text("1f"),),
    "3.6 and later": (struct.pack(">qiq", 3, 2, 77),),
    "3.9 without digest": (struct.pack(">q", 3),),
    "3.9": (struct.pack(">qiq", 2, 2, 77), struct.pack(">q", 3)),
}


@pytest.mark.parametrize("version", SEAL_SECTIONS)
def test_what_follows_the_nodes(version: str, tmp_path: Path) -> None:
    model = small_directory(tmp_path)
    raw = (tmp_path / "snapshot.3").read_bytes()
    for section in SEAL_SECTIONS[version]:
        raw += section
        raw += struct.pack(">q", zlib.adler32(raw)) + zk.text("/")
    (tmp_path / "snapshot.3").write_bytes(raw)
    state, notes = read(tmp_path)
    assert not notes
    assert zk.state_tree(state) == zk.model_tree(model)
    for wrong in (raw + b"x", raw + bytes(21), raw[:-1]):
        (tmp_path / "snapshot.3").write_bytes(wrong)
        with pytest.raises(CorruptRecordError):
            read(tmp_path)


def test_creates_of_before_3_4_count_for_themselves(tmp_path: Path) -> None:
    (tmp_path / "snapshot.0").write_bytes(zk.FuzzySnapshot(zk.Model()).finish())
    old = zk.create_body("/x", b"", 1)[:-4]
    records = [
        zk.record(1, 1, old),
        zk.record(2, 1, old.replace(b"/x", b"/y") + struct.pack(">iq", 1, 5)),
    ]
    (tmp_path / "log.1").write_bytes(zk.log_file(records))
    state, _ = read(tmp_path)
    assert state.tree.nodes["/"].creates == 2


@pytest.mark.parametrize("digest", [b"", struct.pack(">iq", 2, 0), struct.pack(">iq", 1, 9)])
@pytest.mark.parametrize("with_paths", [True, False])
def test_a_closed_session_with_and_without_its_paths(
    digest: bytes, with_paths: bool, tmp_path: Path
) -> None:
    (tmp_path / "snapshot.0").write_bytes(zk.FuzzySnapshot(zk.Model()).finish())
    paths = struct.pack(">i", 1) + zk.text("/abc") if with_paths else b""
    records = [
        zk.record(1, -10, struct.pack(">i", 5000), session=9),
        zk.record(2, 1, zk.create_body("/abc", b"", 1, ephemeral=True), session=9),
        zk.record(3, -11, paths + digest, session=9),
    ]
    (tmp_path / "log.1").write_bytes(zk.log_file(records))
    state, _ = read(tmp_path, check_digest=False)
    assert not state.sessions
    assert "/abc" not in state.tree.nodes
    assert state.tree.nodes["/"].pzxid == 3


def test_ephemerals_without_a_session_are_left_out_and_told(tmp_path: Path) -> None:
    (tmp_path / "snapshot.0").write_bytes(zk.FuzzySnapshot(zk.Model()).finish())
    records = [zk.record(1, 1, zk.create_body("/e", b"", 1, ephemeral=True), session=9)]
    (tmp_path / "log.1").write_bytes(zk.log_file(records))
    state, notes = read(tmp_path)
    assert "/e" not in state.tree.nodes
    assert notes == ["1 ephemerals of sessions that are gone are left out: /e"]


def test_java_writes_high_characters_as_two_surrogates(tmp_path: Path) -> None:
    (tmp_path / "snapshot.0").write_bytes(zk.FuzzySnapshot(zk.Model()).finish())
    body = zk.create_body("/x", b"", 1, acl=((31, "digest", "??????:hash"),))
    body = body.replace(b"??????", b"\xed\xa0\xbd\xed\xb8\x80")
    (tmp_path / "log.1").write_bytes(zk.log_file([zk.record(1, 1, body)]))
    state, _ = read(tmp_path)
    assert state.tree.nodes["/x"].acl == (Acl(31, "digest", "\U0001f600:hash"),)
