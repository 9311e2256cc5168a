"""One Python client under load: ours or aiokafka, the same program for both.

    python bench/driver.py LIBRARY rates --bootstrap HOST:PORT [--durability fsync|replicated]
    python bench/driver.py LIBRARY first-record

Runs as a file, in whatever interpreter has the library, so it imports nothing of `bench`. Prints
one line of JSON. Every record has a number in its value and is read back and compared.

`first-record` prints `ready`, reads HOST:PORT from stdin, and tells the moment (CLOCK_MONOTONIC,
one clock for all processes) at which the first record was acknowledged.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Final

BATCH_BYTES: Final = 65536
LINGER_MS: Final = 5
SAMPLE: Final = 1000
"""Of so many records one future is kept and looked at."""
UP_S: Final = 60


class Library:
    """The names of one client library; what differs between the two is here and nowhere else."""

    def __init__(self, name: str) -> None:
        library: Any = importlib.import_module(name)
        self.partition = library.TopicPartition
        if name == "aiokafka":
            admin: Any = importlib.import_module("aiokafka.admin")
            self.producer, self.consumer = library.AIOKafkaProducer, library.AIOKafkaConsumer
            self.admin, self.new_topic = admin.AIOKafkaAdminClient, admin.NewTopic
            self.batch = {"max_batch_size": BATCH_BYTES}
            self._stop_admin = "close"
        else:
            self.producer, self.consumer = library.Producer, library.Consumer
            self.admin, self.new_topic = library.Admin, library.NewTopic
            self.batch = {"batch_size": BATCH_BYTES}
            self._stop_admin = "stop"

    async def create_topic(self, bootstrap: str, configs: dict[str, str]) -> str:
        """A new topic with one partition."""
        name = f"bench-{uuid.uuid4().hex[:12]}"
        admin = self.admin(bootstrap_servers=bootstrap)
        await admin.start()
        try:
            new = self.new_topic(name, 1, 1, topic_configs=configs)
            await admin.create_topics([new])
        finally:
            await getattr(admin, self._stop_admin)()
        return name

    @contextlib.asynccontextmanager
    async def reader(self, bootstrap: str, topic: str) -> AsyncIterator[Any]:
        """A consumer of the whole topic."""
        consumer = self.consumer(bootstrap_servers=bootstrap)
        await consumer.start()
        try:
            consumer.assign([self.partition(topic, 0)])
            await consumer.seek_to_beginning()
            yield consumer
        finally:
            await consumer.stop()


def demand(holds: bool, what: str) -> None:
    """A figure from wrong replies is no figure."""
    if not holds:
        raise SystemExit(f"wrong: {what}")


async def produce(library: Library, bootstrap: str, topic: str, values: list[bytes]) -> float:
    """Records a second, from the first send to the last acknowledgement."""
    producer = library.producer(
        bootstrap_servers=bootstrap, acks="all", linger_ms=LINGER_MS, **library.batch
    )
    async with producer:
        await producer.partitions_for(topic)
        send = producer.send
        sampled = []
        start = time.perf_counter()
        for at in range(0, len(values), SAMPLE):
            for value in values[at : at + SAMPLE]:
                future = await send(topic, value, partition=0)
            sampled.append(future)
        await producer.flush()
        took = time.perf_counter() - start
    for number, future in enumerate(sampled):
        due = min((number + 1) * SAMPLE, len(values)) - 1
        found = future.result().offset
        demand(found == due, f"record {due} was acknowledged at offset {found}")
    return len(values) / took


async def poll(library: Library, bootstrap: str, topic: str, values: list[bytes]) -> float:
    """Records a second by batches; each batch's first and last record is compared."""
    async with library.reader(bootstrap, topic) as consumer:
        seen = 0
        start = time.perf_counter()
        while seen < len(values):
            found = await consumer.getmany(timeout_ms=1000)
            demand(bool(found), f"nothing came within a second after record {seen}")
            for records in found.values():
                first, last = records[0], records[-1]
                demand(first.offset == seen, f"offset {first.offset} where {seen} is due")
                seen += len(records)
                demand(last.offset == seen - 1, f"offset {last.offset} ends {seen} records")
                demand(last.value == values[last.offset], f"value of record {last.offset}")
        return seen / (time.perf_counter() - start)


