"""What the security settings name, read once at the start: certificates, users, super users.

Owns the files that say who may come; what they mean is `core.auth`'s and TLS's. Nothing here is
logged or shown: a complaint names a file and a line, never what is in it.
"""

from __future__ import annotations

import os
from random import Random
from typing import Final

from duolog_protocol.errors import ConfigError
from duolog_runtime.clocks import Clock
from duolog_runtime.logs import Logger
from duolog_runtime.tls_context import PeerTls, ServerTls, TlsFiles

from .config import ServerConfig
from .core.auth import AuthProviders, AuthSettings
from .core.sasl_digest import SaslUsers

MAX_USERS_FILE_BYTES: Final = 4 * 1024 * 1024


def load_auth(config: ServerConfig, rng: Random) -> AuthProviders:
    """The schemes of the settings. Raises ConfigError."""
    settings = AuthSettings(
        super_digests=config.super_digests,
        super_x509=config.super_x509,
        super_sasl=config.super_sasl,
        x509=config.tls_client_auth != "none",
        enforced_schemes=frozenset(config.enforce_auth_schemes),
        allow_failed_sasl=config.allow_failed_sasl,
    )
    users = None
    if config.sasl_users_file:
        users = SaslUsers(read_users(config.sasl_users_file), rng)
    return AuthProviders(settings, users)


def load_tls(config: ServerConfig, clock: Clock, log: Logger) -> ServerTls | None:
    """The certificates of the settings; None where there are none. Raises ConfigError."""
    if not config.tls_certificate_file:
        return None
    files = TlsFiles(
        config.tls_certificate_file,
        config.tls_key_file,
        config.tls_key_password_file,
        config.tls_ca_file,
        config.tls_client_auth,
    )
    return ServerTls(files, clock, log)


def load_peer_tls(config: ServerConfig, clock: Clock, log: Logger) -> PeerTls | None:
    """The certificates for connections between servers; None where there are none. Raises
    ConfigError.

    The certificate is shown to those that dial us and to those that we dial: where it says what
    it is for, it must be for servers and for clients.
    """
    if not config.peer_tls_certificate_file:
        return None
    files = TlsFiles(
        config.peer_tls_certificate_file,
        config.peer_tls_key_file,
        ca_file=config.peer_tls_ca_file,
        client_auth="need",
        prefix="peer_tls_",
    )
    return PeerTls(files, clock, log)


def read_users(path: str) -> dict[str, str]:
    """The users of a file: `user=password` on each line; empty lines and those with # do not count.

    The password is all behind the first `=`, spaces included. The file must be closed to group and
    others. Raises ConfigError.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                rule = "holds passwords and is open to others than its owner: chmod 600 it"
                raise ConfigError("sasl_users_file", path, rule)
            content = file.read(MAX_USERS_FILE_BYTES + 1)
        text = content.decode()
    except OSError as error:
        rule = f"cannot be read: {error.strerror or error}"
        raise ConfigError("sasl_users_file", path, rule) from error
    except UnicodeDecodeError:
        raise ConfigError("sasl_users_file", path, "is not UTF-8") from None
    if len(content) > MAX_USERS_FILE_BYTES:
        raise ConfigError("sasl_users_file", path, f"has more than {MAX_USERS_FILE_BYTES} bytes")
    users: dict[str, str] = {}
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        user, equals, password = line.partition("=")
        user = user.strip()
        problem = (
            "is not user=password"
            if not equals or not user
            else "has no password"
            if not password
            else "names a user for the second time"
            if user in users
            else None
        )
        if problem is not None:
            raise ConfigError("sasl_users_file", path, f"line {number} {problem}")
        users[user] = password
    if not users:
        raise ConfigError("sasl_users_file", path, "names no user")
    return users
