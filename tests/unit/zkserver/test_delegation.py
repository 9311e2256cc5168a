"""What learners forward to their leader, as its core takes it."""

from __future__ import annotations

import random
from typing import Any

from duolog_protocol import zk_messages as zk
from duolog_protocol.apis import AnyApi
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.long_requests import encode_fields
from duolog_protocol.quorum_messages import Answers, LongRequest, Requests
from zkserver.core.config import CoreConfig
from zkserver.core.ensemble_core import EnsembleCore
from zkserver.core.ensemble_events import DropLearner, RequestsForwarded, TellLearner
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
        return self.forward(link, 0, (zk.CONNECT, message))

    def forward(self, link: str, session_id: int, *requests: tuple[AnyApi, Any]) -> Answers:
        """A client of a learner asks something."""
        frames = [api.encode_request(1, message, api.max_version) for api, message in requests]
        number = self._next_number(link, len(frames))
        joined = b"".join(piece for frame in frames for piece in frame)
        return self._answers(link, Requests(number, session_id, (), joined))

    def forward_long(self, link: str, session_id: int, api_key: int, fields: bytes) -> Answers:
        """As `forward`, what a frame may not hold."""
        number = self._next_number(link, 1)
        return self._answers(link, LongRequest(number, session_id, (), api_key, fields))

    def _next_number(self, link: str, count: int) -> int:
        number = self.numbers.get(link, 1)
        self.numbers[link] = number + count
        return number

    def _answers(self, link: str, message: Requests | LongRequest) -> Answers:
        told = self._take(self.core.step(RequestsForwarded(link, message, WALL_MS), NOW_MS))
        (answers,) = (each.message for each in told if isinstance(each.message, Answers))
        assert all(isinstance(each.message, Answers) == (each.link == link) for each in told)
        assert answers.first_number == message[0]
        return answers

    def _take(self, effects: list[Any]) -> list[TellLearner]:
        for each in effects:
            assert not isinstance(each, DropLearner), each.reason
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


def test_a_request_that_cannot_be_decoded_fails_alone() -> None:
    leader = Leader()
    (session_id,) = leader.connect("one").zxids
    leader.sync()
    good = (zk.SET_DATA, zk.SetDataRequest("/zookeeper", b"1", -1))
    long_path = (zk.DELETE, zk.DeleteRequest("/" + "a" * 5_000, -1))
    answers = leader.forward("one", session_id, good, long_path, good)
    last = leader.last_logged_zxid
    assert answers.zxids == (last - 1, last - 1, last)
    (failure,) = answers.failures
    assert (failure.position, failure.is_logged) == (1, False)
    assert failure.code == ZkErrorCode.MARSHALLING_ERROR
    for api_key, fields in (
        (zk.DELETE.key, b""),
        (zk.DELETE.key, b"\xc0"),
        (zk.DELETE.key, encode_fields(("/a",))),
        (zk.DELETE.key, encode_fields(("/a", "b"))),
        (zk.GET_DATA.key, encode_fields(("/a", False))),
        (4711, b""),
    ):
        answers = leader.forward_long("one", session_id, api_key, fields)
        (failure,) = answers.failures
        assert (failure.is_logged, failure.code) == (False, ZkErrorCode.MARSHALLING_ERROR)
    assert leader.last_logged_zxid == last
    assert leader.forward("one", session_id, good).zxids == (last + 1,)
