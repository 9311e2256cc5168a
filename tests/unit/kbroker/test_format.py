"""FORMAT.md is the specification: its worked bytes are what the code writes."""

from __future__ import annotations

import re
from pathlib import Path

import kbroker.storage
from kbroker.storage import producer_snapshot
from kbroker.storage.index import OffsetIndex, TimeIndex

FORMAT = Path(kbroker.storage.__file__).with_name("FORMAT.md").read_text()


def worked(name: str) -> bytes:
    found = re.search(rf"^    {name} ([0-9a-f]+)$", FORMAT, re.MULTILINE)
    assert found, name
    return bytes.fromhex(found[1])


def test_offset_index() -> None:
    index = OffsetIndex(100)
    index.append(110, 4200)
    index.append(125, 9000)
    assert index.to_bytes() == worked("index")


def test_time_index() -> None:
    index = TimeIndex(100)
    index.maybe_append(1_700_000_000_000, 110)
    assert index.to_bytes() == worked("timeindex")


def test_producer_snapshot() -> None:
    row = (1000, 2, 9, 109, 4, 1_700_000_000_000, -1, -1)
    assert producer_snapshot.encode([row]).hex() == worked("snapshot").hex()
