"""Messages between a client and zkserver, on the native protocol.

Api keys are 1000 + ZooKeeper's operation code where it has one. Fields are those of
`zookeeper.jute`, in its order, so that the jute codec maps onto the same request values. The
context of every response and event is the last zxid the server had processed when it was made.
"""

from __future__ import annotations

from collections.abc import Sequence
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
MAX_MEMBERS_BYTES: Final = 16 * 1024
"""Members of an ensemble, as text."""
PASSWORD_BYTES: Final = 16
MAX_CREDENTIAL_BYTES: Final = 4096
MAX_WATCHES_PER_LIST: Final = 20_000
"""Paths in one list of SetWatches: five lists of the shortest stay below 16 MiB of memory."""
MAX_LIST_BYTES: Final = 64 * 1024 * 1024

PATH: Final = string(4096)
STAT: Final = structure(Stat, *[INT64] * 11)
_ACL_ENTRY: Final = structure(Acl, integer(0, 31), string(64), string(1024))
ACL_LIST: Final = array(_ACL_ENTRY, 64, nullable=True)
MAX_STORED_ACL_ENTRIES: Final = 250
"""Entries of a stored list: an `auth` entry of a request stands for several."""
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
    """ZooKeeper's operation codes inside a multi and a multiRead."""

    CREATE: Final = 1
    DELETE: Final = 2
    GET_DATA: Final = 4
    SET_DATA: Final = 5
    GET_CHILDREN: Final = 8
    CHECK: Final = 13
    CREATE2: Final = 15
    """As CREATE; a jute client also gets the Stat. Container and TTL creates come as this."""


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


class ReadOp(NamedTuple):
    """One operation of a multiRead."""

    kind: int
    """`MultiKind.GET_DATA` or `MultiKind.GET_CHILDREN`."""
    path: str


class MultiReadRequest(NamedTuple):
    """Read several znodes as of one zxid."""

    ops: tuple[ReadOp, ...]


class ReadResult(NamedTuple):
    """Result of one operation of a multiRead; each one fails or succeeds by itself."""

    kind: int
    """The operation's kind, or -1 where it failed."""
    error_code: int
    data: bytes | None
    """For a GET_DATA."""
    stat: Stat | None
    """For a GET_DATA."""
    joined_names: bytes | None
    """For a GET_CHILDREN: the names, which have no `/`, joined by one."""


class MultiReadResponse(NamedTuple):
    """A result for each operation."""

    results: list[ReadResult]


class GetAclRequest(NamedTuple):
    """Read a znode's ACL list."""

    path: str


class GetAclResponse(NamedTuple):
    """The ACL list, digests masked for those without ADMIN (CVE-2019-0201), and the Stat."""

    acl: Sequence[Acl]
    stat: Stat


class SetAclRequest(NamedTuple):
    """Replace a znode's ACL list; `version` is compared with its aversion, -1 matches any."""

    path: str
    acl: tuple[Acl, ...] | None
    version: int


class PathRequest(NamedTuple):
    """A request about one path."""

    path: str


class GetEphemeralsResponse(NamedTuple):
    """The session's own ephemeral znodes below the prefix that was asked for."""

    paths: list[str]


class GetAllChildrenNumberResponse(NamedTuple):
    """Number of descendants."""

    number: int


class WatchesRequest(NamedTuple):
    """Ask for, or remove, the connection's watches on a path."""

    path: str
    watcher_type: int
    """A `WatcherType`."""


class AuthRequest(NamedTuple):
    """Add an identity to the connection."""

    scheme: str
    credential: bytes


class SaslToken(NamedTuple):
    """One token of a SASL exchange, in either direction."""

    token: bytes | None
    """Null only from a server without SASL, or one that keeps a client who failed."""


class ClientIdentity(NamedTuple):
    """An identity of a connection, without secrets."""

    scheme: str
    user: str


class WhoAmIResponse(NamedTuple):
    """All identities of the connection."""

    identities: tuple[ClientIdentity, ...]


class ReconfigRequest(NamedTuple):
    """Change the ensemble's members (ZooKeeper `reconfig`)."""

    joining_servers: str | None
    leaving_servers: str | None
    new_members: str | None
    config_version: int
    """-1 matches any."""


class SetWatchesRequest(NamedTuple):
    """Register watches again after a reconnect; what was missed fires at once."""

    relative_zxid: int
    """The last zxid this client has seen."""
    data_watches: list[str]
    exist_watches: list[str]
    child_watches: list[str]
    persistent_watches: list[str]
    persistent_recursive_watches: list[str]
    resume: bool
    """Every event that was missed, in order, instead of at most one for each watch; a watch whose
    gap is no longer in the server's history gets COMPACTED. False: as ZooKeeper."""


