"""What learners forward to their leader, as its core takes it."""

from __future__ import annotations

import random
from typing import Any

from duolog_protocol import zk_messages as zk
from duolog_protocol.quorum_messages import Answers, Requests
from zkserver.core.config import CoreConfig
from zkserver.core.ensemble_core import EnsembleCore
from zkserver.core.ensemble_events import RequestsForwarded, TellLearner
from zkserver.core.events import Append, Durable
from zkserver.core.session_tracker import session_password

NOW_MS, WALL_MS = 1_000, 1_700_000_000_000


class Leader:
    """A core that leads, and what it has told and logged."""

    def __init__(self) -> None:
        self.core = EnsembleCore(CoreConfig(), random.Random(1))
        self.numbers: dict[str, int] = {}
        self.last_logged_zxid = 0
        self._take(self.core.lead(1, NOW_MS, WALL_MS))
        self.sync()

    def sync(self) -> None:
        """What is logged is committed and durable."""
        if self.last_logged_zxid > self.core.last_applied_zxid:
            self._take(self.core.step(Durable(self.last_logged_zxid), NOW_MS))

    def connect(self, link: str, session_id: int = 0, password: bytes = bytes(16)) -> Answers:
        """A client of a learner asks for a session."""
        message = zk.ConnectRequest(0, 10_000, session_id, password, False)
        frames = b"".join(zk.CONNECT.encode_request(1, message, zk.CONNECT.max_version))
        number = self.numbers[link] = self.numbers.get(link, 0) + 1
        requests = Requests(number, 0, (), frames)
        told = self._take(self.core.step(RequestsForwarded(link, requests, WALL_MS), NOW_MS))
        (answers,) = (each.message for each in told if isinstance(each.message, Answers))
        assert all(isinstance(each.message, Answers) == (each.link == link) for each in told)
        assert answers.first_number == number
        return answers

    def _take(self, effects: list[Any]) -> list[TellLearner]:
        for each in effects:
            if isinstance(each, Append):
                self.last_logged_zxid = each.last_zxid
        return [each for each in effects if isinstance(each, TellLearner)]


def test_a_session_moves_to_another_learner_before_the_leader_has_applied_it() -> None:
    # Both followers have it on disk and show it to the client; the leader's own disk is slower.
    leader = Leader()
    (session_id,) = leader.connect("one").zxids
    assert leader.core.last_applied_zxid < session_id
    password = session_password(leader.core.state.secret, session_id)
    moved = leader.connect("two", session_id, password)
    assert moved.failures == ()
    assert moved.zxids == (session_id,)
    leader.sync()
    assert leader.connect("one", session_id, password).failures == ()


def test_a_session_of_somebody_else_is_not_given_away() -> None:
    leader = Leader()
    (session_id,) = leader.connect("one").zxids
    for _ in range(2):
        (failure,) = leader.connect("two", session_id, bytes(16)).failures
        assert "does not exist" in failure.message
        leader.sync()
