"""Runs the examples of the guide as they are printed, against Apache ZooKeeper and ours.

    python -m tests.compat.guide               # what this machine has the tools for
    python -m tests.compat.guide --server ours -k go

An example is a fenced block in a language that `RUNNERS` knows; the `text` block after it is what
it prints, line for line. A `console` block holds both: its commands begin with `$`. The address
`127.0.0.1:2181` stands for the server's. What lacks its tool is named, and is no failure.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import servers, shells
from .kazoo import environment

GUIDE: Final = servers.ROOT / "docs" / "point-your-zookeeper-program-at-zkserver.md"
PRINTED_ADDRESS: Final = "127.0.0.1:2181"
SECONDS: Final = 300
"""Longest time for one command; the first build of a Go module takes its time."""
GO_MODULE: Final = "github.com/go-zookeeper/zk@v1.0.4"
SHELL_NOISE: Final = ("SLF4J: ", "Connecting to ", "WATCHER::", "WatchedEvent ")
"""How lines of zkCli.sh begin that the guide leaves out."""
NODE_PACKAGE: Final = "node-zookeeper-client@1.1.3"


class ExampleError(Exception):
    """An example that did not do what the guide says; the message shows both."""


@dataclass(frozen=True, slots=True)
class Example:
    """One example of the guide."""

    language: str
    program: str
    output: tuple[str, ...]


def examples(text: str) -> list[Example]:
    """The examples of a document, in order."""
    fences = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    found = []
    for position, (language, program) in enumerate(fences):
        if language == "console":
            found.append(Example(language, program, ()))
        elif language in RUNNERS:
            following = fences[position + 1] if position + 1 < len(fences) else ("", "")
            if following[0] != "text":
                raise ExampleError(f"no text block after the {language} example")
            found.append(Example(language, program, tuple(following[1].splitlines())))
    return found


def run_command(arguments: list[str], directory: Path) -> list[str]:
    """The lines that a command prints. Raises ExampleError when it fails."""
    ended = subprocess.run(
        arguments,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    if ended.returncode != 0:
        raise ExampleError(f"{shlex.join(arguments)}\n{ended.stdout}{ended.stderr}")
    return ended.stdout.splitlines()


# ---- one runner for each language: what it lacks, or the lines that the program printed ----------


def run_python(program: str, directory: Path) -> list[str]:
    """In the environment that kazoo's suite runs in."""
    (directory / "example.py").write_text(program)
    return run_command([str(environment()), "example.py"], directory)


def run_java(program: str, directory: Path) -> list[str]:
    """A single source file, which Java compiles and runs."""
    (directory / "First.java").write_text(program)
    return run_command(["java", "-cp", str(servers.APACHE_JAR), "First.java"], directory)


def run_go(program: str, directory: Path) -> list[str]:
    """A module of its own."""
    (directory / "main.go").write_text(program)
    run_command(["go", "mod", "init", "example"], directory)
    run_command(["go", "get", GO_MODULE], directory)
    return run_command(["go", "run", "."], directory)


def run_javascript(program: str, directory: Path) -> list[str]:
    """A package of its own."""
    (directory / "example.js").write_text(program)
    (directory / "package.json").write_text('{"private": true}\n')
    run_command(["npm", "install", "--no-audit", "--no-fund", NODE_PACKAGE], directory)
    return run_command(["node", "example.js"], directory)


@dataclass(frozen=True, slots=True)
class Runner:
    """How to run a language's examples, and the programs that it takes."""

    run: Callable[[str, Path], list[str]]
    programs: tuple[str, ...]


RUNNERS: Final = {
    "python": Runner(run_python, ()),
    "java": Runner(run_java, ("java",)),
    "go": Runner(run_go, ("go",)),
    "javascript": Runner(run_javascript, ("node", "npm")),
}


def lacks(language: str) -> str | None:
    """What this machine lacks to run the examples of a language."""
    if language == "console":
        return shells.missing()
    for program in RUNNERS[language].programs:
        if shutil.which(program) is None:
            return f"no {program}"
    if language == "java" and not servers.APACHE_JAR.exists():
        return f"no {servers.APACHE_JAR}"
    return None


def check(example: Example, address: str) -> None:
    """Run an example against a server. Raises ExampleError."""
    program = example.program.replace(PRINTED_ADDRESS, address)
    if example.language == "console":
        check_console(program)
        return
    with tempfile.TemporaryDirectory(prefix="compat-guide-") as directory:
        printed = RUNNERS[example.language].run(program, Path(directory))
    if tuple(printed) != example.output:
        raise ExampleError(f"the guide says {list(example.output)}, it printed {printed}")


def check_console(text: str) -> None:
    """Each command prints its lines, beside what the shell says about itself."""
    for part in text.split("$ ")[1:]:
        command, *expected = part.splitlines()
        arguments = ["sh", "-c", f"{command.replace('zkCli.sh', str(shells.ZKCLI), 1)} 2>&1"]
        printed = [
            line
            for line in run_command(arguments, servers.ROOT)
            if line and not line.startswith(SHELL_NOISE)
        ]
        if printed != expected:
            raise ExampleError(f"{command}: the guide says {expected}, it printed {printed}")


def main(arguments: list[str]) -> int:
    """Run the examples; the exit code says whether all that could run did as the guide says."""
    parser = argparse.ArgumentParser(prog="python -m tests.compat.guide")
    parser.add_argument("--server", choices=servers.KINDS, help="run on this one only")
    parser.add_argument("-k", metavar="LANGUAGE", help="this language only")
    options = parser.parse_args(arguments)
    passed = failed = 0
    for kind in [options.server] if options.server else servers.KINDS:
        lacking = servers.missing(kind)
        if lacking is not None:
            print(f"guide on {kind} skipped: {lacking}")
            continue
        with servers.server(kind) as server:
            for example in examples(GUIDE.read_text()):
                if options.k not in (None, example.language):
                    continue
                lacking = lacks(example.language)
                if lacking is not None:
                    print(f"guide, {example.language} skipped: {lacking}")
                    continue
                try:
                    check(example, server.address)
                    passed += 1
                    print(f"guide, {example.language} on {kind}: as printed")
                except (ExampleError, subprocess.TimeoutExpired) as error:
                    failed += 1
                    print(f"guide, {example.language} on {kind}: FAILED\n{error}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
