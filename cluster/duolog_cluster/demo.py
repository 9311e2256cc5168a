"""`make run`: a real pair, real text through it, a broker killed on the way, and the proof.

Every line of the Python files of the interpreter's own standard library becomes a record, keyed
by its file. The first pass checks that all of it comes back: count, order per key, checksum. In
the middle of the second the broker's process is killed (SIGKILL) and started again; nothing that
was acknowledged may be missing, doubled or out of order. Then the pair goes on serving.

Exit status: 0, or 1 if a single record was lost, doubled or reordered.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import sysconfig
import tempfile
import time
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from duolog import Admin, Consumer, NewTopic, Producer, TopicPartition, ZkClient
from duolog_protocol.errors import Error
from duolog_runtime.tasks import loop_factory

from .processes import Pair

PARTITIONS: Final = 4
Sequences = dict[bytes, "array[int]"]
"""Key -> checksums of its lines, in order."""


def main() -> int:
    """Run the demo; see the module."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="duolog-run-") as scratch:
        data = options.data or scratch
        with asyncio.Runner(loop_factory=loop_factory("auto")) as runner:
            try:
                return runner.run(_run(options, data))
            except Error as error:
                print(f"failed: {error}", file=sys.stderr)
                return 1


def _options() -> argparse.Namespace:
    found = argparse.ArgumentParser(prog="make run ARGS=...", description=__doc__)
    found.add_argument("--exit", action="store_true", help="end after the proof")
    found.add_argument("--limit", type=int, help="use only so many lines")
    found.add_argument("--data", metavar="DIR", help="keep the data here")
    found.add_argument("--port", type=int, default=0 if "--exit" in sys.argv else 9092)
    found.add_argument("--zk-port", type=int, default=0 if "--exit" in sys.argv else 2181)
    found.add_argument("--durability", choices=["fsync", "replicated"], default="fsync")
    return found.parse_args()


