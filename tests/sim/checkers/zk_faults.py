"""Faults planted in a good history: each is what a client would have seen of a broken server.

A checker that does not notice one of them proves nothing. A fault changes one small thing at a
place where it matters; which one, the random source decides. `NoPlace` tells that the history has
no such place.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final, NamedTuple

from .zk_records import WRITES, Call, Heard, History, Opened, Stat

EPHEMERAL, SEQUENTIAL = 1, 2


class NoPlace(Exception):
    """The history has no place where the fault would show."""


class Fault(NamedTuple):
    """One way in which a server can be wrong."""

    name: str
    checks: tuple[str, ...]
    """The checks of which one must find it: beginnings of the violation's name."""
    plant: Callable[[History, random.Random], History]


def _pick(rng: random.Random, places: list[Any]) -> Any:
    if not places:
        raise NoPlace
    return rng.choice(places)


def _answered(history: History, *names: str) -> list[Call]:
    return [
        c for c in history.calls if c.received_ns is not None and (not names or c.name in names)
    ]


def _with(history: History, *changed: tuple[Call, Call]) -> History:
    """The history with some calls replaced."""
    replaced = {id(old): new for old, new in changed}
    return history._replace(calls=[replaced.get(id(call), call) for call in history.calls])


def _renumber(history: History, old: int, new: int) -> History:
    """The log with one zxid changed for another."""
    if history.log is None:
        return history
    entries = [e._replace(zxid=new) if e.zxid == old else e for e in history.log]
    return history._replace(log=sorted(entries, key=lambda entry: entry.zxid))


def _stat_of(call: Call) -> Stat | None:
    return next((each for each in call.values if isinstance(each, Stat)), None)


# ---- reads and writes --------------------------------------------------------------------------


def stale_read(history: History, rng: random.Random) -> History:
    """A read answers with what an earlier one saw, at its own, later zxid."""
    places = []
    last: dict[str, Call] = {}
    for call in sorted(_answered(history, "get_data"), key=lambda call: call.zxid):
        if call.error:
            continue
        before = last.get(call.arguments[0])
        if before is not None and before.values[0] != call.values[0]:
            places.append((call, call._replace(values=before.values)))
        last[call.arguments[0]] = call
    return _with(history, _pick(rng, places))


def lost_acknowledged_write(history: History, rng: random.Random) -> History:
    """A set is acknowledged, with the Stat it should have, and nobody ever sees it."""
    stats: dict[str, list[tuple[int, Stat]]] = defaultdict(list)
    for call in _answered(history, "get_data", "exists"):
        stat = _stat_of(call)
        if stat is not None:
            stats[call.arguments[0]].append((call.zxid, stat))
    places = []
    for call in _answered(history, "set_data"):
        around = stats[call.arguments[0]]
        before = max((each for each in around if each[0] < call.zxid), default=None)
        after = min((each for each in around if each[0] > call.zxid), default=None)
        if call.error == -103 and before and after and before[1] == after[1]:
            data = call.arguments[1]
            stat = before[1]._replace(
                mzxid=call.zxid, version=before[1].version + 1, data_length=len(data)
            )
            arguments = (call.arguments[0], data, -1)
            done = call._replace(error=0, values=(stat,), arguments=arguments)
            places.append((call, done))
    old, new = _pick(rng, places)
    changed = _with(history, (old, new))
    if changed.log is not None:
        entries = [e._replace(kind="write") if e.zxid == old.zxid else e for e in changed.log]
        changed = changed._replace(log=entries)
    return changed


def write_missing_in_the_log(history: History, rng: random.Random) -> History:
    """An acknowledged write is not in the log: it would be gone after a restart."""
    if history.log is None:
        raise NoPlace
    written = [call.zxid for call in _answered(history, "create", "set_data") if not call.error]
    zxid = _pick(rng, written)
    return history._replace(log=[entry for entry in history.log if entry.zxid != zxid])


