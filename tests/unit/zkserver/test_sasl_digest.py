"""The DIGEST-MD5 exchange against responses recorded from real clients, and against cheats."""

from __future__ import annotations

import random

import pytest

from tests.sasl_support import PASSWORDS, respond
from zkserver.core.sasl_digest import (
    MAX_TOKEN_BYTES,
    DigestExchange,
    ExchangeState,
    SaslFailed,
    SaslUsers,
    parse_directives,
)

USERS = SaslUsers(PASSWORDS, random.Random(1))
CHALLENGE = (
    b'realm="zk-sasl-md5",nonce="OLTmUuRNp/I3DZ4mDicTZVCko6bQf1wMMy+LEj/S",'
    b"charset=utf-8,algorithm=md5-sess"
)
KAZOO = (
    b'qop=auth,realm="zk-sasl-md5",username="bob",'
    b'nonce="OLTmUuRNp/I3DZ4mDicTZVCko6bQf1wMMy+LEj/S",cnonce="8653876882561684",nc=00000001,'
    b'digest-uri="zookeeper/zk-sasl-md5",response=4099a23a790643254e9eb0c3160d4f82'
)
KAZOO_UMLAUT = (
    b'qop=auth,realm="zk-sasl-md5",username="j\xc3\xbcrgen",'
    b'nonce="OLTmUuRNp/I3DZ4mDicTZVCko6bQf1wMMy+LEj/S",cnonce="7462356832146727",nc=00000001,'
    b'digest-uri="zookeeper/zk-sasl-md5",response=bd4c5c634d899bb44936eab561f809d6'
)
JAVA = (
    b'charset=utf-8,username="bob",realm="zk-sasl-md5",'
    b'nonce="OLTmUuRNp/I3DZ4mDicTZVCko6bQf1wMMy+LEj/S",nc=00000001,'
    b'cnonce="vKJ/LI5t1Ephm4h8npHd+eoOSZPKDN+WyrDnw+bl",digest-uri="zookeeper/zk-sasl-md5",'
    b'maxbuf=65536,response=47bb5e0b71a2c2a2e9d7f367506b80ba,qop=auth,authzid="bob"'
)
JAVA_UMLAUT = (
    b'charset=utf-8,username="j\xc3\xbcrgen",realm="zk-sasl-md5",'
    b'nonce="OLTmUuRNp/I3DZ4mDicTZVCko6bQf1wMMy+LEj/S",nc=00000001,'
    b'cnonce="wHpZYBO9fFTnGYkOCdV6QWwTkzOhZoWFzRCLY/L9",digest-uri="zookeeper/zk-sasl-md5",'
    b'maxbuf=65536,response=ccd2e6ad69c526c49f77e849e5f6814a,qop=auth,authzid="j\xc3\xbcrgen"'
)


def new_exchange(seed: int = 7) -> DigestExchange:
    return DigestExchange(USERS, random.Random(seed))


@pytest.mark.parametrize(
    ("token", "user", "answer"),
    [
        (KAZOO, "bob", b"rspauth=81345553430cccb460eccfe8258159c6"),
        (KAZOO_UMLAUT, "jürgen", b"rspauth=dd5f3422c940db56ec207834592989df"),
        (JAVA, "bob", b"rspauth=3e66de7fa25ac645a16381ffcb0d2e4f"),
        (JAVA_UMLAUT, "jürgen", b"rspauth=f15644e48925931948d119a1064602e3"),
    ],
)
def test_recorded_clients_get_in(token: bytes, user: str, answer: bytes) -> None:
    exchange = new_exchange()
    assert exchange.step(b"") == CHALLENGE
    assert exchange.step(token) == answer
    assert (exchange.state, exchange.user) == (ExchangeState.DONE, user)


@pytest.mark.parametrize("user", PASSWORDS)
def test_every_user_gets_in_and_the_answer_proves_the_server(user: str) -> None:
    exchange = new_exchange()
    token, answer = respond(exchange.step(b""), username=user)
    assert exchange.step(token) == answer
    assert exchange.user == user


@pytest.mark.parametrize(
    "bent",
    [
        {"authzid": "bob"},
        {"authzid": ""},
        {"cnonce": ""},
        {"charset": "utf-8"},
        {"digest_uri": "ZooKeeper/ZK-SASL-MD5"},
        {"leave_out": ("qop",)},
        {"leave_out": ("nc",)},
        {"more": ',foo="bar"'},
        {"more": ",maxbuf=65536,cipher=des"},
        {"more": ",,"},
        {"more": '\t,\r\n foo = "x" '},
    ],
)
def test_what_zookeeper_takes_is_taken(bent: dict[str, str]) -> None:
    exchange = new_exchange()
    token, answer = respond(exchange.step(b"ignored"), **bent)  # type: ignore[arg-type]
    assert exchange.step(token) == answer


