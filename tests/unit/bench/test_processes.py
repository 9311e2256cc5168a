"""What the benchmarks choose before they start a process."""

from __future__ import annotations

from bench.processes import PORTS, free_ports


def test_ports_chosen_together_differ() -> None:
    found = free_ports(100)
    assert len(set(found)) == 100
    assert all(port in PORTS for port in found)
    assert free_ports(0) == []
