"""Random programs: what several clients do, as data that can be printed, shortened and run again.

A program is a list of steps; a step names a slot (a client of the program) and what it does there.
Nothing in a step depends on a server: zxids are given relative to what the client has seen
(`Seen`), sessions by their slot. Everything comes from one seed.

What programs never do is listed, with the reason, in `known.NOT_GENERATED`.
"""

from __future__ import annotations

import random
import zlib
from typing import Any, Final, NamedTuple

from . import jute
from .jute import OPEN_ACL, Acl
from .settings import LONG_TIMEOUT_MS, MAX_BUFFER, SUPER_CREDENTIAL, digest_id

SLOTS: Final = 4


class Seen(NamedTuple):
    """A zxid: the last one that the slot's client has seen, less `back`."""

    back: int


class Step(NamedTuple):
    """One thing that one client does.

    open       (timeout_ms, read_only)        a new connection with a new session
    call       (operation, arguments...)      a request; neighbours of one slot are pipelined
    raw        (code, body, operation)        a request that may be malformed
    frame      (bytes)                        bytes that are no request
    drop       ()                             close the socket without a word
    attach     (how, timeout_ms, Seen)        another connection for the session: see ATTACH
    expire     (stay)                         say nothing until the session is gone; `stay`: with
                                              the connection open, so that the server closes it
    """

    kind: str
    slot: int
    arguments: tuple[Any, ...]


ATTACH: Final = ("right", "wrong password", "no password", "unknown session", "zxid ahead")
"""How `attach` goes about it; all but the first are refused."""

ALONE: Final = frozenset({"auth", "close", "set_acl"})
"""Operations that are never pipelined with others: see `known.NOT_GENERATED`."""

NAMES: Final = ("a", "b", "c", "é", "日本 語", "~")
TOP: Final = tuple(f"/{name}" for name in NAMES[:4])
QUOTA_ROOT: Final = "/a"
STRANGE_PATHS: Final[tuple[Any, ...]] = (
    *("a", "/a/", "//", "/a//b", "/a/./b", "/a/..", "/.", "/a/.hidden", "/a/..b", "/a b"),
    *("/\0", "/a\x01", "/\x7f", "/a\x9f", "/\ue000", "/\uf8ff", "/\uf900", "/\uffef", "/\ufff0"),
    *("/\U0001f600", b"/\xed\xa0\x80", b"/\xff", b"/a\xc3", None, "/zookeeper", "/zookeeper/a"),
    *("/zookeeper/config", "/zookeeper/quota", "/" + "x" * 300, "/A\u0301", "/\u200b"),
)
VERSIONS: Final = (-1, -1, -1, -1, 0, 0, 1, 1, 2, 3, 7, -2, 2**31 - 1, -(2**31))
FLAGS: Final = (0, 0, 0, 0, 1, 1, 2, 2, 3, 4)
STRANGE_FLAGS: Final = (5, 6, 7, -1, 8, 100)
TTLS: Final = (1, 1000, 3_600_000, 2**40 - 1)
STRANGE_TTLS: Final = (0, -1, 2**40, 2**62)
ALICE: Final = "alice:secret"
BOB: Final = "bob:x:y"
CREDENTIALS: Final = (ALICE, ALICE, BOB)
STRANGE_AUTH: Final = (
    *(("digest", b"nocolon"), ("digest", b""), ("digest", b":"), ("ip", b""), ("ip", b"1.2.3.4")),
    *(("world", b"anyone"), ("auth", b""), ("nonsense", b"a:b"), ("", b"a:b"), ("super", b"a")),
    *(("digest", b"a:b:c"), ("digest", "é:ü".encode()), ("DIGEST", b"a:b")),
)
ACLS: Final[tuple[Any, ...]] = (
    (Acl(1, "world", "anyone"),),
    (Acl(31, "digest", digest_id(ALICE)), Acl(1, "world", "anyone")),
    (Acl(31, "digest", digest_id(ALICE)),),
    (Acl(31, "auth", ""),),
    (Acl(1, "auth", "ignored"), Acl(6, "world", "anyone")),
    (Acl(31, "ip", "127.0.0.1"),),
    (Acl(31, "ip", "127.0.0.0/8"), Acl(17, "digest", digest_id(BOB))),
    (Acl(1, "ip", "10.0.0.0/8"), Acl(30, "world", "anyone")),
    (Acl(31, "ip", "127.0.0.1/32"),),
    (Acl(31, "world", "anyone"), Acl(31, "world", "anyone")),
    (Acl(2, "world", "anyone"), Acl(1, "world", "anyone")),
    (Acl(16, "world", "anyone"),),
    (Acl(31 - 8, "world", "anyone"),),
)
STRANGE_ACLS: Final[tuple[Any, ...]] = (
    None,
    (),
    (Acl(31, "nonsense", "x"),),
    (Acl(31, "world", "somebody"),),
    (Acl(31, "world", ""),),
    (Acl(31, "digest", "nocolon"),),
    (Acl(31, "digest", "a:b:c"),),
    (Acl(31, "digest", ""),),
    (Acl(31, "ip", "300.1.1.1"),),
    (Acl(31, "ip", "1.2.3"),),
    (Acl(31, "ip", "127.0.0.1/33"),),
    (Acl(31, "ip", "127.0.0.1/x"),),
    (Acl(31, "super", ""),),
    (Acl(31, "", ""),),
    (Acl(31, "WORLD", "anyone"),),
    (Acl(0, "world", "anyone"),),
    (Acl(31, None, None),),
    (Acl(31, "world", None),),
    (Acl(31, "world", "anyone"), Acl(31, "nonsense", "x")),
)
UNKNOWN_CODES: Final = (0, 10, 23, 99, 108, 1000, -3, 2**31 - 1)
WATCH_TYPES: Final = (1, 2, 3)
STRANGE_WATCH_TYPES: Final = (0, 6, -1)

