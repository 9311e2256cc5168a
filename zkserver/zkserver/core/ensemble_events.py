"""What goes into the core of an ensemble's server, and comes out of it, beside `events`.

A leader prepares and logs what its learners forward; a follower forwards, and applies what the
leader's log says. `link` is the connection to a learner, opaque here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from duolog_protocol.quorum_messages import (
    Answers,
    LeaderService,
    LearnerService,
    LongRequest,
    Requests,
)

from .peer_events import StepDown


class Committed:
    """These records of the log are committed and durable here: apply them. To a learner, and to a
    server that does not serve (yet); to that one also what is perhaps not committed."""

    __slots__ = ("records",)

    def __init__(self, records: list[bytes]) -> None:
        self.records = records


class RequestsForwarded:
    """A learner forwards what a client of its own asks; to the leader."""

    __slots__ = ("link", "message", "wall_ms")

    def __init__(self, link: Any, message: Requests | LongRequest, wall_ms: int) -> None:
        self.link = link
        self.message = message
        self.wall_ms = wall_ms


class LearnerGone:
    """A learner's link has ended: what it had forwarded is answered to nobody."""

    __slots__ = ("link",)

    def __init__(self, link: Any) -> None:
        self.link = link


class ClientsHeard:
    """A learner has heard the clients of these sessions; to the leader."""

    __slots__ = ("session_ids",)

    def __init__(self, session_ids: tuple[int, ...]) -> None:
        self.session_ids = session_ids


class LeaderAnswered:
    """The leader has given forwarded requests their places; to a learner."""

    __slots__ = ("answers",)

    def __init__(self, answers: Answers) -> None:
        self.answers = answers


class SessionMoved:
    """A session's client has connected to another server; to a learner."""

    __slots__ = ("session_id",)

    def __init__(self, session_id: int) -> None:
        self.session_id = session_id


class LevelKnown:
    """All members know this feature level; to the leader."""

    __slots__ = ("level",)

    def __init__(self, level: int) -> None:
        self.level = level


class Confirmed:
    """A quorum has confirmed the leader's lead after the `Confirm` with this continuation."""

    __slots__ = ("go_on",)

    def __init__(self, go_on: Callable[[], None]) -> None:
        self.go_on = go_on


EnsembleEvent = (
    Committed
    | RequestsForwarded
    | LearnerGone
    | ClientsHeard
    | LeaderAnswered
    | SessionMoved
    | Confirmed
    | LevelKnown
)


class TellLeader:
    """Send a message to the leader, behind everything before it."""

    __slots__ = ("message",)

    def __init__(self, message: LearnerService) -> None:
        self.message = message


class TellLearner:
    """Send a message to a learner, ahead of the proposals of a later `Append`."""

    __slots__ = ("link", "message")

    def __init__(self, link: Any, message: LeaderService) -> None:
        self.link = link
        self.message = message


class Confirm:
    """Ask a quorum whether we still lead; then step `Confirmed`, or never, if we do not."""

    __slots__ = ("go_on",)

    def __init__(self, go_on: Callable[[], None]) -> None:
        self.go_on = go_on


class DropLearner:
    """A learner says what cannot be: end its link."""

    __slots__ = ("link", "reason")

    def __init__(self, link: Any, reason: str) -> None:
        self.link = link
        self.reason = reason


EnsembleEffect = TellLeader | TellLearner | Confirm | DropLearner | StepDown
