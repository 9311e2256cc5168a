"""Subjects of certificates, as Java 17 prints them, and the names that it accepts.

Both tables are what `X500Principal` answered.
"""

from __future__ import annotations

import random
import ssl
from pathlib import Path

import pytest

from duolog_protocol.errors import DecodeError
from zkserver.core.distinguished_name import MAX_NAME_CHARS, format_name, is_name, subject_name

TLS = Path(__file__).resolve().parents[2] / "data" / "tls"
UTF8, PRINTABLE, T61, BMP, UNIVERSAL, IA5, GENERAL = 0x0C, 0x13, 0x14, 0x1E, 0x1C, 0x16, 0x1B
CN = "2.5.4.3"
EMAIL = "1.2.840.113549.1.9.1"
CLIENT = (
    "1.2.840.113549.1.9.1=#1611616c696365406578616d706c652e6f7267,"
    "CN=alice,OU=clients,O=duolog\\, inc.,C=XX"
)


def element(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    content = b""
    for value in (first * 40 + second, *rest):
        groups = [value & 0x7F]
        while value := value >> 7:
            groups.append(value & 0x7F | 0x80)
        content += bytes(reversed(groups))
    return element(0x06, content)


def pair(kind: str, tag: int, value: bytes) -> bytes:
    return element(0x30, oid(kind) + element(tag, value))


def name(*parts: bytes) -> bytes:
    return element(0x30, b"".join(element(0x31, part) for part in parts))


def cn(tag: int, value: bytes) -> bytes:
    return name(pair(CN, tag, value))


@pytest.mark.parametrize(
    ("der", "text"),
    [
        (
            name(
                pair("2.5.4.6", PRINTABLE, b"XX"),
                pair("2.5.4.10", UTF8, b"duolog"),
                pair(CN, UTF8, b"alice"),
            ),
            "CN=alice,O=duolog,C=XX",
        ),
        (name(pair("2.5.4.11", UTF8, b"a") + pair(CN, UTF8, b"b")), "OU=a+CN=b"),
        (cn(UTF8, b' ,=+<>#;"\\ x '), 'CN=\\ \\,\\=\\+\\<\\>\\#\\;\\"\\\\ x\\ '),
        (cn(UTF8, b"#a#"), "CN=\\#a\\#"),
        (cn(UTF8, "é日本𝄞".encode()), "CN=é日本𝄞"),
        (cn(BMP, "aé日".encode("utf-16-be")), "CN=\\00a\\00\ufffde\ufffd"),
        (cn(UNIVERSAL, "aé".encode("utf-32-be")), "CN=#1c0800000061000000e9"),
        (cn(T61, "aé".encode("latin-1")), "CN=a\ufffd"),
        (
            name(pair("0.9.2342.19200300.100.1.25", IA5, b"example") + pair(CN, GENERAL, b"gen")),
            "DC=example+CN=gen",
        ),
        (cn(0x12, b"123"), "CN=#1203313233"),
        (name(pair(EMAIL, IA5, b"a@b")), "1.2.840.113549.1.9.1=#1603614062"),
        (cn(UTF8, b"a\0b\x01\x7f"), "CN=a\\00b\x01\x7f"),
        (cn(UTF8, b"\r a \n \r"), "CN=\\\r\\ a \n\\ \\\r"),
        (cn(UTF8, b"   "), "CN=\\ \\ \\ "),
        (cn(UTF8, b""), "CN="),
        (cn(UTF8, b"a\xff\xfeb"), "CN=a\ufffd\ufffdb"),
        (cn(UTF8, b"x" * 200), "CN=" + "x" * 200),
        (cn(UTF8, b"a!@$%^&*_|~`{}[]?-'()./: b"), "CN=a!@$%^&*_|~`{}[]?-'()./: b"),
        (cn(0x02, b"\5"), "CN=#020105"),
        (name(pair("2.999.3", UTF8, b"x")), "2.999.3=#0c0178"),
        (
            name(
                *(pair(f"2.5.4.{each}", UTF8, b"v") for each in (3, 7, 8, 10, 11, 6, 9)),
                pair("0.9.2342.19200300.100.1.25", UTF8, b"v"),
                pair("0.9.2342.19200300.100.1.1", UTF8, b"v"),
                *(pair(f"2.5.4.{each}", UTF8, b"v") for each in (12, 4, 5, 42)),
            ),
            "2.5.4.42=#0c0176,2.5.4.5=#0c0176,2.5.4.4=#0c0176,2.5.4.12=#0c0176,"
            "UID=v,DC=v,STREET=v,C=v,OU=v,O=v,ST=v,L=v,CN=v",
        ),
        (name(), ""),
    ],
)
def test_a_name_is_printed_as_java_does(der: bytes, text: str) -> None:
    assert format_name(der) == text


def certificate(file: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert((TLS / file).read_text())


def test_the_subject_of_a_certificate() -> None:
    assert subject_name(certificate("client.pem")) == CLIENT
    assert subject_name(certificate("server.pem")) == "CN=localhost,O=duolog,C=XX"
    assert subject_name(certificate("stranger.pem")) == "CN=mallory,O=duolog,C=XX"


def test_a_damaged_certificate_is_refused_and_nothing_else_happens() -> None:
    whole = certificate("client.pem")
    for end in range(len(whole)):
        with pytest.raises(DecodeError):
            subject_name(whole[:end])
    rng = random.Random(1)
    for _ in range(20_000):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(300)] = rng.randrange(256)
        try:
            subject_name(bytes(damaged))
        except DecodeError:
            continue


def test_a_subject_that_fits_in_no_acl_is_refused() -> None:
    def with_subject(subject: bytes) -> bytes:
        fields = [element(0x02, b"\1"), element(0x30, b""), name(), element(0x30, b""), subject]
        return element(0x30, element(0x30, b"".join(fields)))

    room = MAX_NAME_CHARS - len("CN=")
    assert len(subject_name(with_subject(cn(UTF8, b"x" * room)))) == MAX_NAME_CHARS
    with pytest.raises(DecodeError, match="over"):
        subject_name(with_subject(cn(UTF8, b"x" * (room + 1))))


ACCEPTED = [
    *("CN=bob", "CN=bob,O=x", "", "CN=", "CN=,O=x", " cn = bob , O=y", "CN=a+OU=b", "CN=a;O=b"),
    *("1.2.3=abc", "OID.1.2.3=abc", "oid.2.5.4.3=x", "1.2.3=#0401ff", "1.2=abc", "2.999=x"),
    *("01.2=x", "CN=#130161", 'CN="a,b"', 'CN=""', 'CN="a" ,O=b', "CN=a\\,b", "CN=\\41b"),
    *("CN=\\FFx", "CN=a=b", "CN==a", "CN=a#b", "CN=\\#a", "CN=a\\+b", "CN=a|b", "CN=a\nb"),
    *("CN=\\ a\\ ", "CN=a b  c", "CN=é", "CN=日本", "CN=a\0b", "C=xyz", "emailAddress=a@b"),
    *("EMAIL=a@b", "DC=x", "UID=x", "STREET=x", "L=x", "ST=x", "S=x", "T=x", "SERIALNUMBER=x"),
    *("SURNAME=x", "GIVENNAME=x", "INITIALS=x", "GENERATION=x", "DNQ=x", "DNQUALIFIER=x", "IP=1"),
    *("CN=a\\\nb", 'CN="a\\\nb"', 'CN="a\nb"', "CN=a,\nO=b", "CN\n=a", "\tCN=a", "CN=#130161,O=x"),
    f"{EMAIL}=#160161",
    f"{EMAIL}=a@b",
]
REFUSED = [
    *("bob", " ", "CN=a,", "CN=a,,O=b", ",CN=a", "CN=a,O", "X=a", "FOO=a", "1.2.3=#zz", "1=abc"),
    *("CN=#1301", "CN=#", 'CN="a', 'CN=a"b', 'CN="a"b', "CN=a\\", "CN=\\4", "CN=a<b", "CN=a>b"),
    *("E=a@b", "TITLE=x", "SN=x", "NAME=x", "GIVEN=x", "PKIX=x", "=a", "C N=a", "CN=a+"),
    *("CN=a\\\rb", "CN=a\\xb", "CN=#130161 ", "CN=# 130161", "CN=#13 0161"),
    *("CN=a++OU=b", "CN=a+b", "CN=a;", "+", "a=b=c", "3.1=x", "1.50=x", "1.2.=x"),
]


@pytest.mark.parametrize("text", ACCEPTED)
def test_java_takes_it_for_a_name(text: str) -> None:
    assert is_name(text)


@pytest.mark.parametrize("text", REFUSED)
def test_java_takes_it_for_no_name(text: str) -> None:
    assert not is_name(text)


def test_what_is_printed_is_a_name_again() -> None:
    rng = random.Random(2)
    alphabet = 'ab ,=+<>#;"\\éß'  # a \r at an end is escaped and not taken back, in Java, too
    for _ in range(5_000):
        value = "".join(rng.choices(alphabet, k=rng.randrange(8)))
        text = format_name(cn(UTF8, value.encode()))
        assert is_name(text), (value, text)
