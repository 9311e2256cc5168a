"""Starts Apache ZooKeeper as the oracle: where it is, and its settings for comparing.

Its class path comes from `DUOLOG_ZOOKEEPER_CLASSPATH` and its Java from `JAVA`, as in `bench`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from bench.originals import ORIGINALS, ApacheZooKeeper
from bench.processes import StartError

from .jute_client import Closed, JuteConnection, Silence
from .settings import MAX_BUFFER, MAX_TIMEOUT_MS, MIN_TIMEOUT_MS, SUPER_DIGEST, TICK_MS


def classpath() -> str | None:
    """The class path of Apache ZooKeeper, or None where it is not installed."""
    return os.environ.get(ORIGINALS["zookeeper_classpath"].variable) or None


def java() -> str:
    """The command that starts Java."""
    return os.environ.get("JAVA", "java")


def problem() -> str | None:
    """Why there is no oracle, as a sentence; None when there is one."""
    if classpath() is None:
        return "no Apache ZooKeeper: give its class path in DUOLOG_ZOOKEEPER_CLASSPATH"
    if shutil.which(java()) is None:
        return f"no {java()}: install Java 17, or give JAVA"
    return None


def serves(port: int) -> bool:
    """Whether a session can be opened; Apache says `imok` a little before that."""
    with contextlib.suppress(OSError, Silence), JuteConnection(port, 1.0) as connection:
        if not isinstance(connection.connect(MIN_TIMEOUT_MS), Closed):
            connection.call("close")
            return True
    return False


class Apache(ApacheZooKeeper):
    """Apache ZooKeeper with everything on that zkserver has.

    The reaper of containers and TTL nodes never comes: what it deletes, and when, is no answer to
    a request and is tested elsewhere.
    """

    name = "apache"

    def __init__(self, directory: Path, *, reaper_interval_ms: int = 3_600_000) -> None:
        found = classpath()
        assert found is not None, "ask `problem` first"
        self.directory = directory
        super().__init__(
            java(),
            found,
            directory,
            settings=(
                f"tickTime={TICK_MS}\nminSessionTimeout={MIN_TIMEOUT_MS}\n"
                f"maxSessionTimeout={MAX_TIMEOUT_MS}"
            ),
            flags=(
                *("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
                f"-Djute.maxbuffer={MAX_BUFFER}",
                "-Dzookeeper.extendedTypesEnabled=true",
                "-Dzookeeper.enforceQuota=true",
                f"-Dznode.container.checkIntervalMs={reaper_interval_ms}",
                f"-Dzookeeper.DigestAuthenticationProvider.superDigest={SUPER_DIGEST}",
            ),
        )
        try:
            self.wait_for(lambda: serves(self.port))
        except StartError:
            self.stop()
            raise

    @property
    def log_directory(self) -> Path:
        """Where its transaction logs are."""
        return self.directory / "data" / "version-2"
