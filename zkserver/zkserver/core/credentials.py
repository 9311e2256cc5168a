"""Requests that say who a client is, and those of clients who should have said.

A credential counts from the moment it is read, as in ZooKeeper; its answer waits for its turn like
any other. Owns the identities of connections; what a credential proves is `auth`'s.

Source: ZooKeeper `ZooKeeperServer.processPacket`, `processSasl`, `AuthenticationHelper`.
"""

from __future__ import annotations

from random import Random
from typing import Final

from duolog_protocol import zk_messages as zk
from duolog_protocol.apis import API_VERSIONS
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.zk_codec import REFUSED, Refusal

from .auth import AuthFailed, AuthProviders, SaslFailure
from .connection import Connection
from .events import Request
from .sasl_digest import ExchangeState, SaslFailed
from .turns import ANSWERED

_ALWAYS_TAKEN: Final = frozenset({API_VERSIONS.key, zk.CONNECT.key})
_FAILURE_CODES: Final = {
    SaslFailure.CLOSE: ZkErrorCode.AUTH_FAILED,
    SaslFailure.CLOSE_REQUIRED: ZkErrorCode.SESSION_CLOSED_REQUIRE_SASL_AUTH,
}


class Credentials:
    """Takes Auth and SASL requests, and keeps out whom the settings do not let in."""

    def __init__(self, providers: AuthProviders, rng: Random) -> None:
        """`rng` makes the nonces of SASL."""
        self._providers = providers
        self.failed_count = 0
        """Credentials that proved nothing."""
        self._rng = rng

    def knows(self, api_key: int) -> bool:
        """The request is one of those that are taken here."""
        return api_key in (zk.AUTH.key, zk.SASL_KEY)

    def take(self, connection: Connection, request: Request) -> Request:
        """Add an identity to the connection; the result is the answer, as a request of its own."""
        api_key, correlation_id, message = request
        if api_key == zk.SASL_KEY:
            return self._take_token(connection, correlation_id, message.token)
        scheme, credential = message
        try:
            held = connection.identities
            connection.identities = self._providers.authenticate(scheme, credential, held)
        except AuthFailed as error:
            self.failed_count += 1
            return REFUSED, correlation_id, Refusal(ZkErrorCode.AUTH_FAILED, str(error), True, 0)
        return ANSWERED, correlation_id, [connection.codec.empty(correlation_id, 0)]

    def admit(self, connection: Connection, requests: list[Request]) -> list[Request]:
        """What may be taken of the requests of a read.

        The first one of a client who is not known as the settings want is refused; nothing behind
        it is taken. Only for settings that want something.
        """
        admitted: list[Request] = []
        for request in requests:
            api_key, correlation_id, message = request
            unanswered = api_key == REFUSED and not message.code
            if self.knows(api_key):
                admitted.append(self.take(connection, request))
            elif (
                unanswered
                or api_key in _ALWAYS_TAKEN
                or self._providers.accepts(connection.identities)
            ):
                admitted.append(request)
            else:
                code = ZkErrorCode.SESSION_CLOSED_REQUIRE_SASL_AUTH
                refusal = Refusal(code, "the client has not authenticated as required", True, 0)
                admitted.append((REFUSED, correlation_id, refusal))
                break
        return admitted

    def _take_token(self, connection: Connection, correlation_id: int, token: bytes) -> Request:
        exchange = connection.sasl
        if exchange is None:
            exchange = connection.sasl = self._providers.sasl_exchange(self._rng)
        if exchange is None:  # as ZooKeeper without a section Server in its JAAS file
            return self._answer_token(connection, correlation_id, None)
        try:
            reply = exchange.step(token)
            if exchange.state is ExchangeState.DONE:
                held = connection.identities
                connection.identities = self._providers.sasl_done(exchange.user, held)
        except (SaslFailed, AuthFailed) as error:
            self.failed_count += 1
            code = _FAILURE_CODES.get(self._providers.sasl_failure())
            if code is None:
                return self._answer_token(connection, correlation_id, None)
            return REFUSED, correlation_id, Refusal(code, f"SASL: {error}", True, 0)
        return self._answer_token(connection, correlation_id, reply)

    def _answer_token(
        self, connection: Connection, correlation_id: int, token: bytes | None
    ) -> Request:
        codec = connection.codec
        reply = codec.reply(zk.SASL_KEY, correlation_id, 0, zk.SaslToken(token))
        return ANSWERED, correlation_id, [reply]
