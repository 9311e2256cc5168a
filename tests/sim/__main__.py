"""`make sim`: many seeds of the simulated worlds; a violation prints how to replay it.

python -m tests.sim --seeds 5000                     all worlds
python -m tests.sim --only kbroker --seed 17         one history
python -m tests.sim --only ensemble --seed 17 --shrink     what of a failing one is enough to fail
"""

from __future__ import annotations

import argparse
import sys
import time

from .runner import SHARES, WITH_SCRIPTS, WORLDS, run_seed, run_seeds
from .script import Script
from .shrinking import Failure, attempt, shrink


def tell_script(name: str, seed: int, keep: str | None) -> int:
    """Shrink a seed, or live through what is kept of it; the exit status is 1 where it fails."""

    def live(script: Script) -> None:
        run_seed(name, seed, script)

    if keep is None:
        try:
            failure: Failure | None = shrink(live)
        except ValueError as error:
            print(f"{name}: seed {seed}: {error}")
            return 0
    else:
        failure = attempt(live, [int(each) for each in keep.split(",") if each])
    if failure is None:
        print(f"{name}: seed {seed} holds with what is kept")
        return 0
    print(f"{name}: seed {seed}: {failure.violation}")
    print("\n".join(map(str, failure.told)))
    kept = ",".join(map(str, failure.kept))
    print(f"  replay with: python -m tests.sim --only {name} --seed {seed} --keep {kept}")
    return 1


def main() -> int:
    """Run the seeds; the exit status is 1 after a violation."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=5000, help="how many, of each daemon")
    options.add_argument("--first", type=int, default=0, help="first seed")
    options.add_argument("--seed", type=int, help="only this one")
    options.add_argument("--shrink", action="store_true", help="leave out of --seed what can be")
    options.add_argument("--keep", help="of --seed, only these things happen: 3,17,40")
    options.add_argument("--only", choices=sorted(WORLDS))
    found = options.parse_args()
    if found.shrink or found.keep is not None:
        if found.seed is None or found.only not in WITH_SCRIPTS:
            options.error(f"needs --seed, and --only of {', '.join(sorted(WITH_SCRIPTS))}")
        return tell_script(found.only, found.seed, found.keep)
    for name in WORLDS:
        if found.only not in {None, name}:
            continue
        if found.seed is not None:
            marks = run_seed(name, found.seed)
            print(f"{name}: seed {found.seed} holds; reached {marks}")
            continue
        started, cpu_started = time.perf_counter(), time.process_time()
        count = found.seeds if found.only else max(1, found.seeds // SHARES.get(name, 1))
        outcome = run_seeds(name, range(found.first, found.first + count))
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
        for seed, violation in outcome.failures[:5]:
            print(f"{name}: seed {seed}: {violation}")
            print(f"  replay with: python -m tests.sim --only {name} --seed {seed}")
        reached = ", ".join(f"{mark} {count}" for mark, count in sorted(outcome.marks.items()))
        hours = f"{outcome.simulated_hours:.1f} simulated hours, " * (outcome.simulated_hours > 0)
        print(
            f"{name}: {count} seeds, {len(outcome.failures)} violations, {hours}{seconds:.1f} s, "
            f"{60 * count / cpu_s:,.0f} seeds per CPU-minute\n  reached: {reached}",
            flush=True,
        )
        if outcome.failures:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
