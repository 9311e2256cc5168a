"""`zkserver log dump` and `zkserver snapshot dump`: every kind of Txn, readable and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.zkserver.tools_support import content, make_directory, run
from zkserver.tools.json_lines import parse_state, state_lines


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    make_directory(tmp_path / "zk")
    return tmp_path / "zk"


def test_every_kind_of_txn_is_one_line_of_json(directory: Path) -> None:
    before = content(directory)
    code, out, err = run("log", "dump", directory, "--json", "--data")
    assert (code, err) == (0, "")
    assert content(directory) == before
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["kind"] for line in lines] == [
        "new_epoch", "create_session", "create_session", "create", "create", "error", "set_data",
        "set_acl", "create_container", "create_ttl", "multi", "create", "close_session",
        "new_epoch", "create",
    ]  # fmt: skip
    assert [int(line["zxid"], 16) for line in lines] == sorted(int(l_["zxid"], 16) for l_ in lines)
    assert lines[0] == {
        "zxid": "0x100000000",
        "time_ms": 1_700_000_000_011,
        "session": "0x0",
        "correlation_id": 7,
        "kind": "new_epoch",
        "draws_secret": True,
    }
    assert lines[1]["timeout_ms"] == 30_000
    assert lines[3]["path"] == "/a"
    assert lines[3]["data"] == "one"
    assert lines[3]["acl"] == [[31, "world", "anyone"]]
    assert not lines[3]["ephemeral"]
    assert lines[4]["ephemeral"]
    assert lines[4]["data"] is None
    assert lines[5]["code"] == -110
    assert lines[6]["data64"] == "/wA="
    assert lines[6]["data_length"] == 2
    assert lines[7]["aversion"] == 1
    assert lines[9]["ttl_ms"] == 5_000
    operations = lines[10]["operations"]
    assert [each["kind"] for each in operations] == ["create", "check", "delete", "set_data"]
    assert operations[3]["version"] == 2
    assert lines[11]["data"] == "größe"
    assert lines[12]["reason"] == "expired"
    assert lines[12]["paths"] == ["/own"]


def test_the_secret_is_never_shown(directory: Path) -> None:
    for words in (("log", "dump"), ("snapshot", "dump")):
        for flags in ((), ("--json",)):
            assert "ssssss" not in run(*words, directory, *flags)[1]
    assert "ssssss" not in run("export", directory, "--json")[1]


def test_lines_to_read(directory: Path) -> None:
    code, out, _ = run("log", "dump", directory)
    assert code == 0
    lines = out.splitlines()
    assert lines[3] == (
        "0x100000003   2023-11-14T22:13:20.044  session 0x100000001   "
        "create /a acl=world:anyone:cdrwa creates=1 data_length=3"
    )
    assert "create_container '/c d' " in lines[8]
    assert "set_acl /a acl=world:anyone:r,digest:ann:hash:cdrwa aversion=1" in lines[7]
    assert "multi [create /m " in lines[10]
    assert "; check /a version=1; delete /m; set_data /a version=2 data_length=3]" in lines[10]
    assert "close_session reason=expired paths=[/own]" in lines[12]


def test_a_range_of_zxids(directory: Path) -> None:
    _, out, _ = run("log", "dump", directory, "--from", "0x100000003", "--to", 0x100000005)
    assert [line.split()[0] for line in out.splitlines()] == [
        "0x100000003",
        "0x100000004",
        "0x100000005",
    ]
    with pytest.raises(SystemExit) as caught:
        run("log", "dump", directory, "--from", "x")
    assert caught.value.code == 2


def test_one_file(directory: Path) -> None:
    last = sorted(directory.glob("log.*"))[-1]
    code, out, _ = run("log", "dump", last)
    assert code == 0
    assert out.splitlines()[-1].split()[0] == "0x300000001"
    assert run("log", "dump", directory / "identity")[0] == 1
    assert run("log", "dump", directory / "missing")[0] == 2


def test_a_damaged_log_is_shown_up_to_the_damage(directory: Path) -> None:
    first = min(directory.glob("log.*"))
    raw = bytearray(first.read_bytes())
    raw[260] ^= 1
    first.write_bytes(raw)
    code, out, err = run("log", "dump", directory)
    assert code == 1
    assert out.splitlines()[0].startswith("0x100000000")
    assert f"{first} is damaged at byte" in err


def test_the_newest_snapshot_of_a_directory_and_one_by_name(directory: Path) -> None:
    code, out, err = run("snapshot", "dump", directory)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "zxid 0x10000000a: 8 nodes, 2 sessions"
    assert lines[1] == "session 0x100000001: timeout 30000 ms, 1 ephemerals"
    assert lines[3].startswith("/ ")
    (ephemeral,) = [line for line in lines if line.startswith("/a/e ")]
    assert "null  v0 c0 a0 czxid=0x100000004" in ephemeral
    assert "ephemeral_owner=0x100000001" in ephemeral
    assert any(line.startswith("'/c d' ") and " container " in line for line in lines)
    assert any(line.startswith("/ttl ") and " ttl_ms=5000 " in line for line in lines)
    older = min(directory.glob("snapshot.*"))
    code, out, _ = run("snapshot", "dump", older, "--json")
    assert code == 0
    state = parse_state(out.splitlines(keepends=True))
    assert [json.loads(line) for line in out.splitlines()] == list(state_lines(state))
    assert state.last_applied_zxid == int(older.name[9:], 16)


def test_snapshots_that_cannot_be_shown(directory: Path) -> None:
    newest = max(directory.glob("snapshot.*"))
    renamed = newest.with_name("snapshot.00000001000000ff")
    newest.rename(renamed)
    assert run("snapshot", "dump", renamed)[0] == 1
    renamed.write_bytes(renamed.read_bytes()[:-1])
    code, out, err = run("snapshot", "dump", directory)
    assert code == 0
    assert str(renamed) in err
    assert out
    for each in directory.glob("snapshot.*"):
        each.unlink()
    code, _, err = run("snapshot", "dump", directory)
    assert code == 2
    assert "holds no snapshot" in err
