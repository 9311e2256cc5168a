"""A throw-away certificate authority with one server and one client, as kazoo's harness makes it.

Runs in the environment that kazoo is installed into; needs the package `cryptography`.
"""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import NameOID

from .servers import Tls

PASSWORD: Final = b"compat"


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files for the server, and the PEM text that a client needs."""

    server: Tls
    client_key: bytes
    client_certificate: bytes
    authority: bytes


class _Authority:
    def __init__(self) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca.kazoo.org")])
        self.certificate = (
            self._begin(self.name, self.key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def issue(self, common_name: str) -> tuple[rsa.RSAPrivateKey, x509.Certificate]:
        """A new key with a certificate for `common_name` on this machine."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        addresses = [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        certificate = (
            self._begin(name, key.public_key())
            .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return key, certificate

    def _begin(self, name: x509.Name, key: rsa.RSAPublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )


def make(directory: Path) -> Certificates:
    """Make everything; the server's files are written to `directory`."""
    authority = _Authority()
    server_key, server_certificate = authority.issue("localhost")
    client_key, client_certificate = authority.issue("client")
    authority_pem = _pem(authority.certificate)
    files = Tls(
        certificate=directory / "server-cert.pem",
        key=directory / "server-key.pem",
        authority=directory / "ca.pem",
        key_store=directory / "server.p12",
        trust_store=directory / "ca.pem",
    )
    files.authority.write_bytes(authority_pem)
    files.certificate.write_bytes(_pem(server_certificate))
    files.key.write_bytes(_key_pem(server_key))
    files.key.chmod(0o600)
    files.key_store.write_bytes(
        pkcs12.serialize_key_and_certificates(
            b"server",
            server_key,
            server_certificate,
            [authority.certificate],
            serialization.BestAvailableEncryption(PASSWORD),
        )
    )
    return Certificates(files, _key_pem(client_key), _pem(client_certificate), authority_pem)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
