"""What both servers are told, so that every difference between them is one of behaviour."""

from __future__ import annotations

import base64
import hashlib
from typing import Final

TICK_MS: Final = 100
"""Sessions end within a few of these; nothing else depends on it."""
MIN_TIMEOUT_MS: Final = 300
MAX_TIMEOUT_MS: Final = 600_000
LONG_TIMEOUT_MS: Final = 300_000
"""Of a session that must outlive any pause of the machine."""
MAX_BUFFER: Final = 1_048_575
"""`jute.maxbuffer`."""
SUPER_CREDENTIAL: Final = "super:test"


def digest_id(credential: str) -> str:
    """`user:password` as it stands in an ACL."""
    user = credential.partition(":")[0]
    return f"{user}:{base64.b64encode(hashlib.sha1(credential.encode()).digest()).decode()}"


SUPER_DIGEST: Final = digest_id(SUPER_CREDENTIAL)
