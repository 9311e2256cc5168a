"""A few blocks of the fuzzer; `python -m tests.fuzz --inputs 10000000` is the whole of it."""

from __future__ import annotations

from tests.fuzz.jute import BLOCK, fuzz


def test_no_input_makes_the_decoder_raise_differ_or_grow() -> None:
    outcomes = fuzz(1_000_000, 40 * BLOCK, with_core=False)
    for outcome in ("accepted", "incomplete", "refused -5", "refused -6 and closed"):
        assert outcomes[outcome] > 50, outcomes
    assert outcomes["refused 0 and closed"] > 50, outcomes


def test_no_input_stops_the_core_or_leaves_a_log_that_cannot_be_read() -> None:
    assert fuzz(2_000_000, 20 * BLOCK)["inputs"] == 20 * BLOCK
