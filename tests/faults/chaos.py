"""`make chaos`: real daemons under load, killed with SIGKILL at random moments, nothing lost.

Three stories with `--kills` rounds (the last with a quarter of them). In a round the load runs, the
daemon is killed after a random time, started again on the same directory, and everything that was
ever acknowledged must be there. Every stream of work must have got something done in every round,
and no error but the loss of a connection is forgiven:

    zkserver  every znode holds a value that is at least the last acknowledged one and at most the
              last one sent; every acknowledged creation exists; versions count the changes;
              ephemerals live as long as their sessions, closed or expired; a watch fires once
    kbroker   every acknowledged record stands at the offset that the acknowledgement named, for
              acks 1 and all, durability fsync and replicated; with idempotence nothing stands
              there twice or out of order
    pair      zkserver dies under a broker that serves: what it leads goes on being produced and
              read meanwhile, and afterwards it is registered and topics can be made

A failure prints the seed; the moments are drawn from it, the scheduling is the machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from duolog import Admin, Consumer, NewTopic, Producer, TopicPartition, ZkClient
from duolog.zk import WatchedEvent
from duolog_cluster.processes import Daemon, kbroker, zkserver
from duolog_protocol.errors import (
    Error,
    NodeExistsError,
    SessionExpiredError,
    TopicAlreadyExistsError,
    TransportError,
)
from duolog_runtime.tasks import loop_factory
from tests.support import until

SECONDS_BEFORE_A_KILL: Final = (0.01, 0.3)
ROUND_SECONDS: Final = 60.0
KEYS: Final = 12
CREATIONS_PER_ROUND: Final = 30
PAIR_SHARE: Final = 4
"""A round of the pair waits for sessions to come back: it gets this part of the kills."""


class Violation(Exception):
    """A promise was broken."""


def main() -> int:
    """Run the stories; see the module."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=200, help="of each daemon")
    options.add_argument("--seed", type=int, default=None)
    options.add_argument("--only", choices=["zkserver", "kbroker", "pair"])
    found = options.parse_args()
    seed = random.SystemRandom().getrandbits(32) if found.seed is None else found.seed
    print(f"chaos: seed {seed}, {found.kills} kills of each daemon", flush=True)
    stories: dict[str, Callable[[str, int, random.Random], Awaitable[str]]] = {
        "zkserver": zkserver_story,
        "kbroker": kbroker_story,
        "pair": pair_story,
    }
    for name, story in stories.items():
        if found.only in {None, name}:
            started = time.perf_counter()
            rng = random.Random(f"{seed} {name}")
            with (
                tempfile.TemporaryDirectory(prefix="duolog-chaos-") as data,
                asyncio.Runner(loop_factory=loop_factory("auto")) as runner,
            ):
                try:
                    summary = runner.run(story(data, found.kills, rng))  # type: ignore[arg-type]
                except Violation as violation:
                    print(f"{name}: VIOLATION {violation}\nreplay with --seed {seed}")
                    return 1
            print(f"{name}: {summary} in {time.perf_counter() - started:.1f} s", flush=True)
    return 0


async def _pause(rng: random.Random) -> None:
    """The machine decides where in the daemon's work the moment falls."""
    await _pass(rng.uniform(*SECONDS_BEFORE_A_KILL))


async def _pass(seconds: float) -> None:
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, passed.set)
    await passed.wait()


async def _kill_soon_and_restart(daemon: Daemon, rng: random.Random) -> None:
    await _pause(rng)
    await daemon.kill()
    await daemon.start()


# ---- zkserver ----------------------------------------------------------------------------------


@dataclass
class Key:
    """One znode and what its only writer knows of it."""

    path: str
    sent: int = 0
    acknowledged: int = 0
    changes: int = 0
    """Acknowledged changes: a lower bound of the znode's version."""


@dataclass
class Sequentials:
    """Sequential znodes whose creation was acknowledged."""

    paths: list[str] = field(default_factory=list)


