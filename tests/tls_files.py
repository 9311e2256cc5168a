"""The certificates of `tests/data/tls`, as a server and its clients want them."""

from __future__ import annotations

import shutil
import ssl
from pathlib import Path

from duolog_runtime.tls_context import client_tls_context

DATA = Path(__file__).resolve().parent / "data" / "tls"


def copy_tls_files(directory: Path) -> Path:
    """Copy all files; private ones are closed to others, which Git does not remember."""
    directory.mkdir(exist_ok=True)
    for file in DATA.iterdir():
        copy = directory / file.name
        shutil.copyfile(file, copy)
        copy.chmod(0o600 if file.suffix in (".key", ".password") else 0o644)
    return directory


def client_context(client: str | None = None, ca: str = "ca.pem") -> ssl.SSLContext:
    """What a client that trusts `ca` connects with; `client` names its certificate."""
    return client_tls_context(
        str(DATA / ca),
        None if client is None else str(DATA / f"{client}.pem"),
        None if client is None else str(DATA / f"{client}.key"),
    )
