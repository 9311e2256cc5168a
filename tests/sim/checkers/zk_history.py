"""The exact zxid check of a coordination server's history, in linear time.

Every reply carries a zxid: of its own transaction, or of the last one applied. That fixes the
order of everything, so that a history is not searched for an explanation but replayed. Checked, in
the numbers of reference reliability.md section 8:

    1 Writes     every zxid once; a write that was answered before another was sent comes first
    2 Replay     the answer of every write is the model's at its place in the order
    3 Reads      the answer of every read is the model's at its zxid; all fields of the Stat
    4 Session    zxids never fall, on a connection and over a reconnect
    5 Unknown    a write without a reply happened once, where the log says so, or never
    6 Sync       a sync shows every write that was answered before it was sent
    7 Watches    every event, once, in order, before the reply that shows the change; ephemerals go
                 with their session; an ended session does nothing more; sequential names rise
    8 Multi      all or nothing at one zxid (by 2 and 3)

All violations are returned, each with the operations it is about.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from . import zk_watches
from .zk_model import CREATED, Answer, ModelTree, parent_of
from .zk_records import WRITES, Call, Heard, History, Logged, Stat

WATCHING: Final = frozenset(
    {
        *("exists", "get_data", "get_children", "get_children2", "add_watch"),
        *("remove_watches", "check_watches", "set_watches", "set_watches2"),
    }
)
WITHOUT_ANSWER: Final = frozenset({"ping", "sync", "add_watch", "set_watches", "set_watches2"})
SEQUENTIAL: Final = 2
SESSION_EXPIRED: Final = -112
SESSION_MOVED: Final = -118
REFUSED: Final = frozenset({SESSION_EXPIRED, SESSION_MOVED})
"""A request that is answered so has not happened, whatever it asked for."""
MASK: Final = 0xFFFFFFFF
"""Log records may keep the xid unsigned."""


class Violation(NamedTuple):
    """Something that the server must not do."""

    check: str
    text: str

    def __str__(self) -> str:
        return f"{self.check}: {self.text}"


class Report(NamedTuple):
    """The result of a check."""

    violations: list[Violation]
    counts: Counter[str]
    """How much of what was looked at."""


def check_history(history: History) -> Report:
    """Check a whole history."""
    return _Checker(history).run()


class _Write(NamedTuple):
    """What happened at one zxid."""

    zxid: int
    session: int
    call: Call | None
    """None: the server ended the session by itself."""


class _Checker:
    """One history being checked."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.violations: list[Violation] = []
        self.counts: Counter[str] = Counter()
        self.tree = ModelTree()
        self.watches: dict[int, zk_watches.WatchModel] = defaultdict(zk_watches.WatchModel)
        self.made: dict[str, list[int]] = defaultdict(list)
        """Path -> zxids at which it was created, ascending; also by writes without a reply."""
        self.times: dict[int, int] = {}
        self.ended: dict[int, int] = {}
        """Session -> zxid at which it ended."""
        self.refused: list[Call] = []
        """Requests that were answered with an error of REFUSED."""
        self.answered = [call for call in history.calls if call.received_ns is not None]

    def fail(self, check: str, text: str) -> None:
        """Note a violation."""
        self.violations.append(Violation(check, text))

    def run(self) -> Report:
        """All checks."""
        writes = self._order_of_writes()
        self._check_real_time(writes)
        self._check_sessions()
        self._check_syncs()
        self._replay(writes)
        self._check_refused()
        self._check_sequences()
        self._check_events()
        return Report(self.violations, self.counts)

    # ---- 1 and 5: the order of writes ----------------------------------------------------------

    def _order_of_writes(self) -> list[_Write]:
        at: dict[int, _Write] = {}
        for call in self.answered:
            if call.name not in WRITES:
                continue
            other = at.get(call.zxid)
            if other is not None:
                self.fail("1 Writes", f"one zxid for two writes: {other.call}; {call}")
            at[call.zxid] = _Write(call.zxid, call.session, call)
        unknown = [each for each in self.history.calls if each.received_ns is None]
        unknown = [call for call in unknown if call.name in WRITES]
        self.counts["unknown writes"] = len(unknown)
        if self.history.log is not None:
            self._use_log(at, unknown, self.history.log)
        else:
            self._use_what_was_seen(at, unknown)
        return [at[zxid] for zxid in sorted(at)]

    def _use_log(self, at: dict[int, _Write], unknown: list[Call], log: list[Logged]) -> None:
        """The log names the place of every write, answered or not."""
        waiting = {(call.session, call.xid & MASK): call for call in unknown}
        known = {
            (write.session, write.call.xid & MASK): write for write in at.values() if write.call
        }
        logged: set[int] = set()
        last = 0
        for entry in log:
            if entry.zxid <= last:
                self.fail("1 Writes", f"the log goes from {last:#x} to {entry.zxid:#x}")
            last = entry.zxid
            logged.add(entry.zxid)
            key = (entry.session, entry.xid & MASK)
            write = at.get(entry.zxid)
            if write is not None and write.call is not None:
                if (write.session, write.call.xid & MASK) != key:
                    self.fail("5 Unknown", f"{entry} is not {write.call}")
            elif entry.kind in {"write", "error", "close"} and key in waiting:
                call = waiting.pop(key)
                if entry.kind != "error":
                    at[entry.zxid] = _Write(entry.zxid, entry.session, call)
                    self.counts["unknown writes that happened"] += 1
            elif entry.kind == "close":
                at[entry.zxid] = _Write(entry.zxid, entry.session, None)
                self.counts["sessions that the server ended"] += 1
            elif key in known and entry.kind in {"write", "error"}:
                self.fail("5 Unknown", f"happened again as {entry}: {known[key].call}")
            elif entry.kind == "write":
                self.fail("5 Unknown", f"nobody asked for {entry}")
        for write in at.values():
            if write.zxid not in logged:
                self.fail("5 Unknown", f"acknowledged, but not in the log: {write.call}")

    def _use_what_was_seen(self, at: dict[int, _Write], unknown: list[Call]) -> None:
        """Without a log, data that only one write carries tells where it happened."""
        by_data = {call.arguments[1]: call for call in unknown if call.name in _DATA_WRITES}
        seen: dict[int, Call] = {}
        for call in self.answered:
            if call.name == "get_data" and not call.error and call.values[0] in by_data:
                data, stat = call.values
                seen[stat.mzxid] = by_data[data]
        for zxid, call in seen.items():
            if zxid not in at:
                at[zxid] = _Write(zxid, call.session, call)
                self.counts["unknown writes that happened"] += 1
        for call in {id(each): each for each in seen.values()}.values():
            places = [zxid for zxid, each in seen.items() if each is call]
            if len(places) > 1:
                self.fail("5 Unknown", f"happened at {list(map(hex, places))}: {call}")

    def _check_real_time(self, writes: list[_Write]) -> None:
        """Going down from the highest zxid: nothing answered yet when a lower one was sent."""
        earliest: Call | None = None
        for write in reversed(writes):
            call = write.call
            if call is None:
                continue
            if earliest is not None and earliest.received_ns < call.sent_ns:  # type: ignore[operator]
                text = f"answered before the other was sent, yet later in the order: {earliest}"
                self.fail("1 Writes", f"{text}; {call}")
            if call.received_ns is not None and (
                earliest is None or call.received_ns < earliest.received_ns  # type: ignore[operator]
            ):
                earliest = call

    # ---- 4, 6, 7: sessions and syncs -----------------------------------------------------------

    def _check_sessions(self) -> None:
        by_connection: dict[int, list[Call]] = defaultdict(list)
        for call in self.answered:
            by_connection[call.connection].append(call)
        highest: dict[int, Call] = {}
        """The last reply of each session."""
        expired_ns: dict[int, int] = {}
        for opened in sorted(self.history.connections, key=lambda each: each.connection):
            if opened.outcome == "expired":
                expired_ns.setdefault(opened.session, opened.received_ns)
            for call in sorted(by_connection[opened.connection], key=lambda each: each.position):
                if call.zxid <= 0:
                    continue
                before = highest.get(call.session)
                if before is not None and call.zxid < before.zxid:
                    self.fail("4 Session", f"the zxid goes back: {before}; {call}")
                if call.zxid < opened.last_zxid_seen:
                    seen = f"the client had seen {opened.last_zxid_seen:#x}"
                    self.fail("4 Session", f"the zxid goes back over a reconnect, {seen}: {call}")
                highest[call.session] = call
        for call in self.answered:
            at = expired_ns.get(call.session)
            if at is not None and call.sent_ns > at and not call.error:
                self.fail("7 Sessions", f"an expired session is served: {call}")

    def _check_syncs(self) -> None:
        acknowledged = sorted(
            (call.received_ns, call.zxid)
            for call in self.answered
            if call.name in WRITES and call.received_ns is not None
        )
        syncs = sorted(
            (call for call in self.answered if call.name == "sync"), key=lambda each: each.sent_ns
        )
        at, highest = 0, 0
        for call in syncs:
            while at < len(acknowledged) and acknowledged[at][0] < call.sent_ns:
                highest = max(highest, acknowledged[at][1])
                at += 1
            if call.zxid < highest:
                self.fail("6 Sync", f"write {highest:#x} was answered before this was sent: {call}")
        self.counts["syncs"] = len(syncs)

    # ---- 2, 3, 8: replay -----------------------------------------------------------------------

    def _replay(self, writes: list[_Write]) -> None:
        reads = [call for call in self.answered if call.name not in WRITES and call.zxid > 0]
        reads.sort(key=lambda call: (call.zxid, call.connection, call.position))
        at = 0
        for write in writes:
            while at < len(reads) and reads[at].zxid < write.zxid:
                self._read(reads[at])
                at += 1
            self._apply(write)
            for change in self.tree.changes:
                if change.type == CREATED:
                    self.made[change.path].append(write.zxid)
            for watches in self.watches.values():
                watches.expect(self.tree.changes, write.zxid)
        for call in reads[at:]:
            self._read(call)

    def _apply(self, write: _Write) -> None:
        call = write.call
        self.tree.changes = []
        self.counts["writes"] += 1
        if write.session in self.ended:
            text = f"session {write.session:#x} ended at {self.ended[write.session]:#x}"
            self.fail("7 Sessions", f"{text} and writes at {write.zxid:#x}: {call}")
        if call is None or call.name == "close":
            self.tree.close_session(write.session, write.zxid)
            self.ended[write.session] = write.zxid
            return
        if call.received_ns is not None and call.error in REFUSED:
            self.refused.append(call)
            return
        answer = self.tree.write(call.session, call.name, call.arguments, write.zxid)
        if call.received_ns is not None:
            self._compare("2 Replay", call, answer)
        elif answer.error:
            self.fail("5 Unknown", f"it is in the log, but must fail with {answer.error}: {call}")

    def _check_refused(self) -> None:
        """Only a session that ends expires, and only one that came again has moved."""
        connections = Counter(
            each.session for each in self.history.connections if each.outcome == "attached"
        )
        for call in self.refused:
            is_right = call.session in self.ended
            if call.error == SESSION_MOVED:
                is_right = connections[call.session] > 0
            if not is_right:
                self.fail("7 Sessions", f"refused, though its session lives here: {call}")

    def _read(self, call: Call) -> None:
        self.counts["reads"] += 1
        if call.error in REFUSED:
            self.refused.append(call)
            return
        wanted = None
        if call.name in WATCHING:
            wanted = self.watches[call.connection].register(call, self.tree)
        if wanted is not None:
            if wanted != call.error:
                self.fail("7 Watches", f"the answer should be {wanted}: {call}")
        elif call.name not in WITHOUT_ANSWER:
            self._compare("3 Reads", call, self.tree.read(call.session, call.name, call.arguments))

    def _compare(self, check: str, call: Call, answer: Answer) -> None:
        found = Answer(call.error, self._plain(call.values))
        wanted = Answer(answer.error, self._plain(answer.values, model=True))
        if found == wanted:
            return
        ended = [each for each in _owners(call.values) if each in self.ended]
        if ended and check == "3 Reads":
            zxid = self.ended[ended[0]]
            text = f"an ephemeral of session {ended[0]:#x}, which ended at {zxid:#x}"
            self.fail("7 Sessions", f"{text}, is still there: {call}")
            return
        self.fail(check, f"{call}; the model says {wanted.error or wanted.values} there")

    def _plain(self, values: Any, *, model: bool = False) -> Any:
        """Values to compare: no times, children in order; times are checked against zxids."""
        if isinstance(values, Stat):
            if not model:
                self._check_time(values.czxid, values.ctime)
                self._check_time(values.mzxid, values.mtime)
            return values._replace(ctime=0, mtime=0)
        if isinstance(values, tuple):
            plain = tuple(self._plain(each, model=model) for each in values)
            names = plain and all(isinstance(each, str) for each in plain)
            return tuple(sorted(plain)) if names and len(plain) > 1 else plain
        return values

    def _check_time(self, zxid: int, time_ms: int) -> None:
        known = self.times.setdefault(zxid, time_ms)
        if known != time_ms:
            self.fail("3 Reads", f"zxid {zxid:#x} is stamped with both {known} and {time_ms}")

    def _check_sequences(self) -> None:
        """Sequential names under one parent rise with the zxid, and none comes twice.

        The counter goes with the parent: a parent that was made anew begins again.
        """
        last: dict[tuple[str, int], tuple[str, Call]] = {}
        for call, path, stem in sorted(self._created(), key=lambda each: each[0].zxid):
            parent = parent_of(path)
            if stem is not None:
                key = (parent, bisect_right(self.made[parent], call.zxid))
                number = path[len(stem) :]
                before = last.get(key)
                if before is not None and int(number) <= int(before[0]):
                    self.fail(
                        "7 Sequence", f"{number} comes after {before[0]}: {before[1]}; {call}"
                    )
                last[key] = number, call

    def _created(self) -> Iterable[tuple[Call, str, str | None]]:
        """(call, path, path without the number where it is sequential) of what was created."""
        for call in self.answered:
            operations: tuple[Any, ...] = ()
            if call.name in {"create", "create2"} and not call.error:
                operations = (((call.name, *call.arguments), call.values),)
            elif call.name == "multi" and not call.error:
                results = [values for kind, _, values in call.values[0] if kind != -1]
                operations = tuple(zip(call.arguments[0], results, strict=False))
            for operation, values in operations:
                if operation[0] in {"create", "create2"}:
                    sequential = operation[4] & SEQUENTIAL
                    yield call, values[0], operation[1] if sequential else None

    # ---- 7: events -----------------------------------------------------------------------------

    def _check_events(self) -> None:
        heard: dict[int, list[Heard]] = defaultdict(list)
        for event in self.history.events:
            heard[event.connection].append(event)
        replies: dict[int, list[Call]] = defaultdict(list)
        for call in self.answered:
            if call.zxid > 0:
                replies[call.connection].append(call)
        for connection in sorted(heard.keys() | self.watches.keys()):
            expected = self.watches[connection].expected
            events = sorted(heard[connection], key=lambda event: event.position)
            calls = sorted(replies[connection], key=lambda call: call.position)
            self.counts["events"] += len(events)
            for problem in zk_watches.compare(expected, events, calls):
                self.fail("7 Watches", problem)


_DATA_WRITES: Final = frozenset({"create", "create2", "set_data"})


def _owners(values: Any) -> Iterable[int]:
    """The owners of ephemerals in an answer."""
    for each in values:
        if isinstance(each, Stat):
            if each.ephemeral_owner:
                yield each.ephemeral_owner
        elif isinstance(each, tuple):
            yield from _owners(each)
