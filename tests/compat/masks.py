"""What two transcripts of one story may differ in, and nothing else.

| in the transcript | stands for |
| --- | --- |
| `<address>` | the server's host and port |
| `<session N>` | a session id, numbered in order of first appearance |
| `<zxid +N>` | a transaction id, N after the server's last one when the story began |
| `<time>` | a point in time; the epoch (1 January 1970) stays itself |
| sorted | children, ephemeral nodes and identities: lists that have no order |
| `… (N times)` | a line that came N times in a row, more than twice |
| left out | blank lines, durations, the C client's debug log, what Java's logging says of itself |
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

_NOISE: Final = re.compile(r"SLF4J: |time = \d+ msec$|\s*$|[-\d]{10} .*:ZOO_(DEBUG|INFO)@")
_LOG_HEAD: Final = re.compile(r"^[-\d]{10} [\d:,]+\(0x[0-9a-f]+\):")
_TIME: Final = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) [A-Z][a-z]{2} +\d+ \d\d:\d\d:\d\d (?:[A-Z]{3,4} )?(\d{4})"
)
_ZXID: Final = re.compile(r"(?P<name>\b[cmp]zxid ?= ?)(?P<prefix>0x)?(?P<zxid>[0-9a-f]+)\b", re.I)
_SESSION: Final = re.compile(
    r"(?P<name>ephemeralOwner = |session id: |session Id = |sessionid:)(?:0x)?(?P<id>[0-9a-f]+)\b",
    re.I,
)
_UNORDERED: Final = (
    re.compile(r"\t[^\s=]+$"),  # a child, as the C shell lists it
    re.compile(r"(?:super|ip|digest|sasl|x509): "),  # an identity, as `whoami` lists it
)
_LIST: Final = re.compile(r"\[(.*)\]")


class Masks:
    """The masks of one run of one story; it remembers the sessions it has met."""

    def __init__(self, addresses: Sequence[str], first_zxid: int) -> None:
        self._addresses = addresses
        self._first_zxid = first_zxid
        self._sessions: dict[str, int] = {}

    def __call__(self, lines: Iterable[str]) -> list[str]:
        """The lines as they are compared."""
        masked: Iterable[str] = (self._line(line) for line in lines if not _NOISE.match(line))
        for pattern in _UNORDERED:
            masked = sort_runs(masked, pattern)
        return list(count_repeated(masked))

    def _line(self, line: str) -> str:
        for address in self._addresses:
            line = line.replace(address, "<address>")
        line = _LOG_HEAD.sub("<time>:", line)
        line = _TIME.sub(lambda found: "<epoch>" if found[1] == "1970" else "<time>", line)
        if found := _LIST.fullmatch(line):
            line = f"[{', '.join(sorted(found[1].split(', ')))}]"
        line = _ZXID.sub(self._zxid, line)
        return _SESSION.sub(self._session, line)

    def _zxid(self, found: re.Match[str]) -> str:
        zxid = int(found["zxid"], 16)
        if zxid == 0:
            return found[0]
        return f"{found['name']}<zxid +{(zxid - self._first_zxid) & 0xFFFFFFFF}>"

    def _session(self, found: re.Match[str]) -> str:
        if int(found["id"], 16) == 0:
            return found[0]
        number = self._sessions.setdefault(found["id"], len(self._sessions) + 1)
        return f"{found['name']}<session {number}>"


def sort_runs(lines: Iterable[str], pattern: re.Pattern[str]) -> list[str]:
    """The lines in their order, but each run of neighbours that begin with the pattern sorted."""
    result: list[str] = []
    run: list[str] = []
    for line in lines:
        if pattern.match(line):
            run.append(line)
            continue
        result += sorted(run)
        run = []
        result.append(line)
    return result + sorted(run)


def count_repeated(lines: Iterable[str]) -> Iterator[str]:
    """The lines, but one that comes more than twice in a row once, with how often it came."""
    for line, repeated in itertools.groupby(lines):
        count = sum(1 for _ in repeated)
        if count > 2:
            yield f"{line} ({count} times)"
        else:
            yield from itertools.repeat(line, count)