OPERATIONS: Final = {
    "create": 10,
    "create2": 5,
    "create_container": 2,
    "create_ttl": 2,
    "delete": 9,
    "exists": 8,
    "get_data": 8,
    "set_data": 10,
    "get_acl": 3,
    "set_acl": 3,
    "get_children": 5,
    "get_children2": 4,
    "sync": 1,
    "ping": 1,
    "multi": 7,
    "multi_read": 3,
    "reconfig": 0.2,
    "check_watches": 2,
    "remove_watches": 2,
    "set_watches": 1.5,
    "set_watches2": 1.5,
    "get_ephemerals": 1,
    "get_all_children_number": 1,
    "add_watch": 3,
    "who_am_i": 0.5,
}


def persistent_mode(slot: int, path: Any) -> int | None:
    """Which kind of persistent watch a slot may have on a path; None: one-shot ones only.

    Apache 3.8 keeps one mode for each connection and path (ZOOKEEPER-4466): see
    `known.NOT_GENERATED`.
    """
    return (None, None, 0, 1)[zlib.crc32(f"{slot} {path!r}".encode()) % 4]


def can_exist(path: Any) -> bool:
    """The path is one that a znode can have."""
    if (
        not isinstance(path, str)
        or not path.startswith("/")
        or (path.endswith("/") and path != "/")
    ):
        return False
    if any(part in {"", ".", ".."} for part in path[1:].split("/")) and path != "/":
        return False
    return not any(low <= ord(each) <= high for each in path for low, high in _FORBIDDEN)


_FORBIDDEN: Final = (
    *((0, 0x1F), (0x7F, 0x9F), (0xD800, 0xF8FF), (0xFFF0, 0xFFFF), (0x10000, 0x10FFFF)),
)


def has_null(step: Step) -> bool:
    """A path, or a part of an ACL, is null: Apache logs a write that it cannot read."""
    name, *arguments = step.arguments if step.kind == "call" else ("",)
    calls = arguments[0] if name in {"multi", "multi_read"} else ((name, *arguments),)
    return any(len(call) > 1 and call[1] is None for call in calls) or any(
        None in entry for call in calls for acl in call if _is_acl(acl) for entry in acl
    )


