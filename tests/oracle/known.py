"""What may differ between Apache ZooKeeper 3.8.0 and zkserver, and why a user would accept it.

Nothing else may: a difference that no entry explains fails the test. `NOT_GENERATED` tells what
programs never do, because after it the two servers could not be compared any more.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from .jute import WRITES, Acl, Event, Reply
from .normal import NormalStat
from .programs import Step, can_exist, has_null

Said = list[tuple[str | None, Any]]


class Situation(NamedTuple):
    """Where two answers are not equal."""

    program: list[Step]
    step: Step | None
    """The request that is due to be answered; None between programs."""
    their_rest: Said
    """What Apache said from here on; the first one is not equal to the first of `our_rest`."""
    our_rest: Said

    @property
    def name(self) -> str | None:
        """The operation that theirs answers; None: it is an event, or the end."""
        return self.their_rest[0][0] if self.their_rest else None

    @property
    def theirs(self) -> Any:
        """Apache's frame; None where it has no more."""
        return self.their_rest[0][1] if self.their_rest else None

    @property
    def ours(self) -> Any:
        """Our frame; None where there is no more."""
        return self.our_rest[0][1] if self.our_rest else None

    def codes(self) -> tuple[int | None, int | None]:
        """The error codes of both, where both are replies that agree in everything else."""
        theirs, ours = self.theirs, self.ours
        if not isinstance(theirs, Reply) or not isinstance(ours, Reply):
            return None, None
        same = theirs._replace(error=0, values=()) == ours._replace(error=0, values=())
        return (theirs.error, ours.error) if same else (None, None)


class KnownDifference(NamedTuple):
    """One entry of the table."""

    name: str
    reason: str
    explains: Callable[[Situation], tuple[int, int] | None]
    """How many frames of theirs and of ours are explained, or None."""
    skipped: Callable[[Situation], int] | None = None
    """The zxid, in normal form, that Apache took for it and zkserver did not."""


def _event_zxid(at: Situation) -> tuple[int, int] | None:
    theirs, ours = at.theirs, at.ours
    if not isinstance(theirs, Event) or not isinstance(ours, Event) or theirs.zxid != -1:
        return None
    return (1, 1) if ours._replace(zxid=-1) == theirs else None


def _event_order(at: Situation) -> tuple[int, int] | None:
    if not isinstance(at.ours, Event) or not isinstance(at.theirs, Event):
        return None
    group = []
    for _, frame in at.our_rest:
        if not isinstance(frame, Event) or frame.zxid != at.ours.zxid:
            break
        group.append(frame._replace(zxid=-1))
    theirs = [frame for _, frame in at.their_rest[: len(group)]]
    same = sorted(map(str, theirs)) == sorted(map(str, group))
    return (len(group), len(group)) if same and len(group) > 1 else None


def _unreadable_event(at: Situation) -> tuple[int, int] | None:
    if not isinstance(at.theirs, Event):
        return None
    path = at.theirs.path or ""
    return (1, 0) if any(_may_hide(step, path) for step in at.program) else None


def _may_hide(step: Step, path: str) -> bool:
    """The step may give the path an ACL that does not let everybody read."""
    if step.kind != "call":
        return False
    calls = step.arguments[1] if step.arguments[0] == "multi" else (step.arguments,)
    for call in calls:
        where = {"set_acl": 2, "create": 3, "create2": 3, "create_container": 3, "create_ttl": 3}
        acl = call[where[call[0]]] if call[0] in where else None
        if acl and isinstance(call[1], str) and path.startswith(call[1]):
            readers = [each for each in acl if each.perms & 1 and each.scheme == "world"]
            if not readers:
                return True
    return False


def _system_nodes(at: Situation) -> tuple[int, int] | None:
    if at.name not in {"get_acl", "get_data", "exists", "get_children2", "multi_read"}:
        return None
    if at.codes()[0] is None:
        return None
    same = _of_system(at.theirs.values) == _of_system(at.ours.values)
    return (1, 1) if same else None


def _of_system(value: Any) -> Any:
    """The value without what zkserver's system nodes have different."""
    if isinstance(value, NormalStat) and value.czxid == 0 and value.owner == "none":
        return value._replace(aversion=max(0, value.aversion))
    if value in ((Acl(1, "world", "anyone"),), (Acl(31, "world", "anyone"),)):
        return "an ACL"
    return tuple(map(_of_system, value)) if type(value) is tuple else value


def _malformed_write(at: Situation) -> tuple[int, int] | None:
    theirs, ours = at.theirs, at.ours
    if not isinstance(theirs, Reply) or not isinstance(ours, Reply) or at.name not in WRITES:
        return None
    if theirs.zxid != ours.zxid + 1:
        return None
    same = theirs._replace(zxid=ours.zxid, error=ours.error, values=()) == ours
    return (1, 1) if same and ours.error == -5 and theirs.error in {-5, -8} else None


def _malformed_multi(at: Situation) -> tuple[int, int] | None:
    if at.name != "multi" or at.codes() != (-5, -5):
        return None
    return (1, 1) if at.theirs.values == ((),) and at.ours.values == () else None


def _malformed_multi_read(at: Situation) -> tuple[int, int] | None:
    if at.name != "multi_read" or at.codes() != (-5, -5):
        return None
    return (1, 1) if at.ours.values == () else None


def _check_watches(at: Situation) -> tuple[int, int] | None:
    return (1, 1) if at.name == "check_watches" and at.codes() in {(0, -121), (-5, -121)} else None


