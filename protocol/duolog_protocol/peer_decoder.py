"""From the bytes of another server to messages, sans-I/O.

    SHAKING   nothing but the first message: PeerHello, or the answer to ours
    OPEN      what the purpose of the connection lets the other side say
    CLOSED    it was refused

Owns the cutting of the stream into messages, and which of them may come when. It becomes OPEN by
`open` where we were dialled, by the PeerWelcome itself where we have dialled: more may follow that
at once. Until then, and between servers that elect, frames are small. The preamble is gone
already: `connection.ServerConnection` takes it, with this as its decoder.
"""

from __future__ import annotations

from enum import Enum, auto
from types import UnionType
from typing import Final, get_args

from .errors import RemoteProtocolError
from .frames import Frame, frame_at
from .quorum_codec import (
    MAX_PEER_FRAME_BYTES,
    MAX_SMALL_FRAME_BYTES,
    decode_message,
)
from .quorum_messages import (
    HANDSHAKE_VERSION,
    LeaderMessage,
    LeaderService,
    LearnerMessage,
    LearnerService,
    Notification,
    PeerHello,
    PeerMessage,
    PeerPurpose,
    PeerRefusal,
    PeerWelcome,
)
from .stream_decoder import StreamDecoder

Received = tuple[PeerMessage, int]
"""(message, context)."""


class PeerStage(Enum):
    """Where a connection stands; it only goes down this list."""

    SHAKING = auto()
    OPEN = auto()
    CLOSED = auto()


def _classes(union: UnionType) -> frozenset[type]:
    return frozenset(get_args(union))


_HELLO: Final = frozenset({PeerHello})
_ANSWER: Final = frozenset({PeerWelcome, PeerRefusal})
_MAY_SAY: Final[dict[tuple[PeerPurpose, bool], frozenset[type]]] = {
    (PeerPurpose.ELECTION, False): frozenset({Notification}),
    (PeerPurpose.ELECTION, True): frozenset({Notification}),
    (PeerPurpose.LEARNER, False): _classes(LearnerMessage | LearnerService),
    (PeerPurpose.LEARNER, True): _classes(LeaderMessage | LeaderService),
}
"""(purpose, whether we have dialled) -> what the other side says."""


class PeerDecoder(StreamDecoder[Received]):
    """Cuts what one server sends into messages, however the bytes arrive.

    `buffer_updated` and `feed` raise RemoteProtocolError, of which FrameTooLargeError and
    DecodeError are kinds: for what cannot be decoded, and what does not belong there. After an
    error the decoder must not be used again; what the same bytes had completed is lost.
    """

    __slots__ = ("_may_say", "_purpose", "stage", "version")

    def __init__(
        self, dialled_for: PeerPurpose | None = None, scratch: memoryview | None = None
    ) -> None:
        """`dialled_for` where we have dialled; None where we were."""
        super().__init__(MAX_SMALL_FRAME_BYTES, scratch)
        self.stage = PeerStage.SHAKING
        self.version = HANDSHAKE_VERSION
        """Of what comes next; as the welcome says, once there is one."""
        self._purpose = dialled_for
        self._may_say = _HELLO if dialled_for is None else _ANSWER

    def open(self, purpose: PeerPurpose, version: int) -> None:
        """We were dialled, and welcome the other: take what the purpose lets it say, in the version
        that our welcome says."""
        assert self._purpose is None, "an answer opens what we have dialled"
        assert self.stage is PeerStage.SHAKING, self.stage
        self._purpose = purpose
        self._open(_MAY_SAY[purpose, False], version)

    def _open(self, may_say: frozenset[type], version: int) -> None:
        self.stage = PeerStage.OPEN
        self.version = version
        self._may_say = may_say
        if self._purpose is PeerPurpose.LEARNER:
            self.max_frame_bytes = MAX_PEER_FRAME_BYTES

    def _cut(self, chunk: bytes) -> list[Received]:
        received: list[Received] = []
        position = 0
        while (frame := frame_at(chunk, position, self.max_frame_bytes)) is not None:
            received.append(self._decode(frame))
            position = frame[3]
        self._keep(chunk, position)
        return received

    def _cut_large(self, frame: bytearray) -> list[Received]:
        found = frame_at(frame, 0, self.max_frame_bytes)
        assert found is not None, len(frame)
        return [self._decode(found)]

    def _decode(self, frame: Frame) -> Received:
        message, context = decode_message(
            frame, self.version, known_peer=self.stage is PeerStage.OPEN
        )
        if type(message) not in self._may_say:
            names = ", ".join(sorted(each.__name__ for each in self._may_say)) or "nothing"
            raise RemoteProtocolError(f"{type(message).__name__} came where {names} may come")
        if self.stage is PeerStage.SHAKING:
            self._shake(message)
        return message, context

    def _shake(self, message: PeerMessage) -> None:
        if isinstance(message, PeerWelcome):
            assert self._purpose is not None, "welcomed by whom we have not dialled"
            self._open(_MAY_SAY[self._purpose, True], message.version)
            return
        self._may_say = frozenset()  # It waits for our answer, or for the end.
        if isinstance(message, PeerRefusal):
            self.stage = PeerStage.CLOSED
