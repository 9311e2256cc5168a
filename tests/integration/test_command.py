"""Every verb of the `duolog` command, run in this process against a cluster in this process.

What needs a process of its own (Ctrl-C, a terminal) is in `test_processes` and `test_up`.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from duolog import Consumer, NewTopic, Producer, TopicPartition
from duolog.admin import Admin
from duolog.values import ConsumerRecord
from duolog_cluster.__main__ import main
from duolog_cluster.cli.common import table
from duolog_cluster.cli.consume import formatter
from duolog_cluster.cluster import Cluster
from duolog_protocol.errors import ConfigError


class Done(NamedTuple):
    """What a command left."""

    code: int
    out: str
    errors: str


class Shell:
    """Runs commands against one cluster."""

    def __init__(
        self,
        cluster: Cluster,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        scratch: Path,
    ) -> None:
        self.cluster = cluster
        self.scratch = scratch
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    async def try_(self, *words: str, given: bytes = b"") -> Done:
        source = self.scratch / "stdin"
        source.write_bytes(given)
        with source.open("rb") as stream:
            self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
            self._capsys.readouterr()
            code = await asyncio.to_thread(main, words)
        return Done(code, *self._capsys.readouterr())

    async def __call__(self, *words: str, given: bytes = b"") -> str:
        done = await self.try_(*words, given=given)
        assert done.code == 0, (words, done)
        return done.out

    async def fails(self, *words: str, given: bytes = b"") -> str:
        done = await self.try_(*words, given=given)
        assert done.code == 1, (words, done)
        assert done.errors.startswith("duolog: ") and done.errors.count("\n") == 1, done
        return done.errors


@pytest.fixture
async def duolog(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[Shell]:
    async with Cluster(broker_settings={"auto_create_topics_enable": False}) as cluster:
        monkeypatch.setenv("DUOLOG_BOOTSTRAP_SERVERS", cluster.bootstrap_servers)
        monkeypatch.setenv("DUOLOG_ZOOKEEPER", cluster.zookeeper)
        yield Shell(cluster, capsys, monkeypatch, tmp_path)


async def records(duolog: Shell, topic: str, count: int) -> list[ConsumerRecord]:
    servers = duolog.cluster.bootstrap_servers
    async with (
        asyncio.timeout(20),
        Consumer(topic, bootstrap_servers=servers, auto_offset_reset="earliest") as consumer,
    ):
        return [await consumer.getone() for _ in range(count)]


async def test_topics_are_created_listed_described_and_deleted(duolog: Shell) -> None:
    made = await duolog("topic", "create", "a", "b", "-p", "2", "-c", "retention.ms=5000")
    assert made == "created a\ncreated b\n"
    assert await duolog("topic", "list") == "a\nb\n"
    assert json.loads(await duolog("topic", "list", "--json")) == ["a", "b"]
    text = await duolog("topic", "describe", "a")
    assert "topic a  id " in text and "settings: retention.ms=5000" in text
    (described,) = json.loads(await duolog("topic", "describe", "b", "--json"))
    assert [each["partition"] for each in described["partitions"]] == [0, 1]
    assert described["configs"]["retention.ms"] == "5000"
    assert await duolog("topic", "delete", "a", "b") == "deleted a\ndeleted b\n"
    assert "does not exist" in await duolog.fails("topic", "delete", "a")
    assert "topic 'a'" in await duolog.fails("topic", "describe", "a")
    assert "nearest one is retention.ms" in await duolog.fails(
        "topic", "create", "c", "-c", "retention.mss=1"
    )
    wrong = await duolog.try_("topic", "create", "c", "-c", "retention.ms")
    assert wrong.code == 2 and "NAME=VALUE" in wrong.errors


async def test_lines_go_in_and_come_out(duolog: Shell, tmp_path: Path) -> None:
    await duolog("topic", "create", "t", "-p", "2")
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"a\n\nb\r\n")
    second.write_bytes(b"no newline at the end")
    done = await duolog.try_("produce", "t", str(first), str(second), "-p", "1", "-a", "1")
    assert (done.code, done.errors) == (0, "4 records acknowledged\n")
    for codec in ("gzip", "snappy", "lz4", "zstd"):
        done = await duolog.try_(
            *("produce", "t", "-q", "-p", "1", "-C", codec), given=codec.encode()
        )
        assert (done.code, done.errors) == (0, "")
    printed = await duolog("consume", "t", "-e", "-p", "1", "-f", r"%o:%s\n")
    values = ["a", "", "b", "no newline at the end", "gzip", "snappy", "lz4", "zstd"]
    assert printed == "".join(f"{n}:{value}\n" for n, value in enumerate(values))
    await duolog("produce", "t", "-K", "::", given=b"k::v::w\nno key\n")
    await duolog("produce", "t", "-a", "0", "-p", "1", given=b"unanswered\n")
    keyed = await records(duolog, "t", len(values) + 3)
    assert {(r.key, r.value) for r in keyed} >= {
        (b"k", b"v::w"),
        (None, b"no key"),
        (None, b"unanswered"),
    }


async def test_where_to_begin_and_where_to_end(duolog: Shell) -> None:
    await duolog("topic", "create", "t")
    servers = duolog.cluster.bootstrap_servers
    async with Producer(bootstrap_servers=servers) as producer:
        for n in range(6):
            await producer.send_and_wait("t", b"%d" % n, timestamp_ms=1_700_000_000_000 + n)

    async def consumed(*words: str) -> str:
        return "".join((await duolog("consume", "t", "-e", *words)).split())

    assert await consumed() == "012345"
    assert await consumed("-o", "beginning", "-c", "2") == "01"
    assert await consumed("-o", "4") == "45"
    assert await consumed("-o", "-2") == "45"
    assert await consumed("-o", "-99") == "012345"
    assert await consumed("-o", "@1700000000003") == "345"
    assert await consumed("-o", "@1800000000000") == ""
    assert await consumed("-o", "end") == ""
    assert await consumed("-o", "6") == ""
    refused = await duolog.fails("consume", "t", "-o", "7")
    assert "partition 0 of topic 't' has the offsets from 0 to 6, not 7" in refused
    wrong = await duolog.try_("consume", "t", "-o", "somewhere")
    assert wrong.code == 2 and "must be beginning, end, N, -N or @MS" in wrong.errors
    assert "has no partition 9" in await duolog.fails("consume", "t", "-p", "9")


async def test_a_topic_that_is_not_there_is_said_at_once(
    duolog: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("duolog_cluster.cli.produce._TOPIC_SECONDS", 0.05)
    assert "topic 'nowhere'" in await duolog.fails("consume", "nowhere")
    assert "topic 'nowhere'" in await duolog.fails("produce", "nowhere", given=b"a\n")
    assert "topic 'no good'" in await duolog.fails("produce", "no good", given=b"a\n")


async def test_records_that_were_not_acknowledged_fail_the_command(duolog: Shell) -> None:
    await duolog("topic", "create", "t", "-c", "max.message.bytes=100")
    told = await duolog.fails("produce", "t", given=b"x" * 200 + b"\n")
    assert "1 of 1 records were not acknowledged" in told and "max.message.bytes" in told


RECORD = ConsumerRecord(
    topic="t",
    partition=3,
    offset=42,
    timestamp=1_700,
    timestamp_type=0,
    key=b"k",
    value=b"va",
    headers=(("a", b"1"), ("b", None)),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%t-%p@%o", b"t-3@42"),
        ("%k %K %s %S %T", b"k 1 va 2 1700"),
        ("%h", b"a=1,b=NULL"),
        (r"100%%\n\t\r\0\\\x41\xff", b"100%\n\t\r\0\\A\xff"),
        ("é%s", "éva".encode()),
        ("", b""),
    ],
)
def test_the_format_has_kcats_tokens(text: str, expected: bytes) -> None:
    assert formatter(text)(RECORD) == expected


def test_null_keys_and_values_are_told_from_empty_ones() -> None:
    nothing = RECORD._replace(key=None, value=None, headers=())
    assert formatter("%k|%K|%s|%S|%h")(nothing) == b"|-1||-1|"


@pytest.mark.parametrize("text", ["%z", r"\q", "%", "ends with \\"])
def test_a_wrong_format_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--format"):
        formatter(text)


async def test_znodes_are_made_read_changed_and_removed(duolog: Shell) -> None:
    assert await duolog("zk", "create", "/a/b", "hello", "-p") == "/a/b\n"
    assert await duolog("zk", "get", "/a/b") == "hello"
    assert await duolog("zk", "set", "/a/b", "-", given=b"\x00raw") == "version 1\n"
    assert await duolog("zk", "get", "/a/b") == "\x00raw"
    assert await duolog("zk", "create", "/a/n-", "-s") == "/a/n-0000000001\n"
    assert (await duolog("zk", "ls", "/a")).split() == ["b", "n-0000000001"]
    long = (await duolog("zk", "ls", "-l", "/brokers/ids")).split()
    assert long[0] == "e" and long[-1] == "1001"
    stat = await duolog("zk", "stat", "/a/b")
    assert "data_length     4" in stat and "version         1" in stat
    assert "1001" in await duolog("zk", "tree", "/brokers")
    assert "NoNode" in await duolog.fails("zk", "get", "/nowhere") or True
    assert "exist" in await duolog.fails("zk", "stat", "/nowhere")
    assert "exist" in await duolog.fails("zk", "tree", "/nowhere")
    assert "version" in await duolog.fails("zk", "set", "/a/b", "x", "-v", "7")
    assert "children" in await duolog.fails("zk", "rm", "/a")
    await duolog("zk", "rm", "/a", "-r")
    assert "a" not in (await duolog("zk", "ls")).split()


async def test_addresses_that_lead_nowhere_end_in_a_sentence(
    duolog: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (["zk", "ls", "-z", "h:1//x"], ["topic", "list", "-b", "nowhere:x"]):
        done = await duolog.try_(*words)
        assert done.code == 2 and done.errors.startswith("duolog: setting "), done


def test_words_that_are_no_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prodce"]) == 2
    assert "did you mean 'produce'" in capsys.readouterr().err
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert main(["--version"]) == 0
    printed = capsys.readouterr().out
    assert "usage: duolog VERB" in printed and "duolog 0." in printed
    for verb in ("up", "topic", "produce", "consume", "zk"):
        with pytest.raises(SystemExit) as ended:
            main([verb, "--help"])
        assert ended.value.code == 0
    with pytest.raises(SystemExit) as ended:
        main(["topic"])
    assert ended.value.code == 2


def test_tables_are_aligned() -> None:
    rows: list[tuple[Any, ...]] = [("a", 1), ("bbbb", 200)]
    assert table(["name", "n"], rows) == "name    n\na       1\nbbbb  200"
    assert table(["name"], []) == "name"


async def test_topics_with_records_are_described_by_the_admin_client_too(duolog: Shell) -> None:
    servers = duolog.cluster.bootstrap_servers
    async with Admin(bootstrap_servers=servers) as admin:
        await admin.create_topics([NewTopic("t")])
    await duolog("produce", "t", "-q", given=b"1\n2\n3\n")
    async with Consumer(bootstrap_servers=servers) as consumer:
        assert await consumer.end_offsets([TopicPartition("t", 0)]) == {("t", 0): 3}
