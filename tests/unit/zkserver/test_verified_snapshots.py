"""Which snapshot may be sent as it is."""

from __future__ import annotations

from zkserver.storage.verified_snapshots import VerifiedSnapshots


def test_the_newest_that_was_read_and_is_not_known_to_be_damaged() -> None:
    known = VerifiedSnapshots(5)
    assert known.newest_of([]) == 0
    assert known.newest_of([3, 5, 9]) == 5, "nobody has read 9"
    known.add(9)
    assert known.newest_of([3, 5, 9, 11]) == 9
    known.damaged(9)
    assert known.newest_of([3, 5, 9]) == 5
    known.damaged(5)
    assert known.newest_of([3, 5, 9]) == 3
    known.add(9)  # another one in its place
    assert known.newest_of([3, 5, 9]) == 9


def test_a_truncation_takes_the_knowledge_along() -> None:
    known = VerifiedSnapshots(9)
    known.truncate_to(6)
    assert known.newest_of([5]) == 5
    assert known.newest_of([5, 7, 9]) == 5, "those are new ones, which nobody has read"
