"""Identities and ACL lists: the edges as Apache ZooKeeper 3.8.0 has them, then a second version.

Every table here was read off a real 3.8.0 with raw requests; where ours differs on purpose, the
test says so.
"""

from __future__ import annotations

import random

import pytest

from duolog_protocol.types import Acl
from zkserver.core.auth import (
    DEFAULT_SCHEMES,
    MAX_ACL_ENTRIES,
    MAX_ID_BYTES,
    MAX_IDENTITIES,
    AuthFailed,
    AuthProviders,
    AuthSettings,
    Identity,
    InvalidAcl,
    SaslFailure,
    acl_allows,
    connection_identities,
    digest_id,
    ip_id,
    is_valid,
    mask_digests,
    matches,
    ordered,
    resolve_acl,
    without_secrets,
)
from zkserver.core.sasl_digest import SaslUsers

ALL_SCHEMES = DEFAULT_SCHEMES | {"x509", "sasl"}
HERE = connection_identities("127.0.0.1", None)
SUPER_DIGEST = "super:D/InIHSb7yEEbrWz8b9l71RjZJU="  # super:test


# ---- credentials ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("credential", "identity"),
    [
        (b"u:p", "u:Jq7wMyA/w2Vd5WIDAKdu4OIIFEQ="),
        (b"u", "u:UeaYkqtJ34XGIwzMV/jh0WBsrMw="),
        (b"", ":2jmj7l5rSw0yVb/vlWAYkK/YBwk="),
        (b":", ":BaefBs8/Z/cm2uaNGKIpD2yaUMk="),
        (b":p", ":LlDE5iroUDDm9zdvmLsfjkUvn0k="),
        (b"u:", "u:IX23jg4I7W2/R//KoV8VL1UfuBM="),
        (b"a:b:c", "a:cLzgnoJ6mP5qz3w+mwvPE2vDgu0="),
        (b"\xff\xfe:x", "\ufffd\ufffd:sgm2wdkksskeePf9Lr02TkUKDiU="),
        ("é:ü".encode(), "é:Ztqg8TrMmzkSFpOaDBO87lu10+c="),
        (b"u\0x:y", "u\0x:6Yfhm3PkfYQV7Z28N8SpInh9P1M="),
        (b"\xed\xa0\x80:x", "\ufffd:MRJvuUNgOr/X35TrsstivNIZKtg="),
        (b"\xed\xa0\x80\xed\xb0\x80:x", "\ufffd\ufffd:sgm2wdkksskeePf9Lr02TkUKDiU="),
        (b"\xf4\x90\x80\x80:x", "\ufffd\ufffd\ufffd\ufffd:1tddBzg3rscdyNI/H7K8nxr8UQk="),
        (b"\xc3", "\ufffd:m9t3J2wYUuH7BnggRygS/PYIQCQ="),
    ],
)
def test_a_digest_id_is_the_one_that_zookeeper_makes(credential: bytes, identity: str) -> None:
    assert digest_id(credential) == identity


def test_a_credential_adds_an_identity_once() -> None:
    providers = AuthProviders()
    held = providers.authenticate("digest", b"a:1", HERE)
    held = providers.authenticate("digest", b"b:2", held)
    assert providers.authenticate("digest", b"a:1", held) == held
    assert without_secrets(held) == [
        ("digest", "a"),
        ("digest", "b"),
        ("ip", "127.0.0.1"),
    ]


def test_the_super_user_is_known_by_the_digest() -> None:
    providers = AuthProviders(AuthSettings(super_digests=(SUPER_DIGEST,)))
    held = providers.authenticate("digest", b"super:test", HERE)
    assert held == (("super", ""), ("ip", "127.0.0.1"), ("digest", SUPER_DIGEST))
    assert without_secrets(held) == [
        ("super", ""),
        ("ip", "127.0.0.1"),
        ("digest", "super"),
    ]
    for wrong in (b"super:tes", b"super:test ", b"other:test"):
        assert "super" not in dict(providers.authenticate("digest", wrong, HERE))
    assert "super" not in dict(AuthProviders().authenticate("digest", b"super:test", HERE))


