"""Certificates and keys: from files to the contexts that connections are made with.

Owns the reading of the files, the complaints about them, and their renewal while the server runs.
What a peer's certificate means to the server is decided elsewhere.

TLS 1.2 at least; no renegotiation; no session tickets in TLS 1.3, so every connection proves its
certificate. In TLS 1.2 sessions may be resumed on the context that they began with (the standard
library has no switch for OpenSSL's cache of them, and without tickets they would all be in it):
new authorities count at once, as they come with a new context, and the owner of a connection asks
for a certificate that has expired since (`TlsLayer.resumed_past_expiry`).

Reference: reliability.md §11.1.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from typing import Final, Generic, Literal, NamedTuple, TypeVar

from duolog_protocol.errors import ConfigError
from duolog_protocol.stream_decoder import READ_BYTES

from .clocks import Clock
from .logs import Logger

ClientAuth = Literal["none", "want", "need"]
"""Whether a client is asked for a certificate, and whether it may do without one."""

LOOK_INTERVAL_MS: Final = 1_000
"""The files are looked at again at most so often, and only when a client comes."""
MAX_FILE_BYTES: Final = 4 * 1024 * 1024
_VERIFY: Final = {
    "none": ssl.CERT_NONE,
    "want": ssl.CERT_OPTIONAL,
    "need": ssl.CERT_REQUIRED,
}
_MISMATCH: Final = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH")
_Signature = tuple[tuple[int, int, int] | None, ...]
"""(modification time in ns, size, inode) of each file, None for one that is not there."""


T = TypeVar("T")


class TlsFiles(NamedTuple):
    """Where a server's certificates are; all of them PEM."""

    certificate_file: str
    """The server's certificate, and after it those between it and the authority."""
    key_file: str = ""
    """Its private key; empty: in the certificate file."""
    key_password_file: str = ""
    """What the key is encrypted with, the first line of it; empty: it is not. A setting of clients'
    certificates only."""
    ca_file: str = ""
    """The authorities that clients' certificates must come from."""
    client_auth: ClientAuth = "none"
    prefix: str = "tls_"
    """What the names of these settings begin with, in complaints."""


class FollowedFiles(Generic[T]):
    """What is made of the files for new connections; it follows them.

    A renewal that cannot be loaded is logged, and the old one stays until the files change again.
    Connections that are open keep the one that they began with.
    """

    def __init__(
        self, files: TlsFiles, clock: Clock, log: Logger, load: Callable[[TlsFiles], T]
    ) -> None:
        """Load the files. Raises ConfigError."""
        self.scratch = memoryview(bytearray(READ_BYTES))
        """Where the encrypted bytes of all connections of one loop arrive."""
        self._files = files
        self._clock = clock
        self._log = log
        self._load = load
        self._signature = _signature(files)
        self._loaded = load(files)
        self._looked_ms = clock.now_ms()

    def current(self) -> T:
        """What a connection is made with that begins now."""
        now_ms = self._clock.now_ms()
        if now_ms - self._looked_ms >= LOOK_INTERVAL_MS:
            self._looked_ms = now_ms
            signature = _signature(self._files)
            if signature != self._signature:
                self._signature = signature
                self._renew()
        return self._loaded

    def _renew(self) -> None:
        try:
            self._loaded = self._load(self._files)
        except ConfigError as error:
            self._log.warning("tls_renewal_failed", reason=str(error))
        else:
            self._log.info("tls_renewed", certificate=self._files.certificate_file)


class ServerTls(FollowedFiles[ssl.SSLContext]):
    """The context that a server's new connections get."""

    def __init__(self, files: TlsFiles, clock: Clock, log: Logger) -> None:
        """Load the files. Raises ConfigError."""
        super().__init__(files, clock, log, server_tls_context)


class PeerContexts(NamedTuple):
    """The two contexts of a server among servers of its kind."""

    accepting: ssl.SSLContext
    dialling: ssl.SSLContext


class PeerTls(FollowedFiles[PeerContexts]):
    """The contexts of connections between servers that trust one authority, and no name.

    Both ends show a certificate, and TLS 1.3 is spoken. Whoever has a certificate of the authority
    is one of them: it must be an authority for these servers alone.
    """

    def __init__(self, files: TlsFiles, clock: Clock, log: Logger) -> None:
        """Load the files. Raises ConfigError."""
        super().__init__(files, clock, log, peer_tls_contexts)


