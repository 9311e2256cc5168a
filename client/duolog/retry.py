"""The retry policy: call again what failed for a passing reason.

Reads the flags of the errors, never lists of classes. Meanings of the arguments are those of
kazoo's `KazooRetry`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from duolog_protocol.errors import Error, SessionExpiredError

from .clock import Clock, SystemClock

T = TypeVar("T")
_EXPONENT_LAST: Final = 64


class Retry:
    """`await Retry(max_tries=5)(zk.create, "/a", b"data")`.

    A lost answer (ConnectionLostError, RequestTimeoutError) leaves open whether the call has
    happened; a call is repeated after it all the same, as by KazooRetry, so that a `create` may
    then raise NodeExistsError for its own znode and a `set` may be done twice. `definite_only`
    repeats only what certainly did not happen.

    Cancelling is safe: the current try or pause ends.
    """

    def __init__(
        self,
        max_tries: int | None = 1,
        delay: float = 0.1,
        backoff: float = 2,
        max_jitter: float = 0.4,
        max_delay: float = 60.0,
        ignore_expire: bool = True,
        deadline: float | None = None,
        *,
        definite_only: bool = False,
        rng: random.Random | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`max_tries`: repetitions after the first try; None: no bound. `delay`, `max_delay`:
        seconds of the first and the longest pause; each is `backoff` times the one before, and
        shortened at random by up to `max_jitter` of it (0 to 1). `ignore_expire`: go on after the
        session has ended. `deadline`: seconds after which no further try begins.
        """
        self.max_tries = max_tries
        self.delay = delay
        self.backoff = backoff
        self.max_jitter = max(0.0, min(max_jitter, 1.0))
        self.max_delay = max_delay
        self.ignore_expire = ignore_expire
        self.deadline = deadline
        self.definite_only = definite_only
        self._rng = rng or random.Random()
        self._clock = clock or SystemClock()

    def is_retriable(self, error: Error) -> bool:
        """Whether a call that raised this is worth another try."""
        if isinstance(error, SessionExpiredError):
            return self.ignore_expire
        return error.retriable and (error.definite or not self.definite_only)

    def pause_seconds(self, failed_tries: int) -> float:
        """How long to wait after this many failed tries (1 is the first)."""
        exponent = min(failed_tries - 1, _EXPONENT_LAST)
        pause = min(self.delay * self.backoff**exponent, self.max_delay)
        return pause * (1 - self.max_jitter * self._rng.random())

    async def __call__(self, func: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """Await `func(*args, **kwargs)` until it returns.

        Raises its last error when that is not worth another try, or tries or time run out.
        """
        begin_ms = self._clock.now_ms()
        failed = 0
        while True:
            try:
                return await func(*args, **kwargs)
            except Error as error:
                if not self.is_retriable(error):
                    raise
                failed += 1
                if self.max_tries is not None and failed > self.max_tries:
                    raise
                pause = self.pause_seconds(failed)
                spent = (self._clock.now_ms() - begin_ms) / 1000
                if self.deadline is not None and spent + pause >= self.deadline:
                    raise
            await asyncio.sleep(pause)
