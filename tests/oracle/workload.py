"""What the clients of a recorded run do: random operations whose answers the model knows.

No I/O and no threads: the recorder sends what comes from here, to real servers or to one in the
same process. Every write carries data that no other write has, so that it can be recognised.
"""

from __future__ import annotations

import random
import zlib
from typing import Any, Final

OPEN_ACL: Final = ((31, "world", "anyone"),)
HARMLESS_ACLS: Final = (OPEN_ACL, ((1, "ip", "10.0.0.0/8"), *OPEN_ACL))
"""They allow everybody everything."""
RESTRICTING_ACLS: Final = (*HARMLESS_ACLS, ((29, "world", "anyone"),), ((27, "world", "anyone"),))
"""All of them let everybody read, and change the ACL again."""
NAMES: Final = ("a", "b", "c")
OPERATIONS: Final = {
    "create": 10,
    "create2": 5,
    "delete": 8,
    "set_data": 14,
    "set_acl": 2,
    "multi": 8,
    "exists": 10,
    "get_data": 14,
    "get_children": 5,
    "get_children2": 8,
    "get_acl": 2,
    "get_all_children_number": 2,
    "get_ephemerals": 2,
    "multi_read": 4,
    "add_watch": 3,
    "remove_watches": 1,
    "sync": 2,
    "ping": 1,
}


class Workload:
    """The operations of one client.

    `restricting`: ACLs may forbid something. Not for Apache 3.8.0, which checks a write against the
    old ACL while a setACL is on its way.
    """

    def __init__(self, seed: str, *, restricting: bool = True) -> None:
        self._acls = RESTRICTING_ACLS if restricting else HARMLESS_ACLS
        self.rng = random.Random(seed)
        self._data_prefix = seed.encode()
        self._count = 0

    def operation(self) -> tuple[str, tuple[Any, ...]]:
        """The next operation: (name, arguments)."""
        name = self.rng.choices(tuple(OPERATIONS), tuple(OPERATIONS.values()))[0]
        return name, self._arguments(name)

    def set_watches(self, last_zxid_seen: int) -> tuple[str, tuple[Any, ...]]:
        """What a client sends after it has reconnected."""
        lists: list[list[str]] = [[], [], [], [], []]
        for path in dict.fromkeys(self._path() for _ in range(6)):
            mode = self._persistent_mode(path)
            lists[self.rng.randrange(3) if mode is None else 3 + mode].append(path)
        return "set_watches2", (last_zxid_seen, *map(tuple, lists))

    def _arguments(self, name: str) -> tuple[Any, ...]:
        rng = self.rng
        if name in {"multi", "multi_read"}:
            kinds = ["create", "create2", "delete", "set_data", "set_data", "check"]
            if name == "multi_read":
                kinds = ["get_data", "get_children"]
            chosen = [rng.choice(kinds) for _ in range(rng.randrange(1, 5))]
            return (tuple((each, *self._plain_arguments(each)) for each in chosen),)
        if name in {"exists", "get_data", "get_children", "get_children2"}:
            path = self._path()
            return path, rng.random() < 0.5 and self._persistent_mode(path) is None
        if name == "add_watch":
            for _ in range(20):
                path = self._path()
                mode = self._persistent_mode(path)
                if mode is not None:
                    return path, mode
            return "/", self._persistent_mode("/") or 0
        if name == "remove_watches":
            return self._path(), 3
        return self._plain_arguments(name)

    def _plain_arguments(self, name: str) -> tuple[Any, ...]:
        rng = self.rng
        path = self._path()
        if name in {"create", "create2"}:
            acl = rng.choice(self._acls) if rng.random() < 0.1 else OPEN_ACL
            return path, self._data(), acl, rng.choice((0, 0, 0, 1, 1, 2, 3))
        if name in {"delete", "check"}:
            return path, rng.choice((-1, -1, -1, 0, 1))
        if name == "set_data":
            return path, self._data(), rng.choice((-1, -1, -1, 0, 1, 2))
        if name == "set_acl":
            return path, rng.choice(self._acls), rng.choice((-1, 0))
        if name in {"get_data", "get_children"}:
            return path, False
        if name == "get_ephemerals":
            return ("/",)
        return () if name == "ping" else (path,)

    def _persistent_mode(self, path: str) -> int | None:
        """One kind of watch for each path: see `known.NOT_GENERATED`."""
        return (None, None, 0, 1)[zlib.crc32(path.encode()) % 4]

    def _path(self) -> str:
        path = "/" + self.rng.choice(NAMES)
        while self.rng.random() < 0.4 and path.count("/") < 3:
            path += "/" + self.rng.choice(NAMES)
        return path

    def _data(self) -> bytes:
        self._count += 1
        return b"%s-%d" % (self._data_prefix, self._count)
