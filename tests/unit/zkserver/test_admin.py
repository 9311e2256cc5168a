"""The operators' doors in one process: the disk asked for sizes, readiness, snapshots, secrets."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from duolog_runtime.clocks import ManualClock
from duolog_runtime.disk import InlineDisk
from duolog_runtime.files import RealFiles
from duolog_runtime.http_server import HttpRequest, HttpResponse
from duolog_runtime.logs import RecordingLogger
from tests.jute_support import buffer, connect_request, i32, request, ustring
from zkserver.config import FOUR_LETTER_WORDS, MASKED, ServerConfig
from zkserver.core.config import CoreConfig
from zkserver.core.datatree import CONFIG_PATH
from zkserver.core.members import config_data, parse_members
from zkserver.metrics import collect, monitor
from zkserver.server.commands import BY_NAME, COMMANDS, Command
from zkserver.server.node import Node
from zkserver.server.replica import Replica
from zkserver.server.words import WORDS, Word


class World:
    """A node whose disk is worked by hand after the start."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.clock = ManualClock()
        self.disk = InlineDisk(immediate=False)
        self.log = RecordingLogger()
        self.config = ServerConfig(
            data_directory=str(directory),
            port=0,
            http_port=0,
            four_letter_words=("*",),
            admin_snapshot=True,
            fsync_warning_ms=5,
            **settings,
        )
        self.node = Node(
            self.config,
            CoreConfig(),
            files=RealFiles(),
            disk=self.disk,
            clock=self.clock,
            rng=random.Random(1),
            log=self.log,
            on_halt=lambda: None,
        )
        self.admin = self.node._admin
        self.view = self.admin.view

    async def with_disk(self, work: Callable[[], Any]) -> Any:
        """Await something of the node's while the disk works."""
        task = asyncio.create_task(work())
        async with asyncio.timeout(20):
            while not task.done():
                self.disk.run_pending()
                await asyncio.sleep(0)
        return await task

    def word(self, word: str) -> list[str | None]:
        """What the word is answered, as it comes."""
        answers: list[str | None] = []
        self.admin.answer_word(word, b"", answers.append)
        return answers

    def command(self, name: str, method: str = "GET", query: str = "") -> list[HttpResponse]:
        answers: list[HttpResponse] = []
        request = HttpRequest(method, f"/commands/{name}", {}, {}, b"")
        self.admin._http.answer(request, answers.append)
        return answers


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    each = World(tmp_path)
    await each.with_disk(each.node.start)
    yield each
    await each.with_disk(each.node.stop)


def values(answers: list[HttpResponse]) -> dict[str, Any]:
    (response,) = answers
    found: dict[str, Any] = json.loads(response.body)
    return found


async def test_sizes_are_asked_of_the_disk_once_for_all_who_wait(world: World) -> None:
    first, second = world.word("dirs"), world.command("dirs")
    assert (first, second, world.disk.pending) == ([], [], 1)
    world.disk.run_pending()
    (size,) = [each.stat().st_size for each in Path(world.config.data_directory).glob("log.*")]
    assert first == [f"datadir_size: 0\nlogdir_size: {size}\n"]
    assert values(second)["logdir_size"] == size


async def test_sizes_that_cannot_be_had_are_those_of_last_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = world.word("dirs")
    world.disk.run_pending()

    def fail() -> tuple[int, int]:
        raise OSError("gone")

    monkeypatch.setattr(world.admin._data, "sizes", fail)
    after = world.word("dirs")
    world.disk.run_pending()
    assert after == before
    assert "sizes_unknown" in world.log.events
    world.disk._max_pending = 0  # a disk that hangs, with a full queue
    assert world.word("dirs") == before
    world.disk._max_pending = 10


async def test_an_answer_that_fails_fails_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise ValueError("a bug")

    monkeypatch.setitem(WORDS, "conf", Word(fail, measured=True))
    monkeypatch.setitem(BY_NAME, "dirs", Command(("dirs",), fail, measured=True))
    broken, refused, good = world.word("conf"), world.command("dirs"), world.word("dirs")
    world.disk.run_pending()
    assert broken == [None]
    assert [each.status for each in refused] == [HTTPStatus.INTERNAL_SERVER_ERROR]
    assert len(good) == 1 and good[0] is not None and "datadir_size" in good[0]
    assert {"word_failed", "command_failed"} <= set(world.log.events)


async def test_the_environment_is_told_after_the_working_directory_has_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(os, "getcwd", fail)
    (text,) = world.word("envi")
    assert text is not None and "user.dir=\n" in text


