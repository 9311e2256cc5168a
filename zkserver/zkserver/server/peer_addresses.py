"""Where the other servers of an ensemble are.

Owns two answers for each server: what the members say, which our log or our settings name, and what
it says of itself when it calls. Our members may be those of long ago, from before it joined or was
moved: where the members' answer leads to nobody, the other one is tried, and so on in turn. Source:
ZooKeeper's `QuorumCnxManager`, whose first message has the sender's addresses.
"""

from __future__ import annotations

from collections.abc import Mapping

Address = tuple[str, int]
"""Host and port."""


class PeerAddresses:
    """The addresses of one ensemble's servers; at most two for each id."""

    def __init__(self, members: Mapping[int, Address]) -> None:
        self._members = dict(members)
        self._told: dict[int, Address] = {}
        self._prefers_told: set[int] = set()
        """Those that were not reached where the members say."""

    def __contains__(self, server_id: int) -> bool:
        """Whether the members name it, or have named it."""
        return server_id in self._members

    def of(self, server_id: int) -> Address | None:
        """Where to dial it next; None: nobody says."""
        member, told = self._members.get(server_id), self._told.get(server_id)
        if server_id in self._prefers_told:
            return told or member
        return member or told

    def set_members(self, members: Mapping[int, Address]) -> set[int]:
        """Where the members are now; of others the addresses stay. Who has another one since."""
        changed = {each for each, address in members.items() if self._members.get(each) != address}
        self._members |= members
        self._prefers_told -= changed
        return changed

    def told(self, server_id: int, address: Address) -> None:
        """It has called, and says that it is reached there."""
        self._told[server_id] = address

    def failed(self, server_id: int, address: Address) -> None:
        """It was not reached there: next time at the other one."""
        if self.of(server_id) == address and server_id in self._told:
            self._prefers_told ^= {server_id}
