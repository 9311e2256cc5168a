"""What may differ between Apache ZooKeeper 3.8.0 and zkserver, and why a user would accept it.

Nothing else may: a difference that no entry explains fails the test. `NOT_GENERATED` tells what
programs never do, because after it the two servers could not be compared any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from .programs import Step


class Situation(NamedTuple):
    """Two answers that are not equal."""

    step: Step
    """The request that is due to be answered."""
    theirs: Any
    """Apache's frame in normal form; None where it has no more."""
    ours: Any
    """Our frame in normal form; None where there is no more."""


class KnownDifference(NamedTuple):
    """One entry of the table."""

    name: str
    reason: str
    explains: Callable[[Situation], tuple[int, int] | None]
    """How many frames of theirs and of ours are explained, or None."""
    zxid_shift: int = 0
    """Zxids that Apache took for it and ours did not."""


KNOWN_DIFFERENCES: Final[tuple[KnownDifference, ...]] = ()

NOT_GENERATED: Final = {
    "check outside of a multi": (
        "Apache 3.8.0 logs it as a transaction that cannot be decoded and stops serving "
        "(ZOOKEEPER-2623); zkserver answers it"
    ),
    "a one-shot watch where the connection has a persistent one": (
        "Apache 3.8.0 replaces the persistent watch by the one-shot one (ZOOKEEPER-4466, mended in "
        "3.9); zkserver keeps both"
    ),
    "a wrong password while the session's connection is open": (
        "Apache closes the owner's connection before it looks at the password, so that anybody who "
        "knows a session id can disturb it; zkserver looks first"
    ),
    "auth packets pipelined with other requests": (
        "Apache answers them out of order, when it happens to read them; zkserver keeps the order"
    ),
    "setACL pipelined with other requests": (
        "until it is applied, Apache still checks writes against the old ACL, depending on timing; "
        "zkserver checks against outstanding changes"
    ),
    "pipelining where there is a quota": (
        "Apache compares with the usage of what is applied, not of what is on its way, so that "
        "timing decides; zkserver counts outstanding changes"
    ),
    "createSession and deleteContainer sent by a client": (
        "internal operations that Apache 3.8.0 takes from anybody; zkserver refuses them"
    ),
}
