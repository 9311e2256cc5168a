"""Coordination servers as child processes: Apache ZooKeeper of the Debian package, or zkserver.

Everything that compares the two starts them here, with the same settings, on loopback, alone or as
an ensemble. It runs in the project's Python and in the one that kazoo is installed into, so neither
it nor what it takes of `bench` needs anything but the standard library.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.ensembles import Place, ask, free_places, zkserver_members, zookeeper_members
from bench.processes import free_ports

ROOT: Final = Path(__file__).resolve().parents[2]
SOURCE_ROOTS: Final = ("protocol", "runtime", "client", "zkserver", "kbroker", "cluster")
APACHE_JAR: Final = Path("/usr/share/java/zookeeper.jar")
_JARS: Final = Path("/usr/share/java")
_NETTY: Final = [str(_JARS / f"netty-{name}.jar") for name in ("codec", "resolver")]
"""What TLS needs, and the manifest of the package's jar does not name."""
CLIENT_CLASS_PATH: Final = ":".join(["/etc/zookeeper/conf", str(APACHE_JAR), *_NETTY])
SERVER_CLASS_PATH: Final = f"{CLIENT_CLASS_PATH}:{_JARS / 'slf4j-simple.jar'}"
"""The server writes its log."""
TLS_FILES: Final = ROOT / "tests" / "data" / "tls"
SUPER_DIGEST: Final = "super:D/InIHSb7yEEbrWz8b9l71RjZJU="
"""`super:test`, the password that kazoo's suite uses."""
SASL_USERS: Final = {"super": "super_secret", "jaasuser": "jaas_password"}
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0
KINDS: Final = ("ours", "apache")


class ServerFailedError(Exception):
    """A server ended, or did not answer, when it should have served."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What both servers are told, each in its own words."""

    tick_ms: int = 2000
    tls: bool = False
    """Listen for TLS too, on `secure_port`, to clients with a certificate of TLS_FILES."""
    sasl: bool = False
    """Take SASL DIGEST-MD5 from the users of SASL_USERS."""
    enforce_quota: bool = False
    extended_types: bool = True
    """TTL nodes and containers."""


class Server:
    """A server process with its own data directory; `run` after `stop` finds the data again."""

    kind = ""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.place = Place(1, 0, 0, 0)
        self.ensemble: list[Server] = []
        """All members, this one among them; empty: it stands alone."""
        self.directory = Path(tempfile.mkdtemp(prefix=f"compat-{self.kind}-"))
        self.client_port, self.secure_port = free_ports(2)
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.destroy)

    @property
    def address(self) -> str:
        """HOST:PORT for clients in clear."""
        return f"127.0.0.1:{self.client_port}"

    @property
    def secure_address(self) -> str:
        """HOST:PORT for clients that speak TLS."""
        return f"127.0.0.1:{self.secure_port}"

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None, f"{self.kind} is not started"
        return self._process.pid

    def command(self) -> tuple[Sequence[str], Mapping[str, str]]:
        """Argument vector and additions to the environment."""
        raise AssertionError(f"{type(self).__name__} has no command")

    def run(self) -> None:
        """Start it and wait until it serves clients. Raises ServerFailedError."""
        self.launch()
        self.wait()

    def wait(self) -> None:
        """Wait until it serves clients. Raises ServerFailedError."""
        assert self._process is not None, f"{self.kind} is not started"
        wait_while_running(self._process, lambda: bool(self.mode), self.get_logs)

    @property
    def mode(self) -> str:
        """leader, follower, observer, standalone; empty while it does not serve."""
        _, mark, rest = ask(self.client_port, "srvr").partition("Mode: ")
        return rest.split()[0] if mark else ""

    def launch(self) -> None:
        """Start it, if it does not run."""
        if self.running:
            return
        arguments, environment = self.command()
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                list(arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process and keep its data."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(how)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def destroy(self) -> None:
        """End the process and remove its data."""
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)

    def forget(self) -> None:
        """End the process and remove its data."""
        self.stop()
        shutil.rmtree(self.directory / "data", ignore_errors=True)

    def reset(self) -> None:
        """End the process and begin again with no data."""
        self.forget()
        self.run()

    def get_logs(self, num_lines: int = 100) -> list[str]:
        """Last lines that the server wrote."""
        try:
            text = (self.directory / "log").read_text(errors="replace")
        except OSError:
            return []
        return text.splitlines(keepends=True)[-num_lines:]

    def __enter__(self) -> Server:
        self.run()
        return self

    def __exit__(self, *_error: object) -> None:
        self.destroy()


