"""How two servers of an ensemble find out that they are such.

    who dials                         who is dialled
    PREAMBLE, PeerHello   ------->
                          <-------    PeerWelcome    open, for both
                          <-------    PeerRefusal    and closed

Owns what a hello must say to be welcome. It proves nothing: it keeps servers apart that were set up
wrongly, not those that lie. The ensemble's id comes first, so that a stranger learns no more.
"""

from __future__ import annotations

from collections.abc import Collection

from .errors import PeerRefusedError, RemoteProtocolError
from .quorum_messages import (
    MAX_REFUSAL_BYTES,
    PeerHello,
    PeerRefusal,
    PeerWelcome,
    RefusalReason,
)


def answer_hello(
    hello: PeerHello,
    server_id: int,
    ensemble_id: int,
    others: Collection[int],
    version: int,
) -> PeerWelcome | PeerRefusal:
    """What the server that was dialled says; `others` are the other servers of its ensemble,
    `version` is the highest that it speaks."""
    if hello.ensemble_id != ensemble_id:
        text = f"server {server_id} is of another ensemble than {hello.ensemble_id}"
        return PeerRefusal(RefusalReason.WRONG_ENSEMBLE, text)
    if hello.server_id == server_id:
        text = f"the server that was dialled has id {server_id} itself"
        return PeerRefusal(RefusalReason.SAME_ID, text)
    if hello.server_id not in others:
        text = f"server {server_id} knows no server {hello.server_id} in its ensemble"
        return PeerRefusal(RefusalReason.NOT_A_MEMBER, text)
    return PeerWelcome(server_id, min(hello.version, version))


def refuse_stranger(error: RemoteProtocolError) -> PeerRefusal:
    """What a caller gets whose first message is no hello."""
    text = str(error).encode("utf-8", "replace")[:MAX_REFUSAL_BYTES].decode("utf-8", "ignore")
    return PeerRefusal(RefusalReason.NOT_A_HELLO, text)


def check_answer(answer: PeerWelcome | PeerRefusal, dialled_id: int, offered: int) -> None:
    """The server that dialled has its answer.

    Raises PeerRefusedError; RemoteProtocolError where another server than `dialled_id` answers, or
    one that speaks a higher version than was `offered`.
    """
    if isinstance(answer, PeerRefusal):
        raise PeerRefusedError(dialled_id, answer.reason, answer.message)
    if answer.server_id != dialled_id:
        raise RemoteProtocolError(
            f"dialled server {dialled_id}, and server {answer.server_id} answered"
        )
    if answer.version > offered:
        raise RemoteProtocolError(
            f"server {dialled_id} speaks version {answer.version}, offered was {offered}"
        )
