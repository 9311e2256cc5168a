"""The retry policy: it reads the flags of errors and waits ever longer."""

from __future__ import annotations

import random

import pytest

from duolog import Retry
from duolog_protocol.errors import (
    ConnectionLostError,
    Error,
    NodeExistsError,
    SessionExpiredError,
    ThrottledOpError,
)


class Calls:
    """Raises what it was given, one after another, then returns."""

    def __init__(self, *errors: type[Error]) -> None:
        self.errors = list(errors)
        self.count = 0

    async def __call__(self, value: int) -> int:
        self.count += 1
        if self.errors:
            raise self.errors.pop(0)("no")
        return value


def retry(**settings: object) -> Retry:
    return Retry(**{"max_tries": None, "delay": 0.0, **settings})  # type: ignore[arg-type]


async def test_what_is_retriable_is_called_again_and_the_rest_is_raised() -> None:
    calls = Calls(ConnectionLostError, ThrottledOpError, SessionExpiredError)
    assert await retry()(calls, 7) == 7
    assert calls.count == 4
    calls = Calls(NodeExistsError)
    with pytest.raises(NodeExistsError):
        await retry()(calls, 7)
    assert calls.count == 1


async def test_tries_are_bounded() -> None:
    calls = Calls(*[ConnectionLostError] * 9)
    with pytest.raises(ConnectionLostError):
        await retry(max_tries=2)(calls, 7)
    assert calls.count == 3


async def test_time_is_bounded() -> None:
    calls = Calls(*[ConnectionLostError] * 9)
    with pytest.raises(ConnectionLostError):
        await Retry(max_tries=None, delay=5, max_jitter=0, deadline=1)(calls, 7)
    assert calls.count == 1


async def test_what_may_have_happened_is_left_alone_where_that_is_asked_for() -> None:
    with pytest.raises(ConnectionLostError):
        await retry(definite_only=True)(Calls(ConnectionLostError), 7)
    assert await retry(definite_only=True)(Calls(ThrottledOpError), 7) == 7
    with pytest.raises(SessionExpiredError):
        await retry(ignore_expire=False)(Calls(SessionExpiredError), 7)


def test_pauses_grow_to_their_bound_and_are_spread() -> None:
    plain = Retry(delay=0.1, backoff=2, max_delay=1.0, max_jitter=0)
    assert [plain.pause_seconds(n) for n in (1, 2, 3, 4, 5, 500)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    spread = Retry(delay=1, max_jitter=0.4, rng=random.Random(1))
    pauses = [spread.pause_seconds(1) for _ in range(100)]
    assert 0.6 <= min(pauses) < 0.65
    assert 0.95 < max(pauses) <= 1.0
