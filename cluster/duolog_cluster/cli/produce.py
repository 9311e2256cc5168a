"""`duolog produce TOPIC`: lines of stdin or of files, each a record."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, Final

from duolog import Producer
from duolog_protocol.errors import Error

from .common import add_bootstrap, parser, run_async

_LINES_A_STEP: Final = 1000
_TOPIC_SECONDS: Final = 3.0
"""How long to wait for a topic that is not there and may just be made."""


def run(words: Sequence[str]) -> int:
    """Send every line; fail if one of them was not acknowledged."""
    options = _parser().parse_args(words)
    return run_async(_produce(options))


def _parser() -> argparse.ArgumentParser:
    found = parser(
        "produce",
        "Send lines to a topic, each as one record, without its end of line.\n"
        "An empty line is a record with an empty value.",
    )
    found.add_argument("topic", metavar="TOPIC")
    found.add_argument("files", nargs="*", metavar="FILE", help="default: stdin")
    found.add_argument("-K", "--key-separator", metavar="SEP", help="text between key and value")
    found.add_argument("-p", "--partition", type=int, help="default: by key, else spread")
    found.add_argument("-a", "--acks", default="all", choices=["0", "1", "all"])
    found.add_argument(
        "-C", "--compression", choices=["gzip", "snappy", "lz4", "zstd"], help="default: none"
    )
    found.add_argument("--linger-ms", type=int, default=20)
    found.add_argument("-q", "--quiet", action="store_true", help="no progress bar, no summary")
    add_bootstrap(found)
    return found


async def _produce(options: argparse.Namespace) -> int:
    separator = None if options.key_separator is None else options.key_separator.encode()
    sent = failed = 0
    first_error: list[BaseException] = []
    async with Producer(
        bootstrap_servers=options.bootstrap_servers,
        acks=options.acks if options.acks == "all" else int(options.acks),
        compression_type=options.compression,
        linger_ms=options.linger_ms,
        batch_size=64 * 1024,
    ) as producer:
        await producer.partitions_for(options.topic, timeout=_TOPIC_SECONDS)
        with _progress(options) as advance:
            async for line in _lines(options.files, advance):
                key, value = _split(line, separator)
                future = await producer.send(
                    options.topic, value, key=key, partition=options.partition
                )
                future.add_done_callback(lambda done: _note(done.exception(), first_error))
                sent += 1
            await producer.flush()
    failed = len(first_error)
    if failed:
        raise Error(f"{failed} of {sent} records were not acknowledged: {first_error[0]}")
    if not options.quiet:
        print(f"{sent} records acknowledged", file=sys.stderr)
    return 0


def _note(error: BaseException | None, errors: list[BaseException]) -> None:
    if error is not None:
        errors.append(error)


def _split(line: bytes, separator: bytes | None) -> tuple[bytes | None, bytes]:
    if separator is None:
        return None, line
    key, found, value = line.partition(separator)
    return (key, value) if found else (None, line)


async def _lines(files: Sequence[str], advance: Callable[[int], None]) -> AsyncIterator[bytes]:
    """The lines of all files, in order. Pipes are read in a thread, so that acks are not late."""
    import asyncio

    loop = asyncio.get_running_loop()
    for stream in _streams(files):
        waits = not _is_plain_file(stream)
        while True:
            lines = (
                await loop.run_in_executor(None, _some_lines, stream, 1)
                if waits
                else _some_lines(stream, _LINES_A_STEP)
            )
            if not lines:
                break
            for line in lines:
                advance(len(line))
                yield line.rstrip(b"\r\n")


def _some_lines(stream: BinaryIO, count: int) -> list[bytes]:
    lines: list[bytes] = []
    while len(lines) < count and (line := stream.readline()):
        lines.append(line)
    return lines


def _is_plain_file(stream: BinaryIO) -> bool:
    import stat

    return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)


def _streams(files: Sequence[str]) -> Iterator[BinaryIO]:
    if not files:
        yield sys.stdin.buffer
    for name in files:
        with open(name, "rb") as stream:
            yield stream


@contextmanager
def _progress(options: argparse.Namespace) -> Iterator[Callable[[int], None]]:
    """A bar by bytes when a person watches, who does not type the records."""
    typed = not options.files and sys.stdin.isatty()
    if options.quiet or typed or not sys.stderr.isatty():
        yield lambda _size: None
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    # Of a pipe nobody knows the end: the bar then only shows that it moves.
    total = sum(os.path.getsize(name) for name in options.files) if options.files else None
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(options.topic, total=total)
        waiting = 0

        def advance(size: int) -> None:
            nonlocal waiting
            waiting += size
            if waiting > 64 * 1024:
                bar.advance(task, waiting)
                waiting = 0

        yield advance
        bar.advance(task, waiting)