async def test_a_disk_that_hangs_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    world = World(tmp_path, stop_timeout_ms=1)
    await world.with_disk(world.node.start)
    async with asyncio.timeout(20):
        await world.node.stop()
    assert "disk_hangs" in world.log.events
    assert "disk" in world.node.failure


THREE = ("1=127.0.0.1:7001;2181", "2=localhost:7002", "3=127.0.0.1:7003:observer")


def of_three(directory: Path) -> tuple[World, Replica]:
    """The first of an ensemble, which has not started."""
    world = World(directory, servers=THREE, ensemble_id=7)
    assert isinstance(world.node._engine, Replica)
    return world, world.node._engine


def test_members_are_those_of_the_log_once_it_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, replica = of_three(tmp_path)

    def shown() -> tuple[dict[str, str], str]:
        voters = values(world.command("voting_view"))["current_config"]
        return voters, values(world.command("leader"))["leader_ip"]

    voters = {str(each.server_id): str(each) for each in parse_members(THREE[:2])}
    assert shown() == (voters, "")
    joined = parse_members((THREE[0], "9=127.0.0.9:7009"))
    replica.core.state.tree.nodes[CONFIG_PATH].data = config_data(joined, 5)
    follows = replica.member_status()._replace(leader_id=9)
    monkeypatch.setattr(replica, "member_status", lambda: follows)
    assert shown() == ({str(each.server_id): str(each) for each in joined}, "127.0.0.9")
    world.node._data.close()


def test_a_member_of_an_ensemble_tells_how_long_its_start_took(tmp_path: Path) -> None:
    world, _ = of_three(tmp_path)
    told = monitor(world.view)
    for name in ("dbinittime", "startup_snap_load_time", "startup_txns_load_time"):
        assert told[f"cnt_{name}"] == 1, name
    assert world.log.events.count("state_recovered") == 1
    world.node._data.close()


def test_numbers_of_the_ensemble_are_metrics_of_its_members_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, replica = of_three(tmp_path)

    def shown() -> dict[str, Any]:
        names = ("epoch", "leader_id", "learners", "synced_followers", "synced_observers")
        rows = {name: values[0][1] for name, _, _, values in collect(world.view) if name in names}
        told = monitor(world.view)
        assert rows == {name: told[name] for name in names if name in told}
        return rows

    assert shown() == {"epoch": 0, "leader_id": 0}
    leads = replica.member_status()._replace(
        role="leader", epoch=4, leader_id=1, learners=3, synced_followers=1, synced_observers=1
    )
    monkeypatch.setattr(replica, "member_status", lambda: leads)
    assert [*shown().values()] == [4, 1, 3, 1, 1]
    world.node._data.close()


def test_a_server_without_a_leader_takes_part_in_no_broadcast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, replica = of_three(tmp_path)

    def shown() -> tuple[str, bool, str]:
        found = values(world.command("zabstate"))
        return replica.member_status().role, found["voting"], found["zabstate"]

    assert shown() == ("looking", False, "election")
    replica.core.serve_read_only(world.clock.now_ms())
    assert shown() == ("read-only", False, "election")
    follows = replica.member_status()._replace(role="follower")
    monkeypatch.setattr(replica, "member_status", lambda: follows)
    assert shown() == ("follower", True, "broadcast")
    world.node._data.close()


async def test_it_is_ready_while_it_serves(world: World) -> None:
    def ready() -> HTTPStatus:
        answers: list[HttpResponse] = []
        world.admin._http.answer(HttpRequest("GET", "/ready", {}, {}, b""), answers.append)
        return answers[0].status

    assert ready() == HTTPStatus.OK
    world.node.failure = "the disk has failed"
    assert ready() == HTTPStatus.SERVICE_UNAVAILABLE
    world.node.failure = ""
    await world.with_disk(world.node.stop)
    assert ready() == HTTPStatus.SERVICE_UNAVAILABLE


async def test_snapshots_on_request_one_at_a_time_and_not_too_often(world: World) -> None:
    (taken,) = world.command("snapshot", "POST")
    assert taken.status == HTTPStatus.OK
    interval_ms = world.config.admin_snapshot_interval_ms
    world.clock.advance(interval_ms - 1)
    (refused,) = world.command("snapshot", "POST")
    assert refused.status == HTTPStatus.TOO_MANY_REQUESTS
    world.clock.advance(1)
    (refused,) = world.command("snapshot", "POST")
    assert refused.status == HTTPStatus.CONFLICT
    assert values(world.command("last_snapshot")) == {
        "zxid": "0",
        "timestamp": -1,
        "command": "last_snapshot",
        "error": None,
    }
    world.disk.run_pending()
    wall_s = world.clock.wall_ms() // 1000
    assert values(world.command("last_snapshot"))["timestamp"] == wall_s
    assert values(world.command("monitor"))["max_snapshottime"] == interval_ms
    (taken,) = world.command("snapshot", "POST")
    assert taken.status == HTTPStatus.OK
    world.disk.run_pending()


