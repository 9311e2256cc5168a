"""Starts zkserver with the settings that `apache` gives to the original."""

from __future__ import annotations

from pathlib import Path

from bench.processes import Daemon

from .settings import MAX_BUFFER, MAX_TIMEOUT_MS, MIN_TIMEOUT_MS, SUPER_DIGEST, TICK_MS


class Ours(Daemon):
    """zkserver on any port."""

    name = "zkserver"

    def __init__(self, directory: Path, *, reap_interval_ms: int = 3_600_000) -> None:
        directory.parent.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        super().__init__(
            "zkserver",
            directory,
            *("--tick-ms", str(TICK_MS)),
            *("--min-session-timeout-ms", str(MIN_TIMEOUT_MS)),
            *("--max-session-timeout-ms", str(MAX_TIMEOUT_MS)),
            *("--max-connections-per-address", "0"),
            *("--jute-max-frame-bytes", str(MAX_BUFFER)),
            *("--super-digests", SUPER_DIGEST),
            *("--reap-interval-ms", str(reap_interval_ms)),
        )

    @property
    def log_directory(self) -> Path:
        """Where its transaction log is."""
        return self.directory
