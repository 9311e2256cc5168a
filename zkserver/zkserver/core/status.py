"""The core at one moment, as metrics, four-letter words and tests see it."""

from __future__ import annotations

from typing import NamedTuple


class Status(NamedTuple):
    """The core at one moment, for metrics and words."""

    zxid: int = 0
    epoch: int = 0
    node_count: int = 0
    watch_count: int = 0
    sessions: int = 0
    ephemerals: int = 0
    outstanding: int = 0
    data_bytes: int = 0