async def iterate(library: Library, bootstrap: str, topic: str, values: list[bytes]) -> float:
    """Records a second one after another; every one is compared."""
    async with library.reader(bootstrap, topic) as consumer:
        seen = 0
        start = time.perf_counter()
        async for record in consumer:
            if record.offset != seen or record.value != values[seen]:
                raise SystemExit(f"wrong: {record} where record {seen} is due")
            seen += 1
            if seen == len(values):
                break
        return seen / (time.perf_counter() - start)


async def one_at_a_time(
    library: Library, bootstrap: str, topic: str, values: list[bytes]
) -> dict[str, float]:
    """Records each acknowledged before the next is sent; the first tenth is warm-up."""
    warmup = len(values) // 10
    took = []
    async with library.producer(bootstrap_servers=bootstrap, acks="all", linger_ms=0) as producer:
        for number, value in enumerate(values):
            start = time.perf_counter()
            stored = await producer.send_and_wait(topic, value, partition=0)
            took.append(time.perf_counter() - start)
            demand(stored.offset == number, f"offset {stored.offset} where {number} is due")
    ordered = sorted(took[warmup:])
    return {
        "single": len(ordered) / sum(ordered),
        "single_p50_ms": ordered[len(ordered) // 2] * 1e3,
        "single_p99_ms": ordered[len(ordered) * 99 // 100] * 1e3,
    }


async def rates(library: Library, options: argparse.Namespace) -> dict[str, float]:
    """All figures, on fresh topics."""
    bootstrap = options.bootstrap
    configs = {"durability": options.durability} if options.durability else {}
    values = [b"%010d" % number + b"x" * (options.size - 10) for number in range(options.count)]
    topic = await library.create_topic(bootstrap, configs)
    found = {
        "produce": await produce(library, bootstrap, topic, values),
        "poll": await poll(library, bootstrap, topic, values),
        "iterate": await iterate(library, bootstrap, topic, values),
    }
    topic = await library.create_topic(bootstrap, configs)
    return found | await one_at_a_time(library, bootstrap, topic, values[: options.singles])


async def first_record(library: Library) -> dict[str, float]:
    """Wait for the address, then for the broker, then for one record's acknowledgement."""
    print("ready", flush=True)
    bootstrap = sys.stdin.readline().strip()
    host, port = bootstrap.rsplit(":", 1)
    deadline = time.monotonic() + UP_S
    topic = None
    while True:
        try:
            socket.create_connection((host, int(port)), 1).close()
            topic = topic or await library.create_topic(bootstrap, {})
            producer = library.producer(
                bootstrap_servers=bootstrap, acks="all", linger_ms=0, retry_backoff_ms=10
            )
            async with producer:
                await producer.send_and_wait(topic, b"first", partition=0)
                return {"acknowledged_at": time.monotonic()}
        except Exception as error:  # whatever a library says while its broker is not up
            if time.monotonic() > deadline:
                raise SystemExit(f"no record within {UP_S} s: {error!r}") from error
        await asyncio.sleep(0.005)


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=["duolog", "aiokafka"])
    parser.add_argument("step", choices=["rates", "first-record"])
    parser.add_argument("--bootstrap")
    parser.add_argument("--durability", choices=["fsync", "replicated"])
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--singles", type=int, default=2000)
    parser.add_argument("--size", type=int, default=100)
    options = parser.parse_args()
    library = Library(options.library)
    factory = None
    if options.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    work = rates(library, options) if options.step == "rates" else first_record(library)
    with asyncio.Runner(loop_factory=factory) as runner:
        print(json.dumps(runner.run(work)), flush=True)


if __name__ == "__main__":
    main()
