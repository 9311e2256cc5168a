"""The operations on znodes: everything that one request to zkserver can do.

Owns their names (kazoo's), their arguments and how answers become values. Sending, and what
becomes of a call when the connection ends, are `zk_keeper`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from duolog_protocol import zk_messages as zk
from duolog_protocol.apis import AnyApi
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.errors import (
    AuthFailedError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    NoWatcherError,
)
from duolog_protocol.paths import parent_of
from duolog_protocol.types import Acl, Stat, WatcherType
from duolog_protocol.zk_messages import ClientIdentity

from .core.zk_watches import Watcher, WatchKind
from .zk_events import WatchStream
from .zk_keeper import ArmOn, SessionKeeper
from .zk_transaction import MultiRead, Transaction, create_request


class ZkOperations:
    """What a `ZkClient` can ask for. Every call takes `timeout=` in seconds."""

    _keeper: SessionKeeper

    # ---- writes --------------------------------------------------------------------------------

    async def create(
        self,
        path: str,
        value: bytes | None = b"",
        acl: Sequence[Acl] | None = None,
        ephemeral: bool = False,
        sequence: bool = False,
        makepath: bool = False,
        include_data: bool = False,
        *,
        container: bool = False,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Create a znode and return its path; with `include_data` (path, Stat).

        `acl`: default OPEN_ACL_UNSAFE. `sequence` appends a ten-digit number; `makepath` creates
        missing parents, with the same ACL. `container`: the server removes it some time after its
        last child. `ttl`: seconds; the server removes it once it has no children and was not
        changed for so long.

        Raises NodeExistsError, NoNodeError (the parent), NoChildrenForEphemeralsError,
        NoAuthError, InvalidACLError, QuotaExceededError. Cancelling does not withdraw it.
        """
        request = create_request(
            self._keeper.real(path),
            value,
            acl,
            ephemeral=ephemeral,
            sequence=sequence,
            container=container,
            ttl=ttl,
        )
        try:
            response = await self._keeper.call(zk.CREATE, request, timeout)
        except NoNodeError:
            if not makepath:
                raise
            await self.ensure_path(parent_of(path), acl, timeout=timeout)
            response = await self._keeper.call(zk.CREATE, request, timeout)
        found = self._keeper.shown(response.path)
        return (found, response.stat) if include_data else found

    async def ensure_path(
        self, path: str, acl: Sequence[Acl] | None = None, *, timeout: float | None = None
    ) -> None:
        """Create a znode and its parents where they are missing."""
        if path == "/" and not self._keeper.chroot:
            return
        if await self.exists(path, timeout=timeout) is not None:
            return
        if path == "/":
            await self._ensure_chroot(acl, timeout)
            return
        await self.ensure_path(parent_of(path), acl, timeout=timeout)
        try:
            await self.create(path, b"", acl, timeout=timeout)
        except NodeExistsError:
            return

    async def _ensure_chroot(self, acl: Sequence[Acl] | None, timeout: float | None) -> None:
        """The one path that this client cannot name: its own root."""
        path = ""
        for name in self._keeper.chroot.strip("/").split("/"):
            path += f"/{name}"
            seen = zk.ExistsRequest(path, False)
            request = create_request(path, b"", acl, ephemeral=False, sequence=False)
            try:
                # Looked for first: creating what is there is refused where CREATE is missing.
                await self._keeper.call(zk.EXISTS, seen, timeout, reads=True)
                continue
            except NoNodeError:
                pass
            try:
                await self._keeper.call(zk.CREATE, request, timeout)
            except NodeExistsError:
                continue

    async def delete(
        self,
        path: str,
        version: int = -1,
        recursive: bool = False,
        *,
        timeout: float | None = None,
    ) -> None:
        """Delete a znode; `recursive` with everything below it, not in one transaction.

        `version` is that of the znode itself. Raises NoNodeError, BadVersionError, NotEmptyError,
        NoAuthError. Cancelling a recursive one leaves what is not deleted yet.
        """
        request = zk.DeleteRequest(self._keeper.real(path), version)
        while True:
            if recursive:
                for name in await self.get_children(path, timeout=timeout):
                    try:
                        child = f"{path.rstrip('/')}/{name}"
                        await self.delete(child, recursive=True, timeout=timeout)
                    except NoNodeError:
                        continue
            try:
                await self._keeper.call(zk.DELETE, request, timeout)
                return
            except NotEmptyError:
                if not recursive:
                    raise

    async def set(
        self, path: str, value: bytes | None, version: int = -1, *, timeout: float | None = None
    ) -> Stat:
        """Replace the data; `version` -1 matches any.

        Raises NoNodeError, BadVersionError, NoAuthError, QuotaExceededError.
        """
        request = zk.SetDataRequest(self._keeper.real(path), value, version)
        stat: Stat = (await self._keeper.call(zk.SET_DATA, request, timeout)).stat
        return stat

    async def set_acls(
        self, path: str, acls: Sequence[Acl], version: int = -1, *, timeout: float | None = None
    ) -> Stat:
        """Replace the ACL; `version` is compared with the Stat's `aversion`, -1 matches any.

        Raises NoNodeError, BadVersionError, NoAuthError (ADMIN is needed), InvalidACLError.
        """
        request = zk.SetAclRequest(self._keeper.real(path), tuple(acls), version)
        stat: Stat = (await self._keeper.call(zk.SET_ACL, request, timeout)).stat
        return stat

    def transaction(self) -> Transaction:
        """Collect operations that are applied all together or not at all."""
        return Transaction(self._keeper)

    # ---- reads ---------------------------------------------------------------------------------

    async def exists(
        self, path: str, watch: Watcher | None = None, *, timeout: float | None = None
    ) -> Stat | None:
        """The Stat of a znode, None where there is none.

        `watch` is called once: when the znode is created, changed or deleted.
        """

        def arm(code: int, _zxid: int) -> None:
            if watch is not None:
                kind = WatchKind.DATA if code == 0 else WatchKind.EXIST
                self._keeper.watches.add(kind, path, watch)

        request = zk.ExistsRequest(self._keeper.real(path), watch is not None)
        try:
            response = await self._keeper.call(
                zk.EXISTS, request, timeout, reads=True, arm=arm, arm_on=(0, ZkErrorCode.NO_NODE)
            )
        except NoNodeError:
            return None
        stat: Stat = response.stat
        return stat

    async def get(
        self, path: str, watch: Watcher | None = None, *, timeout: float | None = None
    ) -> tuple[bytes | None, Stat]:
        """Data and Stat. `watch` is called once: on the next change or the deletion.

        Raises NoNodeError (then no watch is left), NoAuthError.
        """
        request = zk.GetDataRequest(self._keeper.real(path), watch is not None)
        arm = self._armer(WatchKind.DATA, path, watch)
        response = await self._keeper.call(zk.GET_DATA, request, timeout, reads=True, arm=arm)
        return response.data, response.stat

    async def get_children(
        self,
        path: str,
        watch: Watcher | None = None,
        include_data: bool = False,
        *,
        timeout: float | None = None,
    ) -> Any:
        """Names of the children, in no order; with `include_data` (names, Stat of the parent).

        `watch` is called once: when a child comes or goes, or the znode is deleted.
        """
        request = zk.GetChildrenRequest(self._keeper.real(path), watch is not None)
        arm = self._armer(WatchKind.CHILD, path, watch)
        response = await self._keeper.call(zk.GET_CHILDREN, request, timeout, reads=True, arm=arm)
        return (response.children, response.stat) if include_data else response.children

    async def get_acls(
        self, path: str, *, timeout: float | None = None
    ) -> tuple[tuple[Acl, ...], Stat]:
        """ACL and Stat. Password digests are masked unless this client has ADMIN."""
        request = zk.GetAclRequest(self._keeper.real(path))
        response = await self._keeper.call(zk.GET_ACL, request, timeout, reads=True)
        return tuple(response.acl), response.stat

    async def get_ephemerals(self, path: str = "/", *, timeout: float | None = None) -> list[str]:
        """Paths of this session's ephemeral znodes that begin with `path`, sorted."""
        request = zk.PathRequest(self._keeper.real(path))
        response = await self._keeper.call(zk.GET_EPHEMERALS, request, timeout, reads=True)
        inside = f"{self._keeper.chroot}/"
        return sorted(
            self._keeper.shown(each)
            for each in response.paths
            if not self._keeper.chroot or each.startswith(inside)
        )

    async def get_all_children_number(self, path: str, *, timeout: float | None = None) -> int:
        """Number of descendants of a znode."""
        request = zk.PathRequest(self._keeper.real(path))
        response = await self._keeper.call(zk.GET_ALL_CHILDREN_NUMBER, request, timeout, reads=True)
        count: int = response.number
        return count

    def multi_read(self) -> MultiRead:
        """Collect reads that are all answered as of one zxid."""
        return MultiRead(self._keeper)

    async def sync(self, path: str = "/", *, timeout: float | None = None) -> str:
        """Wait until the server has applied all that was committed when the call was made."""
        request = zk.SyncRequest(self._keeper.real(path))
        response = await self._keeper.call(zk.SYNC, request, timeout, reads=True)
        return self._keeper.shown(response.path)

    async def check(self, path: str, version: int = -1, *, timeout: float | None = None) -> None:
        """Raise NoNodeError or BadVersionError unless the znode is there at that version."""
        request = zk.CheckRequest(self._keeper.real(path), version)
        await self._keeper.call(zk.CHECK, request, timeout)

    # ---- the ensemble --------------------------------------------------------------------------

    async def reconfig(
        self,
        joining: str | None = None,
        leaving: str | None = None,
        new_members: str | None = None,
        from_config: int = -1,
        *,
        timeout: float | None = None,
    ) -> tuple[bytes, Stat]:
        """Change the members of the ensemble; what `/zookeeper/config` holds then, and its Stat.

        `joining`: members as that znode shows them, with commas; a known id is replaced. `leaving`:
        ids, with commas. `new_members`: all of them, instead of both. `from_config`: only if the
        members are of that version; -1: whatever they are.

        Raises NoAuthError (whoever may write `/zookeeper/config` may do it), BadArgumentsError,
        BadVersionError, NewConfigNoQuorumError, ReconfigInProgressError, ReconfigDisabledError
        (a server that stands alone).
        """
        request = zk.ReconfigRequest(joining, leaving, new_members, from_config)
        response = await self._keeper.call(zk.RECONFIG, request, timeout)
        return response.data or b"", response.stat

    # ---- identity ------------------------------------------------------------------------------

    async def add_auth(
        self, scheme: str, credential: bytes | str, *, timeout: float | None = None
    ) -> None:
        """Add an identity, on this connection and on every later one.

        For "digest" the credential is `user:password`. Raises AuthFailedError: then the session
        is AUTH_FAILED and the client is of no more use, as ZooKeeper's clients.
        """
        raw = credential.encode() if isinstance(credential, str) else credential
        try:
            await self._keeper.call(zk.AUTH, zk.AuthRequest(scheme, raw), timeout, reads=True)
        except AuthFailedError as error:
            self._keeper.refuse_credential(error)
            raise
        if (scheme, raw) not in self._keeper.credentials:
            self._keeper.credentials.append((scheme, raw))

    async def whoami(self, *, timeout: float | None = None) -> list[ClientIdentity]:
        """The identities of this connection: (scheme, user), without secrets."""
        response = await self._keeper.call(zk.WHO_AM_I, zk.Empty(), timeout, reads=True)
        return list(response.identities)

    # ---- watches -------------------------------------------------------------------------------

    def events(
        self, path: str, *, recursive: bool = False, after_zxid: int | None = None
    ) -> WatchStream:
        """Every change of a znode (and its children; `recursive`: of the subtree), as it happens.

        `async for event in zk.events(path)`; use it as an async context manager to be sure that
        the watch is armed before something else is done. `after_zxid`: begin with what happened
        after that transaction, or with a COMPACTED event where the server no longer knows it.
        """
        return WatchStream(self._keeper, path, recursive=recursive, after_zxid=after_zxid)

    def forget_watch(self, path: str, watch: Watcher) -> None:
        """Call a one-shot `watch` of a path no more. Idempotent; sends nothing."""
        self._keeper.watches.forget(path, watch)

    async def check_watches(
        self,
        path: str,
        watcher_type: WatcherType = WatcherType.ANY,
        *,
        timeout: float | None = None,
    ) -> bool:
        """Whether the server has a watch of this connection on the path."""
        return await self._watches(zk.CHECK_WATCHES, path, watcher_type, timeout)

    async def remove_watches(
        self,
        path: str,
        watcher_type: WatcherType = WatcherType.ANY,
        *,
        timeout: float | None = None,
    ) -> bool:
        """Remove all watches on a path; false when the server had none.

        Their watchers hear DATA_WATCH_REMOVED, CHILD_WATCH_REMOVED or PERSISTENT_WATCH_REMOVED.
        """
        found = await self._watches(zk.REMOVE_WATCHES, path, watcher_type, timeout)
        self._keeper.tell_removed(path, self._keeper.watches.take_removed(path, watcher_type))
        return found

    async def _watches(
        self, api: AnyApi, path: str, watcher_type: WatcherType, timeout: float | None
    ) -> bool:
        request = zk.WatchesRequest(self._keeper.real(path), watcher_type)
        try:
            await self._keeper.call(api, request, timeout, reads=True)
        except NoWatcherError:
            return False
        return True

    def _armer(self, kind: WatchKind, path: str, watch: Watcher | None) -> ArmOn | None:
        if watch is None:
            return None
        return lambda _code, _zxid: self._keeper.watches.add(kind, path, watch)
