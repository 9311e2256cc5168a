"""Certificate files: what is wrong with them is said, and a renewal is noticed."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest

from duolog_protocol.errors import ConfigError
from duolog_runtime.clocks import ManualClock
from duolog_runtime.logs import RecordingLogger
from duolog_runtime.tls_context import (
    LOOK_INTERVAL_MS,
    ServerTls,
    TlsFiles,
    client_tls_context,
    server_tls_context,
)
from tests.tls_files import copy_tls_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_tls_files(tmp_path / "tls")


def files(folder: Path, certificate: str = "server.pem", key: str = "server.key") -> TlsFiles:
    return TlsFiles(str(folder / certificate), str(folder / key))


def problem(wanted: TlsFiles) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        server_tls_context(wanted)
    return caught.value


def test_a_context_asks_for_no_less_than_tls_1_2(folder: Path) -> None:
    context = server_tls_context(files(folder))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_NONE
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_certificate_and_key_may_be_in_one_file(folder: Path) -> None:
    both = folder / "both.pem"
    both.write_bytes((folder / "server.pem").read_bytes() + (folder / "server.key").read_bytes())
    both.chmod(0o600)
    server_tls_context(TlsFiles(str(both)))
    both.chmod(0o644)
    assert "everybody" in problem(TlsFiles(str(both))).rule


def test_a_key_may_be_encrypted(folder: Path) -> None:
    plain = files(folder, key="server-encrypted.key")
    server_tls_context(plain._replace(key_password_file=str(folder / "server-encrypted.password")))
    error = problem(plain)
    assert error.field == "tls_key_file" and "tls_key_password_file" in error.rule
    wrong = folder / "wrong.password"
    wrong.write_text("shut sesame\n")
    wrong.chmod(0o600)
    error = problem(plain._replace(key_password_file=str(wrong)))
    assert error.field == "tls_key_file" and "wrong.password" in error.rule
    assert "sesame" not in str(error)
    error = problem(plain._replace(key_password_file=str(folder / "missing")))
    assert error.field == "tls_key_password_file"


def test_every_missing_or_useless_file_is_named(folder: Path) -> None:
    (folder / "no.key").touch(0o600)
    for certificate, key, field, rule in (
        ("missing.pem", "server.key", "tls_certificate_file", "cannot be read: No such file"),
        ("server.pem", "missing.key", "tls_key_file", "cannot be read: No such file"),
        ("server.pem", "server-renewed.key", "tls_key_file", "does not belong to the certificate"),
        ("server.key", "server.key", "tls_certificate_file", "no PEM block of a certificate"),
        ("server.pem", "no.key", "tls_key_file", "no PEM block of a private key"),
        ("", "server.key", "tls_certificate_file", "cannot be read"),
    ):
        error = problem(files(folder, certificate, key))
        assert error.field == field and rule in error.rule, str(error)
    damaged = folder / "server.pem"
    damaged.write_text(damaged.read_text().replace("MII", "MIJ", 1)[:-200] + "\n")
    assert problem(files(folder)).field == "tls_key_file"


def test_a_private_file_must_be_closed_to_others(folder: Path) -> None:
    for name, field in (
        ("server.key", "tls_key_file"),
        ("server-encrypted.password", "tls_key_password_file"),
    ):
        wanted = files(folder)
        if field == "tls_key_password_file":
            wanted = files(folder, key="server-encrypted.key")._replace(
                key_password_file=str(folder / name)
            )
        (folder / name).chmod(0o640)
        server_tls_context(wanted)
        (folder / name).chmod(0o604)
        error = problem(wanted)
        assert error.field == field and "everybody" in error.rule


def test_client_certificates_need_authorities(folder: Path) -> None:
    asking = files(folder)._replace(client_auth="need")
    assert problem(asking).field == "tls_ca_file"
    context = server_tls_context(asking._replace(ca_file=str(folder / "ca.pem")))
    assert context.verify_mode == ssl.CERT_REQUIRED
    want = asking._replace(ca_file=str(folder / "ca.pem"), client_auth="want")
    assert server_tls_context(want).verify_mode == ssl.CERT_OPTIONAL
    for name in ("missing.pem", "server.key"):
        assert problem(asking._replace(ca_file=str(folder / name))).field == "tls_ca_file"


def test_a_file_of_authorities_may_have_comments_in_any_language(folder: Path) -> None:
    authorities = folder / "ca.pem"
    authorities.write_bytes(
        "# Zertifizierungsstelle für Prüfer\n".encode() + authorities.read_bytes()
    )
    asking = files(folder)._replace(client_auth="need", ca_file=str(authorities))
    assert server_tls_context(asking).cert_store_stats()["x509_ca"] == 1
    assert client_tls_context(str(authorities)).cert_store_stats()["x509_ca"] == 1


def test_a_client_context_checks_the_server(folder: Path) -> None:
    context = client_tls_context(str(folder / "ca.pem"))
    assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname
    assert client_tls_context().verify_mode == ssl.CERT_REQUIRED
    with pytest.raises(ConfigError, match="ca_file"):
        client_tls_context(str(folder / "missing.pem"))
    with pytest.raises(ConfigError, match="certificate_file"):
        client_tls_context(str(folder / "ca.pem"), str(folder / "missing.pem"))


class Renewal:
    """A `ServerTls`, its clock and its log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.log = RecordingLogger()
        self.tls = ServerTls(files(folder), self.clock, self.log)
        self.moment_ns = 1_700_000_000_000_000_000

    def put(self, source: str, target: str) -> None:
        """Replace a file as certificate tools do: a new file under the old name."""
        fresh = self.folder / "fresh"
        fresh.write_bytes((self.folder / source).read_bytes())
        fresh.chmod(0o600)
        self.moment_ns += 1
        os.utime(fresh, ns=(self.moment_ns, self.moment_ns))
        fresh.replace(self.folder / target)