def _is_acl(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], Acl)


def has_quota(step: Step) -> bool:
    """The step sets limits: from then on timing decides at Apache what is pipelined."""
    return step.arguments[:1] == ("create",) and str(step.arguments[1]).endswith("zookeeper_limits")


class Generator:
    """Makes one program."""

    def __init__(self, seed: str) -> None:
        self.rng = random.Random(seed)
        self.steps: list[Step] = []
        self.state = ["none"] * SLOTS
        """Of each slot: none (no session), open, dropped."""
        self.strange = self.rng.choice((0.0, 0.02, 0.02, 0.06))
        """How often an argument is one that should be refused."""
        self.acl_rate = self.rng.choice((0.0, 0.05, 0.25))
        self.big_rate = self.rng.choice((0.0, 0.0, 0.0, 0.01))
        self.quota = self.rng.random() < 0.15
        self.expiries_left = 1 if self.rng.random() < 0.5 else 0

    def program(self, operations: int) -> list[Step]:
        """A program of about so many operations."""
        rng = self.rng
        if self.quota:
            self._set_quota()
        while len(self.steps) < operations:
            slot = rng.randrange(SLOTS)
            if self.state[slot] == "none":
                self._open(slot)
            elif self.state[slot] == "dropped":
                self._attach(slot)
            elif rng.random() < 0.12:
                self._trouble(slot)
            else:
                for _ in range(rng.choice((1, 2, 4, 8, 16))):
                    self._call(slot)
        return self.steps

    def _add(self, kind: str, slot: int, *arguments: Any) -> None:
        self.steps.append(Step(kind, slot, arguments))

    # ---- sessions ------------------------------------------------------------------------------

    def _open(self, slot: int) -> None:
        timeout_ms = LONG_TIMEOUT_MS
        if self.rng.random() < 0.05:
            timeout_ms = self.rng.choice((2**31 - 1, 600_000, 600_001, 599_999))
        self._add("open", slot, timeout_ms, self.rng.choice((None, False, False, True)))
        self.state[slot] = "open"
        if self.acl_rate and self.rng.random() < 0.5:
            self._auth(slot)

    def _attach(self, slot: int) -> None:
        rng = self.rng
        for _ in range(rng.randrange(3) if rng.random() < 0.2 else 0):
            self._add("attach", slot, rng.choice(ATTACH[1:]), LONG_TIMEOUT_MS, Seen(0))
        self._add("attach", slot, "right", LONG_TIMEOUT_MS, Seen(rng.choice((0, 0, 1, 5))))
        self.state[slot] = "open"
        if rng.random() < 0.6:
            self._set_watches(slot)

    def _trouble(self, slot: int) -> None:
        """What does not happen to a client every moment."""
        rng = self.rng
        kind = rng.choices(
            ("auth", "close", "drop", "move", "expire", "raw", "frame"), (6, 2, 4, 2, 1, 3, 0.5)
        )[0]
        if kind == "auth":
            self._auth(slot)
        elif kind == "close":
            self._add("call", slot, "close")
            self.state[slot] = "none"
        elif kind == "drop":
            self._add("drop", slot)
            self.state[slot] = "dropped"
        elif kind == "move":
            self._attach(slot)
        elif kind == "expire" and self.expiries_left:
            self.expiries_left -= 1
            self._add("expire", slot, rng.random() < 0.5)
            self.state[slot] = "none"
        elif kind == "raw" and self.strange:
            self._raw(slot)
        elif kind == "frame" and self.strange:
            size = rng.choice((-1, -(2**31), MAX_BUFFER + 1, 2**31 - 1))
            self._add("frame", slot, size.to_bytes(4, "big", signed=True) + b"x" * 8)
            self.state[slot] = "dropped"

    def _auth(self, slot: int) -> None:
        rng = self.rng
        if rng.random() < 0.1:
            scheme, credential = rng.choice(STRANGE_AUTH)
        elif rng.random() < 0.08:
            scheme, credential = "digest", SUPER_CREDENTIAL.encode()
        else:
            scheme, credential = "digest", rng.choice(CREDENTIALS).encode()
        self._add("call", slot, "auth", rng.choice((0, 0, 0, 7)), scheme, credential)

    def _raw(self, slot: int) -> None:
        rng = self.rng
        if rng.random() < 0.4:
            self._add(
                "raw", slot, rng.choice(UNKNOWN_CODES), rng.randbytes(rng.randrange(20)), None
            )
            self.state[slot] = "dropped"
            return
        name = rng.choice(("create", "delete", "exists", "get_data", "set_data", "get_children2"))
        layout = jute.LAYOUTS[name]
        body = jute.encode_fields(layout.request, self._arguments(slot, name))
        if rng.random() < 0.7:
            body = body[: rng.randrange(len(body))]
        else:
            body += rng.randbytes(rng.randrange(1, 9))
        self._add("raw", slot, layout.code, body, name)

    def _set_quota(self) -> None:
        """A quota with hard limits, set by the super user, on a path that is written often."""
        rng = self.rng
        self._add("open", 0, LONG_TIMEOUT_MS, False)
        self.state[0] = "open"
        self._add("call", 0, "auth", 0, "digest", SUPER_CREDENTIAL.encode())
        at = f"/zookeeper/quota{QUOTA_ROOT}"
        limits = rng.choice(
            (
                "count=-1,bytes=-1=;byteHardLimit=20;countHardLimit=4",
                "count=2,bytes=10=;byteHardLimit=-1;countHardLimit=3",
                "count=1,bytes=5=;byteHardLimit=30;countHardLimit=-1",
                "count=1,bytes=5",
            )
        )
        if rng.random() < 0.7:
            self._add("call", 0, "create", QUOTA_ROOT, b"12345", OPEN_ACL, 0)
        self._add("call", 0, "create", at, b"", OPEN_ACL, 0)
        self._add("call", 0, "create", f"{at}/zookeeper_limits", limits.encode(), OPEN_ACL, 0)
        self._add("call", 0, "create", f"{at}/zookeeper_stats", b"count=0,bytes=0", OPEN_ACL, 0)

    # ---- requests ------------------------------------------------------------------------------

    def _call(self, slot: int) -> None:
        name = self.rng.choices(tuple(OPERATIONS), tuple(OPERATIONS.values()))[0]
        if name == "multi" and self.quota:
            name = "set_data"
        if name in {"set_watches", "set_watches2"}:
            self._set_watches(slot)
        else:
            self._add("call", slot, name, *self._arguments(slot, name))

    def _arguments(self, slot: int, name: str) -> tuple[Any, ...]:
        rng = self.rng
        if name in {"exists", "get_data", "get_children", "get_children2"}:
            path = self._path()
            watch = rng.random() < 0.4 and persistent_mode(slot, path) is None
            return path, watch and can_exist(path)
        if name in {"multi", "multi_read"}:
            return (self._operations(slot, name),)
        if name == "reconfig":
            return rng.choice(((None, None, None, -1), ("server.9=h:1:2;3", None, None, 0)))
        if name in {"check_watches", "remove_watches"}:
            strange = rng.random() < self.strange
            types = STRANGE_WATCH_TYPES if strange else WATCH_TYPES
            path = self._path()
            if persistent_mode(slot, path) is not None and not strange:
                return path, 3
            return path, rng.choice(types)
        if name == "add_watch":
            return self._add_watch(slot)
        return self._write_or_rest(name)

    def _write_or_rest(self, name: str) -> tuple[Any, ...]:
        rng = self.rng
        if name in {"create", "create2", "create_container", "create_ttl"}:
            return self._create(name)
        path = self._path()
        if name in {"delete", "check"}:
            return path, self._version()
        if name == "set_data":
            if rng.random() < self.big_rate:
                return path, self._big_data(path), -1
            return path, self._data(), self._version()
        if name == "set_acl":
            return path, self._acl(), self._version()
        if name == "get_ephemerals":
            return (rng.choice(("/", "/a", path)),)
        if name in {"sync", "get_acl", "get_all_children_number"}:
            return (path,)
        assert name in {"ping", "who_am_i"}, name
        return ()

    def _create(self, name: str) -> tuple[Any, ...]:
        rng = self.rng
        strange = rng.random() < self.strange
        acl = self._acl() if rng.random() < self.acl_rate + 0.02 else OPEN_ACL
        flags = rng.choice(STRANGE_FLAGS if strange else FLAGS)
        if name == "create_container":
            flags = flags if strange else 4
        if name != "create_ttl":
            return self._path(new=True), self._data(), acl, flags
        flags = flags if strange else rng.choice((5, 6))
        ttl = rng.choice(STRANGE_TTLS if rng.random() < self.strange else TTLS)
        return self._path(new=True), self._data(), acl, flags, ttl

    def _add_watch(self, slot: int) -> tuple[Any, ...]:
        if self.rng.random() < self.strange:
            return self._path(), self.rng.choice((2, -1))
        for _ in range(50):
            path = self._possible_path()
            mode = persistent_mode(slot, path)
            if mode is not None:
                return path, mode
        return "/", persistent_mode(slot, "/") or 0

    def _operations(self, slot: int, name: str) -> tuple[Any, ...]:
        rng = self.rng
        count = rng.choice((0, 1, 2, 2, 3, 3, 4, 6))
        if name == "multi_read":
            kinds = ["get_data", "get_children"]
        else:
            kinds = ["create", "create", "create2", "delete", "set_data", "set_data", "check"]
            kinds += ["create_container", "create_ttl"] if rng.random() < 0.2 else []
        found = []
        for _ in range(count):
            each = rng.choice(kinds)
            if name == "multi_read":
                found.append((each, self._path(), False))
            else:
                found.append((each, *self._of_multi(each)))
        return tuple(found)

    def _of_multi(self, name: str) -> tuple[Any, ...]:
        arguments = self._write_or_rest(name)
        while name in {"create", "create2", "create_container"} and arguments[3] in {5, 6}:
            arguments = self._write_or_rest(name)
        return arguments

    def _set_watches(self, slot: int) -> None:
        rng = self.rng
        name = rng.choice(("set_watches", "set_watches2"))
        lists: list[list[Any]] = [[], [], [], [], []]
        for _ in range(rng.randrange(8)):
            path = self._possible_path()
            mode = persistent_mode(slot, path)
            lists[rng.randrange(3) if mode is None else 3 + mode].append(path)
        used = lists[: 3 if name == "set_watches" else 5]
        self._add("call", slot, name, Seen(rng.choice((0, 0, 1, 3, 10))), *map(tuple, used))

    # ---- values --------------------------------------------------------------------------------

    def _path(self, *, new: bool = False) -> Any:
        rng = self.rng
        if rng.random() < self.strange:
            return rng.choice(STRANGE_PATHS)
        if not new and rng.random() < 0.06:
            return "/"
        path = rng.choice(TOP)
        while rng.random() < 0.4 and path.count("/") < 4:
            path += "/" + rng.choice(NAMES)
        if not new and rng.random() < 0.1:
            path += f"{rng.randrange(4):010d}"
        return path

    def _possible_path(self) -> str:
        path = self._path()
        while not can_exist(path):
            path = self._path()
        assert isinstance(path, str)
        return path

    def _data(self) -> bytes | None:
        rng = self.rng
        if rng.random() < 0.12:
            return rng.choice((None, b""))
        return rng.randbytes(rng.randrange(1, 12))

    def _big_data(self, path: Any) -> bytes:
        """Data for a set whose frame is just at the limit of one, or just over it."""
        overhead = len(jute.encode_request("set_data", 1, (path, b"", -1))) - 4
        return bytes(MAX_BUFFER - overhead + self.rng.choice((-1, 0, 0, 1)))

    def _version(self) -> int:
        return self.rng.choice(VERSIONS)

    def _acl(self) -> Any:
        if self.rng.random() < self.strange:
            return self.rng.choice(STRANGE_ACLS)
        return OPEN_ACL if self.rng.random() < 0.4 else self.rng.choice(ACLS)
