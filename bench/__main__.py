"""`make bench`: the load generator's self-test, then every claim.

    python -m bench [NAME ...] [options that all scripts have]

NAME is selftest, zk_throughput, zk_compatible, zk_scale, zk_ensemble, zk_outage, producer, batches
or startup; without one, all of them. Options are --pairs, --scratch and the paths of the originals
(README.md); each script has more of its own: `python -m bench.NAME --help`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from . import (
    batches,
    producer,
    selftest,
    startup,
    zk_compatible,
    zk_ensemble,
    zk_outage,
    zk_scale,
    zk_throughput,
)

CLAIMS: Final[dict[str, Callable[[list[str]], int]]] = {
    "zk_throughput": zk_throughput.main,
    "zk_compatible": zk_compatible.main,
    "zk_scale": zk_scale.main,
    "zk_ensemble": zk_ensemble.main,
    "zk_outage": zk_outage.main,
    "producer": producer.main,
    "batches": batches.main,
    "startup": startup.main,
}
NAMES: Final = ["selftest", *CLAIMS]


def main(words: list[str]) -> int:
    """Run what was asked for; the exit status is the worst."""
    if "-h" in words or "--help" in words:
        print(__doc__)
        return 0
    names = [word for word in words if word in NAMES]
    if words and not words[0].startswith("-") and words[0] not in NAMES:
        print(f"no benchmark {words[0]!r}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    rest = [word for word in words if word not in names]
    worst = 0
    for name in names or NAMES:
        print(f"\n== {name}", flush=True)
        worst = max(worst, CLAIMS[name](rest) if name in CLAIMS else selftest.main())
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
