"""What a znode of ours may be, for nodes that come from elsewhere. Pure.

Owns the bounds that the files' formats and the wire set, whatever the daemon's settings are.
"""

from __future__ import annotations

from typing import Final

from duolog_protocol.paths import path_problem
from duolog_protocol.types import Acl
from duolog_protocol.zk_messages import MAX_DATA_BYTES
from zkserver.core.config import MAX_PATH_BYTES

MAX_ACL_ENTRIES: Final = 255
MAX_SCHEME_BYTES: Final = 255
MAX_IDENTITY_BYTES: Final = 65535
_SHOWN: Final = 80


def node_problem(path: str, data: bytes | None) -> str | None:
    """Why a node cannot be kept, in words, or None."""
    problem = path_problem(path)
    if problem is not None:
        return f"{path!r}: {problem}"
    if len(path.encode()) > MAX_PATH_BYTES:
        return f"{path[:_SHOWN]!r}...: a path over the limit of {MAX_PATH_BYTES} bytes"
    if data is not None and len(data) > MAX_DATA_BYTES:
        return f"{path!r}: {len(data)} bytes of data are over the limit {MAX_DATA_BYTES}"
    return None


def acl_problem(acl: tuple[Acl, ...]) -> str | None:
    """Why an ACL list cannot be kept, in words, or None."""
    if len(acl) > MAX_ACL_ENTRIES:
        return f"an ACL list of {len(acl)} entries is over the limit {MAX_ACL_ENTRIES}"
    for perms, scheme, identity in acl:
        if not 0 <= perms <= 31:
            return f"permissions {perms} are not in [0, 31]"
        try:
            sizes = len(scheme.encode()), len(identity.encode())
        except UnicodeEncodeError as error:
            return f"an ACL entry is no text: {error}"
        if sizes[0] > MAX_SCHEME_BYTES or sizes[1] > MAX_IDENTITY_BYTES:
            return f"an ACL entry of the scheme {scheme[:_SHOWN]!r} is too long"
    return None
