"""Clusters in virtual time, out of one seed; see docs/simulation.md."""

from .cluster import SimCluster, SimMember
from .loop import NothingHappensError, NotSimulatedError
from .network import NetworkFaults
from .process import SimMachine
from .world import SimWorld

__all__ = [
    "NetworkFaults",
    "NotSimulatedError",
    "NothingHappensError",
    "SimCluster",
    "SimMachine",
    "SimMember",
    "SimWorld",
]