async def zkserver_story(data: str, kills: int, rng: random.Random) -> str:
    """Writers, a creator and an ephemeral owner; the server dies under them again and again."""
    daemon = zkserver(f"{data}/zk", 0, ["--snap-count", "3000", "--tick-ms", "100"])
    await daemon.start()
    keys = [Key(f"/chaos/key-{number}") for number in range(KEYS)]
    made = Sequentials()
    try:
        async with ZkClient(daemon.address, session_timeout=30) as zk:
            await zk.ensure_path("/chaos/made")
            for key in keys:
                await zk.create(key.path, b"0")
            await zk.create("/chaos/owner", b"", ephemeral=True)
            session_id = zk.client_id[0] if zk.client_id else 0
            for round_ in range(kills):
                async with asyncio.timeout(ROUND_SECONDS):
                    stop = asyncio.Event()
                    before = [key.changes for key in keys], len(made.paths)
                    watched = await _watch(zk, keys[0])
                    await _leave_an_expired_session(daemon)
                    async with asyncio.TaskGroup() as group:
                        for key in keys:
                            group.create_task(_write_key(zk, key, stop), name=key.path)
                        group.create_task(_create_sequentials(zk, made, stop), name="creator")
                        group.create_task(_come_and_go(daemon, stop), name="visitor")
                        await _kill_soon_and_restart(daemon, rng)
                        stop.set()
                    await _check_zk(zk, keys, made, session_id, round_)
                    _check_progress(round_, keys, made, *before)
                    if len(watched) != 1:
                        raise Violation(f"round {round_}: a watch fired {len(watched)} times")
                    await _until_gone(zk, "/chaos/expired", round_)
                    await _until_gone(zk, "/chaos/visitor", round_)
        writes = sum(key.changes for key in keys)
        return f"{kills} kills, {writes} sets and {len(made.paths)} creations, none lost"
    finally:
        await daemon.stop()


async def _watch(zk: ZkClient, key: Key) -> list[WatchedEvent]:
    """A one-shot watch that the changes of the round must fire, across the kill or before it."""
    fired: list[WatchedEvent] = []
    await zk.exists(key.path, watch=fired.append)
    return fired


async def _leave_an_expired_session(daemon: Daemon) -> None:
    """A client that dies without a word: its ephemeral goes when its session has expired."""
    lost = ZkClient(daemon.address, session_timeout=0.5)
    await lost.start(timeout=20)
    try:
        await lost.create("/chaos/expired", b"", ephemeral=True)
    finally:
        assert lost._keeper._task is not None and lost._keeper._link is not None
        lost._keeper._task.cancel()
        lost._keeper._link.abort()


async def _come_and_go(daemon: Daemon, stop: asyncio.Event) -> None:
    """Clients that close their sessions: their ephemerals go with them."""
    while not stop.is_set():
        try:
            async with ZkClient(daemon.address, session_timeout=2) as visitor:
                await visitor.create("/chaos/visitor", b"", ephemeral=True)
        except (TransportError, SessionExpiredError, NodeExistsError):
            continue  # the last one's session was not closed: it must expire first


async def _until_gone(zk: ZkClient, path: str, round_: int) -> None:
    try:
        async with asyncio.timeout(20):
            gone = asyncio.Event()
            while await zk.exists(path, watch=lambda _event: gone.set()) is not None:
                await gone.wait()
                gone.clear()
    except TimeoutError:
        raise Violation(f"round {round_}: {path} outlives its session") from None


def _check_progress(
    round_: int, keys: list[Key], made: Sequentials, changes: list[int], made_count: int
) -> None:
    idle = [key.path for key, before in zip(keys, changes, strict=True) if key.changes == before]
    if idle:
        raise Violation(f"round {round_}: no change of {idle[0]} was acknowledged")
    if len(made.paths) == made_count:
        raise Violation(f"round {round_}: no creation was acknowledged")


async def _write_key(zk: ZkClient, key: Key, stop: asyncio.Event) -> None:
    before = key.changes
    while not stop.is_set() or key.changes == before:
        value = key.sent + 1
        key.sent = value
        try:
            await zk.set(key.path, b"%d" % value)
        except TransportError:
            continue  # it may have happened: `sent` says so
        key.acknowledged = value
        key.changes += 1


async def _create_sequentials(zk: ZkClient, made: Sequentials, stop: asyncio.Event) -> None:
    before = len(made.paths)
    for _ in range(CREATIONS_PER_ROUND):
        if stop.is_set() and len(made.paths) > before:
            return
        try:
            made.paths.append(await zk.create("/chaos/made/n-", b"x", sequence=True))
        except TransportError:
            continue


