"""A DIGEST-MD5 client of its own, written from RFC 2831, so that every field can be bent."""

from __future__ import annotations

import re
from hashlib import md5

PASSWORDS = {"bob": "bob-secret", "jürgen": "pässword", "日本": "pw日", 'a"b\\c': "x:y"}


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def respond(
    challenge: bytes,
    password: str | None = None,
    *,
    leave_out: tuple[str, ...] = (),
    more: str = "",
    **bent: str,
) -> tuple[bytes, bytes]:
    """A client's response, and the answer it would accept; keywords (with _ for -) bend fields."""
    offered = dict(re.findall(r'(\w+)="([^"]*)"', challenge.decode()))
    fields = {
        "username": "bob",
        "realm": offered["realm"],
        "nonce": offered["nonce"],
        "cnonce": "an+other",
        "nc": "00000001",
        "qop": "auth",
        "digest-uri": "zookeeper/zk-sasl-md5",
    }
    fields |= {name.replace("_", "-"): value for name, value in bent.items()}
    if password is None:
        password = PASSWORDS.get(fields["username"], "bob-secret")
    begin = md5(f"{fields['username']}:{fields['realm']}:{password}".encode()).digest()
    begin += f":{fields['nonce']}:{fields['cnonce']}".encode()
    if "authzid" in fields:
        begin += f":{fields['authzid']}".encode()

    def value(a2: str) -> str:
        middle = ":".join(fields[name] for name in ("nonce", "nc", "cnonce", "qop"))
        tail = md5(a2.encode()).hexdigest()
        return md5(f"{md5(begin).hexdigest()}:{middle}:{tail}".encode()).hexdigest()

    response = bent.get("response", value(f"AUTHENTICATE:{fields['digest-uri']}"))
    plain = {"nc", "qop", "charset", "response"}
    texts = [
        f"{name}={text if name in plain else quoted(text)}"
        for name, text in {**fields, "response": response}.items()
        if name not in leave_out
    ]
    return (
        ",".join(texts) + more
    ).encode(), f"rspauth={value(':' + fields['digest-uri'])}".encode()
