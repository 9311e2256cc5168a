"""Which partition a record goes to: by its key as Kafka does, else sticky (KIP-794).

Records with one key always go to one partition while the number of partitions stays the same.
Records without a key stay on a partition until `batch_size` bytes went there, then move on to a
random one, the likelier the fewer batches it has waiting, so that a slow broker does not
collect everything. The random source is injected.
"""

from __future__ import annotations

import random
from collections.abc import Sequence


def choose_sticky(pending_counts: Sequence[int], rng: random.Random) -> int:
    """An index, chosen at random with weight `longest + 1 - its own count`."""
    assert pending_counts
    longest = max(pending_counts)
    if longest == min(pending_counts):
        return rng.randrange(len(pending_counts))
    weights = [longest + 1 - count for count in pending_counts]
    point = rng.randrange(sum(weights))
    for index, weight in enumerate(weights):
        point -= weight
        if point < 0:
            return index
    raise AssertionError((pending_counts, point))
