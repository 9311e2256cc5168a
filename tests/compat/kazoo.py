"""kazoo's own test suite against zkserver, or against Apache ZooKeeper.

    python -m tests.compat.kazoo                         # all that must pass, on ours
    python -m tests.compat.kazoo --quick                 # a part of it, under two minutes
    python -m tests.compat.kazoo -k lock                 # pytest's selection
    python -m tests.compat.kazoo --server apache --all   # every test; how the list was made
    python -m tests.compat.kazoo --server apache --all --record
    python -m tests.compat.kazoo --servers 3             # an ensemble, also with each of the above

`kazoo-3.8-standalone.txt` names the tests that pass against one standalone Apache ZooKeeper 3.8,
and `kazoo-3.8-ensemble.txt` those that pass against three, which the suite stops and starts;
they must pass on ours too, but for `kazoo-exceptions.txt`, where each name has a reason beside it.
A test that fails runs once more, alone, and both outcomes are told: the suite has races of its own.
The suite runs in an environment of its own, `.venv-kazoo`, made at first use.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from . import servers

HERE: Final = Path(__file__).parent
STANDALONE: Final = HERE / "kazoo-3.8-standalone.txt"
ENSEMBLE: Final = HERE / "kazoo-3.8-ensemble.txt"
EXCEPTIONS: Final = HERE / "kazoo-exceptions.txt"
REQUIREMENTS: Final = HERE / "requirements.txt"
ENVIRONMENT: Final = servers.ROOT / ".venv-kazoo"
TEST_SECONDS: Final = 180
"""As upstream: a test that takes longer has failed."""
QUICK: Final = (
    "test_client or test_connection or test_sasl or test_counter or test_lease or test_barrier "
    "or test_election or test_party or test_queue or test_exceptions or test_security"
)
"""What a change is checked with: most operations, SASL, TLS, and no test that waits for long."""


def expected(servers: int) -> Path:
    """The file that names the tests which pass against so many servers of Apache ZooKeeper 3.8."""
    return STANDALONE if servers == 1 else ENSEMBLE


def exceptions() -> dict[str, str]:
    """Test -> reason, of those that need not pass on ours. Raises ValueError without a reason."""
    found = {}
    for line in EXCEPTIONS.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, reason = line.partition(" ")
            if not reason.strip():
                raise ValueError(f"{EXCEPTIONS.name}: no reason for {name}")
            found[name] = reason.strip()
    return found


def environment() -> Path:
    """The Python that kazoo is installed into; made anew when the requirements have changed."""
    python = ENVIRONMENT / "bin" / "python"
    mark = ENVIRONMENT / "ready"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if not mark.exists() or mark.read_text() != wanted:
        print(f"installing {REQUIREMENTS.name} into {ENVIRONMENT.name}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)
        mark.write_text(wanted)
    return python


class Runs:
    """Runs of pytest over kazoo's suite, all in one temporary directory."""

    def __init__(self, python: Path, server: str, servers: int, directory: Path) -> None:
        self._python = python
        self._server = server
        self._servers = servers
        self._directory = directory
        self._count = 0
        (directory / "pytest.ini").write_text("[pytest]\n")

    def run(self, names: Sequence[str] | None, arguments: Sequence[str]) -> dict[str, str]:
        """Test -> outcome, of the tests that are named, or of all."""
        self._count += 1
        outcomes = self._directory / f"outcomes-{self._count}"
        outcomes.touch()
        command = [
            *(str(self._python), "-m", "pytest", "-p", "tests.compat.kazoo_plugin"),
            *("-c", str(self._directory / "pytest.ini"), "--rootdir", str(self._directory)),
            *("-q", "--tb=short", "--disable-warnings", "--timeout", str(TEST_SECONDS)),
            *("--server", self._server, "--servers", str(self._servers)),
            *("--outcomes", str(outcomes)),
            *("--pyargs", "kazoo.tests", *arguments),
        ]
        if names is not None:
            only = self._directory / f"only-{self._count}"
            only.write_text("\n".join(names) + "\n")
            command += ["--only", str(only)]
        variables = {**os.environ, "PYTHONPATH": str(servers.ROOT), "COMPAT_PYTHON": sys.executable}
        variables.pop(
            "CI", None
        )  # kazoo's suite waits longer and skips differently where it is set
        subprocess.run(command, cwd=self._directory, env=variables, check=False)
        lines = outcomes.read_text().splitlines()
        return {name: outcome for outcome, name in (line.split(" ", 1) for line in lines)}


def main(arguments: list[str]) -> int:
    """Run the suite and say whether every test passed that must."""
    parser = argparse.ArgumentParser(prog="python -m tests.compat.kazoo")
    parser.add_argument("--server", choices=servers.KINDS, default="ours")
    parser.add_argument("--servers", type=int, default=1, help="an ensemble of so many")
    parser.add_argument("--quick", action="store_true", help="a part that takes a minute or two")
    parser.add_argument("-k", metavar="EXPR", help="pytest's selection among the tests")
    parser.add_argument("--all", action="store_true", help="run also what is not expected to pass")
    parser.add_argument("--record", action="store_true", help="write the list of what passes")
    options = parser.parse_args(arguments)
    lacking = servers.missing(options.server)
    if lacking is not None:
        print(f"kazoo's suite skipped: {lacking}")
        return 0
    selection = options.k or (QUICK if options.quick else None)
    names = expected(options.servers)
    wanted = None if options.all else names.read_text().split()
    excused = {} if options.all else exceptions()
    with tempfile.TemporaryDirectory(prefix="compat-kazoo-") as directory:
        runs = Runs(environment(), options.server, options.servers, Path(directory))
        outcomes = runs.run(wanted, ["-k", selection] if selection else [])
        again = sorted(name for name, outcome in outcomes.items() if outcome == "failed")
        second = runs.run(again, []) if again else {}
    return report(outcomes, second, None if selection else wanted, excused, options)


def report(
    outcomes: dict[str, str],
    second: dict[str, str],
    wanted: Sequence[str] | None,
    excused: dict[str, str],
    options: argparse.Namespace,
) -> int:
    """Print what did not pass; the exit code. `wanted` names what must have run at all."""
    final = {**outcomes, **second}
    failed = []
    for name in sorted({*final, *(wanted or ())}):
        outcome = final.get(name, "did not run")
        if outcome == "passed":
            if name in second:
                print(f"passed at the second try: {name}")
        elif name in excused:
            print(f"excused, {outcome}: {name}: {excused[name]}")
        elif outcome != "skipped" or not options.all:
            failed.append(name)
            print(f"{outcome}: {name}")
    passed = [name for name in sorted(final) if final[name] == "passed"]
    if options.record:
        expected(options.servers).write_text("".join(f"{name}\n" for name in passed))
    print(f"{len(passed)} passed, {len(failed)} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
