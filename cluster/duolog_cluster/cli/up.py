"""`duolog up`: a local pair as two child processes, in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence

from ..processes import Daemon, DaemonFailedError, Pair
from .common import parser


def run(words: Sequence[str]) -> int:
    """Start, print the addresses, wait for Ctrl-C or SIGTERM, stop."""
    options = _parser().parse_args(words)
    zk_port = options.zk_port
    if zk_port is None:
        zk_port = 0 if options.port == 0 else 2181
    if options.data is None:
        with tempfile.TemporaryDirectory(prefix="duolog-") as data:
            return asyncio.run(_up(options, data, zk_port))
    os.makedirs(options.data, exist_ok=True)
    return asyncio.run(_up(options, os.path.abspath(options.data), zk_port))


def _parser() -> argparse.ArgumentParser:
    found = parser("up", "Start a zkserver and a kbroker on 127.0.0.1 and serve until Ctrl-C.")
    found.add_argument("--port", type=int, default=9092, help="the broker's port; 0: any, for both")
    found.add_argument("--zk-port", type=int, help="zkserver's port (default 2181); 0: any")
    found.add_argument("--data", metavar="DIR", help="keep the data here (default: temporary)")
    found.add_argument(
        "--durability",
        choices=["fsync", "replicated"],
        help="what an acknowledgement means for topics that do not say (default fsync)",
    )
    found.add_argument("--json", action="store_true", help="print one line of JSON when ready")
    found.add_argument("-v", "--verbose", action="store_true", help="show the daemons' logs")
    return found


async def _up(options: argparse.Namespace, data: str, zk_port: int) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    durability = ["--durability", options.durability] if options.durability else []
    pair = Pair(
        data,
        port=options.port,
        zk_port=zk_port,
        kbroker_arguments=durability,
        quiet=not options.verbose,
    )
    async with pair:
        _announce(options, pair, data)
        stopping = asyncio.create_task(stop.wait(), name="stop")
        ends = {
            asyncio.create_task(daemon.wait(), name=daemon.module): daemon
            for daemon in (pair.zkserver, pair.kbroker)
        }
        await asyncio.wait({stopping, *ends}, return_when=asyncio.FIRST_COMPLETED)
        ended = [daemon for task, daemon in ends.items() if task.done()]
        for task in (stopping, *ends):
            task.cancel()
        if ended and not stop.is_set():
            raise _died(ended[0])
    if not options.json:
        print("stopped", file=sys.stderr)
    return 0


def _died(daemon: Daemon) -> DaemonFailedError:
    return DaemonFailedError(f"{daemon.module} has ended: {daemon.reason}")


def _announce(options: argparse.Namespace, pair: Pair, data: str) -> None:
    if options.json:
        ready = {
            "zookeeper": pair.zookeeper,
            "bootstrap_servers": pair.bootstrap_servers,
            "data": data,
            "pids": {"zkserver": pair.zkserver.pid, "kbroker": pair.kbroker.pid},
        }
        print(json.dumps(ready), flush=True)
        return
    print(f"zkserver  {pair.zookeeper}")
    print(f"kbroker   {pair.bootstrap_servers}")
    print(f"data      {data}{'' if options.data else ' (temporary)'}")
    print("Ctrl-C stops both.", flush=True)
