"""Requests that are answered from the tree: reads, watches, and what only looks like one.

Owns the replies to them and the registration of watches. Changes no replicated state. Source:
ZooKeeper `FinalRequestProcessor`, `DataTree.setWatches`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from duolog_protocol import zk_messages as zk
from duolog_protocol.apis import API_VERSIONS, ApiVersionsResponse, api_ranges
from duolog_protocol.codec import MAX_STRING_BYTES
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.errors import LocalProtocolError
from duolog_protocol.paths import path_problem
from duolog_protocol.types import AddWatchMode, EventType, WatcherType

from .auth import acl_allows, mask_digests, without_secrets
from .config import CoreConfig
from .connection import Connection
from .datatree import ADMIN, READ, Node
from .events import Request
from .history import Gap, History
from .prepare import Refused
from .state import ReplicatedState
from .watches import CHILD, DATA, PERSISTENT, RECURSIVE, Watches

Read = Callable[[Connection, int, Any], None]
LONG_REPLY_BYTES: Final = 4096
"""Longer replies count against what may wait for a connection's socket."""
_GET_DATA_KEY: Final = zk.GET_DATA.key
_KINDS_OF_TYPE: Final[dict[int, tuple[int, ...]]] = {
    WatcherType.CHILDREN: (CHILD,),
    WatcherType.DATA: (DATA,),
    WatcherType.ANY: (DATA, CHILD, PERSISTENT, RECURSIVE),
    WatcherType.PERSISTENT: (PERSISTENT,),
    WatcherType.PERSISTENT_RECURSIVE: (RECURSIVE,),
}