class AddWatchRequest(NamedTuple):
    """Register a persistent watch."""

    path: str
    mode: int
    """An `AddWatchMode`."""
    after_zxid: int
    """Events after this zxid come first, or COMPACTED where they are no longer known; -1: only
    what happens from now on."""


class WatchEvent(NamedTuple):
    """A watch fired. Sent before any reply that shows the change; its context is its zxid."""

    type: int
    """An `EventType`."""
    state: int
    """A `KeeperState`."""
    path: str


_VERSION: Final = INT32
_PATH_LIST: Final = long_list(PATH, MAX_WATCHES_PER_LIST, MAX_FRAME_BYTES)
_MULTI_OP: Final = structure(MultiOp, INT8, PATH, _ZNODE_DATA, ACL_LIST, INT32, INT64, _VERSION)
_NULLABLE_STAT: Final = structure(Stat, *[INT64] * 11, nullable=True)
_MULTI_RESULT: Final = structure(
    MultiResult, INT8, INT32, string(4096, nullable=True), _NULLABLE_STAT
)
_READ_RESULT: Final = structure(
    ReadResult,
    INT8,
    INT32,
    binary(MAX_DATA_BYTES, nullable=True),
    _NULLABLE_STAT,
    binary(MAX_LIST_BYTES, nullable=True),
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
MULTI_READ: Final = Api(
    1022,
    "MultiRead",
    Schema(MultiReadRequest, array(structure(ReadOp, INT8, PATH), MAX_MULTI_OPS)),
    Schema(MultiReadResponse, long_list(_READ_RESULT, MAX_MULTI_OPS, MAX_LIST_BYTES)),
)
GET_ACL: Final = Api(
    1006,
    "GetAcl",
    Schema(GetAclRequest, PATH),
    Schema(GetAclResponse, long_list(_ACL_ENTRY, MAX_STORED_ACL_ENTRIES, MAX_FRAME_BYTES), STAT),
)
SET_ACL: Final = Api(
    1007, "SetAcl", Schema(SetAclRequest, PATH, ACL_LIST, _VERSION), _STAT_RESPONSE
)
RECONFIG: Final = Api(
    1016,
    "Reconfig",
    Schema(
        ReconfigRequest,
        string(MAX_MEMBERS_BYTES, nullable=True),
        string(MAX_MEMBERS_BYTES, nullable=True),
        string(MAX_MEMBERS_BYTES, nullable=True),
        INT64,
    ),
    Schema(GetDataResponse, STAT, _ZNODE_DATA),
)
CHECK_WATCHES: Final = Api(1017, "CheckWatches", Schema(WatchesRequest, PATH, INT32), EMPTY)
REMOVE_WATCHES: Final = Api(1018, "RemoveWatches", Schema(WatchesRequest, PATH, INT32), EMPTY)
AUTH: Final = Api(
    1100, "Auth", Schema(AuthRequest, string(64), binary(MAX_CREDENTIAL_BYTES)), EMPTY
)
GET_EPHEMERALS: Final = Api(
    1103,
    "GetEphemerals",
    Schema(PathRequest, PATH),
    Schema(GetEphemeralsResponse, long_list(PATH, MAX_CHILDREN, MAX_LIST_BYTES)),
)
GET_ALL_CHILDREN_NUMBER: Final = Api(
    1104,
    "GetAllChildrenNumber",
    Schema(PathRequest, PATH),
    Schema(GetAllChildrenNumberResponse, INT32),
)
WHO_AM_I: Final = Api(
    1107,
    "WhoAmI",
    EMPTY,
    Schema(WhoAmIResponse, array(structure(ClientIdentity, string(64), string(1024)))),
)
SET_WATCHES: Final = Api(
    1105,
    "SetWatches",
    Schema(SetWatchesRequest, INT64, *[_PATH_LIST] * 5, BOOL),
    EMPTY,
)
ADD_WATCH: Final = Api(1106, "AddWatch", Schema(AddWatchRequest, PATH, INT32, INT64), EMPTY)
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
        MULTI_READ,
        GET_ACL,
        SET_ACL,
        RECONFIG,
        CHECK_WATCHES,
        REMOVE_WATCHES,
        AUTH,
        GET_EPHEMERALS,
        GET_ALL_CHILDREN_NUMBER,
        WHO_AM_I,
        SET_WATCHES,
        ADD_WATCH,
        CLOSE_SESSION,
    )
}

CREATE2_KEY: Final = 1015
"""Api key of a jute client's create2, createContainer and createTTL: CREATE, and the reply has the
Stat. Native clients always get it, so these keys are in no table of theirs."""
GET_CHILDREN2_KEY: Final = 1012
"""Api key of a jute client's getChildren2: GET_CHILDREN, and the reply has the Stat."""
SASL_KEY: Final = 1102
"""Api key of a jute client's SASL token (`SaslToken`)."""