async def _run(options: argparse.Namespace, data: str) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    started = time.perf_counter()
    pair = Pair(data, port=options.port, zk_port=options.zk_port)
    async with pair:
        seconds = time.perf_counter() - started
        print(f"zkserver  {pair.zookeeper}   (process {pair.zkserver.pid})")
        print(f"kbroker   {pair.bootstrap_servers}   (process {pair.kbroker.pid})")
        print(f"both serve after {seconds:.2f} s; data in {data}", flush=True)
        proof = asyncio.create_task(_proof(options, pair), name="proof")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({proof, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not proof.done():
            proof.cancel()
            await asyncio.wait({proof})
            return 130
        code = proof.result()
        if code == 0 and not options.exit:
            print(f"\nServing on {pair.bootstrap_servers} and {pair.zookeeper}; Ctrl-C ends.")
            print("Try: .venv/bin/duolog consume stdlib-1 -c 5", flush=True)
            await stopping
        stopping.cancel()
    return code


async def _show_registration(pair: Pair) -> None:
    async with ZkClient(pair.zookeeper) as zk:
        brokers = await zk.get_children("/brokers/ids")
        data, _ = await zk.get("/controller")
    print(f"  znodes    /brokers/ids {brokers}, /controller {(data or b'').decode()}", flush=True)


async def _proof(options: argparse.Namespace, pair: Pair) -> int:
    lines = list(_lines(options.limit))
    size = sum(len(value) for _, value in lines)
    files = len({key for key, _ in lines})
    print(f"{len(lines):,} lines of {files:,} files, {size / 1e6:.1f} MB", flush=True)
    faults = 0
    for topic, kill in (("stdlib-1", False), ("stdlib-2", True)):
        async with Admin(bootstrap_servers=pair.bootstrap_servers) as admin:
            configs = {"durability": options.durability}
            await admin.create_topics(
                [NewTopic(topic, num_partitions=PARTITIONS, topic_configs=configs)]
            )
        print(f"\n{topic}: {PARTITIONS} partitions, durability={options.durability}, acks=all")
        if not kill:
            await _show_registration(pair)
        sent = await _produce(pair, topic, lines, kill=kill)
        received = await _consume(pair, topic, len(lines))
        faults += _compare(sent, received)
    return 1 if faults else 0


def _lines(limit: int | None) -> Iterator[tuple[bytes, bytes]]:
    """(file, line) of the standard library, in order."""
    root = sysconfig.get_path("stdlib")
    count = 0
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - {"site-packages", "dist-packages", "__pycache__"})
        for name in sorted(names):
            if not name.endswith(".py"):
                continue
            path = os.path.join(folder, name)
            key = os.path.relpath(path, root).encode()
            with open(path, "rb") as file:
                for line in file:
                    yield key, line
                    count += 1
                    if count == limit:
                        return


async def _produce(
    pair: Pair, topic: str, lines: list[tuple[bytes, bytes]], *, kill: bool
) -> Sequences:
    """Send all lines; returns those that were acknowledged, by key."""
    killing: asyncio.Task[None] | None = None
    failed: list[BaseException] = []
    acknowledged = 0
    half = len(lines) // 2

    def on_done(future: asyncio.Future[Any]) -> None:
        nonlocal acknowledged, killing
        error = future.exception()
        if error is not None:
            failed.append(error)
            return
        acknowledged += 1
        if kill and killing is None and acknowledged >= half:
            killing = asyncio.ensure_future(_kill_and_restart(pair, acknowledged))

    started = time.perf_counter()
    sent: Sequences = {}
    async with Producer(
        bootstrap_servers=pair.bootstrap_servers, acks="all", linger_ms=5, batch_size=64 * 1024
    ) as producer:
        for key, value in lines:
            future = await producer.send(topic, value, key=key)
            future.add_done_callback(on_done)
            sent.setdefault(key, array("I")).append(zlib.crc32(value))
        await producer.flush()
    seconds = time.perf_counter() - started
    if killing is not None:
        await killing
    print(
        f"  sent      {acknowledged:,} acknowledged in {seconds:.2f} s: "
        f"{acknowledged / seconds:,.0f} records/s",
        flush=True,
    )
    if failed:
        raise Error(f"{len(failed)} records were not acknowledged: {failed[0]!r}")
    return sent


async def _kill_and_restart(pair: Pair, acknowledged: int) -> None:
    await pair.kbroker.kill()
    killed = time.perf_counter()
    await pair.kbroker.start()
    print(
        f"  kill -9   the broker after {acknowledged:,} acknowledgements; its port was open again "
        f"{time.perf_counter() - killed:.2f} s later (process {pair.kbroker.pid})",
        flush=True,
    )


async def _consume(pair: Pair, topic: str, expected: int) -> Sequences:
    """Read from the beginning until the end, at least `expected` records where they exist."""
    received: Sequences = {}
    count = 0
    started = time.perf_counter()
    async with Consumer(bootstrap_servers=pair.bootstrap_servers) as consumer:
        partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        while sum([await consumer.position(each) for each in partitions]) < sum(ends.values()):
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                count += len(records)
                for record in records:
                    assert record.key is not None and record.value is not None, record
                    received.setdefault(record.key, array("I")).append(zlib.crc32(record.value))
    seconds = time.perf_counter() - started
    print(
        f"  received  {count:,} of {expected:,} in {seconds:.2f} s: "
        f"{count / seconds:,.0f} records/s",
        flush=True,
    )
    return received


def _compare(sent: Sequences, received: Sequences) -> int:
    """Print and return the number of lost, doubled and reordered records."""
    lost = doubled = reordered = 0
    for key in sent.keys() | received.keys():
        expected, found = sent.get(key, array("I")), received.get(key, array("I"))
        if expected == found:
            continue
        missing = Counter(expected) - Counter(found)
        surplus = Counter(found) - Counter(expected)
        lost += missing.total()
        doubled += surplus.total()
        if not missing and not surplus:
            reordered += sum(a != b for a, b in zip(expected, found, strict=True))
    checksum = 0
    for key in sorted(received):
        checksum = zlib.crc32(received[key].tobytes(), zlib.crc32(key, checksum))
    print(
        f"  checked   {lost} lost, {reordered} reordered, {doubled} duplicated; "
        f"checksum {checksum:08x}",
        flush=True,
    )
    return lost + doubled + reordered


if __name__ == "__main__":
    sys.exit(main())
