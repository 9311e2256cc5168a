"""Proof that the ensemble's world finds bugs: each mutant breaks one rule, and has to die of it.

python -m tests.sim.mutants --seeds 200               all mutants: in how many seeds each died
python -m tests.sim.mutants --only NAME --seed 17     one history of one mutant, to its violation
python -m tests.sim.mutants --only NAME --seed 17 --shrink     what of it is enough to find the bug

A mutant is a context manager that patches one behaviour; reference reliability §6 has the shares of
seeds in which such mutants died elsewhere: what orders durability needs aimed crash points, and
many seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from unittest import mock

from duolog_protocol.errors import DiskFullError
from zkserver.core.peer_events import AdoptEpoch, LogRefused
from zkserver.core.quorum import Quorums
from zkserver.server.peer_disk import PeerDisk
from zkserver.storage.epoch_files import EpochFiles
from zkserver.storage.txnlog import TxnLog

from .core_mutants import CORE_MUTANTS, CoreMutant
from .directed import SCENARIOS
from .ensemble_world import EnsembleWorld
from .shrinking import Failure, shrink
from .snapshot_mutants import SNAPSHOT_MUTANTS

MUTANTS: Final[dict[str, Callable[[], contextlib.AbstractContextManager[Any]]]] = {}


TABLE_HEAD: Final = (
    "# Mutants of the ensemble's core, and how they died",
    "",
    "Each row is a known bug of ZooKeeper or a broken invariant, put into the code by",
    "`tests/sim/mutants.py`; written by `python -m tests.sim.mutants --table`. Row names are those",
    "of the bug catalogue in the tests' comments: Z-n is an issue of ZooKeeper.",
    "",
    "| mutant | origin | died in | found by (seeds) | found in a story of `directed.py` |",
    "|---|---|---|---|---|",
)


def mutant(function: Callable[[], Iterator[None]]) -> Callable[[], Iterator[None]]:
    """Register a generator function that patches, yields once, and restores."""
    MUTANTS[function.__name__] = contextlib.contextmanager(function)
    return function


@mutant
def accepted_epoch_not_durable() -> Iterator[None]:
    """The promise is in memory only (Z-2307)."""

    def accept(self: EpochFiles, epoch: int) -> None:
        self.accepted_epoch = epoch

    with mock.patch.object(EpochFiles, "accept", accept):
        yield


@mutant
def current_epoch_not_durable() -> Iterator[None]:
    """The adopted epoch is in memory only."""

    def adopt(self: EpochFiles, epoch: int) -> None:
        self.current_epoch = epoch

    with mock.patch.object(EpochFiles, "adopt", adopt):
        yield


@mutant
def append_not_synced() -> Iterator[None]:
    """An append is told to be durable before it is (Z-3911)."""

    def append_durably(self: TxnLog, records: list[bytes], last_zxid: int) -> None:
        self.append(records, last_zxid)
        self._synced_position = self._position
        self.durable_zxid = self.last_zxid

    with mock.patch.object(TxnLog, "append_durably", append_durably):
        yield


@mutant
def refused_work_goes_on() -> Iterator[None]:
    """What was asked for behind a write that a full disk has refused is done all the same."""

    def appended(self: PeerDisk, first_zxid: int, *rest: Any) -> None:
        if isinstance(rest[-1], DiskFullError):
            self._ended(LogRefused(first_zxid))
        else:
            real(self, first_zxid, *rest)

    real = PeerDisk._appended
    with mock.patch.object(PeerDisk, "_appended", appended):
        yield


@mutant
def epoch_overtakes_history() -> Iterator[None]:
    """`current_epoch` goes ahead of the history that was asked for before it (ZR6, Z-4643)."""

    def put(self: PeerDisk, effect: Any) -> None:
        if isinstance(effect, AdoptEpoch):
            self._queue.appendleft(effect)
            self._go_on()
        else:
            real(self, effect)

    real = PeerDisk.put
    with mock.patch.object(PeerDisk, "put", put):
        yield


@mutant
def quorum_one_too_small() -> Iterator[None]:
    """Half of the voters, or one less than a majority, decide."""

    def has_quorum(self: Quorums, server_ids: Any) -> bool:
        return len(self.voters.intersection(server_ids)) >= len(self.voters) // 2

    with mock.patch.object(Quorums, "has_quorum", has_quorum):
        yield


MUTANTS.update({each.name: each for each in CORE_MUTANTS + SNAPSHOT_MUTANTS})


def run_mutant(name: str, seeds: range, *, until: int = 0) -> Counter[str]:
    """Violations by name, over the seeds; the rest survived. `until`: ends after so many."""
    found: Counter[str] = Counter()
    with MUTANTS[name]():
        for seed in seeds:
            try:
                EnsembleWorld(seed).simulate()
            except Exception as violation:
                found[str(violation).partition(":")[0]] += 1
                if until and found.total() >= until:
                    break
    return found


def shrink_mutant(name: str, seed: int) -> Failure:
    """What of a seed that kills a mutant is enough to. Raises ValueError if it survives."""
    with MUTANTS[name]():
        return shrink(lambda script: EnsembleWorld(seed, script=script).simulate())


def run_directed(name: str) -> Counter[str]:
    """Violations by name, over the stories of `directed`, and in which of them they were."""
    found: Counter[str] = Counter()
    with MUTANTS[name]():
        for scenario, tell in SCENARIOS.items():
            try:
                tell()
            except Exception as violation:
                found[f"{str(violation).partition(':')[0]} in `{scenario}`"] += 1
    return found


def main() -> int:
    """Run the mutants; the exit status is 1 where one survived all seeds."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=100, help="how many, of each mutant")
    options.add_argument("--first", type=int, default=0, help="first seed")
    options.add_argument("--seed", type=int, help="only this one; raises what it violates")
    options.add_argument("--shrink", action="store_true", help="leave out of --seed what can be")
    options.add_argument("--only", choices=sorted(MUTANTS))
    options.add_argument("--table", type=Path, help="write a Markdown table there, too")
    given = options.parse_args()
    survivors = 0
    rows: list[str] = []
    for name in MUTANTS:
        if given.only not in {None, name}:
            continue
        if given.shrink:
            failure = shrink_mutant(name, given.seed or 0)
            print(f"{name}: {failure.violation}", *failure.told, sep="\n")
            continue
        if given.seed is not None:
            with MUTANTS[name]():
                EnsembleWorld(given.seed).simulate()
            print(f"{name}: survived seed {given.seed}")
            continue
        started = time.perf_counter()
        found = run_mutant(name, range(given.first, given.first + given.seeds))
        directed = run_directed(name)
        died = sum(found.values())
        survivors += died == 0 and not directed
        seconds = time.perf_counter() - started
        reasons = ", ".join(f"{reason} {count}" for reason, count in found.most_common())
        told = next(iter(directed), "")
        if len(directed) > 1:
            told += f", and in {len(directed) - 1} more"
        print(f"{name}: died in {died} of {given.seeds} seeds, {seconds:.0f} s: {reasons}; {told}")
        rows.append(f"| {name} | {_origin(name)} | {died} of {given.seeds} | {reasons} | {told} |")
    if given.table is not None:
        given.table.write_text("\n".join([*TABLE_HEAD, *rows, ""]))
    return 1 if survivors else 0


def _origin(name: str) -> str:
    made = MUTANTS[name]
    return made.origin if isinstance(made, CoreMutant) else (made.__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
