"""Builds and runs `zkload_native`, the load generator in C."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

from .plan import Dialect, Kind, encode_plan
from .processes import NoFigureError

HERE: Final = Path(__file__).resolve().parent
BUILD: Final = HERE / "build"
SOURCES: Final = (HERE / "zkload_native.c", HERE / "replies.h")
FLAGS: Final = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror")


class GeneratorError(NoFigureError):
    """The generator found something wrong, or could not run."""


def compiler() -> str | None:
    """The C compiler, `$CC` or `cc`."""
    return shutil.which(os.environ.get("CC", "cc"))


def build() -> Path:
    """The generator, compiled when its source is newer. Raises GeneratorError."""
    program = BUILD / "zkload_native"
    newest = max(source.stat().st_mtime for source in SOURCES)
    if program.exists() and program.stat().st_mtime > newest:
        return program
    cc = compiler()
    if cc is None:
        raise GeneratorError("a C compiler is needed: install one as cc, or name it in $CC")
    BUILD.mkdir(exist_ok=True)
    made = BUILD / f"zkload_native.{os.getpid()}"
    done = subprocess.run(
        [cc, *FLAGS, "-o", made, SOURCES[0]], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise GeneratorError(f"{cc} failed:\n{done.stderr}")
    made.replace(program)
    return program


def run(
    port: int,
    dialect: Dialect,
    mix: dict[Kind, int],
    *,
    connections: int = 8,
    outstanding: int = 64,
    size_bytes: int = 100,
    keys: int = 1000,
    seconds: float = 4,
    warmup_s: float = 1,
    patience_s: float = 10,
) -> dict[str, Any]:
    """Load the server on `port`; the figures. Raises GeneratorError when a reply was wrong."""
    program = build()
    with tempfile.NamedTemporaryFile(dir=BUILD, suffix=".plan") as file:
        file.write(
            encode_plan(dialect, mix=mix, connections=connections, keys=keys, size_bytes=size_bytes)
        )
        file.flush()
        command: list[str] = [
            str(program),
            *("--plan", file.name, "--port", str(port)),
            *("--outstanding", str(outstanding), "--seconds", str(seconds)),
            *("--warmup", str(warmup_s), "--patience", str(patience_s)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        found = json.loads(done.stdout)["error"] if done.stdout else done.stderr.strip()
        raise GeneratorError(f"{found} (exit {done.returncode})")
    result: dict[str, Any] = json.loads(done.stdout)
    return result