def peer_tls_contexts(files: TlsFiles) -> PeerContexts:
    """The contexts from the files; `client_auth` must be need. Raises ConfigError."""
    assert files.client_auth == "need", files
    accepting = server_tls_context(files)
    dialling = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    dialling.check_hostname = False
    _load_own(dialling, files)
    _load_authorities(dialling, files.ca_file, f"{files.prefix}ca_file")
    for each in (accepting, dialling):
        each.minimum_version = ssl.TLSVersion.TLSv1_3
    return PeerContexts(accepting, dialling)


def server_tls_context(files: TlsFiles) -> ssl.SSLContext:
    """A server's context from its files. Raises ConfigError, which names the setting."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    _load_own(context, files)
    context.verify_mode = _VERIFY[files.client_auth]
    if files.client_auth != "none":
        ca_field = f"{files.prefix}ca_file"
        if not files.ca_file:
            rule = f"is needed to check the certificates that {files.prefix}client_auth asks for"
            raise ConfigError(ca_field, "", rule)
        _load_authorities(context, files.ca_file, ca_field)
    return context


def _load_own(context: ssl.SSLContext, files: TlsFiles) -> None:
    """Load the certificate and its key. Raises ConfigError."""
    certificate_field = f"{files.prefix}certificate_file"
    password_field = f"{files.prefix}key_password_file"
    key_field, key_file = f"{files.prefix}key_file", files.key_file
    certificate = _read(certificate_field, files.certificate_file)
    if not key_file:
        key_field, key_file = certificate_field, files.certificate_file
    key = _read(key_field, key_file, private=True)
    _require_pem(certificate_field, files.certificate_file, certificate, "CERTIFICATE")
    _require_pem(key_field, key_file, key, "PRIVATE KEY")

    def password() -> bytes:
        if not files.key_password_file:
            has_setting = files.prefix == "tls_"
            rule = f"is encrypted: set {password_field}" if has_setting else "must not be encrypted"
            raise ConfigError(key_field, key_file, rule)
        text = _read(password_field, files.key_password_file, private=True)
        return text.split(b"\n", 1)[0].rstrip(b"\r")

    try:
        context.load_cert_chain(files.certificate_file, key_file, password)
    except ssl.SSLError as error:
        if error.reason in _MISMATCH:
            rule = f"does not belong to the certificate in {files.certificate_file}"
        elif files.key_password_file:
            rule = f"cannot be loaded with the password in {files.key_password_file}: {error}"
        else:
            rule = f"cannot be loaded: {error}"
        raise ConfigError(key_field, key_file, rule) from error
    except (OSError, ValueError) as error:
        raise ConfigError(key_field, key_file, f"cannot be loaded: {error}") from error


def client_tls_context(
    ca_file: str | None = None,
    certificate_file: str | None = None,
    key_file: str | None = None,
    key_password: str | None = None,
    check_hostname: bool = True,
) -> ssl.SSLContext:
    """A client's context: the server must be who it says, by the authorities in `ca_file`.

    Without `ca_file` the system's authorities count. `check_hostname` False takes any server that
    they vouch for. Raises ConfigError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = check_hostname
    if ca_file is None:
        context.load_default_certs()
    else:
        _load_authorities(context, ca_file)
    if certificate_file is not None:
        try:
            context.load_cert_chain(certificate_file, key_file, lambda: key_password or "")
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            rule = f"cannot be loaded: {error}"
            raise ConfigError("certificate_file", certificate_file, rule) from error
    return context


def _load_authorities(context: ssl.SSLContext, path: str, field: str = "tls_ca_file") -> None:
    authorities = _read(field, path)
    _require_pem(field, path, authorities, "CERTIFICATE")
    try:
        context.load_verify_locations(cadata=authorities.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError, TypeError) as error:
        raise ConfigError(field, path, f"cannot be loaded: {error}") from error


def _read(field: str, path: str, *, private: bool = False) -> bytes:
    """The content of a file; a private one must be closed to others than owner and group."""
    try:
        with open(path, "rb") as file:
            if private and os.fstat(file.fileno()).st_mode & 0o007:
                rule = "is open to everybody on this machine: chmod o= it"
                raise ConfigError(field, path, rule)
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(field, path, f"cannot be read: {error.strerror or error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(field, path, f"has more than {MAX_FILE_BYTES} bytes")
    return content


def _require_pem(field: str, path: str, content: bytes, what: str) -> None:
    if f"{what}-----".encode() not in content:
        raise ConfigError(field, path, f"has no PEM block of a {what.lower()}")


def _signature(files: TlsFiles) -> _Signature:
    return tuple(
        _stat(path)
        for path in (files.certificate_file, files.key_file, files.key_password_file, files.ca_file)
        if path
    )


def _stat(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