class Reads:
    """Answers reads; each adds its pieces to `connection.out`."""

    def __init__(
        self, config: CoreConfig, state: ReplicatedState, watches: Watches, history: History
    ) -> None:
        self._config = config
        self._state = state
        self._find_node = state.tree.nodes.get
        self._watches = watches
        self._history = history
        self.max_backlog_bytes = config.max_reply_backlog_bytes
        self.crowded: list[Connection] = []
        """Connections whose long replies have just passed `max_backlog_bytes`."""
        self._api_versions = ApiVersionsResponse(
            "zkserver", config.server_version, api_ranges(zk.ZK_APIS), (), zk.MAX_FRAME_BYTES
        )
        self.by_key: Final[dict[int, Read]] = {
            zk.GET_DATA.key: self._get_data,
            zk.EXISTS.key: self._exists,
            zk.GET_CHILDREN.key: partial(self._get_children, zk.GET_CHILDREN.key),
            zk.GET_CHILDREN2_KEY: partial(self._get_children, zk.GET_CHILDREN2_KEY),
            zk.GET_ACL.key: self._get_acl,
            zk.MULTI_READ.key: self._multi_read,
            zk.GET_EPHEMERALS.key: self._get_ephemerals,
            zk.GET_ALL_CHILDREN_NUMBER.key: self._get_all_children_number,
            zk.WHO_AM_I.key: self._who_am_i,
            zk.PING.key: self._empty,
            zk.SET_WATCHES.key: self._set_watches,
            zk.ADD_WATCH.key: self._add_watch,
            zk.CHECK_WATCHES.key: self._check_watches,
            zk.REMOVE_WATCHES.key: self._remove_watches,
            API_VERSIONS.key: self._tell_api_versions,
        }

    def knows(self, api_key: int) -> bool:
        """The request is one of those that are answered here."""
        return api_key in self.by_key

    def serve_run(
        self, connection: Connection, requests: list[Request], *, forced: bool = False
    ) -> int:
        """Answer the reads that a batch begins with, as far as the socket takes the replies.

        Returns how many; nothing before them may be outstanding. `forced` does not wait for the
        socket, up to the bound past which its client is dropped. Most batches are reads only: the
        way through the checks of a single request would cost as much as the answer.
        """
        find_node = self._find_node
        append_data, out = connection.codec.append_data, connection.out
        zxid = self._state.last_applied_zxid
        served = 0
        for api_key, correlation_id, message in requests:
            if api_key == _GET_DATA_KEY and not message[1]:
                # The commonest request, where nothing about it is special.
                node = find_node(message[0])
                if node is not None and node.perms & 1:
                    data = node.data
                    if data is None or len(data) <= LONG_REPLY_BYTES:
                        append_data(out, correlation_id, zxid, node)
                        served += 1
                        continue
            read = self.by_key.get(api_key)
            if read is None:
                break
            limit = self._config.max_unread_reply_bytes if forced else self.max_backlog_bytes
            if connection.backlog_bytes >= limit:
                break
            try:
                read(connection, correlation_id, message)
            except Refused as error:
                self._refuse(connection, correlation_id, error)
            except LocalProtocolError as error:
                self._refuse(connection, correlation_id, _too_long(error))
            served += 1
        return served

    def serve(self, connection: Connection, request: Request) -> None:
        """Answer a request now, with the tree as it is."""
        api_key, correlation_id, message = request
        try:
            self.by_key[api_key](connection, correlation_id, message)
        except Refused as error:
            self._refuse(connection, correlation_id, error)
        except LocalProtocolError as error:
            self._refuse(connection, correlation_id, _too_long(error))

    def _refuse(self, connection: Connection, correlation_id: int, error: Refused) -> None:
        zxid = self._state.last_applied_zxid
        connection.out.append(
            connection.codec.error(correlation_id, error.code, zxid, error.message)
        )

    def _reply(
        self, connection: Connection, api_key: int, correlation_id: int, message: Any
    ) -> None:
        zxid = self._state.last_applied_zxid
        connection.out.append(connection.codec.reply(api_key, correlation_id, zxid, message))

    def _note_long(self, connection: Connection, size_bytes: int) -> None:
        """A long reply goes out: past the limit, the connection waits until its socket took it."""
        before = connection.backlog_bytes
        connection.backlog_bytes = before + size_bytes
        if before < self.max_backlog_bytes <= before + size_bytes:
            self.crowded.append(connection)

    def _node(self, path: str) -> Node:
        node = self._state.tree.nodes.get(path)
        if node is None:
            raise Refused(ZkErrorCode.NO_NODE, f"{path} does not exist")
        return node

    def _readable(self, path: str, connection: Connection) -> Node:
        node = self._node(path)
        if not node.perms & READ and not acl_allows(node.acl, READ, connection.identities):
            raise Refused(ZkErrorCode.NO_AUTH, f"the ACL of {path} does not allow it")
        return node

    def _get_data(self, connection: Connection, correlation_id: int, message: Any) -> None:
        path, watch = message
        node = self._state.tree.nodes.get(path)
        if node is None or not node.perms & READ:
            node = self._readable(path, connection)
        if watch:
            self._watch(connection, DATA, path)
        data = node.data
        if data is not None and len(data) > LONG_REPLY_BYTES:
            self._note_long(connection, len(data))
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

    def _get_children(
        self, api_key: int, connection: Connection, correlation_id: int, message: Any
    ) -> None:
        path, watch = message
        node = self._readable(path, connection)
        names = self._names(node)
        if watch:
            self._watch(connection, CHILD, path)
        if len(names) > LONG_REPLY_BYTES // 64:
            self._note_long(connection, sum(map(len, names)))
        self._reply(connection, api_key, correlation_id, zk.GetChildrenResponse(node.stat(), names))

    def _names(self, node: Node) -> list[str]:
        """Names of a node's children. Raises Refused where they do not fit in a reply."""
        first = len(node.path) + (node.path != "/")
        names = [path[first:] for path in node.children or ()]
        limit = self._config.max_children_reply_bytes
        if len(names) > zk.MAX_CHILDREN or sum(map(len, names)) > limit:
            raise Refused(
                ZkErrorCode.REQUEST_TOO_LARGE,
                f"the {len(names)} children of {node.path} do not fit in a reply of {limit} bytes",
            )
        return names

    def _get_acl(self, connection: Connection, correlation_id: int, message: Any) -> None:
        """Who may not administer the node sees no digests (CVE-2019-0201)."""
        node = self._node(message.path)
        identities = connection.identities
        if not node.perms & (READ | ADMIN) and not acl_allows(node.acl, READ | ADMIN, identities):
            raise Refused(ZkErrorCode.NO_AUTH, f"the ACL of {node.path} does not allow it")
        acl = node.acl
        self._note_long(connection, 64 * len(acl))
        if not node.perms & ADMIN and not acl_allows(acl, ADMIN, identities):
            acl = mask_digests(acl)
        reply = zk.GetAclResponse(acl, node.stat())
        self._reply(connection, zk.GET_ACL.key, correlation_id, reply)

    def _multi_read(self, connection: Connection, correlation_id: int, message: Any) -> None:
        results = []
        size = 0
        for op in message.ops:
            result = self._read_result(op, connection)
            size += len(result.data or b"") + len(result.joined_names or b"")
            results.append(result)
            if size > self._config.max_children_reply_bytes:
                raise Refused(
                    ZkErrorCode.REQUEST_TOO_LARGE,
                    f"the results do not fit in a reply of {size} bytes",
                )
        if size > LONG_REPLY_BYTES:
            self._note_long(connection, size)
        reply = zk.MultiReadResponse(results)
        self._reply(connection, zk.MULTI_READ.key, correlation_id, reply)

    def _read_result(self, op: zk.ReadOp, connection: Connection) -> zk.ReadResult:
        try:
            node = self._readable(op.path, connection)
            if op.kind == zk.MultiKind.GET_DATA:
                return zk.ReadResult(op.kind, 0, node.data, node.stat(), None)
            if op.kind == zk.MultiKind.GET_CHILDREN:
                names = "/".join(self._names(node)).encode()
                return zk.ReadResult(op.kind, 0, None, None, names)
            code = int(ZkErrorCode.UNIMPLEMENTED)
        except Refused as error:
            code = int(error.code)
        return zk.ReadResult(-1, code, None, None, None)

    def _get_ephemerals(self, connection: Connection, correlation_id: int, message: Any) -> None:
        session = connection.session
        assert session is not None, connection
        prefix = message.path
        paths = [path for path in session.ephemerals if path.startswith(prefix)]
        self._note_long(connection, 8 * len(session.ephemerals) + sum(map(len, paths)))
        reply = zk.GetEphemeralsResponse(paths)
        self._reply(connection, zk.GET_EPHEMERALS.key, correlation_id, reply)

    def _get_all_children_number(
        self, connection: Connection, correlation_id: int, message: Any
    ) -> None:
        node = self._readable(message.path, connection)
        nodes = self._state.tree.nodes
        if node.path == "/":
            count = len(nodes) - 1
        else:
            count = 0
            waiting = [node]
            while waiting:
                children = waiting.pop().children
                if children:
                    count += len(children)
                    waiting += [nodes[path] for path in children]
            # Looking at so many nodes takes as long as sending so many bytes.
            self._note_long(connection, 8 * count)
        reply = zk.GetAllChildrenNumberResponse(count)
        self._reply(connection, zk.GET_ALL_CHILDREN_NUMBER.key, correlation_id, reply)

    def _who_am_i(self, connection: Connection, correlation_id: int, message: Any) -> None:
        known = tuple(zk.ClientIdentity(*each) for each in without_secrets(connection.identities))
        self._reply(connection, zk.WHO_AM_I.key, correlation_id, zk.WhoAmIResponse(known))

    def _empty(self, connection: Connection, correlation_id: int, message: Any) -> None:
        zxid = self._state.last_applied_zxid
        connection.out.append(connection.codec.empty(correlation_id, zxid))

    # ---- watches -------------------------------------------------------------------------------

    def _add_watch(self, connection: Connection, correlation_id: int, message: Any) -> None:
        path, mode, after_zxid = message
        if mode not in (AddWatchMode.PERSISTENT, AddWatchMode.PERSISTENT_RECURSIVE):
            raise Refused(ZkErrorCode.BAD_ARGUMENTS, f"watch mode {mode} is not known")
        recursive = mode == AddWatchMode.PERSISTENT_RECURSIVE
        self._watch(connection, RECURSIVE if recursive else PERSISTENT, path)
        if after_zxid >= 0:
            gap = Gap(self._history, after_zxid)
            lists: list[list[str]] = [[], [], [], [], []]
            lists[4 if recursive else 3] = [path]
            self._send_missed(connection, gap, lists)
        self._reply(connection, zk.ADD_WATCH.key, correlation_id, zk.Empty())

    def _set_watches(self, connection: Connection, correlation_id: int, message: Any) -> None:
        """Fire what was missed since `relative_zxid`, register the rest (A.11 of the reference)."""
        relative_zxid, data, exist, child, persistent, recursive, resume = message
        lists = [data, exist, child, persistent, recursive]
        self._require_room(connection, sum(map(len, lists)))
        for paths in lists:
            for path in paths:
                _require_watchable(path, self._config.max_path_bytes)
        if resume:
            data, exist, child = self._send_missed(
                connection, Gap(self._history, relative_zxid), lists
            )
        self._fire_or_arm(connection, relative_zxid, data, exist, child)
        for path in persistent:
            self._watches.add(PERSISTENT, path, connection)
        for path in recursive:
            self._watches.add(RECURSIVE, path, connection)
        self._empty(connection, correlation_id, message)

    def _fire_or_arm(
        self,
        connection: Connection,
        relative_zxid: int,
        data: list[str],
        exist: list[str],
        child: list[str],
    ) -> None:
        """ZooKeeper's way: what the nodes' Stats tell of the gap."""
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

    def _send_missed(
        self, connection: Connection, gap: Gap, lists: list[list[str]]
    ) -> tuple[list[str], list[str], list[str]]:
        """Send what the watches in `lists` have missed.

        Returns the one-shot ones that did not fire: data, exist, child.
        """
        codec, out = connection.codec, connection.out
        if gap.is_compacted:
            # One-shot watches need no history: the Stats tell that something changed.
            zxid = self._state.last_applied_zxid
            for path in (*lists[3], *lists[4]):
                out.append(codec.event(zxid, EventType.COMPACTED, path))
                connection.event_count += 1
            return lists[0], lists[1], lists[2]
        missed = gap.events(lists)
        # The search counts, too: a client that asks again and again must let others in between.
        size = 8 * len(self._history)
        for zxid, event_type, path, guard in missed.events:
            if guard is None or acl_allows(guard, READ, connection.identities):
                event = codec.event(zxid, event_type, path)
                size += len(event)
                out.append(event)
                connection.event_count += 1
        self._note_long(connection, size)
        return missed.data, missed.exist, missed.child

    def _check_watches(self, connection: Connection, correlation_id: int, message: Any) -> None:
        self._with_watches(connection, message, self._watches.has)
        self._empty(connection, correlation_id, message)

    def _remove_watches(self, connection: Connection, correlation_id: int, message: Any) -> None:
        self._with_watches(connection, message, self._watches.remove)
        self._empty(connection, correlation_id, message)

    def _with_watches(
        self,
        connection: Connection,
        message: Any,
        act: Callable[[int, str, Connection], bool],
    ) -> None:
        path, watcher_type = message
        kinds = _KINDS_OF_TYPE.get(watcher_type)
        if kinds is None:
            raise Refused(ZkErrorCode.BAD_ARGUMENTS, f"watcher type {watcher_type} is not known")
        found = [act(kind, path, connection) for kind in kinds]
        if not any(found):
            raise Refused(ZkErrorCode.NO_WATCHER, f"there is no such watch on {path}")

    def _fire(
        self, connection: Connection, event_type: EventType, path: str, node: Node | None = None
    ) -> None:
        if node is None or node.perms & READ or acl_allows(node.acl, READ, connection.identities):
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


def _too_long(error: LocalProtocolError) -> Refused:
    """The reply does not fit in a frame of this protocol."""
    return Refused(ZkErrorCode.REQUEST_TOO_LARGE, str(error))
