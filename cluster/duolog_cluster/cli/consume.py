"""`duolog consume TOPIC`: print records, from the beginning, an offset or a time."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import Final

from duolog import Admin, Consumer, ConsumerRecord, TopicPartition
from duolog_protocol.errors import (
    ConfigError,
    OffsetOutOfRangeError,
    UnknownTopicOrPartitionError,
)

from .common import add_bootstrap, parser, run_async

_FORMATS: Final[dict[str, Callable[[ConsumerRecord], bytes]]] = {
    "s": lambda record: record.value or b"",
    "S": lambda record: b"%d" % (-1 if record.value is None else len(record.value)),
    "k": lambda record: record.key or b"",
    "K": lambda record: b"%d" % (-1 if record.key is None else len(record.key)),
    "t": lambda record: record.topic.encode(),
    "p": lambda record: b"%d" % record.partition,
    "o": lambda record: b"%d" % record.offset,
    "T": lambda record: b"%d" % record.timestamp,
    "h": lambda record: b",".join(
        name.encode() + b"=" + (value if value is not None else b"NULL")
        for name, value in record.headers
    ),
    "%": lambda _record: b"%",
}
_ESCAPES: Final = {"n": b"\n", "r": b"\r", "t": b"\t", "0": b"\0", "\\": b"\\"}


def run(words: Sequence[str]) -> int:
    """Print until the end (-e), the count (-c) or Ctrl-C."""
    options = _parser().parse_args(words)
    show = formatter(options.format)
    return run_async(_consume(options, show))


def _parser() -> argparse.ArgumentParser:
    found = parser(
        "consume",
        "Print the records of a topic.\n\n"
        "-f takes kcat's format: %s value, %S its length (-1: null), %k key, %K its length,\n"
        "%t topic, %p partition, %o offset, %T timestamp in ms, %h headers, %% a percent sign;\n"
        r"\n \r \t \0 \\ and \xNN are bytes.",
    )
    found.add_argument("topic", metavar="TOPIC")
    found.add_argument("-p", "--partition", type=int, action="append", help="default: all")
    found.add_argument(
        "-o",
        "--offset",
        default="beginning",
        metavar="WHERE",
        help="beginning (default), end, an offset, -N (the last N of each partition), "
        "or @MS: the first record at or after that time, in ms since 1970",
    )
    found.add_argument("-c", "--count", type=int, help="stop after so many records")
    found.add_argument("-e", "--exit", action="store_true", help="stop at the end")
    found.add_argument("-f", "--format", default=r"%s\n", help=r"default: %%s\n")
    add_bootstrap(found)
    return found


def formatter(text: str) -> Callable[[ConsumerRecord], bytes]:
    """Compile a format string. Raises ConfigError for an unknown % or escape."""
    parts: list[Callable[[ConsumerRecord], bytes]] = []

    def literal(data: bytes) -> None:
        parts.append(lambda _record: data)

    for token in re.findall(r"\\x[0-9a-fA-F]{2}|\\.|%.|[^%\\]+|.", text, re.DOTALL):
        if token.startswith("\\x") and len(token) == 4:
            literal(bytes([int(token[2:], 16)]))
        elif token[0] == "\\":
            if token[1:] not in _ESCAPES:
                raise ConfigError("--format", text, f"has the unknown escape {token!r}")
            literal(_ESCAPES[token[1:]])
        elif token[0] == "%":
            if token[1:] not in _FORMATS:
                raise ConfigError("--format", text, f"has the unknown token {token!r}")
            parts.append(_FORMATS[token[1:]])
        else:
            literal(token.encode())
    return lambda record: b"".join([part(record) for part in parts])


async def _consume(options: argparse.Namespace, show: Callable[[ConsumerRecord], bytes]) -> int:
    servers = options.bootstrap_servers
    async with Admin(bootstrap_servers=servers) as admin:
        (topic,) = await admin.describe_topics([options.topic])  # says at once that there is none
    numbers = [each.partition for each in topic.partitions]
    # Where records are deleted before they were read, go on with the oldest that are left.
    async with Consumer(bootstrap_servers=servers, auto_offset_reset="earliest") as consumer:
        wanted = options.partition or numbers
        missing = [each for each in wanted if each not in numbers]
        if missing:
            raise UnknownTopicOrPartitionError(
                f"topic {options.topic!r} has no partition {missing[0]}"
            )
        partitions = [TopicPartition(options.topic, each) for each in wanted]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions) if options.exit else {}
        await _seek(consumer, partitions, options.offset)
        await _print(consumer, partitions, ends, options, show)
    return 0


async def _seek(consumer: Consumer, partitions: list[TopicPartition], where: str) -> None:
    if where == "beginning":
        await consumer.seek_to_beginning(*partitions)
    elif where == "end":
        await consumer.seek_to_end(*partitions)
    elif re.fullmatch(r"@\d+", where):
        found = await consumer.offsets_for_times(
            {partition: int(where[1:]) for partition in partitions}
        )
        ends = await consumer.end_offsets(partitions)
        for partition in partitions:
            at = found[partition]
            consumer.seek(partition, ends[partition] if at is None else at.offset)
    elif re.fullmatch(r"-\d+", where):
        starts = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
        for partition in partitions:
            consumer.seek(partition, max(starts[partition], ends[partition] + int(where)))
    elif where.isdecimal():
        starts = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
        for partition in partitions:
            start, end = starts[partition], ends[partition]
            if not start <= int(where) <= end:
                raise OffsetOutOfRangeError(
                    f"partition {partition.partition} of topic {partition.topic!r} has the "
                    f"offsets from {start} to {end}, not {where}; -p picks partitions"
                )
            consumer.seek(partition, int(where))
    else:
        raise ConfigError("--offset", where, "must be beginning, end, N, -N or @MS")


async def _print(
    consumer: Consumer,
    partitions: list[TopicPartition],
    ends: dict[TopicPartition, int],
    options: argparse.Namespace,
    show: Callable[[ConsumerRecord], bytes],
) -> None:
    left = options.count
    out = sys.stdout.buffer
    while left is None or left > 0:
        if ends and all([await consumer.position(each) >= ends[each] for each in partitions]):
            return
        batches = await consumer.getmany(timeout_ms=500, max_records=left)
        for partition, records in batches.items():
            for record in records:
                if ends and record.offset >= ends[partition]:
                    break
                out.write(show(record))
                if left is not None:
                    left -= 1
        if batches:
            out.flush()
