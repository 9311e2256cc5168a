"""`zkserver export`, `zkserver import`, `zkserver snapshot take`."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from duolog_protocol.errors import StorageError
from duolog_protocol.txns import encode_txn
from duolog_protocol.types import epoch_of
from duolog_runtime.files import RealFiles
from tests.unit.zkserver import zookeeper_support as zk
from tests.unit.zkserver.tools_support import content, create, make_directory, run
from zkserver.core.state import ReplicatedState
from zkserver.storage.epoch_files import EpochFiles, read_identity
from zkserver.storage.file_header import Identity
from zkserver.storage.recovery import DataDirectory
from zkserver.storage.seeding import seed_directory
from zkserver.tools.json_lines import dump_line, parse_state, state_lines
from zkserver.tools.read_only import ReadOnlyFiles, read_state


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    make_directory(tmp_path / "zk")
    return tmp_path / "zk"


def exported(directory: Path) -> list[dict[str, Any]]:
    code, out, err = run("export", directory, "--json")
    assert (code, err) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


def epochs(directory: Path) -> tuple[int, int]:
    files = RealFiles()
    identity = read_identity(files, str(directory))
    assert identity is not None
    found = EpochFiles(files, str(directory), identity)
    return found.accepted_epoch, found.current_epoch


def test_an_export_imported_and_exported_again_is_the_same(directory: Path) -> None:
    before = content(directory)
    dump = directory.parent / "dump.json"
    dump.write_text(run("export", directory, "--json")[1])
    assert content(directory) == before
    target = directory.parent / "target"
    code, out, err = run("import", "--from-json", dump, "--data", target)
    assert (code, err) == (0, "")
    assert "zxid 0x300000001: 9 nodes, 1 sessions" in out
    assert run("export", target, "--json")[1] == dump.read_text()
    assert run("check", target)[0] == 0
    assert epochs(target) == (3, 3)


def test_all_servers_of_an_ensemble_are_made_of_one_export(directory: Path) -> None:
    dump = directory.parent / "dump.json"
    lines = run("export", directory, "--json")[1].splitlines()
    at = next(at for at, line in enumerate(lines) if '"path": "/zookeeper/config"' in line)
    of_others = json.loads(lines[at])
    of_others |= {"data": "server.1=127.0.0.1:1:1:participant\nversion=0"}
    dump.write_text("\n".join([*lines[:at], json.dumps(of_others), *lines[at + 1 :], ""]))
    snapshots = set()
    for server_id in ("1", "2"):
        target = directory.parent / server_id
        place = ("--server-id", server_id, "--ensemble-id", "77")
        assert run("import", "--from-json", dump, "--data", target, *place)[0] == 0
        identity = read_identity(RealFiles(), str(target))
        assert identity == (77, int(server_id))
        assert run("export", target, "--json")[1].splitlines()[at] == lines[at]
        snapshots.add(run("export", target, "--json")[1])
    assert len(snapshots) == 1
    with pytest.raises(SystemExit):
        run("import", "--from-json", dump, "--data", directory.parent / "x", "--ensemble-id", "0")


def test_random_states_make_the_round_trip(tmp_path: Path) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        model = zk.Model()
        for _ in range(60):
            model.step(rng)
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "snapshot.0").write_bytes(zk.FuzzySnapshot(zk.Model()).finish())
        (folder / "log.1").write_bytes(zk.log_file(model.records))
        target = folder / "ours"
        assert run("import", "--from", folder, "--data", target)[0] == 0
        state = read_state(ReadOnlyFiles(), str(target))
        state.check_invariants()
        assert zk.state_tree(state) == zk.model_tree(model)
        lines = [dump_line(line) for line in state_lines(state)]
        again = parse_state(lines)
        again.check_invariants()
        assert [dump_line(line) for line in state_lines(again)] == lines


@pytest.mark.parametrize("scenario", zk.SCENARIOS)
def test_a_golden_directory_becomes_one_of_ours(scenario: str, tmp_path: Path) -> None:
    source = zk.GOLDEN / scenario
    before = content(source / "version-2")
    target = tmp_path / "a" / "b"
    code, out, err = run("import", "--from", source, "--data", target, "--server-id", "7")
    assert (code, err) == (0, ""), err
    assert content(source / "version-2") == before
    expected = zk.expected_of(scenario)
    assert f"zxid {expected['zxid']:#x}: {len(expected['nodes'])} nodes" in out
    identity = read_identity(RealFiles(), str(target))
    assert identity is not None
    assert identity.server_id == 7
    assert epochs(target) == (expected.get("epoch", 0),) * 2
    assert run("check", target)[0] == 0


def test_sessions_can_be_dropped_with_their_ephemerals(tmp_path: Path) -> None:
    target = tmp_path / "ours"
    code, out, _ = run(
        "import", "--from", zk.GOLDEN / "sessions", "--data", target, "--drop-sessions"
    )
    assert code == 0
    assert "3 sessions closed" in out
    expected = zk.expected_of("sessions")
    state = read_state(ReadOnlyFiles(), str(target))
    state.check_invariants()
    assert not state.sessions
    kept = {each["path"] for each in expected["nodes"] if not each["stat"]["ephemeral_owner"]}
    assert set(state.tree.nodes) == kept
    assert state.last_applied_zxid == expected["zxid"] + 3
    assert state.tree.nodes["/members"].pzxid > expected["zxid"]


def test_an_import_never_touches_a_directory_with_something_in_it(directory: Path) -> None:
    before = content(directory)
    code, _, err = run("import", "--from", zk.GOLDEN / "plain", "--data", directory)
    assert code == 2
    assert "is not empty" in err
    assert content(directory) == before


def test_a_refused_import_makes_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(zk.GOLDEN / "plain", source)
    log = max((source / "version-2").glob("log.*"), key=lambda each: int(each.name[4:], 16))
    raw = bytearray(log.read_bytes())
    raw[40] ^= 1
    log.write_bytes(raw)
    code, _, err = run("import", "--from", source, "--data", tmp_path / "ours")
    assert code == 1
    assert f"{log} is damaged at byte 16" in err
    assert not (tmp_path / "ours").exists()


def test_the_empty_tree(tmp_path: Path) -> None:
    """A server that never wrote anything: zxid 0."""
    (tmp_path / "snapshot.0").write_bytes(zk.FuzzySnapshot(zk.Model()).finish())
    assert run("import", "--from", tmp_path, "--data", tmp_path / "ours")[0] == 0
    state = read_state(ReadOnlyFiles(), str(tmp_path / "ours"))
    assert list(state.tree.nodes) == list(ReplicatedState().tree.nodes)


def test_the_last_epoch_leaves_no_room(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no epoch can be opened after"):
        seed_directory(
            RealFiles(),
            str(tmp_path / "x"),
            Identity(1, 1),
            random.Random(1),
            zxid=5,
            epoch=(1 << 31) - 1,
            chunks=(),
        )


def test_a_snapshot_of_a_stopped_server(directory: Path) -> None:
    state = exported(directory)
    code, out, err = run("snapshot", "take", directory)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "snapshot at zxid 0x300000001 taken"
    assert len(list(directory.glob("snapshot.*"))) == 3
    assert exported(directory) == state
    assert run("check", directory)[0] == 0
    code, out, _ = run("snapshot", "take", directory)
    assert (code, out) == (
        0,
        "snapshot at zxid 0x300000001 not needed: it is the newest state already\n",
    )


def test_old_files_are_purged(directory: Path) -> None:
    root_creates = 6
    for index in range(3):
        data = DataDirectory(RealFiles(), str(directory), 1, random.Random(1))
        list(data.records())
        zxid = data.log.last_zxid + 1
        body = create(f"/more{index}", b"", root_creates + index + 1)
        data.log.append([encode_txn(zxid, 0, 0, 0, body)], zxid)
        data.log.sync()
        data.close()
        code, out, _ = run("snapshot", "take", directory)
        assert code == 0
    assert "purged snapshot." in out
    assert "purged log." in out
    assert len(list(directory.glob("snapshot.*"))) == 3
    assert run("check", directory)[0] == 0
    assert any(line.get("path") == "/more2" for line in exported(directory))


def lines_of(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run("export", directory, "--json")[1].splitlines()]


def change(lines: list[dict[str, Any]], where: str, **fields: Any) -> None:
    for line in lines:
        if line.get("path") == where:
            line.update(fields)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda lines: lines[0].update(format="x"), "line 1: the first line must say"),
        (lambda lines: lines[0].update(version=2), "line 1: version 2; only 1 is known"),
        (lambda lines: lines[0].update(zxid=5), 'line 1: "zxid" must be a zxid such as'),
        (lambda lines: lines[0].update(nodes=99), r'line 12: "path" is missing'),
        (lambda lines: lines[0].update(nodes=1), 'the last line must say "end": true'),
        (lambda lines: lines.pop(), "ends before its last line"),
        (lambda lines: lines.append({"path": "/x"}), "lines after the last one"),
        (lambda lines: lines[1].update(session="0x0"), 'line 2: "session" must be'),
        (lambda lines: lines[1].update(timeout_ms=0), '"timeout_ms" must be a whole number'),
        (lambda lines: lines[1].update(session="0x5"), "belongs to session 0x100000001"),
        (lambda lines: change(lines, "/a", path="/z"), "the parent of /a/e is not in a line"),
        (lambda lines: change(lines, "/a/e", path="/a/../e"), "must not have the element"),
        (lambda lines: change(lines, "/a/e", path="/a"), "/a is there twice"),
        (lambda lines: change(lines, "/a", data=5), "data must be a string or null"),
        (lambda lines: change(lines, "/a", data64="AA=="), 'must be "data" or "data64"'),
        (lambda lines: change(lines, "/ttl", ttl_ms=1 << 40), '"ttl_ms" must be'),
        (lambda lines: change(lines, "/a/e", ttl_ms=5), "cannot be both ephemeral"),
        (lambda lines: change(lines, "/a", acl=[]), '"acl" must be a list'),
        (
            lambda lines: change(lines, "/a", acl=[[32, "world", "anyone"]]),
            "permissions 32 are not",
        ),
        (lambda lines: change(lines, "/a", acl=[[1, "s" * 256, ""]]), "is too long"),
        (lambda lines: change(lines, "/a", acl=[[1, "\ud800", ""]]), "is no text"),
        (lambda lines: change(lines, "/a", data="\ud800"), "data cannot be decoded"),
        (lambda lines: change(lines, "/a", acl=["world"]), r"is not \[perms, scheme, id\]"),
        (lambda lines: change(lines, "/a", stat={}), '"czxid" must be a zxid'),
        (
            lambda lines: next(l_ for l_ in lines if l_.get("path") == "/a")["stat"].update(
                mzxid="0x400000000"
            ),
            "has zxid 0x400000000, above that of the whole",
        ),
        (lambda lines: change(lines, "/zookeeper/config", path="/conf"), "is missing"),
        (lambda lines: change(lines, "/a", data="x" * ((1 << 20) + 1)), "over the limit"),
    ],
)
def test_a_dump_that_is_not_right_is_refused_with_its_line(
    edit: Any, problem: str, directory: Path
) -> None:
    lines = lines_of(directory)
    edit(lines)
    dump = directory.parent / "dump.json"
    dump.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(StorageError, match=problem):
        parse_state(dump.read_text().splitlines())
    code, _, err = run("import", "--from-json", dump, "--data", directory.parent / "ours")
    assert code == 1
    assert str(dump) in err
    assert not (directory.parent / "ours").exists()


@pytest.mark.parametrize("text", ["[1]\n", "{\n", "\xff", "[" * 100_000])
def test_what_is_no_dump_at_all(text: str, tmp_path: Path) -> None:
    dump = tmp_path / "dump.json"
    dump.write_text(text, encoding="latin-1")
    assert run("import", "--from-json", dump, "--data", tmp_path / "ours")[0] == 1


def test_unknown_words_name_the_nearest_one() -> None:
    assert run("chek", "x")[2] == (
        "zkserver: 'chek' is none of check, log, snapshot, import, export; did you mean check?\n"
    )
    assert run("snapshot", "tak")[2] == (
        "zkserver: snapshot: 'tak' is none of dump, take; did you mean take?\n"
    )
    assert run("qqqq")[0] == 2


def test_help_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("check", "log", "log dump", "snapshot", "snapshot dump", "snapshot take",
                  "import", "export"):  # fmt: skip
        with pytest.raises(SystemExit) as caught:
            run(*words.split(), "--help")
        assert caught.value.code == 0
        assert f"usage: zkserver {words}" in capsys.readouterr().out


def test_epochs_go_on_upward(tmp_path: Path) -> None:
    run("import", "--from", zk.GOLDEN / "ensemble", "--data", tmp_path / "ours")
    accepted, _ = epochs(tmp_path / "ours")
    state = read_state(ReadOnlyFiles(), str(tmp_path / "ours"))
    assert epoch_of(state.last_applied_zxid) <= accepted == 2