class Apache(Server):
    """Apache ZooKeeper 3.8 as the Debian package `zookeeper` installs it, standalone."""

    kind = "apache"

    def command(self) -> tuple[Sequence[str], Mapping[str, str]]:
        settings = self.settings
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        lines = [
            f"tickTime={settings.tick_ms}",
            f"dataDir={data}",
            f"clientPort={self.client_port}",
            "clientPortAddress=127.0.0.1",
            "maxClientCnxns=0",
            "4lw.commands.whitelist=*",
            "admin.enableServer=false",
            f"extendedTypesEnabled={str(settings.extended_types).lower()}",
            f"enforceQuota={str(settings.enforce_quota).lower()}",
        ]
        properties = [
            "-Dfile.encoding=UTF-8",
            "-Djava.awt.headless=true",
            f"-Dzookeeper.log.dir={self.directory}",
            f"-Dreadonlymode.enabled={str(bool(self.ensemble)).lower()}",
            f"-Dzookeeper.DigestAuthenticationProvider.superDigest={SUPER_DIGEST}",
        ]
        if settings.tls:
            lines += [
                "serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory",
                f"secureClientPort={self.secure_port}",
                f"ssl.keyStore.location={key_store(self.directory, 'server')}",
                f"ssl.trustStore.location={TLS_FILES / 'ca.pem'}",
            ]
        if settings.sasl:
            lines.append(
                "authProvider.1=org.apache.zookeeper.server.auth.SASLAuthenticationProvider"
            )
            users = "\n".join(f'    user_{name}="{word}"' for name, word in SASL_USERS.items())
            module = "org.apache.zookeeper.server.auth.DigestLoginModule"
            jaas = self.directory / "jaas.conf"
            jaas.write_text(f"Server {{\n    {module} required\n{users};\n}};\n")
            properties.append(f"-Djava.security.auth.login.config={jaas}")
        if self.ensemble:
            (data / "myid").write_text(f"{self.place.server_id}\n")
            lines += ["initLimit=10", "syncLimit=5"]
            lines += ["reconfigEnabled=true", "standaloneEnabled=false"]
            lines += zookeeper_members([each.place for each in self.ensemble])
        (self.directory / "zoo.cfg").write_text("\n".join(lines) + "\n")
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        config = str(self.directory / "zoo.cfg")
        return ["java", *properties, "-cp", SERVER_CLASS_PATH, main, config], {}


class Ours(Server):
    """zkserver of this checkout, standalone."""

    kind = "ours"

    def command(self) -> tuple[Sequence[str], Mapping[str, str]]:
        settings = self.settings
        arguments = [
            os.environ.get("COMPAT_PYTHON", sys.executable),
            *("-m", "zkserver"),
            *("--port", str(self.client_port)),
            *("--data", str(self.directory / "data")),
            *("--tick-ms", str(settings.tick_ms)),
            *("--max-connections-per-address", "0"),
            *("--super-digests", SUPER_DIGEST),
            f"--enforce-quota={str(settings.enforce_quota).lower()}",
        ]
        if settings.tls:
            arguments += [
                *("--tls-certificate-file", str(key_store(self.directory, "server"))),
                *("--tls-ca-file", str(TLS_FILES / "ca.pem")),
                *("--tls-client-auth", "need"),
                *("--tls-port", str(self.secure_port)),
            ]
        if settings.sasl:
            users = self.directory / "sasl-users"
            users.touch(mode=0o600)
            users.write_text("".join(f"{name}={word}\n" for name, word in SASL_USERS.items()))
            arguments += ["--sasl-users-file", str(users)]
        if self.ensemble:
            members = zkserver_members([each.place for each in self.ensemble])
            arguments += [
                *("--server-id", str(self.place.server_id), "--ensemble-id", "1"),
                *("--read-only-after-ms", "2000"),
                *("--servers", members),
            ]
        path = os.pathsep.join(str(ROOT / each) for each in SOURCE_ROOTS)
        return arguments, {"PYTHONPATH": path}


def server(kind: str, settings: Settings | None = None) -> Server:
    """The server of that kind, not yet started."""
    assert kind in KINDS, kind
    return (Ours if kind == "ours" else Apache)(settings or Settings())


def ensemble(
    kind: str, count: int, settings: Settings | None = None, observers: int = 0
) -> list[Server]:
    """An ensemble, not yet started: voters, then observers. Launch all before you wait for one."""
    members = [server(kind, settings) for _ in range(count + observers)]
    for each, place in zip(members, free_places(count, observers), strict=True):
        each.place, each.client_port = place, place.client_port
        each.ensemble = members
    return members


def key_store(directory: Path, name: str) -> Path:
    """A file with that key and certificate, closed to others, which Git does not remember."""
    path = directory / f"{name}-keystore.pem"
    path.touch(mode=0o600)
    path.write_text("".join((TLS_FILES / f"{name}{end}").read_text() for end in (".key", ".pem")))
    return path


def missing(kind: str) -> str | None:
    """What this machine lacks to start a server of that kind."""
    if kind == "apache":
        if not APACHE_JAR.exists():
            return f"no {APACHE_JAR} (Debian package zookeeper)"
        if shutil.which("java") is None:
            return "no java"
    return None


def wait_while_running(
    process: subprocess.Popen[bytes],
    condition: Callable[[], bool],
    words: Callable[[], list[str]],
    seconds: float = START_SECONDS,
) -> None:
    """Wait until the condition holds; a process that ends before it, or a deadline, is an error."""
    deadline = time.monotonic() + seconds
    while not condition():
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(0.05)
            raise ServerFailedError(f"ended with {code}:\n{''.join(words())}")
        if time.monotonic() > deadline:
            raise ServerFailedError(f"not ready in {seconds} s:\n{''.join(words())}")