@pytest.mark.parametrize(
    "bent",
    [
        {"password": "wrong"},
        {"username": "nobody"},
        {"username": "nobody", "password": "bob-secret"},
        {"username": "BOB"},
        {"username": ""},
        {"response": "0" * 32},
        {"response": ""},
        {"nonce": "AAAA"},
        {"nc": "00000002"},
        {"nc": "1"},
        {"nc": "0000000001"},
        {"realm": "elsewhere"},
        {"realm": ""},
        {"digest_uri": "zookeeper/other"},
        {"digest_uri": "imap/zk-sasl-md5"},
        {"digest_uri": "zookeeper/zk-sasl-md5/zk-sasl-md5"},
        {"qop": "auth-int"},
        {"qop": "AUTH"},
        {"charset": "latin1"},
        {"authzid": "super"},
        {"leave_out": ("username",)},
        {"leave_out": ("realm",)},
        {"leave_out": ("nonce",)},
        {"leave_out": ("cnonce",)},
        {"leave_out": ("digest-uri",)},
        {"leave_out": ("response",)},
        {"more": ',username="bob"'},
        {"more": ',username="mallory"'},
        {"more": ",nc=00000001"},
        {"more": ',NONCE="x"'},
        {"more": ",foo"},
        {"more": ',"'},
        {"more": ',foo="'},
        {"more": ",\0"},
        {"more": ',foo="a"b'},
    ],
)
def test_a_response_that_does_not_fit_fails_for_good(bent: dict[str, str]) -> None:
    exchange = new_exchange()
    challenge = exchange.step(b"")
    token, _ = respond(challenge, **bent)  # type: ignore[arg-type]
    with pytest.raises(SaslFailed):
        exchange.step(token)
    assert (exchange.state, exchange.user) == (ExchangeState.FAILED, "")
    with pytest.raises(SaslFailed, match="once"):
        exchange.step(respond(challenge)[0])


def test_a_recorded_response_opens_no_other_connection() -> None:
    first, second = new_exchange(1), new_exchange(2)
    token, _ = respond(first.step(b""))
    second.step(b"")
    first.step(token)
    with pytest.raises(SaslFailed, match="nonce"):
        second.step(token)


def test_a_connection_authenticates_once() -> None:
    exchange = new_exchange()
    token, _ = respond(exchange.step(b""))
    exchange.step(token)
    for again in (token, b"", respond(CHALLENGE, username="jürgen")[0]):
        with pytest.raises(SaslFailed, match="once"):
            exchange.step(again)
    assert exchange.user == "bob"


@pytest.mark.parametrize("at_first", [True, False])
def test_a_token_is_bounded(at_first: bool) -> None:
    def pad(token: bytes, size: int) -> bytes:
        return token + b',x="' + b"y" * (size - len(token) - 5) + b'"'

    for size, fits in ((MAX_TOKEN_BYTES, True), (MAX_TOKEN_BYTES + 1, False)):
        exchange = new_exchange()
        token = b"a=b" if at_first else respond(exchange.step(b""))[0]
        if fits:
            exchange.step(pad(token, size))
            continue
        with pytest.raises(SaslFailed, match="over"):
            exchange.step(pad(token, size))


def test_a_changed_response_gets_in_only_where_the_change_means_nothing() -> None:
    rng = random.Random(5)
    alphabet = b'",=\\ \tabn0\xc3\xbc'
    for _ in range(20_000):
        exchange = new_exchange()
        exchange.step(b"")
        recorded = rng.choice([KAZOO, JAVA])
        base = bytearray(recorded)
        for _ in range(rng.randrange(1, 6)):
            position = rng.randrange(len(base) + 1)
            base[position : position + rng.randrange(3)] = bytes(rng.choices(alphabet, k=2))
        try:
            exchange.step(bytes(base))
        except SaslFailed:
            continue
        directives = parse_directives(bytes(base))
        original = parse_directives(recorded)
        changed = {name for name in original if directives.get(name) != original[name]}
        assert changed <= {"maxbuf", "charset", "qop", "nc"}, (bytes(base), changed)


def test_nonces_differ() -> None:
    rng = random.Random(3)
    assert len({DigestExchange(USERS, rng).step(b"") for _ in range(1_000)}) == 1_000
