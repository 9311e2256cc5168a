"""What a world raises when the program under test has done what it must never do."""

from __future__ import annotations


class Violation(Exception):
    """An invariant does not hold."""