@pytest.mark.parametrize(
    "scheme", ["world", "auth", "super", "x509", "sasl", "nope", "", "Digest", "key", "ensemble"]
)
def test_other_schemes_fail(scheme: str) -> None:
    with pytest.raises(AuthFailed):
        AuthProviders().authenticate(scheme, b"a:b", HERE)


def test_a_null_credential_fails_and_ip_accepts_any() -> None:
    with pytest.raises(AuthFailed):
        AuthProviders().authenticate("digest", None, HERE)
    assert AuthProviders().authenticate("ip", b"10.0.0.1", HERE) == HERE


def test_identities_of_a_connection_are_bounded() -> None:
    providers = AuthProviders()
    held = HERE
    for number in range(MAX_IDENTITIES - 1):
        held = providers.authenticate("digest", b"%d:p" % number, held)
    assert len(held) == MAX_IDENTITIES
    with pytest.raises(AuthFailed, match="at most"):
        providers.authenticate("digest", b"one-more:p", held)
    fits = b"u" * (MAX_ID_BYTES - 29)
    assert providers.authenticate("digest", fits, HERE)
    with pytest.raises(AuthFailed, match="bytes"):
        providers.authenticate("digest", fits + b"u", HERE)


def test_no_credential_is_in_a_repr() -> None:
    users = SaslUsers({"bob": "canary-password"}, random.Random(1))
    providers = AuthProviders(sasl_users=users)
    assert "canary" not in repr(users) + repr(providers) + repr(vars(providers))


# ---- order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("credential", "first"),
    [(b"u:p", "ip"), (b"u", "digest"), (b"", "digest"), (b":", "ip"), ("é:ü".encode(), "ip")],
)
def test_two_identities_are_listed_as_zookeeper_lists_them(credential: bytes, first: str) -> None:
    assert AuthProviders().authenticate("digest", credential, HERE)[0][0] == first


def test_sasl_identities_are_listed_as_zookeeper_lists_them() -> None:
    providers = AuthProviders(AuthSettings(super_sasl="bob"))
    ip = ("ip", "127.0.0.1")
    assert providers.sasl_done("jaasuser", HERE) == (ip, ("sasl", "jaasuser"))
    assert providers.sasl_done("super", HERE) == (("sasl", "super"), ip)
    assert providers.sasl_done("bob", HERE) == (("sasl", "bob"), ("super", ""), ip)


# ---- addresses and certificates ------------------------------------------------------------------


def test_an_address_is_printed_as_java_does() -> None:
    assert ip_id("10.1.2.3") == "10.1.2.3"
    assert ip_id("::1") == "0:0:0:0:0:0:0:1"
    assert ip_id("fe80::a%eth0") == "fe80:0:0:0:0:0:0:a"
    assert ip_id("2001:db8::FF00:42") == "2001:db8:0:0:0:0:ff00:42"
    assert ip_id("::ffff:192.0.2.7") == "192.0.2.7"
    assert ip_id("") == ""


def test_a_certificate_is_an_identity_from_the_start() -> None:
    providers = AuthProviders(AuthSettings(super_x509="CN=root", x509=True))
    held = providers.at_connect("127.0.0.1", "CN=alice")
    assert set(held) == {("ip", "127.0.0.1"), ("x509", "CN=alice")}
    assert providers.authenticate("x509", b"", held) == held
    assert set(providers.at_connect("127.0.0.1", "CN=root")) == {
        ("ip", "127.0.0.1"),
        ("x509", "CN=root"),
        ("super", "CN=root"),
    }
    assert providers.at_connect("127.0.0.1", None) == HERE
    assert "super" not in dict(AuthProviders().at_connect("127.0.0.1", ""))
    with pytest.raises(AuthFailed):
        providers.authenticate("x509", b"", HERE)


# ---- ids that an ACL may name --------------------------------------------------------------------

