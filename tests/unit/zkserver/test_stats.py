"""Numbers for operators: tallies, quantiles, what a connection counts, how fast they come."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest

from zkserver.core.connection import Codec, Connection
from zkserver.core.tally import Tally
from zkserver.server.stats import QUANTILES, WINDOW, ConnectionStats, ServerStats, Summary
from zkserver.server.token_bucket import TokenBucket

GET = 1004
SET = 1005


def test_a_tally_keeps_count_sum_and_extremes() -> None:
    tally = Tally()
    assert (tally.count, tally.average, tally.min, tally.max) == (0, 0.0, 0, 0)
    tally.add(5, 2)
    tally.add(3)
    assert (tally.count, tally.total, tally.min, tally.max) == (3, 13, 3, 5)
    assert tally.average == 4.3333
    both = tally.plus(Tally()).plus(tally)
    assert (both.count, both.total, both.min, both.max) == (6, 26, 3, 5)
    tally.clear()
    tally.add(7)
    assert (tally.count, tally.min, tally.max) == (1, 7, 7)


def naive_quantile(values: list[int], quantile: float) -> int:
    """The smallest value that so many of all are not above."""
    ordered = sorted(values)
    return next(value for index, value in enumerate(ordered, 1) if index >= quantile * len(ordered))


@pytest.mark.parametrize("seed", range(20))
def test_quantiles_weigh_each_batch(seed: int) -> None:
    rng = random.Random(seed)
    summary, values = Summary(), list[int]()
    for _ in range(rng.randint(1, 200)):
        value, times = rng.randint(0, 50), rng.randint(1, 9)
        summary.add(value, times)
        values += [value] * times
    expected = {each: naive_quantile(values, each) for each in QUANTILES}
    assert summary.quantiles() == expected


def test_quantiles_are_of_the_latest_batches_and_bounded() -> None:
    summary = Summary()
    assert set(summary.quantiles().values()) == {0}
    for _ in range(WINDOW):
        summary.add(1)
    for _ in range(WINDOW):
        summary.add(2)
    assert set(summary.quantiles().values()) == {2}
    assert (summary.min, summary.count) == (1, 2 * WINDOW)


class Talk:
    """One connection with its numbers, and the core's side of it played by hand."""

    def __init__(self) -> None:
        self.server = ServerStats()
        self.connection = Connection(cast(Codec, None), "peer:1")
        self.stats = ConnectionStats(self.server, 1_000)

    def take(self, now_ms: int, *operations: int) -> None:
        requests: list[tuple[int, int, Any]] = [
            (operation, cxid, None) for cxid, operation in enumerate(operations, 1)
        ]
        self.stats.took(self.connection, requests, now_ms)
        self.connection.submitted += operations.count(SET)

    def send(self, now_ms: int, *, completed: int = 0, events: int = 0) -> None:
        self.connection.completed += completed
        self.connection.event_count += events
        self.stats.sent(self.connection, 0x77, now_ms)


def test_reads_are_answered_with_the_read_that_brought_them() -> None:
    talk = Talk()
    talk.take(10, GET, GET, GET)
    talk.send(13)
    stats = talk.stats
    assert (stats.packets_received, stats.packets_sent) == (3, 3)
    assert (stats.last_operation, stats.last_cxid, stats.last_zxid) == (GET, 3, 0x77)
    assert (stats.last_response_ms, stats.last_latency) == (13, 3)
    assert (stats.latency.count, stats.latency.total) == (3, 9)
    assert talk.server.read_latency.count == 3
    assert talk.server.update_latency.count == 0


def test_each_write_is_timed_from_its_own_arrival() -> None:
    talk = Talk()
    talk.take(10, SET)
    talk.take(12, SET, SET)
    talk.send(20, completed=2)
    assert (talk.stats.latency.min, talk.stats.latency.max) == (8, 10)
    assert talk.stats.packets_sent == 2
    talk.send(30, completed=1)
    assert (talk.stats.latency.count, talk.stats.last_latency) == (3, 18)
    assert talk.server.update_latency.count == 3
    assert talk.server.latency.total == 10 + 8 + 18


def test_events_are_sent_packets_and_no_answers() -> None:
    talk = Talk()
    talk.send(5, events=2)
    assert (talk.stats.packets_sent, talk.server.packets_sent) == (2, 2)
    assert talk.stats.latency.count == 0
    assert talk.stats.last_zxid == -1


def test_a_reset_forgets_what_was_and_not_what_is_outstanding() -> None:
    talk = Talk()
    talk.take(10, SET)
    talk.stats.clear()
    talk.server.clear()
    stats = talk.stats
    assert (stats.packets_received, stats.last_operation, stats.last_cxid) == (0, 0, -1)
    talk.send(14, completed=1)
    assert (stats.packets_sent, stats.last_latency, talk.server.packets_sent) == (1, 4, 1)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_counted_twice_or_lost(seed: int) -> None:
    rng = random.Random(seed)
    talk = Talk()
    now_ms = taken = events = 0
    for _ in range(300):
        now_ms += rng.randint(0, 3)
        connection = talk.connection
        if rng.random() < 0.5:
            operations = [rng.choice((GET, SET)) for _ in range(rng.randint(1, 5))]
            taken += len(operations)
            talk.take(now_ms, *operations)
        else:
            outstanding = connection.submitted - connection.completed
            new_events = rng.randint(0, 2)
            events += new_events
            talk.send(now_ms, completed=rng.randint(0, outstanding), events=new_events)
    connection = talk.connection
    talk.send(now_ms, completed=connection.submitted - connection.completed)
    server = talk.server
    assert talk.stats.packets_received == server.packets_received == taken
    assert talk.stats.packets_sent == server.packets_sent == taken + events
    assert talk.stats.latency.count == server.latency.count == taken
    assert server.read_latency.count + server.update_latency.count == taken
    assert not talk.stats._arrivals


def test_a_bucket_gives_its_capacity_and_then_its_rate() -> None:
    bucket = TokenBucket(3, 2, now_ms=0)
    assert [bucket.take(0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(499)
    assert bucket.take(500)
    assert not bucket.take(501)
    assert [bucket.take(1_000_000) for _ in range(4)] == [True, True, True, False]


def test_a_bucket_of_nothing_lets_everything_pass() -> None:
    bucket = TokenBucket(0, 1, now_ms=0)
    assert all(bucket.take(0) for _ in range(1000))
