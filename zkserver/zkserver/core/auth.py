"""Who may do what: identities against ACL lists."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable

from duolog_protocol.types import Acl

Identity = tuple[str, str]
"""(scheme, id)."""


class InvalidAcl(Exception):
    """An ACL list that cannot be stored."""


def acl_allows(acl: tuple[Acl, ...], perm: int, identities: Iterable[Identity]) -> bool:
    """Whether an ACL list grants a permission to somebody with these identities."""
    for scheme, _ in identities:
        if scheme == "super":
            return True
    for perms, scheme, name in acl:
        if perms & perm:
            if scheme == "world" and name == "anyone":
                return True
            if (scheme, name) in identities:
                return True
    return False


def resolve_acl(acl: tuple[Acl, ...] | None, identities: Iterable[Identity]) -> tuple[Acl, ...]:
    """The ACL list as it is stored. Raises InvalidAcl."""
    if not acl:
        raise InvalidAcl("the ACL list is empty")
    found: dict[Acl, None] = {}
    for entry in acl:
        perms, scheme, name = entry
        if scheme == "auth":
            own = [each for each in identities if each[0] in ("digest", "sasl", "x509")]
            if not own:
                raise InvalidAcl("nobody is authenticated on this connection")
            for each in own:
                found[Acl(perms, *each)] = None
        elif (scheme == "world" and name == "anyone") or scheme in ("digest", "ip", "sasl", "x509"):
            found[entry] = None
        else:
            raise InvalidAcl(f"{scheme}:{name} is not a valid ACL entry")
    return tuple(found)


class AuthFailed(Exception):
    """A credential was not accepted."""


def digest_id(credential: bytes) -> str:
    """`user:base64(sha1(user:password))` of `user:password`."""
    user = credential.partition(b":")[0].decode("utf-8", "replace")
    hashed = base64.b64encode(hashlib.sha1(credential, usedforsecurity=False).digest())
    return f"{user}:{hashed.decode()}"


class AuthProviders:
    """Checks credentials."""

    def authenticate(
        self, scheme: str, credential: bytes, identities: Iterable[Identity]
    ) -> list[Identity]:
        """The identities that a credential proves. Raises AuthFailed."""
        if scheme == "digest":
            return [("digest", digest_id(credential))]
        if scheme == "ip":
            return [each for each in identities if each[0] == "ip"]
        raise AuthFailed(f"authentication scheme {scheme!r} is not known")


def mask_digests(acl: tuple[Acl, ...]) -> tuple[Acl, ...]:
    """An ACL list as somebody sees it who may not administer the node: `user:x` for a digest."""
    return tuple(
        Acl(perms, scheme, f"{name.partition(':')[0]}:x" if scheme == "digest" else name)
        for perms, scheme, name in acl
    )


def without_secrets(identities: Iterable[Identity]) -> list[Identity]:
    """Identities as whoAmI tells them: of a digest the user only."""
    return [
        (scheme, name.partition(":")[0] if scheme == "digest" else name)
        for scheme, name in identities
    ]
