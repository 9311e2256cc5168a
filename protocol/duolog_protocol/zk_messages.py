"""Messages between a client and zkserver, on the native protocol.

Api keys are 1000 + ZooKeeper's operation code where it has one. Fields are those of
`zookeeper.jute`, in its order, so that the jute codec maps onto the same request values. The
context of every response and event is the last zxid the server had processed when it was made.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .apis import API_VERSIONS, AnyApi, Api
from .codec import (
    BOOL,
    INT8,
    INT32,
    INT64,
    Schema,
    array,
    binary,
    data,
    integer,
    long_list,
    string,
    structure,
)
from .types import Acl, Stat

MAX_DATA_BYTES: Final = 1024 * 1024
"""Upper bound of the wire; what a server really takes is its setting `max_data_bytes`."""
MAX_FRAME_BYTES: Final = 2 * 1024 * 1024
MAX_CHILDREN: Final = 1_000_000
MAX_MULTI_OPS: Final = 1024
PASSWORD_BYTES: Final = 16
MAX_LIST_BYTES: Final = 64 * 1024 * 1024

PATH: Final = string(4096)
STAT: Final = structure(Stat, *[INT64] * 11)
ACL_LIST: Final = array(structure(Acl, integer(0, 31), string(64), string(1024)), 64, nullable=True)
_ZNODE_DATA: Final = data(MAX_DATA_BYTES, nullable=True)


class Empty(NamedTuple):
    """A message without fields."""


EMPTY: Final = Schema(Empty)


class ConnectRequest(NamedTuple):
    """Open a session (`session_id` 0) or attach to one."""

    last_zxid_seen: int
    """The server refuses a client that has seen more than itself (SERVER_BEHIND_CLIENT)."""
    timeout_ms: int
    """Wanted session timeout; the server clamps it."""
    session_id: int
    password: bytes
    read_only: bool
    """The client is content with a server that has no quorum."""


class ConnectResponse(NamedTuple):
    """The session. Errors: SESSION_EXPIRED, SERVER_BEHIND_CLIENT."""

    timeout_ms: int
    """The negotiated session timeout."""
    session_id: int
    password: bytes
    """Proof of ownership for attaching again."""
    read_only: bool
    server_id: int


class CreateRequest(NamedTuple):
    """Create a znode."""

    path: str
    data: bytes | None
    acl: tuple[Acl, ...] | None
    flags: int
    """A `CreateMode`."""
    ttl_ms: int
    """-1 except for the TTL modes."""


class CreateResponse(NamedTuple):
    """The path really created (sequential modes append a counter) and its Stat."""

    path: str
    stat: Stat


class DeleteRequest(NamedTuple):
    """Delete a znode; `version` -1 matches any."""

    path: str
    version: int


class ExistsRequest(NamedTuple):
    """Read a znode's Stat; with `watch`, also watch for its creation."""

    path: str
    watch: bool


class StatResponse(NamedTuple):
    """A Stat."""

    stat: Stat


class GetDataRequest(NamedTuple):
    """Read a znode's data and Stat."""

    path: str
    watch: bool


class GetDataResponse(NamedTuple):
    """Stat first: the reply of a node differs from the next only in the envelope."""

    stat: Stat
    data: bytes | None


class SetDataRequest(NamedTuple):
    """Replace a znode's data; `version` -1 matches any."""

    path: str
    data: bytes | None
    version: int


class GetChildrenRequest(NamedTuple):
    """List a znode's children."""

    path: str
    watch: bool


class GetChildrenResponse(NamedTuple):
    """The Stat of the parent and the names of its children, in no order."""

    stat: Stat
    children: list[str]


class SyncRequest(NamedTuple):
    """Answered once the server has applied all that was committed when it came."""

    path: str


class SyncResponse(NamedTuple):
    """The path of the request."""

    path: str


class CheckRequest(NamedTuple):
    """Compare a znode's version; `version` -1 asks only whether it exists."""

    path: str
    version: int


class MultiOp(NamedTuple):
    """One operation of a multi. Fields that its kind does not have hold their default."""

    kind: int
    """One of `MultiKind`."""
    path: str
    data: bytes | None
    acl: tuple[Acl, ...] | None
    flags: int
    ttl_ms: int
    version: int


class MultiKind:
    """ZooKeeper's operation codes inside a multi."""

    CREATE: Final = 1
    DELETE: Final = 2
    SET_DATA: Final = 5
    CHECK: Final = 13


class MultiRequest(NamedTuple):
    """Apply all operations or none, in one transaction."""

    ops: tuple[MultiOp, ...]


