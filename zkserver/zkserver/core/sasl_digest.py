"""SASL DIGEST-MD5, the server's half: one exchange on one connection, sans-I/O.

    client                                    server
    any token (kazoo, Java: empty)  ------->  NEW -> CHALLENGED
                                    <-------  realm, nonce, charset, algorithm
    username, ..., response         ------->  CHALLENGED -> DONE
                                    <-------  rspauth

A token that does not fit ends the exchange: FAILED is final, and so is DONE, so a connection's
identity never changes and a recorded response opens nothing (the nonce is this exchange's own).

Owns the grammar, the arithmetic and the comparison. It keeps no password, only the hash that the
arithmetic begins with; an unknown user costs what a wrong password costs. The mechanism is
obsolete (RFC 6331) and MD5 weak: use it inside TLS.

Source: RFC 2831; Java's `DigestMD5Server`, ZooKeeper `SaslServerCallbackHandler`. Compared with
Apache ZooKeeper 3.8.0, which differs in this:

- it takes any authzid and ignores it; here it must be the user (CVE-2017-12610 is what it can do);
- it lets an *unknown* user in with the password of the user who came before on any connection;
- it takes a directive without value, an unclosed quote and a second `nc`; here they are refused;
- it hashes text outside ASCII in ISO 8859-1 where that can, as the RFC asks; UTF-8, which kazoo
  sends, is taken as well here.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from enum import Enum
from random import Random
from typing import Final

REALM: Final = "zk-sasl-md5"
DIGEST_URI: Final = "zookeeper/zk-sasl-md5"
MAX_TOKEN_BYTES: Final = 4096
"""Java's bound, too."""
NONCE_BYTES: Final = 30
_DIRECTIVE: Final = re.compile(
    r'[ \t\r\n]*([A-Za-z0-9_-]+)[ \t\r\n]*=[ \t\r\n]*(?:"((?:[^"\\]|\\.)*)"|([^,"]*))[ \t\r\n]*',
    re.DOTALL,
)
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_ONLY_ONCE: Final = {
    *("username", "realm", "nonce", "cnonce", "nc", "qop", "digest-uri", "response", "charset"),
    *("authzid", "maxbuf", "cipher"),
}


class SaslFailed(Exception):
    """The exchange failed; the text is for the log, never for the client."""


class SaslUsers:
    """Who may come, and what their passwords hash to."""

    __slots__ = ("_nobody", "_secrets")

    def __init__(self, passwords: Mapping[str, str], rng: Random) -> None:
        """`rng` makes the secret that an unknown user is compared with."""
        self._secrets = {
            user: (_secret(user, password, "latin-1"), _secret(user, password, "utf-8"))
            for user, password in passwords.items()
        }
        self._nobody = (rng.randbytes(16), rng.randbytes(16))

    def __contains__(self, user: str) -> bool:
        return user in self._secrets

    def __len__(self) -> int:
        return len(self._secrets)

    def __repr__(self) -> str:
        return f"<SaslUsers {len(self)}>"

    def secrets_of(self, user: str) -> tuple[bytes, bytes]:
        """What a response may begin with; of an unknown user something that nobody knows."""
        return self._secrets.get(user, self._nobody)


class ExchangeState(Enum):
    """Where an exchange stands; each state only follows the one before it."""

    NEW = 1
    CHALLENGED = 2
    DONE = 3
    FAILED = 4


