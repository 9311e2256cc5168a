"""Runs the model of Kafka against Apache ZooKeeper and ours, and sets what it saw side by side.

    python -m tests.compat.workload
    python -m tests.compat.workload --server ours

The model is `kafka_model`; it runs in the environment of kazoo's suite (`.venv-kazoo`). The exit
code says whether it came to its end on both and saw the same.
"""

from __future__ import annotations

import argparse
import difflib
import os
import subprocess
import sys
from typing import Final

from . import servers
from .kazoo import environment

SECONDS: Final = 300


def play(kind: str) -> tuple[int, list[str]]:
    """The model's exit code and its lines, on a fresh server of that kind."""
    with servers.server(kind) as server:
        ended = subprocess.run(
            [str(environment()), "-m", "tests.compat.kafka_model", server.address],
            cwd=servers.ROOT,
            env={**os.environ, "PYTHONPATH": str(servers.ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    return ended.returncode, ended.stdout.splitlines()


def main(arguments: list[str]) -> int:
    """Run it on one server, or on both and compare."""
    parser = argparse.ArgumentParser(prog="python -m tests.compat.workload")
    parser.add_argument("--server", choices=servers.KINDS, help="run on this one only")
    options = parser.parse_args(arguments)
    lacking = servers.missing("apache")
    kinds = [options.server] if options.server else ["apache", "ours"]
    if lacking is not None and "apache" in kinds:
        print(f"no comparison with Apache ZooKeeper: {lacking}")
        kinds.remove("apache")
    seen: dict[str, list[str]] = {}
    failed = 0
    for kind in kinds:
        code, seen[kind] = play(kind)
        failed += code != 0
        print(f"the model of Kafka on {kind}: {'to the end' if code == 0 else 'FAILED'}")
        if code != 0 or len(kinds) == 1:
            print(*seen[kind], sep="\n")
    if len(seen) == 2 and not failed and seen["apache"] != seen["ours"]:
        failed += 1
        print(*difflib.unified_diff(seen["apache"], seen["ours"], "apache", "ours", lineterm=""))
    print(f"{len(kinds) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
