"""One partition's batches: what may be sent when, and what answers prove. No event loop."""

from __future__ import annotations

from duolog.core.delivery_errors import DeliveryUnknownError, RecordExpiredError
from duolog.core.partition_queue import PRODUCER_EPOCH_LAST, PartitionQueue
from duolog.core.producer_batch import ProducerBatch
from duolog_protocol.errors import (
    BrokerError,
    ConnectionLostError,
    InvalidRecordError,
    MessageTooLargeError,
    NotEnoughReplicasError,
    OutOfOrderSequenceNumberError,
    RequestTimeoutError,
)

PID = 7
LINK, OTHER_LINK = object(), object()


def queue_of(*counts: int, idempotent: bool = True) -> tuple[PartitionQueue, list[ProducerBatch]]:
    """A queue with closed batches of so many records."""
    queue = PartitionQueue("t", 0, idempotent=idempotent)
    batches = []
    for count in counts:
        batch = ProducerBatch("t", 0, 1000, 100)
        for n in range(count):
            batch.records.append((0, None, b"%d" % n, ()))
            batch.handles.append(None)
        queue.waiting.append(batch)
        batches.append(batch)
    return queue, batches


def send(queue: PartitionQueue, link: object = LINK, now_ms: int = 0) -> ProducerBatch | None:
    return queue.next_batch(now_ms, link, PID)


def numbers(batch: ProducerBatch) -> tuple[int, int]:
    return batch.producer_epoch, batch.base_sequence


def no_delay(_attempts: int) -> int:
    return 0


def test_the_first_batch_of_an_epoch_travels_alone_then_five_may_be_under_way() -> None:
    queue, batches = queue_of(2, 3, 4)
    assert send(queue) is batches[0]
    assert send(queue) is None
    queue.on_success(batches[0])
    assert send(queue) is batches[1]
    assert send(queue) is batches[2]
    assert [numbers(batch) for batch in batches] == [(0, 0), (0, 2), (0, 5)]
    assert queue.next_sequence == 9


def test_a_new_batch_does_not_take_another_connection_while_one_is_under_way() -> None:
    queue, batches = queue_of(1, 1, 1)
    send(queue)
    queue.on_success(batches[0])
    assert send(queue) is batches[1]
    assert send(queue, OTHER_LINK) is None
    queue.on_success(batches[1])
    assert send(queue, OTHER_LINK) is batches[2]


def test_retries_go_one_by_one_in_order_with_their_old_numbers() -> None:
    queue, batches = queue_of(1, 1, 1, 1)
    send(queue)
    queue.on_success(batches[0])
    send(queue)
    send(queue)
    lost = ConnectionLostError("x")
    assert queue.on_failure(batches[1], lost, 0, no_delay) == []
    assert queue.on_failure(batches[2], lost, 0, no_delay) == []
    assert send(queue, OTHER_LINK) is batches[1]
    assert send(queue, OTHER_LINK) is None
    queue.on_success(batches[1])
    assert send(queue, OTHER_LINK) is batches[2]
    queue.on_success(batches[2])
    assert send(queue, OTHER_LINK) is batches[3]
    assert [numbers(batch) for batch in batches] == [(0, n) for n in range(4)]


def test_out_of_order_behind_a_refused_batch_is_only_too_early() -> None:
    queue, batches = queue_of(1, 1, 1)
    send(queue)
    queue.on_success(batches[0])
    send(queue)
    send(queue)
    queue.on_failure(batches[1], NotEnoughReplicasError(), 0, no_delay)
    assert queue.on_failure(batches[2], OutOfOrderSequenceNumberError(), 0, no_delay) == []
    assert send(queue) is batches[1]
    queue.on_success(batches[1])
    assert send(queue) is batches[2]
    assert numbers(batches[2]) == (0, 2)


def test_out_of_order_at_the_head_raises_the_epoch_and_sends_again() -> None:
    """The broker lost what it knew; nothing of ours is there or under way."""
    queue, batches = queue_of(1, 1, 1)
    send(queue)
    queue.on_success(batches[0])
    send(queue)
    send(queue)
    assert queue.on_failure(batches[1], OutOfOrderSequenceNumberError(), 0, no_delay) == []
    assert send(queue) is None
    assert queue.on_failure(batches[2], OutOfOrderSequenceNumberError(), 0, no_delay) == []
    assert send(queue) is batches[1]
    assert numbers(batches[1]) == (1, 0)
    assert send(queue) is None  # the first of its epoch
    queue.on_success(batches[1])
    assert send(queue) is batches[2]
    assert numbers(batches[2]) == (1, 1)


def test_out_of_order_at_the_head_with_an_attempt_unanswered_fails_as_unknown() -> None:
    queue, batches = queue_of(1, 1)
    send(queue)
    queue.on_failure(batches[0], ConnectionLostError("x"), 0, no_delay)
    assert send(queue) is batches[0]
    [(failed, error)] = queue.on_failure(batches[0], OutOfOrderSequenceNumberError(), 0, no_delay)
    assert failed is batches[0]
    assert isinstance(error, DeliveryUnknownError) and not error.definite
    assert send(queue) is batches[1]
    assert numbers(batches[1]) == (1, 0)


def test_a_batch_that_expires_unanswered_leaves_a_hole_and_the_epoch_is_raised() -> None:
    queue, batches = queue_of(1, 1, 1)
    send(queue)
    queue.on_success(batches[0])
    send(queue)
    [(failed, error)] = queue.expire(batches[1])
    assert failed is batches[1]
    assert isinstance(error, RequestTimeoutError) and not error.definite
    assert send(queue) is None  # what it did must be over first
    assert queue.on_failure(batches[1], ConnectionLostError("x"), 0, no_delay) == []
    assert send(queue) is batches[2]
    assert numbers(batches[2]) == (1, 0)


