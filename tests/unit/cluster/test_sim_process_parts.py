"""What stands for the disk thread in simulated processes does what that does."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from duolog_cluster.sim.process_parts import DiskPace, SimExecutor
from duolog_cluster.sim.scheduler import Scheduler
from duolog_protocol.errors import CorruptRecordError, DiskFullError


def test_the_owner_is_told_every_end_in_order_also_of_work_that_fails() -> None:
    scheduler = Scheduler()
    told: list[Any] = []
    errors = (DiskFullError("no space"), CorruptRecordError("log", 0, "cut"), OSError(5, "EIO"))

    def work(number: int) -> int:
        told.append(f"work {number}")
        if number < len(errors):
            raise errors[number]
        return number

    def job(number: int) -> Callable[[], int]:
        return lambda: work(number)

    def done(result: int | None, error: BaseException | None) -> None:
        told.append(result if error is None else error)

    executor = SimExecutor(
        scheduler.after, random.Random(1), DiskPace(), lambda: told.append("worked")
    )
    for number in range(4):
        executor.submit(job(number), done)
    assert (executor.pending, told) == (4, [])
    scheduler.run_for(1_000)
    assert executor.pending == 0
    ends = (*errors, 3)
    assert told == [x for at in range(4) for x in (f"work {at}", "worked", ends[at])]