def write_done_twice(history: History, rng: random.Random) -> History:
    """A write that was sent once is in the log a second time."""
    if history.log is None:
        raise NoPlace
    zxids = {call.zxid for call in _answered(history, "set_data") if not call.error}
    entry = _pick(rng, [entry for entry in history.log if entry.zxid in zxids])
    again = entry._replace(zxid=history.log[-1].zxid + 1)
    return history._replace(log=[*history.log, again])


def reordered_zxids(history: History, rng: random.Random) -> History:
    """Two writes have each other's zxid, though one was answered before the other was sent."""
    writes = sorted(_answered(history, "set_data", "create"), key=lambda call: call.zxid)
    places = [
        (first, second)
        for first, second in pairwise(writes)
        if first.received_ns is not None and first.received_ns < second.sent_ns
    ]
    first, second = _pick(rng, places)
    changed = _with(
        history,
        (first, first._replace(zxid=second.zxid)),
        (second, second._replace(zxid=first.zxid)),
    )
    for old, new in ((first.zxid, -1), (second.zxid, first.zxid), (-1, second.zxid)):
        changed = _renumber(changed, old, new)
    return changed


def zxid_used_twice(history: History, rng: random.Random) -> History:
    """Two writes have the same zxid."""
    first, second = rng.sample(_answered(history, "set_data", "create"), 2)
    return _with(history, (first, first._replace(zxid=second.zxid)))


def wrong_version(history: History, rng: random.Random) -> History:
    """A Stat counts one change too many."""
    old = _pick(rng, [call for call in _answered(history, "exists", "set_data") if not call.error])
    stat = _stat_of(old)
    assert stat is not None
    return _with(history, (old, old._replace(values=(stat._replace(version=stat.version + 1),))))


def half_visible_multi(history: History, rng: random.Random) -> History:
    """A read that shows a multi's zxid shows one of its changes undone."""
    multis = set()
    for call in _answered(history, "multi"):
        done = [each for each in call.values[0] if each[0] in {1, 2, 5, 15}] if call.values else []
        if len(done) > 1:
            multis.add(call.zxid)
    places = []
    for call in _answered(history, "exists", "get_data"):
        stat = _stat_of(call)
        if stat is None:
            continue
        if stat.czxid in multis:
            places.append((call, call._replace(error=-101, values=())))
        elif stat.mzxid in multis:
            undone = stat._replace(version=stat.version - 1, mzxid=stat.czxid)
            values = tuple(undone if each is stat else each for each in call.values)
            places.append((call, call._replace(values=values)))
    return _with(history, _pick(rng, places))


def sequential_name_reused(history: History, rng: random.Random) -> History:
    """A sequential create answers with a name that was given out before."""
    by_parent: dict[str, list[Call]] = defaultdict(list)
    for call in _answered(history, "create"):
        if not call.error and call.arguments[3] & SEQUENTIAL:
            by_parent[call.arguments[0]].append(call)
    pairs = [sorted(calls, key=lambda c: c.zxid)[:2] for calls in by_parent.values()]
    first, second = _pick(rng, [pair for pair in pairs if len(pair) == 2])
    return _with(history, (second, second._replace(values=first.values)))


# ---- sessions ----------------------------------------------------------------------------------


def ephemeral_survives(history: History, rng: random.Random) -> History:
    """A read finds an ephemeral after the session that made it was closed."""
    closed = {call.session: call.zxid for call in _answered(history, "close")}
    owned: dict[str, list[Call]] = defaultdict(list)
    for call in _answered(history, "create", "create2"):
        if not call.error and call.arguments[3] & EPHEMERAL and call.session in closed:
            owned[call.values[0]].append(call)
    places = []
    for read in _answered(history, "exists", "get_data"):
        for made in owned[read.arguments[0]]:
            if read.error == -101 and read.zxid > closed[made.session] > made.zxid:
                size = len(made.arguments[1])
                stat = Stat(*(made.zxid,) * 2, 1, 1, 0, 0, 0, made.session, size, 0, made.zxid)
                values = (stat,) if read.name == "exists" else (made.arguments[1], stat)
                places.append((read, read._replace(error=0, values=values)))
    return _with(history, _pick(rng, places))


