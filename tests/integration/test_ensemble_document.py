"""The examples of `docs/zkserver-ensemble.md` run as they are printed, on ports of this machine."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from duolog_runtime.config import load_config
from tests.integration.test_processes import source_roots
from zkserver.config import ServerConfig
from zkserver.core.config import CoreConfig

__all__ = ["source_roots"]

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "zkserver-ensemble.md"
SECONDS = 60
PREFIXES = ("218", "700")
"""Of ports in the document; a digit follows, or `$server`."""


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


def free_prefix(taken: str) -> str:
    """Ten ports that only differ in their last digit; the first five are free."""
    rng = random.SystemRandom()
    while True:
        prefix = str(rng.randrange(1_000, 3_276))
        with ExitStack() as stack, suppress(OSError):
            for digit in range(5):
                probe = stack.enter_context(socket.socket())
                probe.bind(("127.0.0.1", int(f"{prefix}{digit}")))
            if prefix != taken:
                return prefix


class Machine:
    """A directory with the files of the document, and a shell that finds the commands."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._prefixes: dict[str, str] = {}
        for each in PREFIXES:
            self._prefixes[each] = free_prefix(self._prefixes.get(PREFIXES[0], ""))
        for name, module in (("zkserver", "zkserver"), ("duolog", "duolog_cluster")):
            shim = directory / "bin" / name
            shim.parent.mkdir(exist_ok=True)
            shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
            shim.chmod(0o755)
        for text in (*blocks("toml"), *blocks("sh")):
            name = text.partition("\n")[0].removeprefix("# ")
            if "/" not in name:
                (directory / name).write_text(self.here(text))
        servers = ",".join(self.here(f"127.0.0.1:218{each}") for each in (1, 2, 3))
        path = f"{directory / 'bin'}:{os.environ['PATH']}"
        self._environment = {**os.environ, "PATH": path, "DUOLOG_ZOOKEEPER": servers}

    def here(self, text: str) -> str:
        """The text with this machine's ports."""
        for prefix, found in self._prefixes.items():
            text = re.sub(rf"\b{prefix}(?=[1-4]\b|\$)", found, text)
        return text

    def run(self, command: str) -> str:
        done = subprocess.run(
            ["sh", "-c", self.here(command)],
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            env=self._environment,
        )
        logs = [path.read_text()[-2_000:] for path in self.directory.glob("zk*.log")]
        assert done.returncode == 0, (command, done.stdout, done.stderr, *logs)
        return done.stdout

    def close(self) -> None:
        """Whatever still runs is ended."""
        for path in self.directory.glob("*.pid"):
            with suppress(ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGKILL)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    found = Machine(tmp_path)
    yield found
    found.close()


def pattern(expected: str) -> re.Pattern[str]:
    """What a document prints: "..." is anything; who leads, and numbers of a row, may differ."""
    pieces = []
    for line in expected.splitlines():
        if line == "...":
            pieces.append("(?:.*\n)*?")
            continue
        is_row = re.match(r" +\d  ", line) is not None
        words = []
        for number, word in enumerate(line.split()):
            if word in ("leader", "follower"):
                words.append("(?:leader|follower)")
            elif re.fullmatch("0x[0-9a-f]+", word):
                words.append("0x[0-9a-f]+")
            elif is_row and number and word.isdecimal():
                words.append(r"\d+")
            else:
                words.append(".*?".join(map(re.escape, word.split("..."))))
        pieces.append(" *" + " +".join(words) + " *\n")
    return re.compile("".join(pieces))


def test_the_examples_of_the_document(machine: Machine) -> None:
    count = 0
    for block in blocks("console"):
        for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            printed = machine.run(command).rstrip("\n")
            assert pattern(machine.here(expected)).fullmatch(printed + "\n" * bool(printed)), (
                command,
                printed,
            )
            count += 1
    assert count >= 25


def test_the_settings_for_three_machines_are_right(tmp_path: Path) -> None:
    (text,) = (each for each in blocks("toml") if each.startswith("# /etc"))
    file = tmp_path / "zkserver.toml"
    file.write_text(text)
    config, core_config = load_config(
        (ServerConfig, CoreConfig), ["--config", str(file)], {}, "ZKSERVER_"
    )
    assert core_config.server_id == 1
    assert [each.host for each in config.members] == ["zk1.example", "zk2.example", "zk3.example"]
