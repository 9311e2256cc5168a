"""The state of an ensemble's server, built anew where its log changes otherwise than by growing.

Owns what is built in the disk thread until the loop hears of it: after a truncation below what was
applied, from the files; of a leader's snapshot, before it takes the place of everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from duolog_protocol.errors import StorageError
from duolog_protocol.txns import decode_txn
from zkserver.core.datatree import CONFIG_PATH
from zkserver.core.members import parse_config
from zkserver.core.membership import Membership, membership_of
from zkserver.core.snapshot_loading import load_snapshot
from zkserver.core.state import ReplicatedState
from zkserver.storage.recovery import DataDirectory


class Rebuilding:
    """See `peer_disk.StateBuilder`."""

    def __init__(self, data: DataDirectory, applied_zxid: Callable[[], int]) -> None:
        """`applied_zxid`: what the state that is in use holds."""
        self._data = data
        self._applied_zxid = applied_zxid
        self._built: ReplicatedState | None = None

    def take(self) -> ReplicatedState | None:
        """In the loop: what was built, once."""
        built, self._built = self._built, None
        return built

    def on_truncated(self, zxid: int) -> None:
        """See StateBuilder: only where less is left than what is applied."""
        if zxid < self._applied_zxid():
            self._built = state_on_disk(self._data)

    def on_received(self, zxid: int, chunks: Iterator[bytes]) -> None:
        """See StateBuilder."""
        state = load_snapshot(chunks)
        if state.last_applied_zxid != zxid:
            raise StorageError(f"a snapshot of {zxid:#x} stands at {state.last_applied_zxid:#x}")
        self._built = state


def state_on_disk(data: DataDirectory) -> ReplicatedState:
    """What snapshot and log hold at this moment. Blocks. Raises StorageError, OSError."""
    zxid, chunks = data.newest_snapshot()
    state = load_snapshot(chunks) if zxid else ReplicatedState()
    for record in data.log.read_from(zxid):
        state.replay(decode_txn(record))
        state.changes.clear()
    if state.last_applied_zxid != data.log.last_zxid:
        raise StorageError("the state that was built anew does not end where the log does")
    return state


def membership_in(state: ReplicatedState) -> Membership | None:
    """Who belongs to the ensemble, as the state says; None: it does not. Raises StorageError."""
    data = state.tree.nodes[CONFIG_PATH].data
    if not data:
        return None
    try:
        members, _ = parse_config(data)
    except ValueError as error:
        raise StorageError(f"{CONFIG_PATH}: {error}") from error
    return membership_of(members)
