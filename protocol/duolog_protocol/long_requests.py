"""What a learner forwards that a frame of a native client may not be able to hold.

    fields = one msgpack array: the request's fields in their order, texts and data in their places

A jute client may send what the native schemas do not take: paths, member lists and passwords of any
length, a multi with 1,024 long paths, data of more than 1 MiB. Whatever a leader would hear from
such a client of its own has to reach it through a learner, too, to get the same answer there.

Owns the schemas of these fields; their only bounds are those of ZooKeeper's decoder. Strings,
data and the array itself are as long as a `LongRequest` may be.
"""

from __future__ import annotations

from typing import Any, Final

from . import zk_messages as zk
from .codec import (
    BOOL,
    INT8,
    INT32,
    INT64,
    Cursor,
    FieldType,
    Schema,
    array,
    binary,
    pack,
    string,
    structure,
    unpack_array,
)
from .errors import DecodeError
from .quorum_messages import MAX_LONG_REQUEST_BYTES

MAX_SHORT_REQUEST_BYTES: Final = 4096
"""Fields of no more bytes fit in a native frame, each of them within the bounds of its schema."""

_TEXT: Final = string(MAX_LONG_REQUEST_BYTES)
_MEMBERS: Final = string(MAX_LONG_REQUEST_BYTES, nullable=True)
_DATA: Final = binary(MAX_LONG_REQUEST_BYTES, nullable=True)
_VERSION: Final = INT32
_OP: Final[FieldType] = structure(
    zk.MultiOp, INT8, _TEXT, _DATA, zk.ACL_LIST, INT32, INT64, _VERSION
)
_SCHEMAS: Final[dict[int, Schema[Any]]] = {
    zk.CONNECT.key: Schema(
        zk.ConnectRequest, INT64, INT32, INT64, binary(MAX_LONG_REQUEST_BYTES), BOOL
    ),
    zk.CREATE.key: Schema(zk.CreateRequest, _TEXT, _DATA, zk.ACL_LIST, INT32, INT64),
    zk.DELETE.key: Schema(zk.DeleteRequest, _TEXT, _VERSION),
    zk.SET_DATA.key: Schema(zk.SetDataRequest, _TEXT, _DATA, _VERSION),
    zk.SET_ACL.key: Schema(zk.SetAclRequest, _TEXT, zk.ACL_LIST, _VERSION),
    zk.CHECK.key: Schema(zk.CheckRequest, _TEXT, _VERSION),
    zk.MULTI.key: Schema(zk.MultiRequest, array(_OP, zk.MAX_MULTI_OPS)),
    zk.RECONFIG.key: Schema(zk.ReconfigRequest, _MEMBERS, _MEMBERS, _MEMBERS, INT64),
}


def encode_fields(message: Any) -> bytes:
    """The fields of a request."""
    return pack(message)


def is_short(api_key: int, message: Any, fields_bytes: int) -> bool:
    """Whether a request, whose fields have so many bytes, is one that a native client can send."""
    if api_key == zk.CONNECT.key and len(message.password) > zk.PASSWORD_BYTES:
        return False
    return fields_bytes <= MAX_SHORT_REQUEST_BYTES


def decode_fields(api_key: int, fields: bytes) -> Any:
    """The request. Raises DecodeError."""
    schema = _SCHEMAS.get(api_key)
    if schema is None:
        raise DecodeError(f"api {api_key} is not forwarded")
    return schema.decode(unpack_array(fields), 0, Cursor(b"", 0, 0))
