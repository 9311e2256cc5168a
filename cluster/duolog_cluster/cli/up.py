"""`duolog up`: a broker and its zkservers as child processes, in the foreground.

An ensemble goes on without a server that has died, which is said, as long as a quorum lives; a
signal starts it again. When the broker ends, or the quorum, so does everything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from typing import Final

from duolog_protocol.errors import ConfigError, Error

from ..processes import Daemon, DaemonFailedError, Pair, zkservers_in
from .common import parser

SIZES: Final = (1, 3, 5)
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(words: Sequence[str]) -> int:
    """Start, print the addresses, wait for Ctrl-C or SIGTERM, stop."""
    options = _parser().parse_args(words)
    if options.data is None:
        with tempfile.TemporaryDirectory(prefix="duolog-") as data:
            return asyncio.run(_Up(options, data).run())
    os.makedirs(options.data, exist_ok=True)
    return asyncio.run(_Up(options, os.path.abspath(options.data)).run())


def _parser() -> argparse.ArgumentParser:
    found = parser("up", "Start zkserver and a kbroker on 127.0.0.1 and serve until Ctrl-C.")
    found.add_argument("--port", type=int, default=9092, help="the broker's port; 0: any, for all")
    found.add_argument(
        "--zk-port",
        type=int,
        help="zkserver's port (default 2181); 0: any. The servers of an ensemble have this one "
        "and those after it, and keep them with DIR",
    )
    found.add_argument(
        "--zk",
        type=int,
        choices=SIZES,
        help="how many zkservers; more than one are an ensemble (default: as many as DIR holds, "
        "else 1)",
    )
    found.add_argument("--data", metavar="DIR", help="keep the data here (default: temporary)")
    found.add_argument(
        "--durability",
        choices=["fsync", "replicated"],
        help="what an acknowledgement means for topics that do not say (default fsync)",
    )
    found.add_argument("--json", action="store_true", help="print one line of JSON when ready")
    found.add_argument("-v", "--verbose", action="store_true", help="show the daemons' logs")
    return found


class _Up:
    """What is up, until it is stopped."""

    def __init__(self, options: argparse.Namespace, data: str) -> None:
        """Raises ConfigError."""
        kept = zkservers_in(data)
        count = options.zk or kept or 1
        zk_port = options.zk_port
        if zk_port is None:
            zk_port = 0 if options.port == 0 or kept > 1 else 2181
        if count not in SIZES:
            raise ConfigError("data", data, f"holds {count} zkservers: not of `duolog up`")
        self._options = options
        self._data = data
        self._pair = Pair(
            data,
            port=options.port,
            zk_port=zk_port,
            zk=count,
            kbroker_arguments=["--durability", options.durability] if options.durability else [],
            quiet=not options.verbose,
        )
        self._ensemble = self._pair.ensemble
        self._stop = asyncio.Event()
        self._again = asyncio.Event()
        """Whoever has ended is to be started again."""

    async def run(self) -> int:
        """Start, say so, wait, stop. Raises DaemonFailedError."""
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
                loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGUSR1, self._again.set)
        async with self._pair:
            self._announce()
            await self._until_over()
        if not self._options.json:
            print("stopped", file=sys.stderr)
        return 0

    async def _until_over(self) -> None:
        """Wait for the stop. Raises DaemonFailedError when what is left cannot go on."""
        daemons = [*self._ensemble.servers, self._pair.kbroker]
        ends = {asyncio.create_task(each.wait()): each for each in daemons}
        stopping = asyncio.create_task(self._stop.wait())
        again = asyncio.create_task(self._again.wait())
        try:
            while True:
                await asyncio.wait({stopping, again, *ends}, return_when=asyncio.FIRST_COMPLETED)
                if stopping.done():
                    return
                for task in [each for each in ends if each.done()]:
                    self._look_at_end(ends.pop(task))
                if again.done():
                    self._again.clear()
                    again = asyncio.create_task(self._again.wait())
                    for each in await self._start_again({*ends.values()}):
                        ends[asyncio.create_task(each.wait())] = each
        finally:
            for task in (stopping, again, *ends):
                task.cancel()

    def _look_at_end(self, ended: Daemon) -> None:
        """Say who has ended. Raises DaemonFailedError when the others cannot go on without it."""
        servers = self._ensemble.servers
        if ended is self._pair.kbroker or len(servers) == 1:
            raise DaemonFailedError(f"{ended.module} has ended: {ended.reason}")
        running = sum(each.is_running for each in servers)
        told = f"zkserver {servers.index(ended) + 1} ({ended.address}) has ended: {ended.reason}"
        told += f"; {running} of {len(servers)} are left"
        if running <= len(servers) // 2:
            raise DaemonFailedError(f"{told}, which is no quorum: all are stopped")
        _say(f"{told}; kill -USR1 {os.getpid()} starts it again")

    async def _start_again(self, watched: set[Daemon]) -> list[Daemon]:
        """Start the servers that are said to have ended; those that are up now."""
        started = []
        for server_id, each in enumerate(self._ensemble.servers, 1):
            if each in watched:
                continue
            try:
                await each.start()
            except Error as error:
                _say(f"zkserver {server_id} does not start: {error}")
            else:
                started.append(each)
                _say(f"zkserver {server_id} ({each.address}) is up again, process {each.pid}")
        return started

    def _announce(self) -> None:
        pair, servers = self._pair, self._ensemble.servers
        alone = len(servers) == 1
        named = {"zkserver" if alone else f"zkserver-{n}": d for n, d in enumerate(servers, 1)}
        if self._options.json:
            ready = {
                "zookeeper": pair.zookeeper,
                "bootstrap_servers": pair.bootstrap_servers,
                "data": self._data,
                "pids": {
                    name: each.pid for name, each in (*named.items(), ("kbroker", pair.kbroker))
                },
            }
            print(json.dumps(ready), flush=True)
            return
        rows = {name: each.address for name, each in named.items()}
        if not alone:
            rows = {name: f"{told} (process {named[name].pid})" for name, told in rows.items()}
            rows["zookeeper"] = pair.zookeeper
        rows["kbroker"] = pair.bootstrap_servers
        rows["data"] = f"{self._data}{'' if self._options.data else ' (temporary)'}"
        width = max(map(len, rows))
        for name, told in rows.items():
            print(f"{name:<{width}}  {told}")
        print(f"Ctrl-C stops {'both' if alone else 'all'}.", flush=True)


def _say(text: str) -> None:
    print(f"duolog: {text}", file=sys.stderr, flush=True)