def expired_session_served(history: History, rng: random.Random) -> History:
    """A server that has called a session expired goes on serving it."""
    late = _pick(rng, [c for c in _answered(history) if not c.error and c.name != "close"])
    told = Opened(0, late.session, "expired", late.sent_ns - 2, late.sent_ns - 1, 0)
    return history._replace(connections=[told, *history.connections])


def zxid_back_on_reconnect(history: History, rng: random.Random) -> History:
    """A client comes back and is shown a state older than the one it has seen."""
    first: dict[int, Call] = {}
    for call in sorted(_answered(history), key=lambda call: call.position):
        if call.zxid > 0:
            first.setdefault(call.connection, call)
    places = [
        (first[opened.connection], opened)
        for opened in history.connections
        if opened.outcome == "attached"
        and opened.last_zxid_seen > 1
        and opened.connection in first
        and first[opened.connection].name not in WRITES
    ]
    call, opened = _pick(rng, places)
    return _with(history, (call, call._replace(zxid=opened.last_zxid_seen - 1)))


def sync_that_does_not_sync(history: History, rng: random.Random) -> History:
    """A sync is answered with a zxid before that of a write that was answered already."""
    places = []
    writes = [call for call in _answered(history) if call.name in WRITES]
    for sync in _answered(history, "sync"):
        before = [
            w.zxid for w in writes if w.received_ns is not None and w.received_ns < sync.sent_ns
        ]
        if before:
            places.append((sync, sync._replace(zxid=max(before) - 1)))
    return _with(history, _pick(rng, places))


# ---- events ------------------------------------------------------------------------------------


def _last_positions(history: History) -> dict[int, int]:
    last: dict[int, int] = defaultdict(int)
    for call in _answered(history):
        last[call.connection] = max(last[call.connection], call.position)
    return last


def missing_event(history: History, rng: random.Random) -> History:
    """An event never comes."""
    last = _last_positions(history)
    event = _pick(rng, [e for e in history.events if e.position < last[e.connection]])
    return history._replace(events=[each for each in history.events if each is not event])


def double_event(history: History, rng: random.Random) -> History:
    """An event comes twice."""
    event: Heard = _pick(rng, history.events)
    return history._replace(events=[*history.events, event])


def event_after_the_reply(history: History, rng: random.Random) -> History:
    """An event comes behind the reply that shows its change."""
    last = _last_positions(history)
    event: Heard = _pick(rng, [e for e in history.events if e.position < last[e.connection]])

    late = event._replace(position=last[event.connection] + 1)
    events = [late if each is event else each for each in history.events]
    return history._replace(events=events)


def event_of_another_path(history: History, rng: random.Random) -> History:
    """An event names a path on which nobody waits."""
    event: Heard = _pick(rng, history.events)
    wrong = event._replace(path=event.path + "/nobody")
    return history._replace(events=[wrong if e is event else e for e in history.events])


FAULTS: Final = (
    Fault("stale read", ("3", "7 Sessions"), stale_read),
    Fault("lost acknowledged write", ("3", "7 Sessions"), lost_acknowledged_write),
    Fault("acknowledged write missing in the log", ("5",), write_missing_in_the_log),
    Fault("write done twice", ("5",), write_done_twice),
    Fault("reordered zxids", ("1",), reordered_zxids),
    Fault("zxid used twice", ("1",), zxid_used_twice),
    Fault("wrong version", ("2", "3", "7 Sessions"), wrong_version),
    Fault("half-visible multi", ("3", "7 Sessions"), half_visible_multi),
    Fault("sequential name reused", ("7 Sequence",), sequential_name_reused),
    Fault("ephemeral survives its session", ("7 Sessions",), ephemeral_survives),
    Fault("expired session served", ("7 Sessions",), expired_session_served),
    Fault("zxid goes back on reconnect", ("4",), zxid_back_on_reconnect),
    Fault("sync that does not sync", ("6",), sync_that_does_not_sync),
    Fault("missing event", ("7 Watches",), missing_event),
    Fault("double event", ("7 Watches",), double_event),
    Fault("event after the reply", ("7 Watches",), event_after_the_reply),
    Fault("event of another path", ("7 Watches",), event_of_another_path),
)