class DigestExchange:
    """One client's way from nobody to a user."""

    __slots__ = ("_nonce", "_users", "state", "user")

    def __init__(self, users: SaslUsers, rng: Random) -> None:
        """`rng` must be unpredictable in production: it makes the nonce."""
        self._users = users
        self._nonce = base64.b64encode(rng.randbytes(NONCE_BYTES)).decode()
        self.state = ExchangeState.NEW
        self.user = ""
        """Who the client is; of meaning once the state is DONE."""

    def step(self, token: bytes) -> bytes:
        """Take the client's token and return ours. Raises SaslFailed, then or ever after."""
        state, self.state = self.state, ExchangeState.FAILED
        if len(token) > MAX_TOKEN_BYTES:
            raise SaslFailed(f"a token of {len(token)} bytes is over {MAX_TOKEN_BYTES}")
        if state is ExchangeState.NEW:
            self.state = ExchangeState.CHALLENGED
            return (
                f'realm="{REALM}",nonce="{self._nonce}",charset=utf-8,algorithm=md5-sess'
            ).encode()
        if state is not ExchangeState.CHALLENGED:
            raise SaslFailed("a connection authenticates once")
        self.user, reply = self._verify(parse_directives(token))
        self.state = ExchangeState.DONE
        return reply

    def _verify(self, given: dict[str, str]) -> tuple[str, bytes]:
        """The user and the answer that proves that we know the password, too."""
        user = given.get("username", "")
        authzid = given.get("authzid")
        uri = given.get("digest-uri", "")
        for holds, problem in (
            (user != "", "there is no username"),
            (given.get("realm") == REALM, "the realm is not the one of the challenge"),
            (given.get("nonce") == self._nonce, "the nonce is not the one of the challenge"),
            (given.get("nc", "00000001") == "00000001", "the nonce was used before"),
            ("cnonce" in given, "there is no cnonce"),
            (given.get("qop", "auth") == "auth", "only qop=auth is offered"),
            (uri.lower() == DIGEST_URI, "the digest-uri names another service"),
            (given.get("charset", "utf-8") == "utf-8", "only charset=utf-8 is offered"),
            (authzid in (None, "", user), "authzid is not the user"),
        ):
            if not holds:
                raise SaslFailed(problem)
        response = given.get("response", "").encode()
        cnonce = given["cnonce"]
        matching = b""
        for secret in self._users.secrets_of(user):  # all of them, whatever the first one gives
            begin = _session_secret(secret, self._nonce, cnonce, authzid)
            expected = _respond(begin, self._nonce, cnonce, f"AUTHENTICATE:{uri}")
            if hmac.compare_digest(expected, response):
                matching = begin
        if not matching or user not in self._users:
            raise SaslFailed(f"user {user!r} is unknown or the password is wrong")
        return user, b"rspauth=" + _respond(matching, self._nonce, cnonce, f":{uri}")


def parse_directives(token: bytes) -> dict[str, str]:
    """`name=value` or `name="value"`, between commas; names in lower case. Raises SaslFailed."""
    try:
        text = token.decode()
    except UnicodeDecodeError as error:
        raise SaslFailed("the token is not UTF-8") from error
    found: dict[str, str] = {}
    position = 0
    while position < len(text):
        if text[position] == ",":  # RFC 2831 allows empty elements in the list
            position += 1
            continue
        directive = _DIRECTIVE.match(text, position)
        if directive is None or text[directive.end() : directive.end() + 1] not in ("", ","):
            raise SaslFailed(f"no directive at character {position} of the token")
        name, quoted, plain = directive.groups()
        name = name.lower()
        if name in found and name in _ONLY_ONCE:
            raise SaslFailed(f"{name} is given twice")
        found[name] = plain.strip() if quoted is None else _ESCAPE.sub(r"\1", quoted)
        position = directive.end()
    return found


def _secret(user: str, password: str, charset: str) -> bytes:
    """H(user:realm:password), each part in the charset where it can be, else in UTF-8."""
    parts: list[bytes] = []
    for part in (user, REALM, password):
        try:
            parts.append(part.encode(charset))
        except UnicodeEncodeError:
            parts.append(part.encode())
    return _hash(b":".join(parts))


def _session_secret(secret: bytes, nonce: str, cnonce: str, authzid: str | None) -> bytes:
    """HEX(H(A1))."""
    tail = f":{nonce}:{cnonce}" if authzid is None else f":{nonce}:{cnonce}:{authzid}"
    return _hash(secret + tail.encode()).hex().encode()


def _respond(session_secret: bytes, nonce: str, cnonce: str, a2: str) -> bytes:
    """The response-value of RFC 2831 2.1.2.1, and with another `a2` that of 2.1.3."""
    middle = f":{nonce}:00000001:{cnonce}:auth:".encode()
    return _hash(session_secret + middle + _hash(a2.encode()).hex().encode()).hex().encode()


def _hash(data: bytes) -> bytes:
    # The mechanism is MD5; where the library refuses that for security, it can still be computed.
    return hashlib.md5(data, usedforsecurity=False).digest()
