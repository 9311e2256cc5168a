"""What the verbs share: options for addresses, running a coroutine, tables."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Coroutine, Sequence
from typing import Any, Final, TypeVar

T = TypeVar("T")
DEFAULT_BOOTSTRAP: Final = "127.0.0.1:9092"
DEFAULT_ZOOKEEPER: Final = "127.0.0.1:2181"


def parser(verb: str, description: str) -> argparse.ArgumentParser:
    """A parser for one verb."""
    return argparse.ArgumentParser(
        prog=f"duolog {verb}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_bootstrap(to: argparse.ArgumentParser) -> None:
    """The broker's address: --bootstrap-servers, or DUOLOG_BOOTSTRAP_SERVERS."""
    to.add_argument(
        "-b",
        "--bootstrap-servers",
        default=os.environ.get("DUOLOG_BOOTSTRAP_SERVERS", DEFAULT_BOOTSTRAP),
        metavar="HOST:PORT[,...]",
        help="brokers to ask first (or $DUOLOG_BOOTSTRAP_SERVERS; default %(default)s)",
    )


def add_zookeeper(to: argparse.ArgumentParser) -> None:
    """zkserver's address: --zookeeper, or DUOLOG_ZOOKEEPER."""
    to.add_argument(
        "-z",
        "--zookeeper",
        default=os.environ.get("DUOLOG_ZOOKEEPER", DEFAULT_ZOOKEEPER),
        metavar="HOST:PORT[,...][/chroot]",
        help="zkserver's addresses (or $DUOLOG_ZOOKEEPER; default %(default)s)",
    )


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a verb's coroutine on the fastest loop there is."""
    from duolog_runtime.tasks import loop_factory

    with asyncio.Runner(loop_factory=loop_factory("auto")) as runner:
        return runner.run(work)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns under their heads, aligned; numbers to the right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(head, *texts, strict=True)]
    numeric = [
        bool(texts) and all(row[at].lstrip("-").isdecimal() for row in texts)
        for at in range(len(head))
    ]

    def line(cells: Sequence[str]) -> str:
        found = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        ]
        return "  ".join(found).rstrip()

    return "\n".join([line(head), *map(line, texts)])