VALID = {
    "world": ["anyone"],
    "digest": ["u:p", ":b", " : ", "a:b:"],
    "ip": [
        *("127.0.0.1", "127.0.0.1/8", "1.2.3.4/0", "1.2.3.4/32", "+1.2.3.4", "01.2.3.4"),
        *("1.2.3.4/+8", "1.2.3.4/08", "1.2.3.-0", "\u0661.2.3.4"),
    ],
    "sasl": [
        *("bob", "bob@REALM", "bob/host@REALM", "", "a@", "@R", "/h@R", "super", "bob smith"),
        *("a/b", "a/b/c"),
    ],
    "x509": ["CN=bob", "CN=bob,O=x", ""],
}
INVALID = {
    "world": ["", "x"],
    "digest": ["u", "", "a:", "a:b:c", ":", "a::b", "::"],
    "ip": [
        *("127.0.0.1/33", "127.0.0.1/-1", "127.0.0.1/", "127.0.0.1/x", "127.0.0.1/8/9"),
        *("127.0.0", "256.1.1.1", " 1.2.3.4", "", "/8", "1.2.3.4."),
    ],
    "sasl": ["a/b/c@R", "b@o@b"],
    "x509": ["bob", "CN"],
    "auth": [""],
    "super": ["", "x"],
    "nope": ["x"],
    "": ["x"],
    "World": ["anyone"],
}


def test_ids_are_valid_where_zookeeper_says_so() -> None:
    for scheme, names in VALID.items():
        for name in names:
            assert is_valid(scheme, name, ALL_SCHEMES), (scheme, name)
    for scheme, names in INVALID.items():
        for name in names:
            assert not is_valid(scheme, name, ALL_SCHEMES), (scheme, name)


def test_ipv6_ids_are_valid_here() -> None:
    for name in ("::1", "::1/128", "0:0:0:0:0:0:0:1", "2001:db8::/32", "::ffff:127.0.0.1/100"):
        assert is_valid("ip", name), name
    for name in ("::1/129", ":::1", "1::2::3", "::1/", "g::1"):
        assert not is_valid("ip", name), name


def test_schemes_that_are_not_configured_are_not_valid() -> None:
    assert not is_valid("sasl", "bob") and not is_valid("x509", "CN=bob")
    assert AuthProviders().schemes == DEFAULT_SCHEMES
    users = SaslUsers({}, random.Random(1))
    assert AuthProviders(AuthSettings(x509=True), users).schemes == ALL_SCHEMES


# ---- ACL lists -----------------------------------------------------------------------------------


def test_auth_stands_for_every_identity_that_proves_somebody() -> None:
    a, b = ("digest", digest_id(b"a:1")), ("digest", digest_id(b"b:2"))
    held = ordered([*HERE, a, b, ("super", "")])
    assert resolve_acl((Acl(31, "auth", ""),), held) == (Acl(31, *a), Acl(31, *b))
    assert resolve_acl(
        (Acl(1, "auth", ""), Acl(2, "auth", "x"), Acl(1, "world", "anyone")), held
    ) == (Acl(1, *a), Acl(1, *b), Acl(2, *a), Acl(2, *b), Acl(1, "world", "anyone"))
    for nobody in ((), HERE, (("super", ""),)):
        with pytest.raises(InvalidAcl):
            resolve_acl((Acl(31, "auth", ""),), nobody)


def test_duplicates_go_before_auth_is_expanded_and_not_after() -> None:
    own = ("digest", digest_id(b"a:1"))
    held = ordered([*HERE, own])
    once, other = Acl(31, "world", "anyone"), Acl(1, "world", "anyone")
    assert resolve_acl((once, other, once), held) == (once, other)
    twice = (Acl(31, "auth", ""), Acl(31, "auth", "x"), Acl(31, "auth", ""), Acl(31, *own))
    assert resolve_acl(twice, held) == (Acl(31, *own),) * 3


@pytest.mark.parametrize(
    "acl",
    [
        None,
        (),
        (Acl(31, "world", "anyone"), Acl(31, "nope", "x")),
        (Acl(31, "super", "x"),),
        (Acl(31, "sasl", "bob"),),
    ],
)
def test_an_acl_list_is_refused_as_a_whole(acl: tuple[Acl, ...] | None) -> None:
    with pytest.raises(InvalidAcl):
        resolve_acl(acl, HERE)


