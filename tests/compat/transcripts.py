"""Scripted sessions of ZooKeeper's shells against Apache ZooKeeper and ours, set side by side.

    python -m tests.compat.transcripts                      # every script, both servers
    python -m tests.compat.transcripts zkcli-quota          # one of them
    python -m tests.compat.transcripts --show --server apache zkcli-quota

A script is a file of `scripts/`:

    # What it is about.
    server tls sasl          what its server has beside the usual, in front of all else
    session a zkCli          opens a shell (zkCli or cli_mt) under a name
    session b zkCli sasl     one of zkCli's ways to say who it is: sasl, stranger or tls
    a> create /app one       a command; {address} stands for the server's host and port
    a! NodeDataChanged /app  waits for an event with these words
    a>> addauth bad x:y      a command that ends the session: nothing follows it in its shadow

Each script has a fresh server, and after masking (see `masks`) both servers' transcripts must be
equal. The exit code says so.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import servers, shells
from .masks import Masks

SCRIPTS: Final = Path(__file__).with_name("scripts")
BROKEN_OFF: Final = "broken off"
"""Last line of a transcript that did not come to its end; it is equal to nothing."""


class ScriptError(Exception):
    """A line of a script that has no meaning."""


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a script."""

    text: str
    """As it is written."""
    verb: str
    """`server`, `session`, `run`, `send` or `wait`."""
    session: str
    argument: str


def parse(text: str) -> list[Step]:
    """The steps of a script. Raises ScriptError."""
    steps = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if found := re.fullmatch(r"server( tls)?( sasl)?", line):
            steps.append(Step(line, "server", "", line.removeprefix("server ")))
        elif found := re.fullmatch(
            r"session (\w+) (cli_mt|zkCli(?: (?:sasl|stranger|tls))?)", line
        ):
            steps.append(Step(line, "session", found[1], found[2]))
        elif found := re.fullmatch(r"(\w+)(>>|>|!) ?(.*)", line):
            verb = {">": "run", ">>": "send", "!": "wait"}[found[2]]
            steps.append(Step(line, verb, found[1], found[3]))
        else:
            raise ScriptError(f"line {number}: {line}")
    return steps


def settings(steps: list[Step]) -> servers.Settings:
    """What the script's server is told."""
    wanted = {word for step in steps if step.verb == "server" for word in step.argument.split()}
    return servers.Settings(enforce_quota=True, tls="tls" in wanted, sasl="sasl" in wanted)


def play(steps: list[Step], server: servers.Server) -> list[str]:
    """Run a script; the masked transcript."""
    masks = Masks((server.address, server.secure_address), zxid(server))
    open_shells: dict[str, shells.Shell] = {}
    transcript: list[str] = []
    try:
        for step in steps:
            transcript.append(step.text)
            try:
                lines = _play_step(step, open_shells, server)
            except shells.SilentShellError as error:
                if step.verb != "wait":
                    raise
                lines = [*str(error).splitlines(), "and not that event"]
            transcript += ["    " + line for line in masks(lines)]
        for name, shell in open_shells.items():
            transcript.append(f"{name}> quit")
            transcript += ["    " + line for line in masks(shell.quit())]
    except shells.SilentShellError as error:
        transcript += [*masks(str(error).splitlines()), BROKEN_OFF]
    finally:
        for shell in open_shells.values():
            shell.kill()
    return transcript


def _play_step(
    step: Step, open_shells: dict[str, shells.Shell], server: servers.Server
) -> list[str]:
    if step.verb == "server":
        return []
    if step.verb == "session":
        shell = open_shells[step.session] = shells.open_shell(step.argument, server)
        return shell.start()
    if step.verb == "wait":
        return open_shells[step.session].wait_for_event(*step.argument.split())
    if step.verb == "send":
        open_shells[step.session].send(step.argument)
        return []
    command = step.argument.replace("{address}", server.address)
    if command == "quit":
        shell = open_shells.pop(step.session)
        lines = shell.quit()
        shell.kill()
        return lines
    return open_shells[step.session].run(command)


def zxid(server: servers.Server) -> int:
    """The server's last transaction id, as it tells it itself."""
    found = re.search(r"Zxid: 0x([0-9a-f]+)", servers.ask(server.client_port, "srvr"))
    return int(found[1], 16) if found else 0


def main(arguments: list[str]) -> int:
    """Compare, or show, the transcripts of the scripts that are named."""
    parser = argparse.ArgumentParser(prog="python -m tests.compat.transcripts")
    parser.add_argument("scripts", nargs="*", help="names of scripts; all where none is given")
    parser.add_argument("--server", choices=servers.KINDS, help="run on this one only")
    parser.add_argument("--show", action="store_true", help="print the transcripts")
    options = parser.parse_args(arguments)
    lacking = shells.missing() or servers.missing("apache")
    if lacking is not None:
        print(f"transcripts skipped: {lacking}")
        return 0
    paths = [
        path
        for path in sorted(SCRIPTS.glob("*.txt"))
        if not options.scripts or path.stem in options.scripts
    ]
    kinds = [options.server] if options.server else ["apache", "ours"]
    different = 0
    for path in paths:
        steps = parse(path.read_text())
        transcripts = {}
        for kind in kinds:
            with servers.server(kind, settings(steps)) as server:
                transcripts[kind] = play(steps, server)
            if options.show:
                print(f"---- {path.stem} on {kind}", *transcripts[kind], sep="\n")
        if len(kinds) > 1:
            same = transcripts["apache"] == transcripts["ours"]
            same = same and transcripts["ours"][-1] != BROKEN_OFF
            different += not same
            print(f"{path.stem}: {'equal' if same else 'DIFFERENT'}, {len(steps)} steps")
            if not same:
                difference = difflib.unified_diff(
                    transcripts["apache"], transcripts["ours"], "apache", "ours", lineterm="", n=4
                )
                print(*difference, sep="\n")
    print(f"{len(paths) - different} passed, {different} failed")
    return 1 if different or not paths else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
