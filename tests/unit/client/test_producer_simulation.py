"""The producer's pure half against a model broker over a network that loses, delays and repeats.

The broker enforces kafka.md A10 and may refuse; connections are cut with requests on the way that
are lost or come through much later, behind newer ones. Whatever happens: a record whose delivery
succeeded is in the log once and where it was said to be, one that failed definitely is not there,
one of unknown fate at most once, and the log has the order of sending.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest

from duolog.core.accumulator import Accumulator, AccumulatorSettings
from duolog.core.partition_queue import Failed
from duolog.core.producer_batch import ProducerBatch
from duolog_protocol.errors import (
    BrokerRequestTimedOutError,
    ConnectionLostError,
    Error,
    InvalidProducerEpochError,
    InvalidRecordError,
    MessageTooLargeError,
    NotEnoughReplicasAfterAppendError,
    NotEnoughReplicasError,
    NotLeaderOrFollowerError,
    OutOfOrderSequenceNumberError,
)

SEEDS = range(300)
PARTITIONS = 2
MASK = 0x7FFF_FFFF


class Sent(NamedTuple):
    """A request's bytes: what the batch was when it was sent, whatever becomes of it later."""

    batch: ProducerBatch
    producer_id: int
    epoch: int
    sequence: int
    values: tuple[int, ...]


class ModelLog:
    """One partition of the broker: its records and what it knows of producers."""

    def __init__(self) -> None:
        self.values: list[int] = []
        self.epochs: dict[int, int] = {}
        self.batches: dict[int, list[tuple[int, int, int]]] = {}
        """producer id -> (first sequence, last sequence, base offset) of the last five."""

    def append(self, sent: Sent) -> int | Error:
        known = self.epochs.get(sent.producer_id)
        last = (sent.sequence + len(sent.values) - 1) & MASK
        if known is not None:
            if known == sent.epoch:
                for first_known, last_known, offset in self.batches[sent.producer_id]:
                    if (first_known, last_known) == (sent.sequence, last):
                        return offset
                expected = (self.batches[sent.producer_id][-1][1] + 1) & MASK
                if sent.sequence != expected:
                    return OutOfOrderSequenceNumberError()
            elif sent.epoch < known:
                return InvalidProducerEpochError()
            elif sent.sequence != 0:
                return OutOfOrderSequenceNumberError()
        if known != sent.epoch:
            self.batches[sent.producer_id] = []
        self.epochs[sent.producer_id] = sent.epoch
        offset = len(self.values)
        self.values += sent.values
        remembered = self.batches[sent.producer_id]
        remembered.append((sent.sequence, last, offset))
        del remembered[:-5]
        return offset


class Link:
    """A connection: requests and answers in order, until it is cut."""

    def __init__(self) -> None:
        self.requests: list[list[Sent]] = []
        self.answers: list[list[tuple[ProducerBatch, int | Error]]] = []
        self.waiting: list[list[ProducerBatch]] = []
        self.is_open = True


