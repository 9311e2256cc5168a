"""The memory tail: bounded per log and in total, never a view into somebody's buffer."""

from __future__ import annotations

from kbroker.storage.memory_tail import MemoryTail, TailBudget
from tests.unit.kbroker.storage_support import batch, header_of


def put(tail: MemoryTail, *offsets: int) -> None:
    data = b"".join(batch(offset) for offset in offsets)
    tail.append(data, [header_of(batch(offset)) for offset in offsets])


ONE = len(batch(0))


def test_a_log_keeps_its_newest_batches_within_its_limit() -> None:
    budget = TailBudget(10**6)
    tail = MemoryTail(3 * ONE, budget)
    for offset in range(1000):
        put(tail, offset)
    assert tail.size_bytes == budget.used_bytes == 3 * ONE
    assert not tail.holds(996)
    assert tail.holds(997)
    put(tail, *range(1000, 1004))  # larger than the limit: not worth keeping
    assert tail.size_bytes == budget.used_bytes == 0
    assert not tail.holds(1003)


def test_the_budget_takes_from_the_log_that_was_written_longest_ago() -> None:
    budget = TailBudget(4 * ONE)
    cold, warm = MemoryTail(10**6, budget), MemoryTail(10**6, budget)
    put(cold, 0)
    put(warm, 0)
    put(cold, 1)
    put(warm, 1)
    put(warm, 2)
    assert budget.used_bytes == 4 * ONE
    assert (cold.size_bytes, warm.size_bytes) == (ONE, 3 * ONE)
    assert cold.holds(1)
    assert not cold.holds(0)
    for offset in range(3, 9):
        put(warm, offset)
    assert (cold.size_bytes, warm.size_bytes) == (0, 4 * ONE)


def test_a_set_of_batches_is_cut_at_batch_boundaries() -> None:
    tail = MemoryTail(10**6, TailBudget(10**6))
    put(tail, 0, 1, 2, 3)
    put(tail, 4, 5)
    for start in range(6):
        for end in range(7):
            for limit in (1, ONE, 2 * ONE + 5, 10 * ONE):
                run = tail.read(start, limit, end, min_one_batch=True)
                count = min(max(1, limit // ONE), max(0, end - start))
                expected = b"".join(batch(offset) for offset in range(start, start + count))
                assert b"".join(run.buffers) == expected, (start, end, limit)
                assert run.end_offset == start + count
                assert run.size_bytes == len(expected)


def test_a_view_is_copied_before_its_owner_reuses_the_buffer() -> None:
    tail = MemoryTail(10**6, TailBudget(10**6))
    received = bytearray(batch(0))
    tail.append(memoryview(received), [header_of(received)])
    received[:] = bytes(len(received))
    assert b"".join(tail.read(0, 10**6, 1, min_one_batch=True).buffers) == batch(0)
