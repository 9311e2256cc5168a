"""Who a client is, and what an ACL list lets it do.

Owns the schemes (world, auth, digest, ip, x509, sasl, super): how a credential becomes an identity,
which ids an ACL may name, who matches what, and whom the server insists on knowing. It keeps no
credential: of a super user only the digest, of a SASL user only a hash.

An identity is (scheme, id). A connection has a tuple of them, made when it opens (`ip`, `x509`) and
grown by AUTH and SASL requests; it is a set in the order in which Apache ZooKeeper happens to list
it, so that whoAmI and an expanded `auth` entry read alike.

    scheme  id in an ACL           who has it
    world   anyone                 everybody; `perms & world` is decided before this module is asked
    auth    ignored                stands for every digest, x509 and sasl identity of the writer
    digest  user:base64(sha1)      whoever sent `user:password`
    ip      address[/bits]         whoever connects from there
    x509    subject, RFC 2253      whoever has that certificate
    sasl    user                   whoever went through a SASL exchange; `super` matches all of them
    super   (in no ACL)            may do everything

Source: ZooKeeper `AuthenticationProvider`s, `PrepRequestProcessor.fixupACL`,
`ZooKeeperServer.checkACL`, `AuthenticationHelper`; zookeeper.md B.6. What 3.8.0 does at the edges
was read off the real server and is written down in `tests/unit/zkserver/test_auth.py`. On purpose
this differs: there are bounds (`MAX_ID_BYTES`, `MAX_IDENTITIES`, `MAX_ACL_ENTRIES`), and
`ip` also knows IPv6 (3.8.0 knows no valid IPv6 id, so no ACL changes its meaning).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Collection, Iterable
from enum import Enum
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address
from random import Random
from typing import Final, NamedTuple

from duolog_protocol.types import Acl

from .distinguished_name import is_name
from .sasl_digest import DigestExchange, SaslUsers

Identity = tuple[str, str]
"""(scheme, id)."""

MAX_ID_BYTES: Final = 1024
"""An id in UTF-8: what an ACL entry holds."""
MAX_IDENTITIES: Final = 64
"""Identities of one connection."""
MAX_ACL_ENTRIES: Final = 250
"""Entries of a list once `auth` is expanded: what a log record can count."""
DEFAULT_SCHEMES: Final = frozenset({"digest", "ip"})
"""What ACL entries may name beside `world` and `auth` where nothing else is configured."""
EXPANDED_SCHEMES: Final = frozenset({"digest", "sasl", "x509"})
"""Identities that an `auth` entry stands for; an address proves nobody."""
SUPER: Final = "super"
_LONE_SURROGATE: Final = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}".encode()
_DECIMAL: Final = re.compile(r"[+-]?\d+")


class AuthFailed(Exception):
    """The credential is not accepted: the client is told so (AUTH_FAILED) and dropped."""


class InvalidAcl(Exception):
    """An ACL list that cannot be stored."""


# ---- identities ----------------------------------------------------------------------------------


def digest_id(credential: bytes) -> str:
    """`user:base64(sha1(user:password))`.

    The user ends at the first colon; without one it is all of the credential. Bytes that are not
    UTF-8 count as U+FFFD, as in Java: such a password is weaker than it looks.
    """
    text = _LONE_SURROGATE.sub(_REPLACEMENT, credential).decode("utf-8", "replace")
    digest = hashlib.sha1(text.encode(), usedforsecurity=False).digest()
    return f"{text.partition(':')[0]}:{base64.b64encode(digest).decode()}"


def ip_id(address: str) -> str:
    """The id of an address, as Java prints it: IPv4-mapped as IPv4, IPv6 in eight groups."""
    parsed = _parse_ipv6(address)
    if parsed is None:
        return address
    mapped = parsed.ipv4_mapped
    if mapped is not None:
        return str(mapped)
    number = int(parsed)
    return ":".join(f"{number >> shift & 0xFFFF:x}" for shift in range(112, -16, -16))


def connection_identities(address: str, certificate_subject: str | None) -> tuple[Identity, ...]:
    """Who a client is before it has sent anything; the subject is that of a verified certificate.

    A super user's certificate is `AuthProviders.at_connect`'s business.
    """
    identities = [("ip", ip_id(address))]
    if certificate_subject is not None:
        identities.append(("x509", certificate_subject))
    return ordered(identities)


def ordered(identities: Iterable[Identity]) -> tuple[Identity, ...]:
    """The identities without duplicates, in the order in which Apache ZooKeeper lists them.

    It keeps them in a Java hash set. Up to eleven this order is exact; beyond, where that set was
    rehashed, neighbours may be the other way round.
    """
    unique = dict.fromkeys(identities)
    buckets = 16
    while len(unique) >= 3 * buckets // 4:
        buckets *= 2
    return tuple(sorted(unique, key=lambda identity: _java_hash(identity) & (buckets - 1)))


def without_secrets(identities: Iterable[Identity]) -> list[Identity]:
    """The identities as whoAmI shows them: of a digest the user only."""
    return [
        (scheme, name.partition(":")[0] if scheme == "digest" else name)
        for scheme, name in identities
    ]


@lru_cache(maxsize=1024)
def _java_hash(identity: Identity) -> int:
    """`Id.hashCode` as `ConcurrentHashMap` spreads it."""
    value = 17
    for text in identity:
        units = text.encode("utf-16-be", "surrogatepass")
        part = 0
        for high, low in zip(units[::2], units[1::2], strict=True):
            part = (31 * part + (high << 8 | low)) & 0xFFFFFFFF
        value = (37 * value + part) & 0xFFFFFFFF
    return (value ^ value >> 16) & 0x7FFFFFFF


# ---- ACL lists -----------------------------------------------------------------------------------


def acl_allows(acl: tuple[Acl, ...], perm: int, identities: Collection[Identity]) -> bool:
    """Whether an ACL list grants one of the permissions in `perm` to these identities.

    An empty list, which only an imported tree can have, grants everything, as in ZooKeeper.
    """
    for scheme, _ in identities:
        if scheme == SUPER:
            return True
    for perms, scheme, name in acl:
        if perms & perm:
            if scheme == "world":
                if name == "anyone":
                    return True
            elif (scheme, name) in identities:
                # An ip id that is no address is in nobody's identities, so equality is enough.
                return True
            elif scheme in ("ip", "sasl") and any(
                matches(scheme, name, identity) for identity in identities
            ):
                return True
    return not acl


def matches(scheme: str, name: str, identity: Identity) -> bool:
    """Whether an ACL entry for `scheme:name` means this identity."""
    own_scheme, own_name = identity
    if scheme == "world":
        return name == "anyone"
    if scheme != own_scheme:
        return False
    if scheme == "ip":
        network, address = _parse_network(name), _parse_network(own_name)
        if network is None or address is None or network[2] != address[2]:
            return False
        return (network[0] ^ address[0]) & network[1] == 0
    if scheme == "sasl" and own_name == SUPER:
        return True
    return name == own_name


def resolve_acl(
    acl: tuple[Acl, ...] | None,
    identities: Iterable[Identity],
    schemes: frozenset[str] = DEFAULT_SCHEMES,
) -> tuple[Acl, ...]:
    """The ACL list as it is stored: `auth` expanded, duplicates removed, in order.

    As in ZooKeeper duplicates are removed first, so that an expansion may bring some back.
    `schemes` are those of the configured `AuthProviders`. Raises InvalidAcl.
    """
    if not acl:
        raise InvalidAcl("the ACL list is empty")
    found: list[Acl] = []
    for entry in dict.fromkeys(acl):
        perms, scheme, name = entry
        if scheme == "auth":
            own = [each for each in identities if each[0] in EXPANDED_SCHEMES]
            if not own:
                raise InvalidAcl("nobody is authenticated on this connection")
            found += [Acl(perms, *each) for each in own]
        elif is_valid(scheme, name, schemes):
            found.append(entry)
        else:
            raise InvalidAcl(f"{scheme}:{name} is no valid ACL entry")
    if len(found) > MAX_ACL_ENTRIES:
        raise InvalidAcl(f"{len(found)} entries are over {MAX_ACL_ENTRIES}")
    return tuple(found)


def is_valid(scheme: str, name: str, schemes: frozenset[str] = DEFAULT_SCHEMES) -> bool:
    """Whether an ACL may name this id; `auth`, which is replaced, is not asked about here."""
    if scheme == "world":
        return name == "anyone"
    if scheme not in schemes:
        return False
    if scheme == "digest":
        # Java: `id.split(":").length == 2`, which forgets empty parts at the end.
        return len(name.rstrip(":").split(":")) == 2
    if scheme == "ip":
        return _parse_network(name) is not None
    if scheme == "x509":
        return is_name(name)
    # A Kerberos name: [primary][/instance]@realm, or anything without an @.
    return "@" not in name or re.fullmatch(r"[^/@]*(/[^/@]*)?@[^/@]*", name) is not None


def mask_digests(acl: tuple[Acl, ...]) -> tuple[Acl, ...]:
    """The ACL list for a reader without ADMIN: digests read `user:x` (CVE-2019-0201)."""
    return tuple(
        Acl(perms, scheme, f"{name.partition(':')[0]}:x") if scheme == "digest" else entry
        for entry in acl
        for perms, scheme, name in (entry,)
    )


@lru_cache(maxsize=4096)
def _parse_network(text: str) -> tuple[int, int, int] | None:
    """(address, mask, bits of the family) of `address[/bits]`, or None."""
    address, slash, bits_text = text.partition("/")
    number, width = _parse_ipv4(address), 32
    if number is None:
        parsed = _parse_ipv6(address)
        if parsed is None:
            return None
        number, width = int(parsed), 128
    bits = width
    if slash:
        if _DECIMAL.fullmatch(bits_text) is None or len(bits_text) > MAX_ID_BYTES:
            return None
        bits = int(bits_text)
        if not 0 <= bits <= width:
            return None
    mask = (1 << width) - (1 << width - bits)
    if width == 128 and bits >= 96 and number >> 32 == 0xFFFF:  # IPv4-mapped
        return number & 0xFFFFFFFF, mask & 0xFFFFFFFF, 32
    return number, mask, width


def _parse_ipv4(text: str) -> int | None:
    """Four numbers as Java's `Integer.parseInt` takes them: a sign and leading zeros are fine."""
    parts = text.split(".")
    if len(parts) != 4:
        return None
    number = 0
    for part in parts:
        if len(part) > MAX_ID_BYTES or _DECIMAL.fullmatch(part) is None:
            return None
        value = int(part)
        if not 0 <= value <= 255:
            return None
        number = number << 8 | value
    return number


