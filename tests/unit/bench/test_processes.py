"""What the benchmarks choose before they start a process."""

from __future__ import annotations

from bench.processes import free_ports


def test_ports_chosen_together_differ() -> None:
    found = free_ports(100)
    assert len(set(found)) == 100
    assert all(1 <= port <= 0xFFFF for port in found)
    assert free_ports(0) == []
