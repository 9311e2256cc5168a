"""Every event once and in order, whatever the server has to tell again.

A model server has a history of transactions, each with several events. Connections end anywhere,
also between two events of one transaction, and in the middle of what is told again.
"""

from __future__ import annotations

import random

import pytest

from duolog.core import zk_resume
from duolog.core.zk_resume import Position

Event = tuple[int, tuple[int, str]]


def test_events_pass_in_order_and_none_passes_twice() -> None:
    position: Position[str] = Position(3)
    assert not position.take("old", 3, (1, "/a"), again=False)
    assert position.take("a", 4, (1, "/a"), again=False)
    assert position.take("b", 4, (3, "/a"), again=False)
    assert not position.take("a", 4, (1, "/a"), again=True)
    assert position.take("a", 4, (1, "/a"), again=False)  # one transaction did it twice
    assert position.take("c", 6, (3, "/a"), again=False)
    assert not position.take("b", 5, (3, "/a"), again=True)
    assert position.zxid == 6


def test_what_is_held_comes_in_the_order_of_transactions_without_what_was_told() -> None:
    position: Position[str] = Position(3)
    assert position.take("a", 4, (1, "/a"), again=False)
    position.hold()
    for name, zxid, key in (
        ("live", 9, (3, "/a")),
        ("a", 4, (1, "/a")),
        ("b", 4, (3, "/a")),
        ("c", 7, (3, "/a")),
        ("live", 9, (3, "/a")),
    ):
        assert not position.take(name, zxid, key, again=False)
    assert position.release(9) == ["b", "c", "live"]
    assert not position.take("live", 9, (3, "/a"), again=False)
    assert position.take("d", 10, (3, "/a"), again=False)


def test_a_transaction_that_touches_a_path_twice_is_told_whole() -> None:
    """multi(create, delete, create): leaving out doubles by value would end with a deletion."""
    keys = [(1, "/a"), (2, "/a"), (1, "/a")]
    position: Position[int] = Position(0)
    position.hold()
    for round_ in range(2):
        for at, key in enumerate(keys):
            position.take(10 * round_ + at, 5, key, again=False)
    assert position.release(5) == [0, 1, 2]


def test_a_transaction_is_told_once_though_several_chunks_tell_of_it() -> None:
    for own in range(3):
        position: Position[str] = Position(3)
        position.hold()
        for chunk in range(3):
            for name in ("x", "y", "z") if chunk == own else ("yz"[chunk % 2],):
                position.take(name, 4, (3, f"/a/{name}"), again=False, chunk=chunk)
        position.take("later x", 9, (3, "/a/x"), again=False, chunk=1)
        position.take("later y", 9, (3, "/a/y"), again=False, chunk=1)
        if own < 1:
            position.take("later y", 9, (3, "/a/y"), again=False, chunk=2)
        assert position.release(9, own) == ["x", "y", "z", "later x", "later y"]


def test_what_is_held_is_bounded_and_the_loss_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zk_resume, "MAX_HELD_EVENTS", 2)
    position: Position[int] = Position(0)
    position.hold()
    for zxid in range(1, 4):
        position.take(zxid, zxid, (3, "/a"), again=False)
    assert position.overflowed
    assert position.release(3) == [1, 2]


@pytest.mark.parametrize("seed", range(300))
def test_random_reconnects_lose_nothing_and_double_nothing(seed: int) -> None:
    rng = random.Random(seed)
    history: list[Event] = []
    zxid = 0

    def grow() -> None:
        nonlocal zxid
        zxid += rng.randrange(1, 3)
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            key = (rng.randrange(1, 4), rng.choice("ab"))
            if not history or history[-1] != (zxid, key):
                history.append((zxid, key))

    position: Position[Event] = Position(0)
    told: list[Event] = []
    sure = 0  # the client's `told_zxid`
    sent = 0  # events of the history that this connection has carried

    def deliver(event: Event) -> None:
        if position.take(event, *event, again=False):
            told.append(event)

    for _ in range(40):
        action = rng.random()
        if action < 0.6:
            grow()
            upto = len(history)
            if rng.random() < 0.3:  # the connection ends between two events
                upto = rng.randrange(sent, upto + 1)
            for event in history[sent:upto]:
                deliver(event)
                sure = max(sure, event[0] - 1)
            sent = upto
            if upto < len(history) or rng.random() < 0.2:
                while True:  # reconnect, perhaps several times
                    grow()
                    position.hold()
                    past = [event for event in history if event[0] > sure]
                    if rng.random() < 0.4:
                        for event in past[: rng.randrange(len(past) + 1)]:
                            deliver(event)
                        continue
                    live = [event for event in past if event[0] == zxid]
                    for event in (live if rng.random() < 0.5 else []) + past:
                        deliver(event)
                    told += position.release(zxid)
                    sure = zxid
                    sent = len(history)
                    break
        elif sent == len(history):
            sure = zxid  # a reply shows it
    for event in history[sent:]:
        deliver(event)
    assert told == history
