"""`make sim`: many seeds of the simulated worlds; a violation prints how to replay it.

python -m tests.sim --seeds 5000                     all worlds
python -m tests.sim --only kbroker --seed 17         one history
"""

from __future__ import annotations

import argparse
import sys
import time

from .runner import SHARES, WORLDS, run_seed, run_seeds


def main() -> int:
    """Run the seeds; the exit status is 1 after a violation."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=5000, help="how many, of each daemon")
    options.add_argument("--first", type=int, default=0, help="first seed")
    options.add_argument("--seed", type=int, help="only this one")
    options.add_argument("--only", choices=sorted(WORLDS))
    found = options.parse_args()
    for name in WORLDS:
        if found.only not in {None, name}:
            continue
        if found.seed is not None:
            marks = run_seed(name, found.seed)
            print(f"{name}: seed {found.seed} holds; reached {marks}")
            continue
        started = time.perf_counter()
        count = found.seeds if found.only else max(1, found.seeds // SHARES.get(name, 1))
        outcome = run_seeds(name, range(found.first, found.first + count))
        seconds = time.perf_counter() - started
        for seed, violation in outcome.failures[:5]:
            print(f"{name}: seed {seed}: {violation}")
            print(f"  replay with: python -m tests.sim --only {name} --seed {seed}")
        reached = ", ".join(f"{mark} {count}" for mark, count in sorted(outcome.marks.items()))
        hours = f"{outcome.simulated_hours:.1f} simulated hours, " * (outcome.simulated_hours > 0)
        print(
            f"{name}: {count} seeds, {len(outcome.failures)} violations, {hours}{seconds:.1f} s, "
            f"{60 * count / seconds:,.0f} seeds per CPU-minute\n  reached: {reached}",
            flush=True,
        )
        if outcome.failures:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
