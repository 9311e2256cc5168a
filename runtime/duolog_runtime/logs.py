"""Structured logs of the daemons: a small `Logger` protocol, structlog behind it, loaded late.

Owns how an event becomes a line on stderr: JSON when stderr is not a terminal, pretty when it is.
Events are literal snake_case `noun_participle`, values are keywords. A logger is bound once per
owner and passed to constructors; nothing here is global, structlog's own configuration is left
alone, and the client library never comes here.

Importing structlog takes longer than starting a daemon. So the first debug and info events wait,
with their own time, until `DaemonLogs.open()`, which the daemon calls once its port is open; a
warning, an error or too many waiting events open it at once.
"""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any, Final, Protocol, TextIO

from duolog_protocol.errors import ConfigError

from .clocks import Clock, RealClock

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
MAX_WAITING: Final = 200
"""Events kept before structlog is loaded."""


class Logger(Protocol):
    """What everything that logs is given. An exception goes into the value `exc_info`."""

    def debug(self, event: str, /, **values: Any) -> None:
        """A message moved."""
        ...

    def info(self, event: str, /, **values: Any) -> None:
        """A role, membership, ISR or file changed."""
        ...

    def warning(self, event: str, /, **values: Any) -> None:
        """Something that heals by itself."""
        ...

    def error(self, event: str, /, **values: Any) -> None:
        """Something that needs a person."""
        ...

    def bind(self, **values: Any) -> Logger:
        """A logger that adds these values to every event."""
        ...


class DaemonLogs:
    """The lines of one process: where loggers come from."""

    def __init__(
        self,
        level: str = "info",
        *,
        stream: TextIO | None = None,
        pretty: bool | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Log from `level` up to `stream` (stderr); `pretty` defaults to: it is a terminal."""
        if level not in LEVELS:
            raise ConfigError("log_level", level, f"must be one of {', '.join(LEVELS)}")
        self.level = LEVELS[level]
        self._stream = sys.stderr if stream is None else stream
        self._pretty = self._stream.isatty() if pretty is None else pretty
        self._clock = RealClock() if clock is None else clock
        self._waiting: list[tuple[_DaemonLogger, str, str, dict[str, Any]]] = []
        self._base: Any = None
        self.lost_count = 0
        """Lines that stderr did not take (closed, full): a daemon does not stop for them."""

    def logger(self, **values: Any) -> Logger:
        """A logger with these values."""
        return _DaemonLogger(self, values)

    def open(self) -> None:
        """Load structlog and write what waits. Idempotent; blocks for tens of milliseconds."""
        if self._base is None:
            self._base = self._configured()
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                self._write(*each)

    def close(self) -> None:
        """The process ends: write what still waits, if anything does. Idempotent."""
        if self._waiting:
            self.open()

    def emit(self, logger: _DaemonLogger, method: str, event: str, values: dict[str, Any]) -> None:
        """Take an event that is not filtered out."""
        if self._base is None:
            if method in {"debug", "info"} and len(self._waiting) < MAX_WAITING:
                self._waiting.append((logger, method, event, {"timestamp": self._now(), **values}))
                return
            self.open()
        self._write(logger, method, event, values)

    def _write(
        self, logger: _DaemonLogger, method: str, event: str, values: dict[str, Any]
    ) -> None:
        bound = logger.bound
        if bound is None:
            bound = logger.bound = self._base.bind(**logger.values)
        try:
            getattr(bound, method)(event, **values)
        except (OSError, ValueError):  # ValueError: the stream is closed
            self.lost_count += 1

    def _configured(self) -> Any:
        import structlog

        exceptions: list[Any]
        renderer: Any
        if self._pretty:
            exceptions = []
            renderer = structlog.dev.ConsoleRenderer(
                exception_formatter=structlog.dev.plain_traceback
            )
        else:
            exceptions = [structlog.processors.format_exc_info]
            renderer = structlog.processors.JSONRenderer()
        return structlog.wrap_logger(
            structlog.WriteLogger(self._stream),
            processors=[structlog.processors.add_log_level, self._stamp, *exceptions, renderer],
            wrapper_class=structlog.make_filtering_bound_logger(self.level),
            cache_logger_on_first_use=True,
        ).bind()

    def _stamp(
        self, _: Any, __: str, event_dict: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        if "timestamp" not in event_dict:
            event_dict["timestamp"] = self._now()
        return event_dict

    def _now(self) -> str:
        moment = datetime.fromtimestamp(self._clock.wall_ms() / 1000, UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _DaemonLogger:
    """A logger of `DaemonLogs`; becomes a bound structlog logger with its first line."""

    __slots__ = ("_logs", "bound", "values")

    def __init__(self, logs: DaemonLogs, values: dict[str, Any]) -> None:
        self._logs = logs
        self.values = values
        self.bound: Any = None

    def debug(self, event: str, /, **values: Any) -> None:
        if self._logs.level <= 10:
            self._logs.emit(self, "debug", event, values)

    def info(self, event: str, /, **values: Any) -> None:
        if self._logs.level <= 20:
            self._logs.emit(self, "info", event, values)

    def warning(self, event: str, /, **values: Any) -> None:
        if self._logs.level <= 30:
            self._logs.emit(self, "warning", event, values)

    def error(self, event: str, /, **values: Any) -> None:
        self._logs.emit(self, "error", event, values)

    def bind(self, **values: Any) -> Logger:
        return _DaemonLogger(self._logs, {**self.values, **values})


class RecordingLogger:
    """Keeps events instead of writing them: for tests, where an event is a coverage mark."""

    def __init__(self, values: dict[str, Any] | None = None) -> None:
        self._values = values or {}
        self.records: list[tuple[str, str, dict[str, Any]]] = []
        """(level, event, values), shared by everything bound from this logger."""

    @property
    def events(self) -> list[str]:
        """The names of all events so far."""
        return [event for _, event, _ in self.records]

    def debug(self, event: str, /, **values: Any) -> None:
        self.records.append(("debug", event, {**self._values, **values}))

    def info(self, event: str, /, **values: Any) -> None:
        self.records.append(("info", event, {**self._values, **values}))

    def warning(self, event: str, /, **values: Any) -> None:
        self.records.append(("warning", event, {**self._values, **values}))

    def error(self, event: str, /, **values: Any) -> None:
        self.records.append(("error", event, {**self._values, **values}))

    def bind(self, **values: Any) -> Logger:
        bound = RecordingLogger({**self._values, **values})
        bound.records = self.records
        return bound
