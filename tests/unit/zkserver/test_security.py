"""The security settings: rules between them, and the file of users."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from duolog_protocol.errors import ConfigError
from duolog_runtime.clocks import ManualClock
from duolog_runtime.config import load_config
from duolog_runtime.logs import RecordingLogger
from zkserver.config import ServerConfig
from zkserver.core.auth import DEFAULT_SCHEMES
from zkserver.security import MAX_USERS_FILE_BYTES, load_auth, load_tls, read_users

DIGEST = "super:D/InIHSb7yEEbrWz8b9l71RjZJU="
TLS = {"tls_certificate_file": "server.pem"}
ASKING = {**TLS, "tls_ca_file": "ca.pem"}


def config(**settings: Any) -> ServerConfig:
    return ServerConfig(data_directory="data", **settings)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"tls_key_file": "k"}, "tls_key_file"),
        ({"tls_port": 0}, "tls_port"),
        ({"tls_required": True}, "tls_required"),
        ({"tls_client_auth": "want"}, "tls_client_auth"),
        ({**TLS, "tls_client_auth": "need"}, "tls_ca_file"),
        ({**TLS, "tls_port": 2181}, "tls_port"),
        ({**TLS, "tls_port": 65536}, "tls_port"),
        ({"peer_tls_key_file": "k"}, "peer_tls_key_file"),
        ({"peer_tls_ca_file": "ca.pem"}, "peer_tls_ca_file"),
        ({"peer_tls_certificate_file": "peer.pem"}, "peer_tls_ca_file"),
        ({"super_digests": ("super:test",)}, "super_digests"),
        ({"super_digests": (DIGEST[6:],)}, "super_digests"),
        ({"super_x509": "CN=root"}, "super_x509"),
        ({**ASKING, "tls_client_auth": "want", "super_x509": "root"}, "super_x509"),
        ({"super_sasl": "bob"}, "super_sasl"),
        ({"allow_failed_sasl": True}, "allow_failed_sasl"),
        ({"enforce_auth_schemes": ("sasl",)}, "enforce_auth_schemes"),
        ({"enforce_auth_schemes": ("x509",)}, "enforce_auth_schemes"),
        ({"enforce_auth_schemes": ("digest", "world")}, "enforce_auth_schemes"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(
    settings: dict[str, Any], field: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**settings)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("settings", "guarded"),
    [
        ({}, False),
        ({**ASKING, "tls_client_auth": "need"}, False),
        ({**TLS, "tls_required": True}, False),
        ({**ASKING, "tls_client_auth": "want", "tls_required": True}, False),
        ({"enforce_auth_schemes": ("digest",)}, False),
        ({"enforce_auth_schemes": ("sasl", "ip"), "sasl_users_file": "u"}, False),
        ({**ASKING, "tls_client_auth": "need", "tls_required": True}, True),
        ({"enforce_auth_schemes": ("sasl",), "sasl_users_file": "u"}, True),
        ({"insecure": True}, True),
    ],
)
def test_others_may_reach_only_a_server_that_knows_everybody(
    settings: dict[str, Any], guarded: bool
) -> None:
    if guarded:
        config(host="0.0.0.0", **settings)
        return
    with pytest.raises(ConfigError, match="not a loopback address"):
        config(host="0.0.0.0", **settings)


def test_settings_come_from_flags_and_secrets_are_not_shown() -> None:
    argv = [
        *("--data", "d", "--super-digests", f"{DIGEST},other{DIGEST[5:]}"),
        *("--enforce-auth-schemes", "digest,ip", "--tls-port", "none"),
    ]
    (loaded,) = load_config((ServerConfig,), argv, {}, "ZKSERVER_")
    assert loaded.super_digests == (DIGEST, f"other{DIGEST[5:]}")
    assert loaded.enforce_auth_schemes == ("digest", "ip")
    assert DIGEST[6:] not in repr(loaded) + repr(loaded.visible_settings())
    assert loaded.visible_settings()["tls_port"] is None


def test_without_settings_no_file_is_read_and_no_chance_taken() -> None:
    rng = random.Random(1)
    state = rng.getstate()
    assert load_auth(config(), rng).schemes == DEFAULT_SCHEMES
    assert load_tls(config(), ManualClock(), RecordingLogger()) is None
    assert rng.getstate() == state


# ---- users ---------------------------------------------------------------------------------------


def users_file(tmp_path: Path, content: bytes, mode: int = 0o600) -> str:
    path = tmp_path / "users"
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


def test_users_are_read_line_by_line(tmp_path: Path) -> None:
    content = "# comment\n\n bob = a=b \r\n\tjürgen=pässword\n#x=y\nlast=one".encode()
    found = read_users(users_file(tmp_path, content))
    assert found == {"bob": " a=b ", "jürgen": "pässword", "last": "one"}


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"bob\n", "line 1 is not user=password"),
        (b"#\n=secret\n", "line 2 is not user=password"),
        (b"bob=\n", "line 1 has no password"),
        (b"bob=x\nal=y\nbob=z\n", "line 3 names a user for the second time"),
        (b"", "names no user"),
        (b"# nobody\n", "names no user"),
        (b"bob=\xff\n", "is not UTF-8"),
        (b"#" * (MAX_USERS_FILE_BYTES + 1), "has more than"),
    ],
)
def test_a_wrong_line_is_named_and_not_shown(tmp_path: Path, content: bytes, rule: str) -> None:
    path = users_file(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        read_users(path)
    assert rule in caught.value.rule and "secret" not in str(caught.value)


def test_a_users_file_must_be_closed_to_others(tmp_path: Path) -> None:
    read_users(users_file(tmp_path, b"bob=x\n", 0o400))
    for mode in (0o640, 0o604, 0o620, 0o601):
        with pytest.raises(ConfigError, match="chmod 600"):
            read_users(users_file(tmp_path, b"bob=x\n", mode))
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_users(str(tmp_path / "missing"))
