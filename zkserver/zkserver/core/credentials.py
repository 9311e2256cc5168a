"""Requests that say who a client is.

A credential counts from the moment it is read, as in ZooKeeper; its answer waits for its turn like
any other. Owns the identities of connections; what a credential proves is `auth`'s.
"""

from __future__ import annotations

from typing import Any

from duolog_protocol import zk_messages as zk
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.zk_codec import REFUSED, Refusal

from .auth import AuthFailed, AuthProviders
from .connection import Connection
from .events import Request
from .turns import ANSWERED


class Credentials:
    """Takes Auth requests."""

    def __init__(self, providers: AuthProviders) -> None:
        self._providers = providers

    def knows(self, api_key: int) -> bool:
        """The request is one of those that are taken here."""
        return api_key == zk.AUTH.key

    def take(self, connection: Connection, request: Request) -> Request:
        """Add an identity to the connection; the result is the answer, as a request of its own."""
        _, correlation_id, message = request
        try:
            pieces = self._add(connection, correlation_id, message)
        except AuthFailed as error:
            return REFUSED, correlation_id, Refusal(ZkErrorCode.AUTH_FAILED, str(error), True)
        return ANSWERED, correlation_id, pieces

    def _add(self, connection: Connection, correlation_id: int, message: Any) -> list[bytes]:
        scheme, credential = message
        held = connection.identities
        connection.identities = self._providers.authenticate(scheme, credential, held)
        return [connection.codec.empty(correlation_id, 0)]