def test_a_renewed_certificate_is_noticed_within_a_second(folder: Path) -> None:
    renewal = Renewal(folder)
    first = renewal.tls.current()
    renewal.put("server-renewed.pem", "server.pem")
    renewal.put("server-renewed.key", "server.key")
    renewal.clock.advance(LOOK_INTERVAL_MS - 1)
    assert renewal.tls.current() is first
    renewal.clock.advance(1)
    second = renewal.tls.current()
    assert second is not first and renewal.log.events == ["tls_renewed"]
    renewal.clock.advance(10 * LOOK_INTERVAL_MS)
    assert renewal.tls.current() is second


def test_half_a_renewal_changes_nothing(folder: Path) -> None:
    renewal = Renewal(folder)
    first = renewal.tls.current()
    renewal.put("server-renewed.pem", "server.pem")
    renewal.clock.advance(LOOK_INTERVAL_MS)
    assert renewal.tls.current() is first
    renewal.clock.advance(LOOK_INTERVAL_MS)
    assert renewal.tls.current() is first
    assert renewal.log.events == ["tls_renewal_failed"], "it is said once"
    renewal.put("server-renewed.key", "server.key")
    renewal.clock.advance(LOOK_INTERVAL_MS)
    assert renewal.tls.current() is not first
    assert renewal.log.events == ["tls_renewal_failed", "tls_renewed"]


def test_a_file_that_is_gone_for_a_moment_changes_nothing(folder: Path) -> None:
    renewal = Renewal(folder)
    first = renewal.tls.current()
    (folder / "server.pem").rename(folder / "away.pem")
    renewal.clock.advance(LOOK_INTERVAL_MS)
    assert renewal.tls.current() is first
    (folder / "away.pem").rename(folder / "server.pem")
    renewal.clock.advance(LOOK_INTERVAL_MS)
    renewal.tls.current()
    assert renewal.log.events == ["tls_renewal_failed", "tls_renewed"]
