"""The originals: where they are, how they are started, what is missing.

Nothing is looked for on the machine: every path comes from an argument or its environment
variable (README.md tells how to install each). What is not given is not compared with.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from .processes import Process, StartError, accepts, free_ports

KAFKA_HEAP: Final = [
    *("-Xms1G", "-Xmx1G", "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"),
    "-XX:InitiatingHeapOccupancyPercent=35",
]
"""The flags of Kafka's own start script."""


class Original(NamedTuple):
    """Something to compare with."""

    option: str
    variable: str
    help: str


ORIGINALS: Final = {
    "zookeeper_classpath": Original(
        "--zookeeper-classpath", "DUOLOG_ZOOKEEPER_CLASSPATH", "class path of Apache ZooKeeper"
    ),
    "kafka_libs": Original(
        "--kafka-libs", "DUOLOG_KAFKA_LIBS", "directory with the jars of Apache Kafka 4.1"
    ),
    "rdkafka_performance": Original(
        "--rdkafka-performance", "DUOLOG_RDKAFKA_PERFORMANCE", "librdkafka's rdkafka_performance"
    ),
    "aiokafka_python": Original(
        "--aiokafka-python", "DUOLOG_AIOKAFKA_PYTHON", "a Python interpreter that has aiokafka"
    ),
    "zkload": Original("--zkload", "DUOLOG_ZKLOAD", "another load generator, as a cross-check"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options for all originals, so that they can be given once for all scripts."""
    for each in ORIGINALS.values():
        parser.add_argument(
            each.option,
            default=os.environ.get(each.variable),
            help=f"{each.help} (${each.variable})",
        )
    parser.add_argument("--java", default=os.environ.get("JAVA", "java"), help="Java 17 or newer")


def missing(arguments: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """What is not there, as sentences for people; empty when all is."""
    found = []
    for name in names:
        each, value = ORIGINALS[name], getattr(arguments, name, None)
        if not value:
            found.append(f"no {each.help}: give {each.option} or {each.variable}")
        elif name != "zookeeper_classpath" and not Path(value).exists():
            found.append(f"{each.option}: {value} does not exist")
    if {"zookeeper_classpath", "kafka_libs"} & set(names) and not shutil.which(arguments.java):
        found.append(f"no {arguments.java}: install Java 17, or give --java")
    return found


MAIN_CLASS: Final = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
"""Apache ZooKeeper, alone or in an ensemble."""


def write_zoo_cfg(directory: Path, port: int, settings: str) -> Path:
    """Apache ZooKeeper's configuration file for a server on loopback, with more `settings`."""
    config = directory / "zoo.cfg"
    config.write_text(
        f"dataDir={directory}/data\nclientPort={port}\n{settings}\n"
        "clientPortAddress=127.0.0.1\nmaxClientCnxns=0\nadmin.enableServer=false\n"
        "4lw.commands.whitelist=ruok,srvr,mntr\n"
    )
    return config


class ApacheZooKeeper(Process):
    """A standalone Apache ZooKeeper; every write is synced before its reply.

    Its defaults, unless a test asks for other `settings` (of its configuration file) or more flags
    of Java.
    """

    def __init__(
        self,
        java: str,
        classpath: str,
        directory: Path,
        *,
        settings: str = "",
        flags: tuple[str, ...] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (self.port,) = free_ports(1)
        config = write_zoo_cfg(directory, self.port, settings or "tickTime=2000")
        command = [java, *flags, "-cp", classpath, MAIN_CLASS, str(config)]
        super().__init__(command, directory / "log")
        try:
            self.wait_for(self._is_ok)
        except StartError:
            self.stop()
            raise

    def _is_ok(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 0.5) as connection:
                connection.sendall(b"ruok")
                return connection.recv(16) == b"imok"
        except OSError:
            return False


class ApacheKafka(Process):
    """One Apache Kafka node in KRaft mode, broker and controller in one process.

    Its acknowledgement waits for no fsync: compare with `durability=replicated`. The storage is
    formatted before the clock starts, in its favour.
    """

    def __init__(self, java: str, libs: str, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.port, controller = free_ports(2)
        config = directory / "server.properties"
        config.write_text(
            "process.roles=broker,controller\nnode.id=1\n"
            f"controller.quorum.voters=1@127.0.0.1:{controller}\n"
            f"listeners=PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller}\n"
            f"advertised.listeners=PLAINTEXT://127.0.0.1:{self.port}\n"
            f"controller.listener.names=CONTROLLER\nlog.dirs={directory}/data\n"
            "num.partitions=1\noffsets.topic.replication.factor=1\n"
            "group.initial.rebalance.delay.ms=0\n"
        )
        classpath = f"{libs}/*"
        self._format(java, classpath, config)
        super().__init__(
            [java, *KAFKA_HEAP, "-cp", classpath, "kafka.Kafka", str(config)], directory / "log"
        )

    def wait_until_open(self) -> None:
        """Wait for the first connection that it accepts. Raises StartError."""
        try:
            self.wait_for(lambda: accepts(self.port))
        except StartError:
            self.stop()
            raise

    def _format(self, java: str, classpath: str, config: Path) -> None:
        cluster_id = "A" * 22
        tool = ["kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", cluster_id]
        done = subprocess.run(
            [java, "-cp", classpath, *tool, "-c", str(config)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise StartError(f"Kafka's StorageTool failed:\n{done.stdout}{done.stderr}")
