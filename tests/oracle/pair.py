"""Two servers that run the same programs in lockstep, and the comparison of what they say."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, Self

from .jute import JuteError, Reply
from .jute_client import Silence
from .known import KNOWN_DIFFERENCES, Situation
from .normal import Implausible
from .programs import ALONE, Step, has_null, has_quota
from .side import Said, Side, too_large

MAX_BATCH: Final = 16


class Server(Protocol):
    """What `Pair` needs of a server; it ends with its `with` block."""

    name: str
    port: int

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


Start = Callable[[Path], Server]


class Difference(NamedTuple):
    """The first thing that nothing explains."""

    step_index: int
    """Of the first step of the batch; -1 after the program."""
    step: Step | None
    theirs: Any
    ours: Any

    def __str__(self) -> str:
        return f"{self.step}\n    theirs: {self.theirs}\n    ours:   {self.ours}"


class Transcript(NamedTuple):
    """What both said to the steps of one batch."""

    steps: list[Step]
    theirs: Said
    ours: Said


class Pair:
    """Apache ZooKeeper and another server."""

    def __init__(self, start_theirs: Start, start_ours: Start) -> None:
        self._starts = (start_theirs, start_ours)
        self._stack = ExitStack()
        self.hits: Counter[str] = Counter()
        self.operations = 0
        self.transcript: list[Transcript] = []
        """Of the program that runs, or ran last."""
        self._program: list[Step] = []
        self.codes: Counter[str] = Counter()
        """How often which operation ended how, at theirs."""

    def __enter__(self) -> Self:
        self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def restart(self) -> None:
        """Begin with two new servers."""
        self._stack.close()
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        servers = [
            self._stack.enter_context(start(directory / f"server-{index}"))
            for index, start in enumerate(self._starts)
        ]
        self.theirs, self.ours = (Side(server.name, server.port) for server in servers)
        self._stack.callback(self.theirs.close)
        self._stack.callback(self.ours.close)

    # ---- one program ---------------------------------------------------------------------------

    def run(self, program: list[Step]) -> Difference | None:
        """Run a program on both from an empty tree; both are swept afterwards."""
        self.transcript = []
        self._program = program
        index = 0
        for batch in batches(program):
            found = self._run_batch(batch)
            if found is not None:
                return found._replace(step_index=index)
            index += len(batch)
        return self._finish()

    def _run_batch(self, batch: list[Step]) -> Difference | None:
        possible = [(self.theirs.possible(step), self.ours.possible(step)) for step in batch]
        if possible[0][0] != possible[0][1]:
            return Difference(0, batch[0], *possible[0])
        if not possible[0][0]:
            return None
        self.operations += len(batch)
        try:
            self.theirs.send(batch)
            self.ours.send(batch)
            theirs, ours = self.theirs.finish(), self.ours.finish()
        except (Silence, JuteError, Implausible, OSError) as error:
            return Difference(0, batch[0], f"{type(error).__name__}: {error}", "")
        return self._compare(batch, theirs, ours)

    def _finish(self) -> Difference | None:
        for work in (Side.flush_events, Side.end_sessions, Side.sweep):
            try:
                theirs, ours = work(self.theirs), work(self.ours)
            except (Silence, JuteError, Implausible, OSError) as error:
                return Difference(-1, None, f"{type(error).__name__}: {error}", "")
            found = self._compare([], theirs, ours)
            if found is not None:
                return found
        return None

    def recover(self) -> None:
        """After a difference: empty both, or start again where they do not come together."""
        try:
            for side in (self.theirs, self.ours):
                side.end_sessions()
                side.sweep()
                side.normaliser.begin_at(side.control.call("ping").zxid)
            self.transcript = []
            if self._finish() is None:
                return
        except (Silence, JuteError, Implausible, OSError, AssertionError):
            pass
        self.restart()

    # ---- comparing -----------------------------------------------------------------------------

    def _compare(self, batch: list[Step], theirs: Said, ours: Said) -> Difference | None:
        self.transcript.append(Transcript(batch, theirs, ours))
        at = [0, 0]
        answered = 0
        while at[0] < len(theirs) or at[1] < len(ours):
            name, their_frame = theirs[at[0]] if at[0] < len(theirs) else (None, None)
            our_frame = ours[at[1]][1] if at[1] < len(ours) else None
            step = batch[min(answered, len(batch) - 1)] if batch else None
            if isinstance(their_frame, Reply):
                self.codes[f"{name} {their_frame.error}"] += 1
                answered += 1
            if their_frame == our_frame and at[0] < len(theirs) and at[1] < len(ours):
                at = [at[0] + 1, at[1] + 1]
                continue
            explained = self._explain(
                Situation(self._program, step, theirs[at[0] :], ours[at[1] :])
            )
            if explained is None:
                return Difference(0, step, their_frame, our_frame)
            at = [at[0] + explained[0], at[1] + explained[1]]
        return None

    def _explain(self, situation: Situation) -> tuple[int, int] | None:
        for known in KNOWN_DIFFERENCES:
            explained = known.explains(situation)
            if explained is not None:
                self.hits[known.name] += 1
                if known.skipped is not None:
                    self.theirs.normaliser.skip(known.skipped(situation))
                return explained
        return None


def batches(program: list[Step]) -> Iterator[list[Step]]:
    """Neighbouring requests of one slot that may be pipelined go together."""
    batch: list[Step] = []
    longest = 1 if any(has_quota(step) for step in program) else MAX_BATCH
    for step in program:
        alone = not _is_pipelined(step)
        if batch and (alone or step.slot != batch[0].slot or len(batch) == longest):
            yield batch
            batch = []
        if alone:
            yield [step]
        else:
            batch.append(step)
    if batch:
        yield batch


def _is_pipelined(step: Step) -> bool:
    alone = too_large(step) or has_null(step)
    return step.kind == "call" and step.arguments[0] not in ALONE and not alone
