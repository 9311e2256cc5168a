"""`make differential`: random programs against Apache ZooKeeper and ours, compared field by field.

    python -m tests.oracle.differential --operations 100000 --seed 1
    python -m tests.oracle.differential --seed 1 --program 17       one program again, and shrink it
    python -m tests.oracle.differential --ours apache               the test of the test

Every reply and every event is compared in the order in which it came, after what must differ is
put into a normal form (`normal`). A difference that is not in `known.KNOWN_DIFFERENCES` is shown as
the shortest program that still has it.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, Final

from . import apache, known
from .apache import Apache
from .ours import Ours
from .pair import Difference, Pair, Start
from .programs import Generator, Step

PROGRAM_OPERATIONS: Final = 400
MAX_SHRINK_RUNS: Final = 250
MAX_SHRINK_S: Final = 120
MAX_SHOWN_CHARS: Final = 300
MAX_SHOWN_DIFFERENCES: Final = 5

STARTS: Final[dict[str, Start]] = {"apache": Apache, "zkserver": Ours}


def main() -> int:
    """Run the programs; the exit status is 1 after a difference, 2 without an oracle."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--operations", type=int, default=100_000)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--program", type=int, help="only this program of the seed")
    options.add_argument("--ours", choices=sorted(STARTS), default="zkserver")
    options.add_argument("--keep-going", action="store_true", help="look for more differences")
    found = options.parse_args()
    problem = apache.problem()
    if problem is not None:
        print(problem)
        return 2
    with Pair(Apache, STARTS[found.ours]) as pair:
        return run(pair, found)


def run(pair: Pair, options: argparse.Namespace) -> int:
    """The programs one after another, and the report."""
    started = time.monotonic()
    differences = 0
    number = options.program or 0
    while pair.operations < options.operations:
        program = program_of(options.seed, number)
        difference = pair.run(program)
        if difference is not None:
            differences += 1
            print(f"seed {options.seed}, program {number}: a difference")
            print(
                f"  replay with: python -m tests.oracle.differential --seed {options.seed} "
                f"--program {number} --ours {options.ours}"
            )
            print(f"  {cut(difference.step)}\n    theirs  {cut(difference.theirs)}")
            print(f"    ours    {cut(difference.ours)}", flush=True)
            show(pair, *shrink(pair, program, difference))
            if not options.keep_going or differences == MAX_SHOWN_DIFFERENCES:
                break
            pair.recover()
        if options.program is not None:
            break
        number += 1
        if number % 25 == 0:
            print(f"{pair.operations:,} operations, {time.monotonic() - started:.0f} s", flush=True)
    report(pair, time.monotonic() - started, differences)
    return 1 if differences else 0


def program_of(seed: int, number: int) -> list[Step]:
    """Program `number` of a seed."""
    return Generator(f"{seed} {number}").program(PROGRAM_OPERATIONS)


def shrink(
    pair: Pair, program: list[Step], difference: Difference
) -> tuple[list[Step], Difference]:
    """Leave steps out as long as there still is a difference, within bounds."""
    runs = 0
    if difference.step_index >= 0:
        program = program[: difference.step_index + 17]
    size = max(1, len(program) // 2)
    deadline = time.monotonic() + MAX_SHRINK_S

    def may_go_on() -> bool:
        return runs < MAX_SHRINK_RUNS and time.monotonic() < deadline

    while may_go_on():
        at, shorter = 0, False
        while at < len(program) and may_go_on():
            candidate = program[:at] + program[at + size :]
            pair.recover()
            runs += 1
            found = pair.run(candidate)
            if found is None:
                at += size
            else:
                program, difference, shorter = candidate, found, True
        if size == 1 and not shorter:
            break
        size = max(1, size // 2)
    pair.recover()
    found = pair.run(program)
    return program, found or difference


def show(pair: Pair, program: list[Step], difference: Difference) -> None:
    """The transcript of a short program, to the difference."""
    print(f"  shortened to {len(program)} steps:")
    for steps, theirs, ours in pair.transcript:
        for step in steps:
            print(f"    client {step.slot}: {step.kind} {cut(step.arguments)}")
        if theirs == ours and steps:
            for _, frame in theirs:
                print(f"        both    {cut(frame)}")
        if theirs == ours:
            continue
        for _, frame in theirs:
            print(f"        theirs  {cut(frame)}")
        for _, frame in ours:
            print(f"        ours    {cut(frame)}")
    print(f"  the difference, at {cut(difference.step)}:")
    print(f"    theirs  {cut(difference.theirs)}\n    ours    {cut(difference.ours)}", flush=True)


def cut(value: Any) -> str:
    """A value on one line."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}... ({len(text)})"


def report(pair: Pair, seconds: float, differences: int) -> None:
    """How much was compared, and which known differences were met."""
    operations: dict[str, dict[str, int]] = {}
    for text, count in sorted(pair.codes.items()):
        name, _, code = text.rpartition(" ")
        operations.setdefault(name, {})[code] = count
    for name, by_code in operations.items():
        shown = ", ".join(f"{code}: {count}" for code, count in sorted(by_code.items()))
        print(f"  {name:24} {shown}")
    for each in known.KNOWN_DIFFERENCES:
        print(f"  known: {each.name}: {pair.hits[each.name]} x\n      {each.reason}")
    print(
        f"  Apache: woken up {pair.theirs.nudges} x (a request that it had forgotten), "
        f"{pair.theirs.forgotten} connections that it did not close"
    )
    print(
        f"{pair.operations:,} operations in {seconds:.0f} s against {pair.ours.name}: "
        f"{differences} differences that nothing explains"
    )


if __name__ == "__main__":
    sys.exit(main())
