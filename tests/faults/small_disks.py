"""A small disk for each server, so that it can be full: a tmpfs, which only root may mount."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

SIZE_BYTES: Final = 192 * 1024 * 1024
_BALLAST: Final = "ballast"


def may_mount() -> bool:
    """Whether this process may have disks of its own."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


class SmallDisks:
    """Mounted for the time of the `with` block, at `server-ID/data` below a directory.

    What a server logs is elsewhere. After an error, what was on the disks is left there.
    """

    def __init__(self, directory: Path, server_ids: Iterable[int]) -> None:
        self._at = {each: directory / f"server-{each}" / "data" for each in server_ids}
        self._mounted: list[Path] = []

    def __enter__(self) -> Self:
        try:
            for each in self._at.values():
                each.mkdir(parents=True)
                options = ["-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "tmpfs", str(each)]
                subprocess.run(["mount", *options], check=True, capture_output=True)
                self._mounted.append(each)
        except (OSError, subprocess.CalledProcessError):
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for server_id, each in self._at.items():
            if each not in self._mounted:
                continue
            self.free(server_id)
            kept = each.with_name(f"{each.name}.kept")
            if any(error):
                shutil.copytree(each, kept)
            subprocess.run(["umount", "--lazy", str(each)], check=False, capture_output=True)
            if any(error):
                each.rmdir()
                kept.rename(each)
        self._mounted.clear()

    def fill(self, server_id: int, *, keep_bytes: int) -> None:
        """Leave no more than so many bytes (whole pages)."""
        at = self._at[server_id]
        free = os.statvfs(at)
        size = max(0, free.f_bavail * free.f_frsize - keep_bytes)
        with (at / _BALLAST).open("ab") as ballast, contextlib.suppress(OSError):
            os.posix_fallocate(ballast.fileno(), os.fstat(ballast.fileno()).st_size, size)

    def free(self, server_id: int) -> None:
        """Give the space back."""
        (self._at[server_id] / _BALLAST).unlink(missing_ok=True)
