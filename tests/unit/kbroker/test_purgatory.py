"""Operations that wait are completed exactly once, by whichever comes first."""

from __future__ import annotations

import random

import pytest

from kbroker.core.purgatory import Purgatory


class Waiting:
    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.have = 0
        self.outcome: list[str] = []

    def try_complete(self) -> bool:
        if self.have < self.wanted:
            return False
        self.outcome.append("completed")
        return True

    def on_expired(self) -> None:
        self.outcome.append("expired")


def test_a_change_of_any_of_its_keys_completes_an_operation() -> None:
    purgatory = Purgatory(10)
    operation = Waiting(1)
    purgatory.watch(operation, ["a", "b"], 100)
    assert purgatory.on_changed("b") == 0
    operation.have = 1
    assert purgatory.on_changed("c") == 0
    assert purgatory.on_changed("b") == 1
    assert purgatory.on_changed("a") == 0
    assert purgatory.expire(1_000) == 0
    assert operation.outcome == ["completed"]
    assert len(purgatory) == 0
    assert purgatory.deadline_ms() is None


def test_time_running_out_answers_and_forgets() -> None:
    purgatory = Purgatory(10)
    first, second = Waiting(1), Waiting(1)
    purgatory.watch(second, ["a"], 200)
    purgatory.watch(first, ["a"], 100)
    assert purgatory.deadline_ms() == 100
    assert purgatory.expire(99) == 0
    assert purgatory.expire(100) == 1
    assert (first.outcome, second.outcome) == (["expired"], [])
    first.have = second.have = 1
    assert purgatory.on_changed("a") == 1
    assert (first.outcome, second.outcome) == (["expired"], ["completed"])


def test_it_says_when_no_further_operation_may_wait() -> None:
    purgatory = Purgatory(1)
    assert not purgatory.is_full
    purgatory.watch(Waiting(1), ["a"], 1)
    assert purgatory.is_full


def test_random_programs_complete_every_operation_exactly_once() -> None:
    for seed in range(30):
        rng = random.Random(seed)
        purgatory = Purgatory(1_000)
        operations: list[Waiting] = []
        now_ms = 0
        for _ in range(400):
            now_ms += rng.randrange(3)
            if rng.random() < 0.5:
                operation = Waiting(rng.randint(1, 3))
                operations.append(operation)
                keys = rng.sample("abcdef", rng.randint(1, 3))
                purgatory.watch(operation, keys, now_ms + rng.randrange(20))
            for operation in rng.sample(operations, min(3, len(operations))):
                operation.have += 1
            purgatory.on_changed(rng.choice("abcdef"))
            purgatory.expire(now_ms)
            deadline_ms = purgatory.deadline_ms()
            assert deadline_ms is None or deadline_ms > now_ms
        purgatory.expire(now_ms + 1_000)
        assert all(len(operation.outcome) == 1 for operation in operations)
        assert len(purgatory) == 0


class Broken(Waiting):
    def try_complete(self) -> bool:
        raise ValueError("our bug")

    def on_expired(self) -> None:
        raise ValueError("our bug")


def test_an_operation_that_raises_is_not_asked_again_and_costs_no_other_its_turn() -> None:
    purgatory = Purgatory(10)
    others = [Waiting(0), Waiting(0)]
    for operation in (others[0], Broken(1), others[1]):
        purgatory.watch(operation, ["a"], 100)
    with pytest.raises(ValueError, match="our bug"):
        purgatory.on_changed("a")
    assert [each.outcome for each in others] == [["completed"], ["completed"]]
    assert purgatory.on_changed("a") == 0
    assert len(purgatory) == 0


def test_an_operation_that_raises_when_its_time_is_up_costs_no_other_its_answer() -> None:
    purgatory = Purgatory(10)
    others = [Waiting(1), Waiting(1)]
    for operation in (others[0], Broken(1), others[1]):
        purgatory.watch(operation, ["a"], 100)
    with pytest.raises(ValueError, match="our bug"):
        purgatory.expire(100)
    assert [each.outcome for each in others] == [["expired"], ["expired"]]
    assert len(purgatory) == 0
