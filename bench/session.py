"""One benchmark run: options, alternating pairs, the table, the lines that are kept.

The rule of every script here: ours and the original run in turns, A B B A A B ..., and what is
reported is the median of the ratios of those pairs. Figures of different runs are never compared.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from . import machine, originals
from .processes import NoFigureError

HERE: Final = Path(__file__).resolve().parent
RESULTS: Final = HERE / "results"
Figures = dict[str, float]
"""What one measurement gave, by name."""
Measure = Callable[[], Figures]


class Wanted(NamedTuple):
    """A claim about one figure: a ratio to the original's, or a value of its own."""

    bound: float
    at_most: bool = False
    absolute: bool = False

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}{'' if self.absolute else ' ×'}"

    def holds(self, value: float) -> bool:
        """Whether a value is good enough."""
        return value <= self.bound if self.at_most else value >= self.bound


class Row(NamedTuple):
    """A line of the table."""

    what: str
    unit: str
    ours: list[float]
    theirs: list[float]
    """Empty where there is nothing to compare with; else pair by pair as `ours`."""
    wanted: Wanted | None = None

    def ratios(self) -> list[float]:
        """Ours to theirs, pair by pair."""
        if not self.theirs:
            return []
        return [a / b if b else math.inf for a, b in zip(self.ours, self.theirs, strict=True)]

    def reached(self) -> bool | None:
        """Whether the claim holds; None where there is none or nothing to decide it with."""
        if self.wanted is None:
            return None
        if self.wanted.absolute:
            return self.wanted.holds(statistics.median(self.ours))
        return self.wanted.holds(statistics.median(self.ratios())) if self.theirs else None


class Pairs(NamedTuple):
    """Measurements of both sides, pair by pair."""

    ours: list[Figures]
    theirs: list[Figures]

    def row(
        self,
        what: str,
        unit: str,
        name: str,
        wanted: Wanted | None = None,
        *,
        theirs_name: str | None = None,
    ) -> Row:
        """A line of the table about one figure; the original's may have another name."""
        theirs = [figures[theirs_name or name] for figures in self.theirs]
        return Row(what, unit, [figures[name] for figures in self.ours], theirs, wanted)


class Session:
    """A run of one script, in a scratch directory that goes away with it."""

    def __init__(self, title: str, arguments: argparse.Namespace, names: list[str]) -> None:
        self.title = title
        self.arguments = arguments
        self.missing = originals.missing(arguments, names)
        self.rows: list[Row] = []
        self.notes: list[str] = []
        """What a reader must know about the figures."""
        base = Path(arguments.scratch)
        base.mkdir(parents=True, exist_ok=True)
        self.directory = Path(tempfile.mkdtemp(prefix="run-", dir=base))
        self._before = machine.worth(self.directory)
        self._stamp = {
            "script": sys.argv[0].rpartition("/")[2],
            "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "commit": _commit(),
            "machine": self._before._asdict(),
        }
        print(f"# {title}\nmachine: {self._before}", flush=True)
        for each in self.missing:
            print(f"missing: {each}; ours alone", flush=True)

    def __enter__(self) -> Self:
        # So that a run that is ended takes its daemons and JVMs with it.
        signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is None:
            shutil.rmtree(self.directory, ignore_errors=True)
        else:
            print(f"logs are kept in {self.directory}", file=sys.stderr)

    def alternate(self, what: str, ours: Measure, theirs: Measure | None, pairs: int = 0) -> Pairs:
        """Run both sides in turns, the order swapped from pair to pair."""
        found = Pairs([], [])
        for number in range(pairs or self.arguments.pairs):
            sides = [("ours", ours, found.ours)]
            if theirs is not None:
                sides.append(("theirs", theirs, found.theirs))
            for side, measure, figures in sides if number % 2 == 0 else reversed(sides):
                figures.append(measure())
                self._keep({"what": what, "side": side, "pair": number, **figures[-1]})
        return found

    def add(self, *rows: Row) -> None:
        """Put lines into the table."""
        self.rows += rows

    def report(self) -> int:
        """Print the table and keep it; the exit status, 1 when a claim is not reached."""
        after = machine.worth(self.directory)
        print("\n" + table(self.rows))
        for note in self.notes:
            print(f"- {note}")
        print(f"machine before: {self._before}\nmachine after:  {after}", flush=True)
        for row in self.rows:
            self._keep(
                {
                    "row": row.what,
                    "unit": row.unit,
                    "ours": statistics.median(row.ours),
                    "theirs": statistics.median(row.theirs) if row.theirs else None,
                    "ratio": statistics.median(row.ratios()) if row.theirs else None,
                    "wanted": str(row.wanted) if row.wanted else None,
                    "reached": row.reached(),
                }
            )
        return int(any(row.reached() is False for row in self.rows))

    def _keep(self, line: dict[str, object]) -> None:
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / "results.jsonl").open("a") as file:
            file.write(json.dumps(self._stamp | line) + "\n")


def claim(
    title: str,
    arguments: argparse.Namespace,
    names: list[str],
    run: Callable[[Session, argparse.Namespace], int | None],
    needed: Sequence[str] = (),
) -> int:
    """Run a script; the exit status: 0 reached, 1 not reached, 2 there is no result.

    `names`: the originals that it compares with. `needed`: those that it cannot do without. `run`
    fills the table, or says the status itself.
    """
    try:
        with Session(title, arguments, names) as session:
            if originals.missing(arguments, needed):
                return 2
            status = run(session, arguments)
            return session.report() if status is None else status
    except (NoFigureError, OSError) as error:
        print(f"no result: {error}", file=sys.stderr)
        return 2


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that every script has."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--pairs", type=int, default=3, help="pairs per figure (%(default)s)")
    made.add_argument(
        "--scratch",
        default=str(HERE / "build" / "scratch"),
        help="where data goes: a real disk, not tmpfs (%(default)s)",
    )
    originals.add_options(made)
    return made


def table(rows: list[Row]) -> str:
    """The table, as Markdown whose columns also line up for people."""
    cells: list[tuple[str, ...]] = [("", "unit", "ours", "theirs", "ratio (range)", "wanted", "")]
    cells += [_cells(row) for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = [_line(line, widths) for line in cells]
    lines.insert(1, _line(tuple("-" * width for width in widths), widths))
    return "\n".join(lines)


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
    return f"| {' | '.join(padded)} |"


def _cells(row: Row) -> tuple[str, ...]:
    ratios = row.ratios()
    spread = (
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})" if ratios else "–"
    )
    verdict = {None: "", True: "reached", False: "SHORT"}[row.reached()]
    return (
        row.what,
        row.unit,
        _number(statistics.median(row.ours)),
        _number(statistics.median(row.theirs)) if row.theirs else "–",
        spread,
        str(row.wanted) if row.wanted else "",
        verdict,
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"