async def _check_zk(
    zk: ZkClient, keys: list[Key], made: Sequentials, session_id: int, round_: int
) -> None:
    for key in keys:
        data, stat = await zk.get(key.path)
        stored = int(data or b"-1")
        if not key.acknowledged <= stored <= key.sent:
            raise Violation(
                f"round {round_}: {key.path} holds {stored}, acknowledged {key.acknowledged}, "
                f"sent {key.sent}"
            )
        if not key.changes <= stat.version <= key.sent:
            raise Violation(
                f"round {round_}: {key.path} has version {stat.version} after {key.changes} "
                f"acknowledged changes of {key.sent}"
            )
    children = {f"/chaos/made/{name}" for name in await zk.get_children("/chaos/made")}
    missing = [path for path in made.paths if path not in children]
    if missing:
        raise Violation(f"round {round_}: {len(missing)} created znodes are gone: {missing[0]}")
    if len(set(made.paths)) != len(made.paths):
        raise Violation(f"round {round_}: a sequence number was given twice")
    owner = await zk.exists("/chaos/owner")
    if owner is None or owner.ephemeral_owner != session_id:
        raise Violation(f"round {round_}: the ephemeral of a living session is gone")


# ---- kbroker -----------------------------------------------------------------------------------


@dataclass
class Stream:
    """One topic, its producer and what was acknowledged."""

    topic: str
    durability: str
    acks: Any
    idempotent: bool
    sent: int = 0
    acknowledged: dict[int, int] = field(default_factory=dict)
    """Value -> offset, of what has not been checked yet."""
    acknowledged_count: int = 0
    failed: list[BaseException] = field(default_factory=list)
    next_offset: int = 0
    """Everything below was read and checked."""
    last_value: int = -1


STREAMS: Final = (
    ("fsync-all", "fsync", "all", True),
    ("fsync-one", "fsync", 1, False),
    ("replicated-all", "replicated", "all", True),
    ("replicated-one", "replicated", 1, False),
)


async def kbroker_story(data: str, kills: int, rng: random.Random) -> str:
    """Four producers, one for each promise; the broker dies under them again and again."""
    zk = zkserver(f"{data}/zk", 0)
    await zk.start()
    broker = kbroker(f"{data}/broker", 0, zk.address, ["--log-segment-bytes", "262144"])
    streams = [Stream(*each) for each in STREAMS]
    try:
        await broker.start()
        await _create_topics(broker, streams)
        producers = [await _producer(broker, stream) for stream in streams]
        try:
            for round_ in range(kills):
                async with asyncio.timeout(ROUND_SECONDS):
                    stop = asyncio.Event()
                    async with asyncio.TaskGroup() as group:
                        for stream, producer in zip(streams, producers, strict=True):
                            group.create_task(_produce(producer, stream, stop), name=stream.topic)
                        await _kill_soon_and_restart(broker, rng)
                        stop.set()
                    await _check_streams(broker, streams, round_)
        finally:
            for producer in producers:
                await producer.stop()
        counts = ", ".join(f"{stream.topic} {stream.acknowledged_count}" for stream in streams)
        return f"{kills} kills, acknowledged and found: {counts}"
    finally:
        await broker.stop()
        await zk.stop()


