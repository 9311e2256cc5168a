"""The subject of a certificate, in the form in which ACLs name it.

Owns the way from a DER certificate to the text that Java's `getSubjectX500Principal().getName()`
prints (RFC 2253, its odd corners included, so that ACLs written for ZooKeeper go on to match), and
the question whether a text is such a name. It trusts nothing: whether the certificate is good was
TLS's to say.

Source: X.501, X.690 (DER), RFC 2253; ZooKeeper `X509AuthenticationProvider`; the corners were read
off Java 17, see the tests.
"""

from __future__ import annotations

import re
from typing import Final

from duolog_protocol.errors import DecodeError

MAX_NAME_CHARS: Final = 1024
"""A longer subject is no identity: it would not fit in an ACL."""

_SEQUENCE: Final = 0x30
_SET: Final = 0x31
_OID: Final = 0x06
_EXPLICIT_VERSION: Final = 0xA0
_STRINGS: Final = {0x0C, 0x13, 0x14, 0x16, 0x1B, 0x1E}
"""Tags whose bytes Java takes for UTF-8: UTF8, Printable, T61, IA5, General, and even BMP."""
_KEYWORDS: Final = {
    "2.5.4.3": "CN",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "STREET",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC",
}
_KNOWN_KEYWORDS: Final = frozenset(_KEYWORDS.values()) | {
    *("S", "T", "IP", "DNQ", "DNQUALIFIER", "SURNAME", "GIVENNAME", "INITIALS", "GENERATION"),
    *("EMAIL", "EMAILADDRESS", "SERIALNUMBER"),
}
_ESCAPED: Final = re.compile(r'[,=+<>#;"\\]')
_OBJECT_ID: Final = re.compile(r"(?:OID\.)?0*(?:[01]\.0*[0-3]?[0-9]|2\.[0-9]+)(?:\.[0-9]+)*")
_HEX_VALUE: Final = re.compile(r"#((?:[0-9A-Fa-f]{2}){2,})")
_PLAIN_VALUE: Final = re.compile(r'(?:[^,;+"\\<>]|\\(?:[0-9A-Fa-f]{2}|[,=+<>#;"\\ \n]))*')
_QUOTED_VALUE: Final = re.compile(r'"(?:[^"\\]|\\(?:[0-9A-Fa-f]{2}|[,=+<>#;"\\ \n]))*" *')


def subject_name(certificate: bytes) -> str:
    """The subject of a DER certificate; empty when it has none. Raises DecodeError."""
    outer = _Der(certificate).enter(_SEQUENCE)
    fields = outer.enter(_SEQUENCE)
    if fields.next_tag() == _EXPLICIT_VERSION:
        fields.skip()
    for _ in ("serialNumber", "signature", "issuer", "validity"):
        fields.skip()
    name = format_name(fields.element())
    if len(name) > MAX_NAME_CHARS:
        raise DecodeError(f"a subject of {len(name)} characters is over {MAX_NAME_CHARS}")
    return name


def format_name(der: bytes) -> str:
    """The text of a DER `Name`, the last of its parts first. Raises DecodeError."""
    parts: list[str] = []
    name = _Der(der).enter(_SEQUENCE)
    while name.has_more():
        pairs = name.enter(_SET)
        texts: list[str] = []
        while pairs.has_more():
            pair = pairs.enter(_SEQUENCE)
            texts.append(_format_pair(pair.content(_OID), pair.element()))
        parts.append("+".join(texts))
    return ",".join(reversed(parts))


def is_name(text: str) -> bool:
    """Whether a text is a distinguished name, as Java's `X500Principal` takes it. "" is one."""
    if text == "":
        return True
    position = 0
    while True:
        keyword, equals, _ = text[position:].partition("=")
        if not equals or not _is_keyword(keyword.strip()):
            return False
        position += len(keyword) + 1
        end = _value_end(text, position)
        if end < 0:
            return False
        if end == len(text):
            return True
        if text[end] not in ",;+":
            return False
        position = end + 1


def _is_keyword(keyword: str) -> bool:
    upper = keyword.upper()
    return upper in _KNOWN_KEYWORDS or _OBJECT_ID.fullmatch(upper) is not None


def _value_end(text: str, start: int) -> int:
    """Where the value that begins at `start` ends, or -1 where there is none."""
    while text.startswith((" ", "\n"), start):
        start += 1
    if text.startswith('"', start):
        found = _QUOTED_VALUE.match(text, start)
        return found.end() if found is not None else -1
    found = _PLAIN_VALUE.match(text, start)
    assert found is not None
    if text.startswith("#", start):
        value = _HEX_VALUE.fullmatch(found[0])
        if value is None or not _is_element(bytes.fromhex(value[1])):
            return -1
    return found.end()


def _is_element(der: bytes) -> bool:
    reader = _Der(der)
    try:
        reader.skip()
    except DecodeError:
        return False
    return not reader.has_more()


def _format_pair(oid: bytes, element: bytes) -> str:
    dotted = _dotted(oid)
    keyword = _KEYWORDS.get(dotted)
    value = _Der(element)
    if keyword is None or element[0] not in _STRINGS:
        return f"{keyword or dotted}=#{element.hex()}"
    text = value.content(element[0]).decode("utf-8", "replace")
    text = _ESCAPED.sub(r"\\\g<0>", text).replace("\0", "\\00")
    inner = text.strip(" \r")
    if not inner:
        return f"{keyword}=" + "".join(f"\\{each}" for each in text)
    start = text.index(inner[0])
    before, after = text[:start], text[start + len(inner) :]
    return "".join((f"{keyword}=", *(f"\\{e}" for e in before), inner, *(f"\\{e}" for e in after)))


def _dotted(oid: bytes) -> str:
    numbers: list[int] = []
    value = 0
    for byte in oid:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(value)
            value = 0
    if not numbers or oid[-1] & 0x80:
        raise DecodeError(f"object identifier {oid.hex()} is cut short")
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, [first, numbers[0] - 40 * first, *numbers[1:]]))


class _Der:
    """Reads DER elements one after another."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def has_more(self) -> bool:
        return self._position < len(self._data)

    def next_tag(self) -> int:
        if not self.has_more():
            raise DecodeError("the DER data ends early")
        return self._data[self._position]

    def enter(self, tag: int) -> _Der:
        """A reader of the next element's content."""
        return _Der(self.content(tag))

    def content(self, tag: int) -> bytes:
        """The content of the next element, which must have this tag."""
        found = self.next_tag()
        if found != tag:
            raise DecodeError(f"DER tag {found:#x} where {tag:#x} belongs")
        start, end = self._bounds()
        self._position = end
        return self._data[start:end]

    def element(self) -> bytes:
        """The whole next element."""
        begin = self._position
        _, self._position = self._bounds()
        return self._data[begin : self._position]

    def skip(self) -> None:
        """Pass over the next element."""
        _, self._position = self._bounds()

    def _bounds(self) -> tuple[int, int]:
        """Where the content of the next element starts and ends."""
        data, start = self._data, self._position + 2
        if start > len(data):
            raise DecodeError("the DER data ends early")
        size = data[start - 1]
        if size & 0x80:
            count = size & 0x7F
            if not 1 <= count <= 4 or start + count > len(data):
                raise DecodeError(f"DER length of {count} bytes")
            size = int.from_bytes(data[start : start + count], "big")
            start += count
        if start + size > len(data):
            raise DecodeError("the DER data ends early")
        return start, start + size