def test_an_expanded_list_is_bounded() -> None:
    held = tuple(("digest", f"{number}:x") for number in range(MAX_ACL_ENTRIES // 5))
    acl = tuple(Acl(perms, "auth", "") for perms in range(1, 6))
    assert len(resolve_acl(acl, held)) == MAX_ACL_ENTRIES
    with pytest.raises(InvalidAcl, match="over"):
        resolve_acl((*acl, Acl(1, "world", "anyone")), held)


def test_a_digest_is_masked_for_a_reader() -> None:
    acl = (
        Acl(1, "world", "anyone"),
        Acl(31, "digest", digest_id(b"a:1")),
        Acl(31, "ip", "1.2.3.4"),
    )
    masked = (Acl(1, "world", "anyone"), Acl(31, "digest", "a:x"), Acl(31, "ip", "1.2.3.4"))
    assert mask_digests(acl) == masked


def test_an_address_matches_its_networks() -> None:
    def match(name: str, address: str) -> bool:
        return matches("ip", name, ("ip", ip_id(address)))

    assert match("10.1.2.3", "10.1.2.3") and not match("10.1.2.3", "10.1.2.4")
    assert match("10.1.0.0/16", "10.1.255.255") and not match("10.1.0.0/16", "10.2.0.0")
    assert match("10.1.2.3/8", "10.9.9.9"), "bits of the host do not count"
    assert match("0.0.0.0/0", "255.255.255.255") and match("1.2.3.4/0", "9.9.9.9")
    assert match("10.0.0.129/25", "10.0.0.128") and not match("10.0.0.129/25", "10.0.0.127")
    assert match("010.1.2.+3", "10.1.2.3")
    assert match("10.1.2.3", "::ffff:10.1.2.3") and match("::ffff:10.1.2.0/120", "10.1.2.9")
    assert match("::1", "0:0:0:0:0:0:0:1") and match("2001:db8::/32", "2001:db8:ffff::1")
    assert not match("2001:db8::/32", "2001:db9::1")
    assert not match("0.0.0.0/0", "::1") and not match("::/0", "1.2.3.4")
    assert not match("nonsense", "1.2.3.4") and not match("1.2.3.4", "")


def test_the_sasl_user_super_matches_every_sasl_entry() -> None:
    assert acl_allows((Acl(31, "sasl", "bob"),), 1, [("sasl", "super")])
    assert not acl_allows((Acl(31, "digest", "bob:x"),), 1, [("sasl", "super")])


def test_an_empty_acl_list_of_an_imported_tree_grants_everything() -> None:
    assert acl_allows((), 31, HERE)


# ---- the second version --------------------------------------------------------------------------


def naive_bits(text: str) -> str | None:
    """An IPv4 address as 32 characters."""
    try:
        numbers = [int(part) for part in text.split(".")]
    except ValueError:
        return None
    return "".join(f"{each:08b}" for each in numbers) if len(numbers) == 4 else None


def naive_matches(entry: Acl, identity: Identity) -> bool:
    if entry.scheme == "ip" and identity[0] == "ip":
        address, _, bits = entry.id.partition("/")
        want, have = naive_bits(address), naive_bits(identity[1])
        assert want is not None and have is not None
        count = int(bits or 32)
        return want[:count] == have[:count]
    return (entry.scheme, entry.id) == identity or (
        entry.scheme == "sasl" and identity == ("sasl", "super")
    )


def naive_allows(acl: tuple[Acl, ...], perm: int, identities: tuple[Identity, ...]) -> bool:
    if ("super", "") in identities or not acl:
        return True
    granted = set()
    for entry in acl:
        everybody = (entry.scheme, entry.id) == ("world", "anyone")
        if everybody or any(naive_matches(entry, each) for each in identities):
            granted |= {bit for bit in range(5) if entry.perms >> bit & 1}
    return any(perm >> bit & 1 and bit in granted for bit in range(5))


def naive_resolve(acl: tuple[Acl, ...], identities: tuple[Identity, ...]) -> list[Acl]:
    unique: list[Acl] = []
    for entry in acl:
        if entry not in unique:
            unique.append(entry)
    result: list[Acl] = []
    for entry in unique:
        if entry.scheme != "auth":
            result.append(entry)
            continue
        for scheme, name in identities:
            if scheme not in ("ip", "super"):
                result.append(Acl(entry.perms, scheme, name))
    return result


def some_identities(rng: random.Random) -> tuple[Identity, ...]:
    pool: list[Identity] = [
        ("ip", f"10.0.{rng.randrange(2)}.{rng.randrange(4)}"),
        *(("digest", f"{user}:x") for user in "abc"),
        *(("sasl", user) for user in ("bob", "super")),
        ("x509", "CN=alice"),
        ("super", ""),
    ]
    return ordered(rng.sample(pool, rng.randrange(4)))


def some_entry(rng: random.Random) -> Acl:
    perms = rng.randrange(32)
    scheme, name = rng.choice(
        [
            ("world", "anyone"),
            ("auth", rng.choice(["", "x"])),
            ("digest", f"{rng.choice('abc')}:x"),
            ("ip", f"10.0.{rng.randrange(2)}.{rng.randrange(4)}"),
            ("ip", f"10.0.{rng.randrange(2)}.{rng.randrange(4)}/{rng.randrange(33)}"),
            ("sasl", "bob"),
            ("x509", "CN=alice"),
        ]
    )
    return Acl(perms, scheme, name)


def test_acl_lists_mean_what_the_second_version_says() -> None:
    rng = random.Random(4)
    allowed = expanded = 0
    for _ in range(20_000):
        identities = some_identities(rng)
        acl = tuple(some_entry(rng) for _ in range(rng.randrange(1, 5)))
        own = [each for each in identities if each[0] not in ("ip", "super")]
        if any(entry.scheme == "auth" for entry in acl) and not own:
            with pytest.raises(InvalidAcl):
                resolve_acl(acl, identities, ALL_SCHEMES)
            continue
        stored = resolve_acl(acl, identities, ALL_SCHEMES)
        assert list(stored) == naive_resolve(acl, identities), (acl, identities)
        expanded += len(stored) > len(acl)
        asker = some_identities(rng)
        perm = rng.randrange(1, 32)
        may = acl_allows(stored, perm, asker)
        assert may == naive_allows(stored, perm, asker), (stored, perm, asker)
        allowed += may
    assert 4_000 < allowed < 16_000 and expanded > 500, (allowed, expanded)


# ---- who must be known ---------------------------------------------------------------------------


def test_a_connection_needs_an_identity_of_an_enforced_scheme() -> None:
    digest = ordered([*HERE, ("digest", "a:x")])
    assert AuthProviders().accepts(HERE)
    one = AuthProviders(AuthSettings(enforced_schemes=frozenset({"digest"})))
    assert not one.accepts(HERE) and one.accepts(digest)
    assert not one.accepts(ordered([*HERE, ("sasl", "bob")]))
    assert not one.accepts(ordered([*HERE, ("super", "")])), "as in ZooKeeper"
    two = AuthProviders(AuthSettings(enforced_schemes=frozenset({"digest", "sasl"})))
    assert two.accepts(digest) and two.accepts((("sasl", "bob"),)) and not two.accepts(HERE)


def test_what_becomes_of_a_failed_exchange() -> None:
    def failure(schemes: set[str], allow: bool) -> SaslFailure:
        settings = AuthSettings(enforced_schemes=frozenset(schemes), allow_failed_sasl=allow)
        return AuthProviders(settings).sasl_failure()

    assert failure(set(), False) is SaslFailure.CLOSE
    assert failure(set(), True) is SaslFailure.KEEP
    assert failure({"digest"}, True) is SaslFailure.KEEP
    for allow in (False, True):
        assert failure({"digest", "sasl"}, allow) is SaslFailure.CLOSE_REQUIRED


def test_without_sasl_there_is_no_exchange() -> None:
    assert AuthProviders().sasl_exchange(random.Random(1)) is None
    users = SaslUsers({}, random.Random(1))
    assert AuthProviders(sasl_users=users).sasl_exchange(random.Random(1)) is not None
