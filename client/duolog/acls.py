"""Helpers for ACLs, with kazoo's names.

The digest is ZooKeeper's `DigestAuthenticationProvider`: base64 of SHA-1 of `user:password`. It is
part of the protocol, not a choice; treat it as no better than the password.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from duolog_protocol.types import OPEN_ACL_UNSAFE, Acl, Perms

CREATOR_ALL_ACL: Final = (Acl(Perms.ALL, "auth", ""),)
"""Every identity of the creator may do everything; nobody else anything."""
READ_ACL_UNSAFE: Final = (Acl(Perms.READ, "world", "anyone"),)
"""Everybody may read, nobody may change."""

__all__ = [
    "CREATOR_ALL_ACL",
    "OPEN_ACL_UNSAFE",
    "READ_ACL_UNSAFE",
    "make_acl",
    "make_digest_acl",
    "make_digest_acl_credential",
]


def make_digest_acl_credential(username: str, password: str) -> str:
    """The id of a digest ACL: `user:base64(sha1("user:password"))`."""
    digest = hashlib.sha1(f"{username}:{password}".encode(), usedforsecurity=False).digest()
    return f"{username}:{base64.b64encode(digest).decode()}"


def make_acl(
    scheme: str,
    credential: str,
    read: bool = False,
    write: bool = False,
    create: bool = False,
    delete: bool = False,
    admin: bool = False,
    all: bool = False,
) -> Acl:
    """An ACL entry for an id of a scheme."""
    perms = Perms(0)
    for granted, perm in (
        (read, Perms.READ),
        (write, Perms.WRITE),
        (create, Perms.CREATE),
        (delete, Perms.DELETE),
        (admin, Perms.ADMIN),
        (all, Perms.ALL),
    ):
        if granted:
            perms |= perm
    return Acl(int(perms), scheme, credential)


def make_digest_acl(
    username: str,
    password: str,
    read: bool = False,
    write: bool = False,
    create: bool = False,
    delete: bool = False,
    admin: bool = False,
    all: bool = False,
) -> Acl:
    """An ACL entry for a user and password, in clear, of the scheme "digest"."""
    id_ = make_digest_acl_credential(username, password)
    return make_acl("digest", id_, read, write, create, delete, admin, all)
