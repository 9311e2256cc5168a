"""From a client's write to its Txn in the log: prepared, numbered, logged.

Owns which requests are writes and what becomes of one that fails: an error Txn of its own, or,
where it must not reach the log at all, `Refused`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from duolog_protocol import zk_messages as zk
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.txns import Body, TxnKind

from .connection import Connection
from .pending import Failure
from .prepare import Preparer, Refused, Rejected, session_of
from .proposals import Proposals

Prepare = Callable[[Connection, Any], Body]


class Writes:
    """Logs the writes of one server's clients, and of those that its learners forward."""

    def __init__(self, preparer: Preparer, proposals: Proposals, reconfig: Prepare) -> None:
        self._proposals = proposals
        self._preparer = preparer
        self._prepare: dict[int, Prepare] = {
            zk.SET_DATA.key: preparer.set_data,
            zk.CREATE.key: preparer.create,
            zk.CREATE2_KEY: preparer.create,
            zk.DELETE.key: preparer.delete,
            zk.SET_ACL.key: preparer.set_acl,
            zk.CHECK.key: preparer.check,
            zk.MULTI.key: preparer.multi,
            zk.RECONFIG.key: reconfig,
        }

    def __contains__(self, api_key: object) -> bool:
        """Whether it is a write."""
        return api_key in self._prepare

    def log(
        self,
        asker: Connection,
        api_key: int,
        correlation_id: int,
        message: Any,
        *,
        is_ours: bool = True,
    ) -> Failure | None:
        """Log a write at the next zxid; the result says why it fails there, or None.

        `is_ours`: the connection is answered once the Txn is applied. Raises Refused.
        """
        session = session_of(asker)
        if session.closing:
            raise Refused(ZkErrorCode.SESSION_EXPIRED, "the session is ending")
        note: Any = None
        failure: Failure | None = None
        try:
            body = self._prepare[api_key](asker, message)
            if api_key == zk.MULTI.key:
                note = kinds_of(message)
        except Refused:
            raise
        except Rejected as error:
            note = failure = error.failure()
            body = (TxnKind.ERROR, error.code)
        proposals, session_id = self._proposals, session.session_id
        zxid = proposals.next_zxid()
        if is_ours:
            asker.submitted += 1
            proposals.add(zxid, session_id, body, asker, correlation_id, api_key, note)
        else:
            proposals.add(zxid, session_id, body, None, correlation_id)
        return failure

    def log_plain_set(self, asker: Connection, message: Any, correlation_id: int) -> bool:
        """Log a plain SetData of a learner's client; False: it is not plain, `log` decides."""
        body = self._preparer.plain_set(message)
        if body is None:
            return False
        session_id = session_of(asker).session_id
        self._proposals.add_set(session_id, body, None, correlation_id)
        return True


def kinds_of(message: zk.MultiRequest) -> list[int]:
    """The kinds of a multi's operations, which its reply repeats."""
    return [op.kind for op in message.ops]