async def pair_story(data: str, kills: int, rng: random.Random) -> str:
    """Producers on a broker whose zkserver dies under it again and again."""
    kills = max(kills // PAIR_SHARE, 3)
    quick = ["--tick-ms", "100"]
    zk = zkserver(f"{data}/zk", 0, quick)
    await zk.start()
    timeout = ["--zookeeper-session-timeout-ms", "1000"]
    broker = kbroker(f"{data}/broker", 0, zk.address, timeout)
    streams = [Stream(*each) for each in STREAMS[:1]]
    try:
        await broker.start()
        await _create_topics(broker, streams)
        producers = [await _producer(broker, stream) for stream in streams]
        try:
            for round_ in range(kills):
                async with asyncio.timeout(ROUND_SECONDS):
                    stop = asyncio.Event()
                    async with asyncio.TaskGroup() as group:
                        for stream, producer in zip(streams, producers, strict=True):
                            group.create_task(_produce(producer, stream, stop), name=stream.topic)
                        await _pause(rng)
                        await zk.kill()
                        counts = [stream.acknowledged_count for stream in streams]
                        await _until_more(streams, counts)
                        await _check_reading(broker, streams)
                        await zk.start()
                        stop.set()
                    await _check_streams(broker, streams, round_)
                    await _make_a_topic(broker, f"after-{round_}")
        finally:
            for producer in producers:
                await producer.stop()
        count = sum(stream.acknowledged_count for stream in streams)
        return f"{kills} kills of zkserver, {count} records acknowledged and found"
    finally:
        await broker.stop()
        await zk.stop()


async def _until_more(streams: list[Stream], counts: list[int]) -> None:
    """Until each stream got further than it was: the broker serves without zkserver."""
    counted = list(zip(streams, counts, strict=True))
    await until(lambda: all(stream.acknowledged_count > count for stream, count in counted))


async def _check_reading(broker: Daemon, streams: list[Stream]) -> None:
    async with Consumer(bootstrap_servers=broker.address) as consumer:
        for stream in streams:
            consumer.assign([TopicPartition(stream.topic, 0)])
            consumer.seek(TopicPartition(stream.topic, 0), stream.next_offset)
            await consumer.getone(timeout=20)


async def _make_a_topic(broker: Daemon, name: str) -> None:
    """Admin works again as soon as the broker has found zkserver."""
    async with Admin(bootstrap_servers=broker.address) as admin:
        while True:
            try:
                await admin.create_topics([NewTopic(name)])
            except TopicAlreadyExistsError:
                break  # it was made by an attempt whose answer was indefinite
            except Error as error:
                if not error.retriable:
                    raise
                await _pass(0.02)
            else:
                break
        await admin.delete_topics([name])


async def _create_topics(broker: Daemon, streams: list[Stream]) -> None:
    async with Admin(bootstrap_servers=broker.address) as admin:
        await admin.create_topics(
            [
                NewTopic(stream.topic, 1, topic_configs={"durability": stream.durability})
                for stream in streams
            ]
        )


async def _producer(broker: Daemon, stream: Stream) -> Producer:
    producer = Producer(
        bootstrap_servers=broker.address,
        acks=stream.acks,
        enable_idempotence=stream.idempotent,
        linger_ms=1,
        retry_backoff_ms=5,
        retry_backoff_max_ms=50,
    )
    await producer.start()
    return producer


async def _produce(producer: Producer, stream: Stream, stop: asyncio.Event) -> None:
    """Send numbered records until told to stop, then wait for all acknowledgements."""

    def on_done(future: asyncio.Future[Any], value: int) -> None:
        error = future.exception()
        if error is not None:
            stream.failed.append(error)
        else:
            stream.acknowledged[value] = future.result().offset
            stream.acknowledged_count += 1

    while not stop.is_set():
        for _ in range(50):
            value = stream.sent
            stream.sent += 1
            future = await producer.send(stream.topic, b"%d" % value, partition=0)
            future.add_done_callback(lambda done, value=value: on_done(done, value))
        await asyncio.wait({future})
    await producer.flush()


async def _check_streams(broker: Daemon, streams: list[Stream], round_: int) -> None:
    async with Consumer(bootstrap_servers=broker.address) as consumer:
        partitions = {TopicPartition(stream.topic, 0): stream for stream in streams}
        consumer.assign(list(partitions))
        ends = await consumer.end_offsets(list(partitions))
        for partition, stream in partitions.items():
            consumer.seek(partition, stream.next_offset)
        found: dict[TopicPartition, dict[int, int]] = {each: {} for each in partitions}
        while any([await consumer.position(each) < ends[each] for each in partitions]):
            for partition, records in (await consumer.getmany(timeout_ms=500)).items():
                for record in records:
                    assert record.value is not None, record
                    found[partition][record.offset] = int(record.value)
    for partition, stream in partitions.items():
        _check_stream(stream, found[partition], ends[partition], round_)


def _check_stream(stream: Stream, found: dict[int, int], end: int, round_: int) -> None:
    where = f"round {round_}: {stream.topic}"
    if not stream.acknowledged:
        raise Violation(f"{where}: nothing was acknowledged")
    unforgiven = [each for each in stream.failed if not isinstance(each, TransportError)]
    if unforgiven:
        raise Violation(f"{where}: {len(unforgiven)} records failed: {unforgiven[0]!r}")
    if sorted(found) != list(range(stream.next_offset, end)):
        raise Violation(f"{where}: offsets {stream.next_offset} to {end} have a hole")
    for value, offset in stream.acknowledged.items():
        if found.get(offset) != value:
            raise Violation(
                f"{where}: record {value} was acknowledged at offset {offset}, "
                f"where {found.get(offset)} stands now (the log ends at {end})"
            )
    if stream.idempotent:
        for offset in range(stream.next_offset, end):
            if found[offset] <= stream.last_value:
                raise Violation(
                    f"{where}: record {found[offset]} at offset {offset} comes after record "
                    f"{stream.last_value}: doubled or out of order"
                )
            stream.last_value = found[offset]
    stream.acknowledged.clear()
    stream.next_offset = end


if __name__ == "__main__":
    sys.exit(main())
