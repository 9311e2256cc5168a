"""Fuzz the decoder of ZooKeeper's client protocol, and the core behind it.

python -m tests.fuzz --inputs 10000000               the decoder, ten million inputs
python -m tests.fuzz --inputs 100000 --core          with a core behind it
python -m tests.fuzz --seed 17 --inputs 64 --core    one block again
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from .jute import BLOCK, fuzz

_REPORT_INPUTS = BLOCK * 5000


def main() -> int:
    """Play the inputs; the exit status is 1 after the first that breaks a rule."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--inputs", type=int, default=100_000, help="how many")
    options.add_argument("--seed", type=int, default=0, help="of the first block")
    options.add_argument("--core", action="store_true", help="with a core behind the decoder")
    found = options.parse_args()
    outcomes: Counter[str] = Counter()
    started = time.perf_counter()
    seed, left = found.seed, found.inputs
    while left:
        count = min(left, _REPORT_INPUTS)
        outcomes += fuzz(seed, count, with_core=found.core)
        seed, left = seed + -(-count // BLOCK), left - count
        seconds = time.perf_counter() - started
        print(f"{outcomes['inputs']:,} inputs, {outcomes['inputs'] / seconds:,.0f}/s", flush=True)
    for outcome, count in sorted(outcomes.items()):
        print(f"  {outcome:28} {count:12,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
