"""A command under a lock ends with the lock, with all that it started."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from duolog_cluster.cli import held_command
from duolog_cluster.cli.held_command import run_held
from tests.support import until


class Life:
    """A pipe that a command and its children hold open: its end is the end of them all."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "life"
        os.mkfifo(self.path)

    def command(self, script: str) -> list[str]:
        return ["sh", "-c", f"exec 3> '{self.path}'; {script}"]

    async def begun(self) -> None:
        self._file = await asyncio.to_thread(self.path.open)
        assert await asyncio.to_thread(self._file.readline) == "begun\n"

    async def ended(self) -> None:
        assert await asyncio.to_thread(self._file.read) == ""
        self._file.close()


async def test_doubt_ends_what_withstands_and_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_command, "GRACE_S", 0.05)
    life, doubt = Life(tmp_path), asyncio.Event()
    command = life.command("trap '' TERM; sleep 600 & echo begun >&3; wait")
    async with asyncio.timeout(30):
        running = asyncio.create_task(run_held(command, dict(os.environ), doubt))
        await life.begun()
        doubt.set()
        assert await running == -signal.SIGKILL
        await life.ended()


async def test_cancelling_ends_it_too(tmp_path: Path) -> None:
    life = Life(tmp_path)
    command = life.command("sleep 600 & echo begun >&3; wait")
    async with asyncio.timeout(30):
        running = asyncio.create_task(run_held(command, dict(os.environ), asyncio.Event()))
        await life.begun()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await life.ended()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_signals_reach_it(tmp_path: Path, number: signal.Signals) -> None:
    life, before = Life(tmp_path), signal.getsignal(number)
    # Its children are short-lived: one told between fork and exec has the trap, and lives on.
    loop = "echo begun >&3; while :; do sleep 0.02; done"
    command = life.command(f"trap 'exit 7' {number.name[3:]}; {loop}")
    async with asyncio.timeout(30):
        running = asyncio.create_task(run_held(command, dict(os.environ), asyncio.Event()))
        await life.begun()
        await until(lambda: signal.getsignal(number) != before)
        os.kill(os.getpid(), number)
        assert await running == 7
        await life.ended()
    assert signal.getsignal(number) == before


async def test_what_it_leaves_behind_by_itself_is_its_own_affair(tmp_path: Path) -> None:
    life = Life(tmp_path)
    command = life.command("sh -c 'read line <&4' 4<&0 & echo begun >&3; exit 3")
    async with asyncio.timeout(30):
        running = asyncio.create_task(run_held(command, dict(os.environ), asyncio.Event()))
        await life.begun()
        assert await running == 3
        await life.ended()
