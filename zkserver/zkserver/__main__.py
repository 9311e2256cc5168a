"""The daemon `zkserver`: settings, first line on stdout, signals, exit code.

    zkserver --port 2181 --data DIR

With a word instead of a flag in front it is one of the offline tools (`tools.cli`).
Exit codes: 0 after an orderly stop; 1 when it could not go on; 2 for a wrong setting, a port in
use or a data directory that it must not touch; 130 after a second signal.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from typing import Final

from duolog_protocol.errors import ConfigError, DataDirectoryError
from duolog_runtime.clocks import RealClock
from duolog_runtime.config import HelpRequested, exit_on_config_error, load_config
from duolog_runtime.disk import DiskThread
from duolog_runtime.files import RealFiles
from duolog_runtime.logs import DaemonLogs
from duolog_runtime.tasks import announce, refuse_optimized_python, run_daemon

from .config import ServerConfig
from .core.config import CoreConfig
from .server.node import Node

_DISK_CLOSE_S: Final = 1.0
"""The node has waited for the disk already: what still runs there hangs, or nobody waits for it."""

_TOOLS_HELP = """
Offline tools, for data directories whose server is stopped; each with --help:

  zkserver check DIR            verify a data directory
  zkserver log dump FILE|DIR    print transactions
  zkserver snapshot dump|take   print the tree of a snapshot; take one
  zkserver import               make a data directory of Apache ZooKeeper's, or of an export
  zkserver export DIR --json    print the whole state"""


async def serve(
    config: ServerConfig, core_config: CoreConfig, logs: DaemonLogs, stop: asyncio.Event
) -> int:
    """Run one server until `stop` is set or it cannot go on; the result is the exit code."""
    disk = DiskThread(asyncio.get_running_loop(), "zkserver-disk")
    log = logs.logger(server_id=core_config.server_id)
    try:
        try:
            node = Node(
                config,
                core_config,
                files=RealFiles(),
                disk=disk,
                clock=RealClock(),
                rng=random.SystemRandom(),
                log=log,
                on_halt=stop.set,
            )
        except (DataDirectoryError, PermissionError, NotADirectoryError) as error:
            log.error("data_directory_refused", reason=str(error))
            return 2
        except ConfigError as error:
            log.error("start_refused", reason=str(error))
            return 2
        try:
            await node.start()
            announce(
                service="zkserver",
                host=config.host,
                port=node.port,
                http_port=node.http_port,
                pid=os.getpid(),
                data=os.path.abspath(config.data_directory),
                **({} if node.tls_port is None else {"tls_port": node.tls_port}),
            )
            await stop.wait()
        except ConfigError as error:
            log.error("start_refused", reason=str(error))
            return 2
        finally:
            await node.stop()
        return 1 if node.failure else 0
    finally:
        disk.close(_DISK_CLOSE_S)


def main() -> None:
    """Entry point of the console script."""
    refuse_optimized_python()
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        from .tools.cli import main as run_tool

        sys.exit(run_tool(words))
    config, core_config = exit_on_config_error("zkserver", lambda: _settings(words))
    logs = DaemonLogs(config.log_level)
    code = 0

    async def run(_tasks: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        nonlocal code
        code = await serve(config, core_config, logs, stop)

    sys.exit(run_daemon(run, logs=logs, loop=config.loop) or code)


def _settings(words: list[str]) -> tuple[ServerConfig, CoreConfig]:
    try:
        return load_config((ServerConfig, CoreConfig), words, os.environ, "ZKSERVER_")
    except HelpRequested as request:
        raise HelpRequested(f"{request}\n{_TOOLS_HELP}") from None


if __name__ == "__main__":
    main()