@pytest.mark.parametrize("elapsed_ms", [5, 6])
async def test_a_sync_slower_than_the_threshold_is_logged_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elapsed_ms: int
) -> None:
    world = World(tmp_path)
    log = world.node._data.log
    append_durably = log.append_durably

    def slow(records: list[bytes], last_zxid: int) -> None:
        world.clock.advance(elapsed_ms)
        append_durably(records, last_zxid)

    monkeypatch.setattr(log, "append_durably", slow)
    await world.with_disk(world.node.start)
    is_slow = elapsed_ms > world.config.fsync_warning_ms
    assert ("fsync_slow" in world.log.events) == is_slow
    found = values(world.command("monitor"))
    assert found["fsync_threshold_exceed_count"] == int(is_slow)
    assert found["max_fsynctime"] == elapsed_ms
    await world.with_disk(world.node.stop)


async def test_every_setting_is_shown_and_secrets_are_not(tmp_path: Path) -> None:
    canary = "A" * 27 + "="
    world = World(tmp_path, super_digests=(f"super:{canary}",))
    await world.with_disk(world.node.start)
    settings = values(world.command("configuration"))["settings"]
    for each in (ServerConfig, CoreConfig):
        assert {field.name for field in dataclasses.fields(each)} <= settings.keys()
    assert settings["super_digests"] == MASKED
    texts: list[str | None] = []
    answers: list[HttpResponse] = []
    for word in FOUR_LETTER_WORDS:
        world.admin.answer_word(word, bytes(8), texts.append)
    for command in COMMANDS:
        request = HttpRequest(command.methods[0], f"/commands/{command.names[0]}", {}, {}, b"")
        world.admin._http.answer(request, answers.append)
    world.disk.run_pending()
    assert (len(texts), len(answers)) == (len(FOUR_LETTER_WORDS), len(COMMANDS))
    texts += [response.body.decode() for response in answers]
    assert not [text for text in texts if text is None or canary in text]
    assert canary not in repr(world.config)
    await world.with_disk(world.node.stop)


async def open_session(
    world: World, timeout_ms: int = 10_000
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.node.port)
    writer.write(connect_request(timeout_ms=timeout_ms))
    await world.with_disk(lambda: reader.readexactly(4 + 37))
    return reader, writer


async def test_a_silent_session_expires_while_others_are_heard_all_the_time(world: World) -> None:
    """Who is heard when the timer fires must not put it off."""
    silent, silent_writer = await open_session(world, timeout_ms=4_000)
    reader, writer = await open_session(world)
    exists = 3
    for second in range(20):
        world.clock.advance(1_000)
        writer.write(request(second, exists, ustring("/") + b"\0"))
        assert len(await reader.readexactly(4 + 16 + 68)) == 88
        world.node._fire()
        world.disk.run_pending()
    assert len(world.node._engine.core.state.sessions) == 1
    async with asyncio.timeout(20):
        assert await silent.read() == b""
    for each in (writer, silent_writer):
        each.close()
        await each.wait_closed()


async def test_a_read_is_answered_although_the_disk_hangs_in_the_write_behind_it(
    world: World,
) -> None:
    """Replies wait for those of the writes behind them, to leave together, but only a moment."""
    reader, writer = await open_session(world)
    exists, set_root = 3, 5
    world.disk.submit(lambda: None, lambda result, error: None)  # it is at something else
    writer.write(
        request(1, exists, ustring("/") + b"\0")
        + request(2, set_root, ustring("/") + buffer(b"x") + i32(-1))
        + request(3, set_root, ustring("/") + buffer(b"y") + i32(-1))
    )
    async with asyncio.timeout(20):
        first = await reader.readexactly(4 + 16 + 68)
    assert first[4:8] == i32(1)
    assert world.disk.pending, "the writes wait for the disk"
    second = await world.with_disk(lambda: reader.readexactly(4 + 16 + 68))
    assert second[4:8] == i32(2)
    writer.close()
    await writer.wait_closed()
