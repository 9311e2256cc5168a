"""The `kbroker` command: settings, clocks, files, disk thread, loop; then the broker.

The only place of the daemon that makes what everything else is handed.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Sequence

from duolog_runtime.clocks import RealClock
from duolog_runtime.config import exit_on_config_error, load_config
from duolog_runtime.disk import DiskThread
from duolog_runtime.files import RealFiles
from duolog_runtime.logs import DaemonLogs
from duolog_runtime.tasks import announce, refuse_optimized_python, run_daemon
from duolog_runtime.version import VERSION

from .config import BrokerConfig
from .server.broker import Broker


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a broker until SIGINT or SIGTERM; the exit status."""
    refuse_optimized_python()
    argv = sys.argv[1:] if arguments is None else arguments
    (config,) = exit_on_config_error(
        "kbroker", lambda: load_config((BrokerConfig,), argv, os.environ, "KBROKER_")
    )
    logs = DaemonLogs(config.log_level)

    async def serve(_tasks: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        disk = DiskThread(asyncio.get_running_loop(), f"disk {config.data}")
        seed = None if config.seed == -1 else config.seed
        try:
            broker = Broker(
                config,
                RealFiles(),
                disk,
                clock=RealClock(),
                rng=random.Random(seed),
                log=logs.logger(service="kbroker"),
                version=VERSION,
            )
            await broker.serve(
                stop,
                lambda: announce(
                    service="kbroker",
                    host=config.host,
                    port=broker.port,
                    pid=os.getpid(),
                    data=config.data,
                    zookeeper=config.zookeeper,
                ),
            )
        finally:
            disk.close()

    return run_daemon(serve, logs=logs, loop=config.loop)


if __name__ == "__main__":
    sys.exit(main())