class World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now_ms = 0
        settings = AccumulatorSettings(
            batch_size=200,
            buffer_memory=1 << 20,
            max_request_size=1 << 20,
            linger_ms=self.rng.choice([0, 5]),
            delivery_timeout_ms=self.rng.choice([300, 2000]),
            idempotent=True,
        )
        self.accumulator = Accumulator(settings, self.rng, lambda attempts: 10 * min(attempts, 5))
        self.topic = self.accumulator.set_partitions("t", PARTITIONS, [])
        self.logs = [ModelLog() for _ in range(PARTITIONS)]
        self.link = Link()
        self.cut: list[Link] = []
        self.sent_order: list[list[int]] = [[] for _ in range(PARTITIONS)]
        self.outcome: dict[int, int | Error] = {}
        self.max_batch_records = 100
        self.fault_rate = self.rng.choice([0.02, 0.1, 0.3])
        self.accumulator.producer_id = 1

    # -- the application -------------------------------------------------------------------

    def produce(self, value: int) -> None:
        partition = self.rng.randrange(PARTITIONS)
        queue = self.topic.queues[partition]
        if queue.open is not None and (
            queue.open.size_bytes > 200 or len(queue.open.records) >= self.rng.choice([1, 3, 9])
        ):
            self.accumulator.close_full(queue)
        if queue.open is None:
            self.accumulator.open_batch(queue, 100, self.now_ms)
        batch = queue.open
        assert batch is not None
        batch.records.append((0, None, b"", ()))
        batch.handles.append(value)
        self.sent_order[partition].append(value)

    # -- the shell -------------------------------------------------------------------------

    def drain(self) -> None:
        self.fail(self.accumulator.expire(self.now_ms))
        while True:
            requests = self.accumulator.drain(self.now_ms, lambda _t, _p: 1, self.link_of)
            if not requests:
                return
            for request in requests:
                assert request.link is self.link
                self.link.waiting.append(request.batches)
                self.link.requests.append(
                    [
                        Sent(
                            batch,
                            batch.producer_id,
                            batch.producer_epoch,
                            batch.base_sequence,
                            tuple(batch.handles),
                        )
                        for batch in request.batches
                    ]
                )

    def link_of(self, _node_id: int) -> Link | None:
        return self.link if len(self.link.waiting) < 5 else None

    def fail(self, failed: Failed) -> None:
        for batch, error in failed:
            for value in batch.handles:
                assert value not in self.outcome, value
                self.outcome[value] = error

    def take_answer(self) -> None:
        if not self.link.answers:
            return
        self.link.waiting.pop(0)
        for batch, result in self.link.answers.pop(0):
            if isinstance(result, Error):
                self.fail(self.accumulator.on_failure(batch, result, self.now_ms))
                continue
            waited, failed = self.accumulator.on_success(batch)
            if waited:
                for n, value in enumerate(batch.handles):
                    assert value not in self.outcome, value
                    self.outcome[value] = result + n
            self.fail(failed)

    def cut_link(self) -> None:
        old, self.link = self.link, Link()
        keep = self.rng.randrange(len(old.requests) + 1)
        del old.requests[keep:]
        old.is_open = False
        self.cut.append(old)
        for batches in old.waiting:
            for batch in batches:
                lost = ConnectionLostError("cut")
                self.fail(self.accumulator.on_failure(batch, lost, self.now_ms))

    # -- the broker ------------------------------------------------------------------------

    def serve(self, link: Link, *, healthy: bool) -> None:
        if not link.requests:
            return
        answers: list[tuple[ProducerBatch, int | Error]] = []
        for sent in link.requests.pop(0):
            answers.append((sent.batch, self.result(sent, healthy=healthy)))
        if link.is_open:
            link.answers.append(answers)

    def result(self, sent: Sent, *, healthy: bool) -> int | Error:
        log = self.logs[sent.batch.partition]
        if not healthy and self.rng.random() < self.fault_rate:
            fault = self.rng.randrange(6)
            if fault == 0:
                return NotEnoughReplicasError()
            if fault == 1:
                return InvalidRecordError()
            if fault == 2 and len(sent.values) > 1:
                return MessageTooLargeError()
            if fault == 3:
                return NotLeaderOrFollowerError()
            found = log.append(sent)
            if isinstance(found, Error):
                return found
            return (
                BrokerRequestTimedOutError() if fault == 4 else NotEnoughReplicasAfterAppendError()
            )
        return log.append(sent)

    # -- the story -------------------------------------------------------------------------

    def run(self, steps: int) -> None:
        for value in range(steps):
            for _ in range(self.rng.randrange(3)):
                self.produce(value * 10 + _)
            self.now_ms += self.rng.choice([0, 0, 1, 5, 40])
            self.drain()
            dice = self.rng.random()
            if dice < 0.5:
                self.serve(self.link, healthy=False)
            elif dice < 0.9:
                self.take_answer()
            elif dice < 0.9 + self.fault_rate / 4:
                self.cut_link()
            if self.cut and self.rng.random() < 0.1:
                self.serve(self.rng.choice(self.cut), healthy=False)
            self.check_present()

    def heal(self) -> None:
        for _ in range(10_000):
            if self.accumulator.is_empty:
                return
            self.now_ms += 1
            self.drain()
            self.serve(self.link, healthy=True)
            self.take_answer()
        raise AssertionError(f"not delivered: {self.accumulator.used_bytes} bytes left")

    def check_present(self) -> None:
        for log in self.logs:
            assert len(set(log.values)) == len(log.values), "stored twice"
            assert log.values == sorted(log.values), "order of sending lost"

    def check_outcomes(self) -> None:
        for partition, log in enumerate(self.logs):
            for value in self.sent_order[partition]:
                outcome = self.outcome[value]
                if isinstance(outcome, Error):
                    assert outcome.definite is False or value not in log.values, (value, outcome)
                else:
                    assert log.values[outcome] == value, (value, outcome)


@pytest.mark.parametrize("first", [seed for seed in SEEDS if seed % 50 == 0])
def test_nothing_acknowledged_is_lost_doubled_or_out_of_order(first: int) -> None:
    for seed in range(first, first + 50):
        world = World(seed)
        try:
            world.run(400)
            world.heal()
            while world.cut:  # what was still on the way comes through now
                world.serve(world.cut[-1], healthy=True)
                if not world.cut[-1].requests:
                    world.cut.pop()
            world.check_present()
            world.check_outcomes()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_the_simulation_meets_what_it_is_about() -> None:
    """Of many outcomes there are successes, definite and unknown failures, and raised epochs."""
    kinds: set[str] = set()
    for seed in range(60):
        world = World(seed)
        world.run(400)
        world.heal()
        for outcome in world.outcome.values():
            kinds.add(type(outcome).__name__)
        kinds |= {"bump" for queue in world.topic.queues if queue.producer_epoch > 0}
    assert kinds >= {"int", "InvalidRecordError", "RequestTimeoutError", "bump"}, kinds
    assert kinds & {"DeliveryUnknownError"}, kinds
