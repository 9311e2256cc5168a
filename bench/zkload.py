"""Runs `zkload`, a load generator for ZooKeeper's client protocol that checks every reply."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .generator import GeneratorError
from .processes import StartError, lines_of


def zkload(
    program: str, ports: int | Sequence[int], *words: str, timeout_s: float
) -> dict[str, Any]:
    """One run against a server on loopback, or several; its figures. Raises GeneratorError."""
    hosts = [ports] if isinstance(ports, int) else ports
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "line.json"
        addresses = ",".join(f"127.0.0.1:{port}" for port in hosts)
        command = [program, words[0], "--hosts", addresses, *words[1:]]
        try:
            lines_of([*command, "--json", str(out)], timeout_s=timeout_s, what="zkload")
        except StartError as error:
            raise GeneratorError(str(error)) from error
        found: dict[str, Any] = json.loads(out.read_text().splitlines()[-1])
        return found
