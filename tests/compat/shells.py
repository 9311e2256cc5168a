"""The two shells that come with ZooKeeper, driven a command at a time.

After each command a marker follows, a command whose output is known, so that what is read before
the marker's output belongs to the command. How that works differs between the two shells.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from .servers import CLIENT_CLASS_PATH, SASL_USERS, TLS_FILES, Server, key_store

ZKCLI: Final = Path("/usr/share/zookeeper/bin/zkCli.sh")
CLI_MT: Final = Path("/usr/lib/zookeeper/bin/cli_mt")
SECONDS: Final = 30.0
"""Longest wait for one command."""
EVENT_SECONDS: Final = 5.0
"""Longest wait for one event, which is sent before the command that made it has its reply."""


class SilentShellError(Exception):
    """A shell did not say in time what was waited for; what it did say is in the message."""


class Shell:
    """A shell as a child process whose whole output is one stream of lines."""

    kind = ""

    def __init__(self, command: list[str], **variables: str) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C", "TZ": "UTC", **variables},
        )
        self._rest = b""
        self._ended = False

    def run(self, command: str) -> list[str]:
        """Give one command; the lines that it printed."""
        raise AssertionError(command)

    def send(self, command: str) -> None:
        """Give one command and do not wait for its end."""
        self._write(command)

    def wait_for_event(self, *words: str) -> list[str]:
        """The lines that came up to the event that all words describe."""
        raise AssertionError(words)

    def quit(self) -> list[str]:
        """Let the shell end by itself; the lines that it still printed."""
        self._write("quit")
        return self._lines_until(lambda _line: False)

    def kill(self) -> None:
        """End the process, whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _write(self, *lines: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("".join(line + "\n" for line in lines).encode())
            self._process.stdin.flush()

    def _lines_until(self, is_last: Callable[[str], bool], seconds: float = SECONDS) -> list[str]:
        """Lines up to the first that `is_last` accepts, it included, or up to the shell's end."""
        lines: list[str] = []
        deadline = time.monotonic() + seconds
        while (line := self._line(deadline, lines)) is not None:
            lines.append(line)
            if is_last(line):
                break
        return lines

    def _line(self, deadline: float, so_far: list[str]) -> str | None:
        assert self._process.stdout is not None
        while b"\n" not in self._rest and not self._ended:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                text = "\n".join([*so_far, self._rest.decode(errors="replace")])
                raise SilentShellError(f"{self.kind} said only:\n{text}")
            piece = os.read(self._process.stdout.fileno(), 65536)
            self._ended = not piece
            self._rest += piece
        if not self._rest:
            return None
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode(errors="replace").rstrip("\r")


class ZkCli(Shell):
    """Java's `zkCli.sh`. One thread runs commands, another prints events, in lines of their own.

    The marker is `printwatches`, which works with no session too, where it says so behind its
    answer. An event that arrives is kept until it is waited for, since nothing orders it with the
    lines of a command.
    """

    kind = "zkCli"
    _MARKER = "printwatches"
    _MARKER_ANSWER = "printwatches is "
    _NO_SESSION = "Not connected"

    def __init__(self, server: Server, way: str = "") -> None:
        if way == "tls":
            super().__init__(self._secure_command(server))
        elif way:
            user, password = ("jaasuser", SASL_USERS["jaasuser"]) if way == "sasl" else (way, way)
            jaas = server.directory / f"{way}-jaas.conf"
            module = "org.apache.zookeeper.server.auth.DigestLoginModule required"
            words = f'username="{user}" password="{password}"'
            jaas.write_text(f"Client {{ {module} {words}; }};\n")
            flags = f"-Djava.security.auth.login.config={jaas}"
            super().__init__(self._command(server), CLIENT_JVMFLAGS=flags)
        else:
            super().__init__(self._command(server))
        self._events: list[str] = []
        self._has_session = True

    def start(self) -> list[str]:
        """Wait until the session is there."""
        return [*self.run(""), *self.wait_for_event("SyncConnected", "None")]

    def run(self, command: str) -> list[str]:
        self._write(*([command] if command else []), self._MARKER)
        if command.split()[:1] in (["close"], ["connect"]):
            self._has_session = command != "close"
        lines = self._to_marker()
        if command == self._MARKER:  # the first of two was the command's own
            lines += self._to_marker()
        return self._without_events(lines[:-1])

    def wait_for_event(self, *words: str) -> list[str]:
        others: list[str] = []
        while True:
            for event in self._events:
                if set(words) <= set(re.split(r"[ :]", event)):
                    self._events.remove(event)
                    return [*others, event]
            others += self._without_events(
                self._lines_until(lambda line: line.startswith("WatchedEvent "), EVENT_SECONDS)
            )
            if self._ended:
                return [*others, f"ended without {' '.join(words)}"]

    def quit(self) -> list[str]:
        lines = self._without_events(super().quit())
        unasked = [event for event in self._events if "state:Closed" not in event]
        return [*lines, *(f"unasked: {event}" for event in unasked)]

    @staticmethod
    def _command(server: Server) -> list[str]:
        return [str(ZKCLI), "-server", server.address]

    @staticmethod
    def _secure_command(server: Server) -> list[str]:
        """What zkCli.sh runs, which has no place in its class path for what TLS needs."""
        flags = {
            "clientCnxnSocket": "org.apache.zookeeper.ClientCnxnSocketNetty",
            "client.secure": "true",
            "ssl.keyStore.location": key_store(server.directory, "client"),
            "ssl.trustStore.location": TLS_FILES / "ca.pem",
        }
        properties = [f"-Dzookeeper.{name}={value}" for name, value in flags.items()]
        main = "org.apache.zookeeper.ZooKeeperMain"
        where = ["-server", server.secure_address]
        return ["java", *properties, "-cp", CLIENT_CLASS_PATH, main, *where]

    def _to_marker(self) -> list[str]:
        lines = self._lines_until(lambda line: line.startswith(self._MARKER_ANSWER))
        if not self._has_session:
            self._lines_until(lambda line: line == self._NO_SESSION)
        return lines

    def _without_events(self, lines: list[str]) -> list[str]:
        self._events += [line for line in lines if line.startswith("WatchedEvent ")]
        return [line for line in lines if line and not line.startswith(("WATCHER::", "WatchedEve"))]


class CShell(Shell):
    """The C client's `cli_mt`. One thread prints replies and events in the order they came.

    The marker is a `sync`, whose reply comes behind everything that was asked before. So events
    stay where they are: that one comes before the reply of the command that caused it is compared.
    """

    kind = "cli_mt"

    def __init__(self, server: Server) -> None:
        super().__init__(["stdbuf", "-oL", str(CLI_MT), "-h", server.address])
        self._markers = 0

    def start(self) -> list[str]:
        """Wait until the session is there."""
        return self._lines_until(lambda line: "new session id" in line)

    def run(self, command: str) -> list[str]:
        self._markers += 1
        marker = f"[/marker-{self._markers}]: rc ="
        self._write(command, f"sync /marker-{self._markers}")
        return self._lines_until(lambda line: line.startswith(marker))

    def wait_for_event(self, *words: str) -> list[str]:
        return self._lines_until(
            lambda line: line.startswith("Watcher ") and set(words) <= set(line.split()),
            EVENT_SECONDS,
        )

    def _lines_until(self, is_last: Callable[[str], bool], seconds: float = SECONDS) -> list[str]:
        lines = super()._lines_until(is_last, seconds)
        return [line for line in lines if "/marker-" not in line]


def open_shell(words: str, server: Server) -> Shell:
    """The shell that a script names: its kind, and how it says who it is."""
    kind, _, way = words.partition(" ")
    if kind == CShell.kind:
        return CShell(server)
    assert kind == ZkCli.kind, words
    return ZkCli(server, way)


def missing() -> str | None:
    """What this machine lacks to run the shells."""
    for path, package in ((ZKCLI, "zookeeper"), (CLI_MT, "zookeeper-bin")):
        if not path.exists():
            return f"no {path} (Debian package {package})"
    for program in ("java", "stdbuf"):
        if shutil.which(program) is None:
            return f"no {program}"
    return None
