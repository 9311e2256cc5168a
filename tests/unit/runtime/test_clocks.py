"""Two clocks: deadlines see only the one that never jumps."""

from __future__ import annotations

from duolog_runtime.clocks import ManualClock, RealClock


def test_the_monotonic_clock_ignores_a_jump_of_the_date() -> None:
    clock = ManualClock(now_ms=10, wall_ms=5_000)
    clock.advance(7)
    clock.jump_wall(-3_000)
    assert (clock.now_ms(), clock.wall_ms()) == (17, 2_007)


def test_the_real_clock_counts_whole_milliseconds_forward() -> None:
    clock = RealClock()
    earlier = clock.now_ms()
    assert isinstance(earlier, int)
    assert clock.now_ms() >= earlier
    assert clock.wall_ms() > 1_600_000_000_000
