"""Where a server is dialled: where the members say, or where it says itself."""

from __future__ import annotations

from zkserver.server.peer_addresses import PeerAddresses

OLD, NEW, OTHER = ("a", 1), ("b", 2), ("c", 3)


def test_the_members_go_before_what_a_server_says_of_itself() -> None:
    found = PeerAddresses({1: OLD})
    found.told(1, NEW)
    found.told(2, OTHER)
    assert (found.of(1), found.of(2), found.of(3)) == (OLD, OTHER, None)
    assert 1 in found and 2 not in found


def test_after_a_failure_it_is_the_others_turn() -> None:
    found = PeerAddresses({1: OLD})
    found.failed(1, OLD)
    assert found.of(1) == OLD, "there is no other"
    found.told(1, NEW)
    found.failed(1, OLD)
    assert found.of(1) == NEW
    found.failed(1, OLD)
    assert found.of(1) == NEW, "an older dial has failed late"
    found.failed(1, NEW)
    assert found.of(1) == OLD


def test_new_members_are_tried_first() -> None:
    found = PeerAddresses({1: OLD, 2: OLD})
    found.told(1, NEW)
    found.failed(1, OLD)
    assert found.set_members({1: OTHER, 3: NEW}) == {1, 3}
    assert (found.of(1), found.of(2)) == (OTHER, OLD)
    assert found.set_members({1: OTHER}) == set()