def _parse_ipv6(text: str) -> IPv6Address | None:
    if ":" not in text:
        return None
    try:
        return IPv6Address(text.partition("%")[0])
    except AddressValueError:
        return None


# ---- what is configured --------------------------------------------------------------------------


class SaslFailure(Enum):
    """What becomes of a connection whose SASL exchange failed."""

    CLOSE = 1
    """Answer AUTH_FAILED with a null token, and close."""
    CLOSE_REQUIRED = 2
    """Answer SESSION_CLOSED_REQUIRE_SASL_AUTH with a null token, and close."""
    KEEP = 3
    """Answer OK with a null token: it goes on as nobody."""


class AuthSettings(NamedTuple):
    """What the administrator decides, with ZooKeeper's names."""

    super_digests: tuple[str, ...] = ()
    """`user:base64(sha1)` of super users (`DigestAuthenticationProvider.superDigest`)."""
    super_x509: str = ""
    """Subject of the super user (`X509AuthenticationProvider.superUser`); empty: nobody."""
    super_sasl: str = ""
    """SASL user who is also super (`zookeeper.superUser`); empty: nobody."""
    x509: bool = False
    """Clients may show certificates, so ACLs may name them."""
    enforced_schemes: frozenset[str] = frozenset()
    """A connection needs an identity of one of these for every request but AUTH and SASL; empty:
    none (`enforce.auth.enabled` with `enforce.auth.schemes`; `sessionRequireClientSASLAuth` adds
    `sasl`)."""
    allow_failed_sasl: bool = False
    """A client whose SASL exchange failed may stay, as nobody (`allowSaslFailedClients`)."""


