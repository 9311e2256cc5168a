"""Claim: pre-built batches go in at ≥ 0.8 × and out at ≥ 0.5 × librdkafka's rates on Apache Kafka.

    python -m bench.batches --kafka-libs DIR --rdkafka-performance PATH

Records of 1 KB, one partition, acks=all. Ours: batches of 1,000 records built once, sent and read
by a blocking client (`native.py`) with 5 requests in flight, `durability=replicated` as Kafka's own
acknowledgement; `fsync` and small batches stand beside it. Theirs: rdkafka_performance, in C, which
batches up to 1 MB and 10,000 records itself. Both fetch 1 MiB at a time.
"""

from __future__ import annotations

import argparse
import re
import sys
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from .native import Batch, BatchClient, WrongReplyError
from .originals import ApacheKafka
from .processes import kbroker, lines_of, zkserver
from .session import Figures, Session, Wanted, claim, parser

NAMES: Final = ["kafka_libs", "rdkafka_performance"]
TOOL_S: Final = 300
LARGE: Final = 1000
SMALL: Final = 16
"""Records in a batch of 16 KB, the default of Kafka's Java producer."""
DELIVERED: Final = re.compile(r"(\d+) delivered .*?(\d+) failed\) in \d+ms: (\d+) msgs/s")
CONSUMED: Final = re.compile(r"(\d+) messages \((\d+) bytes\) consumed in \d+ms: (\d+) msgs/s")


def ours_once(
    port: int, arguments: argparse.Namespace, records_count: int, durability: str
) -> tuple[float, float]:
    """Records a second in and out, on a fresh topic."""
    batch = Batch(records_count, arguments.size)
    times = arguments.count // records_count
    topic = f"bench-{uuid.uuid4().hex[:12]}"
    with BatchClient(port) as client:
        before = client.create_topic(topic, batch, durability)
        in_s = client.push(topic, batch, times, before)
        end_offset = before + times * records_count
        out_s = client.pull(topic, batch, end_offset, arguments.fetch_bytes)
    return times * records_count / in_s, end_offset / out_s


def theirs_once(tool: str, port: int, arguments: argparse.Namespace) -> Figures:
    """The same with rdkafka_performance, on a topic that exists already."""
    topic = f"bench-{uuid.uuid4().hex[:12]}"
    base = [tool, "-b", f"127.0.0.1:{port}", "-p", "0", "-q", "-t", topic]
    put = [*base, "-P", "-s", str(arguments.size), "-a", "-1", "-X", "linger.ms=5"]
    put += ["-X", "queue.buffering.max.messages=1000000"]
    put += ["-X", "queue.buffering.max.kbytes=1048576"]
    count = str(arguments.count)
    # The first records make the topic, which takes its time and is not measured.
    lines_of([*put, "-c", "100"], timeout_s=TOOL_S, what="rdkafka_performance")
    said = lines_of([*put, "-c", count], timeout_s=TOOL_S, what="rdkafka_performance -P")
    delivered = DELIVERED.findall(said)
    if not delivered or delivered[-1][:2] != (count, "0"):
        raise WrongReplyError(f"not everything was delivered: {said[-300:]}")
    get = [*base, "-C", "-o", "beginning", "-c", count]
    get += ["-X", f"fetch.message.max.bytes={arguments.fetch_bytes}"]
    said = lines_of(get, timeout_s=TOOL_S, what="rdkafka_performance -C")
    consumed = CONSUMED.findall(said)
    if not consumed or int(consumed[-1][0]) < arguments.count:
        raise WrongReplyError(f"not everything was consumed: {said[-300:]}")
    return {"in": float(delivered[-1][2]), "out": float(consumed[-1][2])}


def run(session: Session, arguments: argparse.Namespace) -> None:
    """Measure and fill the table."""
    with ExitStack() as stack:
        coordinator = stack.enter_context(zkserver(session.directory / "zkserver"))
        broker = stack.enter_context(kbroker(session.directory / "kbroker", coordinator.port))

        def ours() -> Figures:
            found: Figures = {}
            found["in"], found["out"] = ours_once(broker.port, arguments, LARGE, "replicated")
            found["fsync_in"], _ = ours_once(broker.port, arguments, LARGE, "fsync")
            found["small_in"], found["small_out"] = ours_once(
                broker.port, arguments, SMALL, "replicated"
            )
            return found

        theirs: Callable[[], Figures] | None = None
        if not session.missing:
            kafka = stack.enter_context(
                ApacheKafka(arguments.java, arguments.kafka_libs, session.directory / "kafka")
            )
            kafka.wait_until_open()

            def theirs() -> Figures:
                return theirs_once(arguments.rdkafka_performance, kafka.port, arguments)

        session.alternate("warm-up", ours, theirs, 1)
        pairs = session.alternate("1 KB batches", ours, theirs)
        session.add(
            pairs.row("in, replicated, 1 MB batches", "/s", "in", Wanted(0.8)),
            pairs.row("out, 1 MB batches", "/s", "out", Wanted(0.5)),
            pairs.row("in, fsync, 1 MB batches", "/s", "fsync_in", theirs_name="in"),
            pairs.row("in, replicated, 16 KB batches", "/s", "small_in", theirs_name="in"),
            pairs.row("out, 16 KB batches", "/s", "small_out", theirs_name="out"),
        )
        session.notes.append(
            f"{arguments.count:,} records of {arguments.size} bytes a run; rdkafka_performance "
            "makes its batches itself, in every row; one warm-up pair is not counted"
        )


def main(arguments_given: list[str] | None = None) -> int:
    """Run the benchmark; the exit status."""
    options = parser(__doc__)
    options.add_argument("--count", type=int, default=200_000, help="records (%(default)s)")
    options.add_argument("--size", type=int, default=1000, help="bytes of a record (%(default)s)")
    options.add_argument("--fetch-bytes", type=int, default=1 << 20, help="(%(default)s)")
    arguments = options.parse_args(arguments_given)
    return claim("Batches of 1 KB records: duolog and librdkafka", arguments, NAMES, run)


if __name__ == "__main__":
    sys.exit(main())