def test_batches_behind_an_unknown_hole_try_their_old_number_first() -> None:
    """The expired batch was stored after all: then theirs fit, and are not stored twice."""
    queue, batches = queue_of(1, 1, 1, 1)
    send(queue)
    queue.on_success(batches[0])
    send(queue)
    send(queue)
    queue.expire(batches[1])
    lost = ConnectionLostError("x")
    queue.on_failure(batches[1], lost, 0, no_delay)
    assert queue.on_failure(batches[2], lost, 0, no_delay) == []
    assert send(queue) is batches[2]
    assert numbers(batches[2]) == (0, 2)
    queue.on_success(batches[2])
    assert send(queue) is batches[3]
    assert numbers(batches[3]) == (1, 0)


def test_a_refused_record_does_not_stop_those_behind_it() -> None:
    queue, batches = queue_of(1, 1, 1)
    send(queue)
    queue.on_success(batches[0])
    send(queue)
    send(queue)
    [(failed, error)] = queue.on_failure(batches[1], InvalidRecordError(), 0, no_delay)
    assert (failed, error.definite) == (batches[1], True)
    assert queue.on_failure(batches[2], OutOfOrderSequenceNumberError(), 0, no_delay) == []
    assert send(queue) is batches[2]
    assert numbers(batches[2]) == (1, 0)


def test_a_refusal_after_an_unanswered_attempt_is_not_reported_as_definite() -> None:
    queue, batches = queue_of(1)
    send(queue)
    queue.on_failure(batches[0], ConnectionLostError("x"), 0, no_delay)
    send(queue)
    [(_, error)] = queue.on_failure(batches[0], InvalidRecordError(), 0, no_delay)
    assert isinstance(error, DeliveryUnknownError)
    assert isinstance(error.__cause__, InvalidRecordError)


def test_an_unknown_server_error_does_not_prove_anything() -> None:
    queue, batches = queue_of(1)
    send(queue)
    [(_, error)] = queue.on_failure(batches[0], BrokerError(), 0, no_delay)
    assert not error.definite


def test_a_batch_found_too_large_is_split_and_keeps_its_numbers() -> None:
    queue, batches = queue_of(3, 1)
    send(queue)
    assert queue.on_failure(batches[0], MessageTooLargeError(), 0, no_delay) == []
    first = send(queue)
    assert first is not None and (first.record_count, numbers(first)) == (1, (0, 0))
    queue.on_success(first)
    second = send(queue)
    assert second is not None and (second.record_count, numbers(second)) == (2, (0, 1))
    queue.on_success(second)
    assert send(queue) is batches[1]
    assert numbers(batches[1]) == (0, 3)


def test_a_single_record_found_too_large_fails() -> None:
    queue, batches = queue_of(1)
    send(queue)
    [(_, error)] = queue.on_failure(batches[0], MessageTooLargeError(), 0, no_delay)
    assert isinstance(error, MessageTooLargeError)


def test_a_batch_never_sent_expires_definitely() -> None:
    queue, batches = queue_of(1)
    [(_, error)] = queue.expire(batches[0])
    assert isinstance(error, RecordExpiredError) and error.definite
    assert send(queue) is None


def test_a_retry_waits_for_its_backoff() -> None:
    queue, batches = queue_of(1)
    send(queue)
    queue.on_failure(batches[0], NotEnoughReplicasError(), 10, lambda attempts: 50 * attempts)
    assert send(queue, now_ms=59) is None
    assert queue.retry_at_ms == 60
    assert send(queue, now_ms=60) is batches[0]


def test_numbers_wrap_from_the_last_sequence_to_zero() -> None:
    queue, batches = queue_of(3, 1)
    queue.next_sequence = 0x7FFF_FFFE
    send(queue)
    queue.on_success(batches[0])
    send(queue)
    assert [numbers(batch) for batch in batches] == [(0, 0x7FFF_FFFE), (0, 1)]


def test_an_exhausted_epoch_takes_another_producer_id() -> None:
    queue, batches = queue_of(1, 1)
    queue.producer_id, queue.producer_epoch = PID, PRODUCER_EPOCH_LAST
    assert not queue.needs_producer_id(PID)
    send(queue)
    queue.on_failure(batches[0], InvalidRecordError(), 0, no_delay)
    assert queue.needs_producer_id(PID)
    assert not queue.needs_producer_id(PID + 1)
    assert queue.next_batch(0, LINK, PID + 1) is batches[1]
    assert (batches[1].producer_id, *numbers(batches[1])) == (PID + 1, 0, 0)


def test_without_idempotence_batches_have_no_numbers_and_still_retry_in_order() -> None:
    queue, batches = queue_of(1, 1, 1, idempotent=False)
    assert [send(queue), send(queue)] == batches[:2]
    for batch in batches[:2]:
        queue.on_failure(batch, NotEnoughReplicasError(), 0, no_delay)
    assert send(queue) is batches[0]
    assert send(queue) is None
    assert numbers(batches[0]) == (-1, -1)
    [(_, error)] = queue.expire(batches[1])
    assert isinstance(error, RecordExpiredError)


def test_stopping_fails_everything_and_says_which_may_have_been_stored() -> None:
    queue, batches = queue_of(1, 1)
    send(queue)
    failed = queue.fail_all(NotEnoughReplicasError("stop"))
    assert [(batch, error.definite) for batch, error in failed] == [
        (batches[0], False),
        (batches[1], True),
    ]