class AuthProviders:
    """The schemes that are configured; stateless, one for all connections."""

    def __init__(
        self, settings: AuthSettings | None = None, sasl_users: SaslUsers | None = None
    ) -> None:
        """`sasl_users` None: there is no SASL."""
        self._settings = settings or AuthSettings()
        self._sasl_users = sasl_users
        self.enforces: Final = bool(self._settings.enforced_schemes)
        """`accepts` is not always true."""
        more = {"x509": self._settings.x509, "sasl": sasl_users is not None}
        self.schemes: Final = DEFAULT_SCHEMES | {scheme for scheme, on in more.items() if on}
        """What ACL entries may name; for `resolve_acl` and `is_valid`."""

    def at_connect(self, address: str, certificate_subject: str | None) -> tuple[Identity, ...]:
        """Who a client is before it has sent anything."""
        identities = connection_identities(address, certificate_subject)
        super_x509 = self._settings.super_x509
        if super_x509 and certificate_subject == super_x509:
            return ordered([*identities, (SUPER, super_x509)])
        return identities

    def authenticate(
        self, scheme: str, credential: bytes | None, held: tuple[Identity, ...]
    ) -> tuple[Identity, ...]:
        """Who a client is that was `held` and sent this AUTH request. Raises AuthFailed."""
        if scheme == "digest" and credential is not None:
            name = digest_id(credential)
            supers = [(SUPER, "")] if self._is_super(name) else []
            return self._grown(held, [*supers, ("digest", name)])
        if scheme == "ip" or (scheme == "x509" and any(own == "x509" for own, _ in held)):
            return held  # known since the connection opened
        raise AuthFailed(f"scheme {scheme!r} does not accept the credential")

    def sasl_exchange(self, rng: Random) -> DigestExchange | None:
        """A new exchange for one connection; None where there is no SASL.

        Without it ZooKeeper answers every SASL token with OK and a null token.
        """
        return None if self._sasl_users is None else DigestExchange(self._sasl_users, rng)

    def sasl_done(self, user: str, held: tuple[Identity, ...]) -> tuple[Identity, ...]:
        """Who a client is that was `held` and went through a SASL exchange. Raises AuthFailed."""
        supers = [(SUPER, "")] if user and user == self._settings.super_sasl else []
        return self._grown(held, [("sasl", user), *supers])

    def sasl_failure(self) -> SaslFailure:
        """What becomes of a connection whose exchange failed."""
        if "sasl" in self._settings.enforced_schemes:
            return SaslFailure.CLOSE_REQUIRED
        return SaslFailure.KEEP if self._settings.allow_failed_sasl else SaslFailure.CLOSE

    def accepts(self, held: Iterable[Identity]) -> bool:
        """Whether requests are taken from a connection with these identities.

        To be asked for every request but AUTH and SASL, pings and closeSession included, before it
        is looked at; where it is false the answer is SESSION_CLOSED_REQUIRE_SASL_AUTH without a
        body, and the connection is closed. Connecting comes before: a session is opened for
        everybody.
        """
        enforced = self._settings.enforced_schemes
        return not enforced or any(scheme in enforced for scheme, _ in held)

    def _is_super(self, name: str) -> bool:
        raw = name.encode()
        found = [hmac.compare_digest(raw, each.encode()) for each in self._settings.super_digests]
        return any(found)

    def _grown(self, held: tuple[Identity, ...], more: list[Identity]) -> tuple[Identity, ...]:
        if any(len(name.encode()) > MAX_ID_BYTES for _, name in more):
            raise AuthFailed(f"an id is over {MAX_ID_BYTES} bytes")
        grown = ordered([*held, *more])
        if len(grown) > MAX_IDENTITIES:
            raise AuthFailed(f"a connection has at most {MAX_IDENTITIES} identities")
        return grown