class MultiResult(NamedTuple):
    """Result of one operation.

    In a multi that failed every operation has an error code: 0 before the one that failed, the
    cause there, RUNTIME_INCONSISTENCY after it (ZooKeeper `ErrorResult`).
    """

    kind: int
    """The operation's kind, or -1 in a multi that failed."""
    error_code: int
    path: str | None
    """The created path, for a create."""
    stat: Stat | None
    """For a create and a set."""


class MultiResponse(NamedTuple):
    """A result for each operation; the envelope's error code is 0 even when the multi failed."""

    results: list[MultiResult]


class SetWatchesRequest(NamedTuple):
    """Register watches again after a reconnect; what was missed fires at once."""

    relative_zxid: int
    """The last zxid this client has seen."""
    data_watches: list[str]
    exist_watches: list[str]
    child_watches: list[str]
    persistent_watches: list[str]
    persistent_recursive_watches: list[str]


class AddWatchRequest(NamedTuple):
    """Register a persistent watch."""

    path: str
    mode: int
    """An `AddWatchMode`."""


class WatchEvent(NamedTuple):
    """A watch fired. Sent before any reply that shows the change; its context is its zxid."""

    type: int
    """An `EventType`."""
    state: int
    """A `KeeperState`."""
    path: str


_VERSION: Final = INT32
_PATH_LIST: Final = long_list(PATH, 100_000, MAX_FRAME_BYTES)
_MULTI_OP: Final = structure(MultiOp, INT8, PATH, _ZNODE_DATA, ACL_LIST, INT32, INT64, _VERSION)
_NULLABLE_STAT: Final = structure(Stat, *[INT64] * 11, nullable=True)
_MULTI_RESULT: Final = structure(
    MultiResult, INT8, INT32, string(4096, nullable=True), _NULLABLE_STAT
)
_STAT_RESPONSE: Final = Schema(StatResponse, STAT)

CONNECT: Final = Api(
    1000,
    "Connect",
    Schema(ConnectRequest, INT64, INT32, INT64, binary(PASSWORD_BYTES), BOOL),
    Schema(ConnectResponse, INT32, INT64, binary(PASSWORD_BYTES), BOOL, INT32),
)
CREATE: Final = Api(
    1001,
    "Create",
    Schema(CreateRequest, PATH, _ZNODE_DATA, ACL_LIST, INT32, INT64),
    Schema(CreateResponse, PATH, STAT),
)
DELETE: Final = Api(1002, "Delete", Schema(DeleteRequest, PATH, _VERSION), EMPTY)
EXISTS: Final = Api(1003, "Exists", Schema(ExistsRequest, PATH, BOOL), _STAT_RESPONSE)
GET_DATA: Final = Api(
    1004,
    "GetData",
    Schema(GetDataRequest, PATH, BOOL),
    Schema(GetDataResponse, STAT, _ZNODE_DATA),
)
SET_DATA: Final = Api(
    1005, "SetData", Schema(SetDataRequest, PATH, _ZNODE_DATA, _VERSION), _STAT_RESPONSE
)
GET_CHILDREN: Final = Api(
    1008,
    "GetChildren",
    Schema(GetChildrenRequest, PATH, BOOL),
    Schema(GetChildrenResponse, STAT, long_list(PATH, MAX_CHILDREN, MAX_LIST_BYTES)),
)
SYNC: Final = Api(1009, "Sync", Schema(SyncRequest, PATH), Schema(SyncResponse, PATH))
PING: Final = Api(1011, "Ping", EMPTY, EMPTY)
CHECK: Final = Api(1013, "Check", Schema(CheckRequest, PATH, _VERSION), EMPTY)
MULTI: Final = Api(
    1014,
    "Multi",
    Schema(MultiRequest, array(_MULTI_OP, MAX_MULTI_OPS)),
    Schema(MultiResponse, long_list(_MULTI_RESULT, MAX_MULTI_OPS, MAX_LIST_BYTES)),
)
SET_WATCHES: Final = Api(
    1105,
    "SetWatches",
    Schema(SetWatchesRequest, INT64, *[_PATH_LIST] * 5),
    EMPTY,
)
ADD_WATCH: Final = Api(1106, "AddWatch", Schema(AddWatchRequest, PATH, INT32), EMPTY)
CLOSE_SESSION: Final = Api(1111, "CloseSession", EMPTY, EMPTY)

WATCH_EVENT_KEY: Final = 1
WATCH_EVENT: Final = Schema(WatchEvent, INT8, INT32, PATH)

ZK_APIS: Final[dict[int, AnyApi]] = {
    api.key: api
    for api in (
        API_VERSIONS,
        CONNECT,
        CREATE,
        DELETE,
        EXISTS,
        GET_DATA,
        SET_DATA,
        GET_CHILDREN,
        SYNC,
        PING,
        CHECK,
        MULTI,
        SET_WATCHES,
        ADD_WATCH,
        CLOSE_SESSION,
    )
}
