"""Rules for znode paths, and the arithmetic on them.

Source: ZooKeeper `PathUtils.validatePath`. Java looks at UTF-16 units, so every character above
U+FFFF is refused there (its surrogates are); so it is here.
"""

from __future__ import annotations

import re
from typing import Final

_ILLEGAL: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\uf8ff\ufff0-\uffff\U00010000-\U0010ffff]")


def path_problem(path: str) -> str | None:
    """What is wrong with an absolute znode path, in words, or None when it is legal."""
    if not path:
        return "path must not be empty"
    if path[0] != "/":
        return "path must start with /"
    if path == "/":
        return None
    if path[-1] == "/":
        return "path must not end with /"
    if "//" in path:
        return "path must not have an empty element"
    if "/." in path:
        for element in path.split("/"):
            if element in {".", ".."}:
                return f"path must not have the element {element!r}"
    found = _ILLEGAL.search(path)
    if found is not None:
        return f"path has the illegal character U+{ord(found.group()):04X} at {found.start()}"
    return None


def parent_of(path: str) -> str:
    """The parent of a legal path other than the root."""
    at = path.rfind("/")
    return path[:at] if at else "/"


def name_of(path: str) -> str:
    """The last element of a legal path other than the root."""
    return path[path.rfind("/") + 1 :]
