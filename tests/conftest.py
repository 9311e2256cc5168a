"""Every asynchronous test runs on both event loops that the daemons support."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping

import pytest
import uvloop

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Of a shell's background job: the commands under test would inherit it, and not hear Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
