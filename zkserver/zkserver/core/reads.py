"""Requests that are answered from the tree: reads, watches, and what only looks like one.

Owns the replies to them and the registration of watches. Changes no replicated state. Source:
ZooKeeper `FinalRequestProcessor`, `DataTree.setWatches`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from duolog_protocol import zk_messages as zk
from duolog_protocol.apis import API_VERSIONS, ApiVersionsResponse, api_ranges
from duolog_protocol.codec import MAX_STRING_BYTES
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.paths import path_problem
from duolog_protocol.types import AddWatchMode, EventType
from duolog_protocol.zk_codec import REFUSED

from .config import CoreConfig
from .connection import Connection
from .datatree import READ, Node
from .prepare import Refused
from .state import ReplicatedState
from .watches import CHILD, DATA, PERSISTENT, RECURSIVE, Watches

Read = Callable[[Connection, int, Any], None]


class Reads:
    """Answers reads; each adds its pieces to `connection.out`."""

    def __init__(self, config: CoreConfig, state: ReplicatedState, watches: Watches) -> None:
        self._config = config
        self._state = state
        self._watches = watches
        self._api_versions = ApiVersionsResponse(
            "zkserver", config.server_version, api_ranges(zk.ZK_APIS), (), zk.MAX_FRAME_BYTES
        )
        self._by_key: Final[dict[int, Read]] = {
            zk.GET_DATA.key: self._get_data,
            zk.EXISTS.key: self._exists,
            zk.GET_CHILDREN.key: self._get_children,
            zk.PING.key: self._empty,
            zk.SET_WATCHES.key: self._set_watches,
            zk.ADD_WATCH.key: self._add_watch,
            API_VERSIONS.key: self._tell_api_versions,
        }
        self.without_session = (API_VERSIONS.key, REFUSED)

    def knows(self, api_key: int) -> bool:
        """The request is one of those that are answered here."""
        return api_key in self._by_key

    def serve(self, connection: Connection, request: tuple[int, int, Any]) -> None:
        """Answer a request now, with the tree as it is."""
        api_key, correlation_id, message = request
        try:
            self._by_key[api_key](connection, correlation_id, message)
        except Refused as error:
            zxid = self._state.last_applied_zxid
            connection.out.append(
                connection.codec.error(correlation_id, error.code, zxid, error.message)
            )

    def _node(self, path: str) -> Node:
        node = self._state.tree.nodes.get(path)
        if node is None:
            raise Refused(ZkErrorCode.NO_NODE, f"{path} does not exist")
        return node

    def _readable(self, path: str) -> Node:
        node = self._node(path)
        if not node.perms & READ:
            raise Refused(ZkErrorCode.NO_AUTH, f"the ACL of {path} does not allow it")
        return node

    def _get_data(self, connection: Connection, correlation_id: int, message: Any) -> None:
        path, watch = message
        node = self._readable(path)
        if watch:
            self._watch(connection, DATA, path)
        connection.codec.append_data(
            connection.out, correlation_id, self._state.last_applied_zxid, node
        )

    def _exists(self, connection: Connection, correlation_id: int, message: Any) -> None:
        path, watch = message
        if watch:
            self._watch(connection, DATA, path)
        node = self._node(path)
        connection.codec.append_stat(
            connection.out, correlation_id, self._state.last_applied_zxid, node
        )

    def _get_children(self, connection: Connection, correlation_id: int, message: Any) -> None:
        path, watch = message
        node = self._readable(path)
        names = list(node.children or ())
        size = sum(map(len, names))
        limit = self._config.max_children_reply_bytes
        if size > limit or len(names) > zk.MAX_CHILDREN:
            raise Refused(
                ZkErrorCode.REQUEST_TOO_LARGE,
                f"the {len(names)} children of {path} do not fit in a reply of {limit} bytes",
            )
        if watch:
            self._watch(connection, CHILD, path)
        reply = zk.GetChildrenResponse(node.stat(), names)
        zxid = self._state.last_applied_zxid
        connection.out.append(
            connection.codec.reply(zk.GET_CHILDREN.key, correlation_id, zxid, reply)
        )

    def _empty(self, connection: Connection, correlation_id: int, message: Any) -> None:
        zxid = self._state.last_applied_zxid
        connection.out.append(connection.codec.empty(correlation_id, zxid))

    def _add_watch(self, connection: Connection, correlation_id: int, message: Any) -> None:
        path, mode, _after_zxid = message
        if mode not in (AddWatchMode.PERSISTENT, AddWatchMode.PERSISTENT_RECURSIVE):
            raise Refused(ZkErrorCode.BAD_ARGUMENTS, f"watch mode {mode} is not known")
        recursive = mode == AddWatchMode.PERSISTENT_RECURSIVE
        self._watch(connection, RECURSIVE if recursive else PERSISTENT, path)
        self._empty(connection, correlation_id, message)

    def _set_watches(self, connection: Connection, correlation_id: int, message: Any) -> None:
        """Fire what was missed since `relative_zxid`, register the rest (A.11 of the reference)."""
        relative_zxid, data, exist, child, persistent, recursive, _resume = message
        lists = (data, exist, child, persistent, recursive)
        self._require_room(connection, sum(map(len, lists)))
        for paths in lists:
            for path in paths:
                _require_watchable(path, self._config.max_path_bytes)
        nodes = self._state.tree.nodes
        for path in data:
            node = nodes.get(path)
            if node is None:
                self._fire(connection, EventType.DELETED, path)
            elif node.mzxid > relative_zxid:
                self._fire(connection, EventType.CHANGED, path, node)
            else:
                self._watches.add(DATA, path, connection)
        for path in exist:
            node = nodes.get(path)
            if node is not None:
                self._fire(connection, EventType.CREATED, path, node)
            else:
                self._watches.add(DATA, path, connection)
        for path in child:
            node = nodes.get(path)
            if node is None:
                self._fire(connection, EventType.DELETED, path)
            elif node.pzxid > relative_zxid:
                self._fire(connection, EventType.CHILD, path, node)
            else:
                self._watches.add(CHILD, path, connection)
        for path in persistent:
            self._fire_persistent(connection, path, nodes.get(path), relative_zxid)
            self._watches.add(PERSISTENT, path, connection)
        for path in recursive:
            self._watches.add(RECURSIVE, path, connection)
        self._empty(connection, correlation_id, message)

    def _fire_persistent(
        self, connection: Connection, path: str, node: Node | None, relative_zxid: int
    ) -> None:
        """ZooKeeper says nothing here and loses the change; a watcher that looks again does not."""
        if node is None:
            self._fire(connection, EventType.DELETED, path)
            return
        if node.czxid > relative_zxid:
            self._fire(connection, EventType.CREATED, path, node)
        elif node.mzxid > relative_zxid:
            self._fire(connection, EventType.CHANGED, path, node)
        if node.pzxid > max(relative_zxid, node.czxid):
            self._fire(connection, EventType.CHILD, path, node)

    def _fire(
        self, connection: Connection, event_type: EventType, path: str, node: Node | None = None
    ) -> None:
        if node is None or node.perms & READ:
            zxid = self._state.last_applied_zxid
            connection.out.append(connection.codec.event(zxid, event_type, path))
            connection.event_count += 1

    def _tell_api_versions(self, connection: Connection, correlation_id: int, message: Any) -> None:
        zxid = self._state.last_applied_zxid
        connection.out.append(
            connection.codec.reply(API_VERSIONS.key, correlation_id, zxid, self._api_versions)
        )

    def _watch(self, connection: Connection, kind: int, path: str) -> None:
        _require_watchable(path, self._config.max_path_bytes)
        self._require_room(connection, 1)
        self._watches.add(kind, path, connection)

    def _require_room(self, connection: Connection, more: int) -> None:
        limit = self._config.max_watches_per_connection
        if len(connection.watched) + more > limit:
            raise Refused(
                ZkErrorCode.QUOTA_EXCEEDED, f"a connection may have {limit} watches, no more"
            )


def _require_watchable(path: str, max_path_bytes: int) -> None:
    """A watch on a path that cannot exist would never fire."""
    problem = path_problem(path)
    if problem is None and len(path) > min(max_path_bytes, MAX_STRING_BYTES):
        problem = f"a path of {len(path)} characters is over the limit {max_path_bytes}"
    if problem is not None:
        raise Refused(ZkErrorCode.BAD_ARGUMENTS, problem)