def _unknown_watch_types(at: Situation) -> tuple[int, int] | None:
    names = {"check_watches", "remove_watches", "add_watch"}
    if at.name == "remove_watches" and at.step is not None and at.step.arguments[1] is None:
        return (1, 1) if at.codes() == (-121, -5) else None
    return (1, 1) if at.name in names and at.codes() == (-5, -8) else None


def _half_read_multi(at: Situation) -> tuple[int, int] | None:
    theirs, ours = at.theirs, at.ours
    if at.name != "multi" or at.step is None or not has_null(at.step):
        return None
    if not isinstance(ours, Reply) or (theirs.error, ours.error) != (0, -5):
        return None
    return (1, 1) if theirs.values[0] and theirs.values[0][0].kind == -1 else None


def _echoed_text(at: Situation) -> tuple[int, int] | None:
    if at.name != "sync" or at.step is None:
        return None
    if at.codes() == (0, -5):
        return (1, 1) if at.step.arguments[1] is None else None
    if at.codes() != (0, 0):
        return None
    return (1, 1) if _plain_text(at.theirs.values[0]) == _plain_text(at.ours.values[0]) else None


def _plain_text(text: str) -> str:
    """Surrogates as the characters they mean, and what could not be read as one mark."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return re.sub("\ufffd+", "\ufffd", text)


def _ephemerals_prefix(at: Situation) -> tuple[int, int] | None:
    if at.name != "get_ephemerals" or at.step is None or at.codes() != (0, 0):
        return None
    return (1, 1) if not can_exist(at.step.arguments[1]) and at.ours.values == ((),) else None


KNOWN_DIFFERENCES: Final = (
    KnownDifference(
        "zxid of events",
        "an event of zkserver carries the zxid of its change, as ZooKeeper's do from 3.9 on; 3.8 "
        "always says -1, and clients ignore it",
        _event_zxid,
    ),
    KnownDifference(
        "order of a transaction's events",
        "where one transaction deletes several znodes (a session's ephemerals), Apache's order is "
        "that of a hash table; zkserver's is the order of their creation",
        _event_order,
    ),
    KnownDifference(
        "events about znodes that one may not read",
        "zkserver sends no event about a znode that its receiver may not read (CVE-2024-23944, "
        "mended for some watches only in this version of Apache)",
        _unreadable_event,
    ),
    KnownDifference(
        "system znodes",
        "/zookeeper and /zookeeper/quota can be written by the super user only; in Apache 3.8.0 by "
        "everybody, who can then lift or set the quotas of others (and the aversion of "
        "/zookeeper/config is 0, not -1)",
        _system_nodes,
    ),
    KnownDifference(
        "malformed writes",
        "a write that cannot be decoded never reaches zkserver's log; Apache gives it a zxid and "
        "logs an error for it. The answer is MarshallingError; Apache says BadArguments where only "
        "the path of a setData or setACL is null",
        _malformed_write,
        skipped=lambda at: at.theirs.zxid,
    ),
    KnownDifference(
        "malformed multi",
        "the same, and behind the error Apache sends the body of an empty multi, which no client "
        "reads",
        _malformed_multi,
        skipped=lambda at: at.theirs.zxid + 1,
    ),
    KnownDifference(
        "multi that is malformed behind an operation that fails",
        "Apache does the operations before it comes to the malformed one, and answers with the "
        "first failure; zkserver reads the whole request first. Nothing happens in both",
        _half_read_multi,
        skipped=lambda at: at.theirs.zxid,
    ),
    KnownDifference(
        "text that sync sends back",
        "Java writes a character above U+FFFF as two, and puts one replacement character for bytes "
        "that are no UTF-8 where Python puts one for each; a null path is refused by zkserver",
        _echoed_text,
    ),
    KnownDifference(
        "getEphemerals below a path that cannot exist",
        "Apache trims blanks and control characters off the prefix and may be left with the root; "
        "zkserver finds nothing there",
        _ephemerals_prefix,
    ),
    KnownDifference(
        "malformed multiRead",
        "behind the error Apache sends the results of the operations before, which no client reads",
        _malformed_multi_read,
    ),
    KnownDifference(
        "checkWatches",
        "zkserver answers for the connection that asks; Apache 3.8.0 says yes where any connection "
        "has a watch, and fails on a path that is not absolute",
        _check_watches,
    ),
    KnownDifference(
        "unknown types of watches",
        "a watcher type or mode that does not exist is BadArguments; Apache 3.8.0 fails on it with "
        "MarshallingError. Only removeWatches takes a null path there, and finds nothing",
        _unknown_watch_types,
    ),
)

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
    "pipelining and multi where there is a quota": (
        "Apache compares with the usage of what is applied, not of what is on its way or earlier "
        "in the same multi, which can then pass a hard limit; zkserver counts what is outstanding"
    ),
    "watches on paths that cannot exist": (
        "zkserver refuses them as BadArguments, as the clients do; Apache keeps them for ever"
    ),
    "the empty path": ("another name of the root in Apache; zkserver knows absolute paths only"),
    "a create with the flags of a TTL, but no TTL, inside a multi": (
        "Apache cannot decode it and answers MarshallingError for the whole multi; zkserver "
        "answers BadArguments, as both do outside of a multi"
    ),
    "permissions that do not exist": (
        "Apache keeps and shows the bits beyond 31; zkserver drops them"
    ),
    "IPv6 addresses in an ACL": "Apache 3.8.0 takes IPv4 addresses only; zkserver both",
    "createSession and deleteContainer sent by a client": (
        "internal operations that Apache 3.8.0 takes from anybody; zkserver refuses them"
    ),
}
