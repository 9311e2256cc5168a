"""Everything that compares zkserver with Apache ZooKeeper through other people's clients.

    python -m tests.compat                 # transcripts, the model of Kafka, the guide's examples
    python -m tests.compat guide workload  # some of them

kazoo's suite has a command of its own, `python -m tests.compat.kazoo`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from . import guide, transcripts, workload

PARTS: Final[dict[str, Callable[[list[str]], int]]] = {
    "transcripts": transcripts.main,
    "workload": workload.main,
    "guide": guide.main,
}


def main(names: list[str]) -> int:
    """Run the parts that are named, or all; the exit code says whether each was content."""
    unknown = set(names) - PARTS.keys()
    if unknown:
        print(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
        return 2
    results = []
    for name, run in PARTS.items():
        if not names or name in names:
            print(f"== {name}", flush=True)
            results.append(run([]))
    return 1 if any(results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
