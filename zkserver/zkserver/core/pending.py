"""What is logged and not yet applied, and the replies it will get.

Owns the form of the replies to writes; who gets them and when is the core's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from duolog_protocol import zk_messages as zk
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.txns import Body

from .connection import Codec, Connection


class Failure(NamedTuple):
    """Why a write fails, kept until its error Txn is applied: never the exception, which would keep
    the request and the frames it came through."""

    code: int
    message: str
    failed_at: int = -1
    """In a multi the place of the operation that fails; -1: not a multi."""
    op_count: int = 0
    """Operations in all."""


PendingFields = tuple[int, int, int, Body | None, Connection | None, int, int, Any, int]
"""A `Pending` as it is kept: to make one costs as much as to encode its record."""


class Pending(NamedTuple):
    """A Txn that is logged and not yet applied, and who waits for it."""

    zxid: int
    session_id: int
    wall_ms: int
    body: Body | None
    """None: a sync, which waits until everything up to `zxid` is applied."""
    connection: Connection | None
    correlation_id: int
    api_key: int
    note: Any
    """For an error Txn the Failure to answer with; for a multi the kinds of its operations; for a
    sync its request; otherwise None."""
    size_bytes: int


def write_reply(codec: Codec, each: Pending, result: Any) -> bytes:
    """The reply to a write that was applied; `result` is what `apply` returned.

    One that shows a Stat and nothing else is the codec's own to append.
    """
    zxid, correlation_id = each.zxid, each.correlation_id
    if each.api_key in (zk.CREATE.key, zk.CREATE2_KEY):
        reply: Any = zk.CreateResponse(result.path, result.stat())
        return codec.reply(each.api_key, correlation_id, zxid, reply)
    if each.api_key == zk.RECONFIG.key:
        reply = zk.GetDataResponse(result.stat(), result.data)
        return codec.reply(each.api_key, correlation_id, zxid, reply)
    if each.api_key == zk.MULTI.key:
        results = [
            zk.MultiResult(kind, 0, op.path, op.stat)
            for kind, op in zip(each.note, result, strict=True)
        ]
        return codec.reply(each.api_key, correlation_id, zxid, zk.MultiResponse(results))
    assert each.api_key in {zk.DELETE.key, zk.CHECK.key}, each
    return codec.empty(correlation_id, zxid)


def failure_reply(codec: Codec, each: Pending) -> bytes:
    """The reply to a write that failed with a zxid; a multi has a result for each operation."""
    failure: Failure = each.note
    if failure.failed_at < 0:
        return codec.error(each.correlation_id, failure.code, each.zxid, failure.message)
    after = int(ZkErrorCode.RUNTIME_INCONSISTENCY)
    codes = [0] * failure.failed_at + [int(failure.code)]
    codes += [after] * (failure.op_count - len(codes))
    reply = zk.MultiResponse([zk.MultiResult(-1, code, None, None) for code in codes])
    return codec.reply(zk.MULTI.key, each.correlation_id, each.zxid, reply)
