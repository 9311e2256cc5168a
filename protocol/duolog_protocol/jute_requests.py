"""Requests of ZooKeeper's client protocol: operation codes, and what each body holds.

Owns the reading of one body into the request value that the native protocol has for it; fields
that only native clients have get their default. Bytes behind the last field are ignored, as Java
does. Source: `ZooDefs.OpCode`, `MultiOperationRecord`; reference C.4 and C.5.

Every reader raises DecodeError for a body it cannot follow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from . import zk_messages as zk
from .errors import DecodeError
from .jute import INT_BYTES, MAX_SCHEME_BYTES, JuteReader
from .types import CreateMode


class OpCode:
    """Operation codes of the wire."""

    CREATE: Final = 1
    DELETE: Final = 2
    EXISTS: Final = 3
    GET_DATA: Final = 4
    SET_DATA: Final = 5
    GET_ACL: Final = 6
    SET_ACL: Final = 7
    GET_CHILDREN: Final = 8
    SYNC: Final = 9
    PING: Final = 11
    GET_CHILDREN2: Final = 12
    CHECK: Final = 13
    """Inside a multi only."""
    MULTI: Final = 14
    CREATE2: Final = 15
    RECONFIG: Final = 16
    CHECK_WATCHES: Final = 17
    REMOVE_WATCHES: Final = 18
    CREATE_CONTAINER: Final = 19
    DELETE_CONTAINER: Final = 20
    """Between servers only."""
    CREATE_TTL: Final = 21
    MULTI_READ: Final = 22
    AUTH: Final = 100
    SET_WATCHES: Final = 101
    SASL: Final = 102
    GET_EPHEMERALS: Final = 103
    GET_ALL_CHILDREN_NUMBER: Final = 104
    SET_WATCHES2: Final = 105
    ADD_WATCH: Final = 106
    WHO_AM_I: Final = 107
    CLOSE_SESSION: Final = -11


PING_XID: Final = -2
AUTH_XID: Final = -4

_MULTI_END: Final = -1
_EMPTY: Final = zk.Empty()
_MultiOp = zk.MultiOp


def _create(body: JuteReader) -> zk.CreateRequest:
    return zk.CreateRequest(body.path(), body.data(), body.acl(), body.int32(), -1)


def _create_ttl(body: JuteReader) -> zk.CreateRequest:
    return zk.CreateRequest(body.path(), body.data(), body.acl(), body.int32(), body.int64())


def _delete(body: JuteReader) -> zk.DeleteRequest:
    return zk.DeleteRequest(body.path(), body.int32())


def _exists(body: JuteReader) -> zk.ExistsRequest:
    return zk.ExistsRequest(body.path(), body.boolean())


def _get_data(body: JuteReader) -> zk.GetDataRequest:
    return zk.GetDataRequest(body.path(), body.boolean())


def _set_data(body: JuteReader) -> zk.SetDataRequest:
    return zk.SetDataRequest(body.path(), body.data(), body.int32())


def _get_acl(body: JuteReader) -> zk.GetAclRequest:
    return zk.GetAclRequest(body.path())


def _set_acl(body: JuteReader) -> zk.SetAclRequest:
    return zk.SetAclRequest(body.path(), body.acl(), body.int32())


def _get_children(body: JuteReader) -> zk.GetChildrenRequest:
    return zk.GetChildrenRequest(body.path(), body.boolean())


def _sync(body: JuteReader) -> zk.SyncRequest:
    return zk.SyncRequest(body.path())


def _empty(body: JuteReader) -> zk.Empty:
    return _EMPTY


def _reconfig(body: JuteReader) -> zk.ReconfigRequest:
    return zk.ReconfigRequest(body.text(), body.text(), body.text(), body.int64())


def _watches(body: JuteReader) -> zk.WatchesRequest:
    return zk.WatchesRequest(body.path(), body.int32())


def _auth(body: JuteReader) -> zk.AuthRequest:
    body.int32()  # `type`: always 0, looked at by nobody
    scheme, credential = body.text() or "", body.data()
    if credential is None:
        return zk.AuthRequest("", b"")  # it proves nothing, whatever the scheme
    if len(scheme) > MAX_SCHEME_BYTES or len(credential) > zk.MAX_CREDENTIAL_BYTES:
        raise DecodeError(
            f"a credential may have {zk.MAX_CREDENTIAL_BYTES} bytes, its scheme {MAX_SCHEME_BYTES}"
        )
    return zk.AuthRequest(scheme, credential)


def _sasl(body: JuteReader) -> zk.SaslToken:
    return zk.SaslToken(body.data() or b"")  # kazoo's first token is null


def _path(body: JuteReader) -> zk.PathRequest:
    return zk.PathRequest(body.path())


def _prefix(body: JuteReader) -> zk.PathRequest:
    return zk.PathRequest(body.text() or "")


def _set_watches(body: JuteReader) -> zk.SetWatchesRequest:
    zxid = body.int64()
    data, exist, child = _paths(body), _paths(body), _paths(body)
    return zk.SetWatchesRequest(zxid, data, exist, child, [], [], False)


def _set_watches2(body: JuteReader) -> zk.SetWatchesRequest:
    zxid = body.int64()
    data, exist, child = _paths(body), _paths(body), _paths(body)
    return zk.SetWatchesRequest(zxid, data, exist, child, _paths(body), _paths(body), False)


def _paths(body: JuteReader) -> list[str]:
    return body.vector(body.path, INT_BYTES)


def _add_watch(body: JuteReader) -> zk.AddWatchRequest:
    return zk.AddWatchRequest(body.path(), body.int32(), -1)


def _multi(body: JuteReader) -> zk.MultiRequest:
    return zk.MultiRequest(tuple(_operations(body, _MULTI_OPERATIONS)))


def _multi_read(body: JuteReader) -> zk.MultiReadRequest:
    return zk.MultiReadRequest(tuple(_operations(body, _READ_OPERATIONS)))


def _operations(body: JuteReader, readers: dict[int, Callable[[JuteReader], Any]]) -> list[Any]:
    """What stands between the headers `type int, done bool, err int` of a multi."""
    found: list[Any] = []
    while True:
        kind, done, _ = body.int32(), body.boolean(), body.int32()
        if done:
            return found
        reader = readers.get(kind)
        if reader is None:
            raise DecodeError(f"operation {kind} cannot be part of such a request")
        if len(found) == zk.MAX_MULTI_OPS:
            raise DecodeError(f"a multi may have {zk.MAX_MULTI_OPS} operations, no more")
        found.append(reader(body))


def _multi_create(body: JuteReader) -> zk.MultiOp:
    """The result's kind follows from the flags alone (ZooKeeper `Op.Create`): a create2 comes back
    as a create, a container or TTL node with its Stat."""
    path, data, acl, flags, _ = _create(body)
    kind = zk.MultiKind.CREATE2 if flags == CreateMode.CONTAINER else zk.MultiKind.CREATE
    return _MultiOp(kind, path, data, acl, flags, -1, -1)


def _multi_create_ttl(body: JuteReader) -> zk.MultiOp:
    path, data, acl, flags, ttl_ms = _create_ttl(body)
    return _MultiOp(zk.MultiKind.CREATE2, path, data, acl, flags, ttl_ms, -1)


def _multi_delete(body: JuteReader) -> zk.MultiOp:
    return _MultiOp(zk.MultiKind.DELETE, body.path(), None, None, 0, -1, body.int32())


def _multi_set_data(body: JuteReader) -> zk.MultiOp:
    return _MultiOp(zk.MultiKind.SET_DATA, body.path(), body.data(), None, 0, -1, body.int32())


def _multi_check(body: JuteReader) -> zk.MultiOp:
    return _MultiOp(zk.MultiKind.CHECK, body.path(), None, None, 0, -1, body.int32())


def _read_data(body: JuteReader) -> zk.ReadOp:
    path, _watch = body.path(), body.boolean()  # a multiRead leaves no watch
    return zk.ReadOp(zk.MultiKind.GET_DATA, path)


def _read_children(body: JuteReader) -> zk.ReadOp:
    path, _watch = body.path(), body.boolean()
    return zk.ReadOp(zk.MultiKind.GET_CHILDREN, path)


_MULTI_OPERATIONS: Final[dict[int, Callable[[JuteReader], Any]]] = {
    OpCode.CREATE: _multi_create,
    OpCode.CREATE2: _multi_create,
    OpCode.CREATE_CONTAINER: _multi_create,
    OpCode.CREATE_TTL: _multi_create_ttl,
    OpCode.DELETE: _multi_delete,
    OpCode.SET_DATA: _multi_set_data,
    OpCode.CHECK: _multi_check,
}
_READ_OPERATIONS: Final[dict[int, Callable[[JuteReader], Any]]] = {
    OpCode.GET_DATA: _read_data,
    OpCode.GET_CHILDREN: _read_children,
}

BODIES: Final[dict[int, tuple[int, Callable[[JuteReader], Any]]]] = {
    OpCode.CREATE: (zk.CREATE.key, _create),
    OpCode.CREATE2: (zk.CREATE2_KEY, _create),
    OpCode.CREATE_CONTAINER: (zk.CREATE2_KEY, _create),
    OpCode.CREATE_TTL: (zk.CREATE2_KEY, _create_ttl),
    OpCode.DELETE: (zk.DELETE.key, _delete),
    OpCode.EXISTS: (zk.EXISTS.key, _exists),
    OpCode.GET_DATA: (zk.GET_DATA.key, _get_data),
    OpCode.SET_DATA: (zk.SET_DATA.key, _set_data),
    OpCode.GET_ACL: (zk.GET_ACL.key, _get_acl),
    OpCode.SET_ACL: (zk.SET_ACL.key, _set_acl),
    OpCode.GET_CHILDREN: (zk.GET_CHILDREN.key, _get_children),
    OpCode.GET_CHILDREN2: (zk.GET_CHILDREN2_KEY, _get_children),
    OpCode.SYNC: (zk.SYNC.key, _sync),
    OpCode.PING: (zk.PING.key, _empty),
    OpCode.MULTI: (zk.MULTI.key, _multi),
    OpCode.MULTI_READ: (zk.MULTI_READ.key, _multi_read),
    OpCode.RECONFIG: (zk.RECONFIG.key, _reconfig),
    OpCode.CHECK_WATCHES: (zk.CHECK_WATCHES.key, _watches),
    OpCode.REMOVE_WATCHES: (zk.REMOVE_WATCHES.key, _watches),
    OpCode.AUTH: (zk.AUTH.key, _auth),
    OpCode.SASL: (zk.SASL_KEY, _sasl),
    OpCode.SET_WATCHES: (zk.SET_WATCHES.key, _set_watches),
    OpCode.SET_WATCHES2: (zk.SET_WATCHES.key, _set_watches2),
    OpCode.GET_EPHEMERALS: (zk.GET_EPHEMERALS.key, _prefix),
    OpCode.GET_ALL_CHILDREN_NUMBER: (zk.GET_ALL_CHILDREN_NUMBER.key, _path),
    OpCode.ADD_WATCH: (zk.ADD_WATCH.key, _add_watch),
    OpCode.WHO_AM_I: (zk.WHO_AM_I.key, _empty),
    OpCode.CLOSE_SESSION: (zk.CLOSE_SESSION.key, _empty),
}
"""Operation code -> (api key, reader of the body)."""
