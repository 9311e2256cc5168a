"""One request for each operation of ZooKeeper's protocol, and the message it becomes."""

from __future__ import annotations

from typing import Any

from duolog_protocol import zk_messages as zk
from duolog_protocol.types import OPEN_ACL_UNSAFE, Acl

DIGEST = (Acl(31, "world", "anyone"), Acl(5, "digest", "bob:hash="))
MULTI = zk.MultiRequest(
    (
        zk.MultiOp(1, "/a/b", b"xy", OPEN_ACL_UNSAFE, 2, -1, -1),
        zk.MultiOp(15, "/c", None, DIGEST, 4, -1, -1),
        zk.MultiOp(15, "/t", b"", None, 5, 60_000, -1),
        zk.MultiOp(5, "/a", None, None, 0, -1, 3),
        zk.MultiOp(2, "/a", None, None, 0, -1, -1),
        zk.MultiOp(13, "/é", None, None, 0, -1, 7),
    )
)
SET_WATCHES = zk.SetWatchesRequest(1 << 33, ["/a"], ["/b", "/c"], [], [], [], False)
SET_WATCHES2 = zk.SetWatchesRequest(-1, ["/a"], [], ["/"], ["/p"], ["/q", "/ü"], False)

SAMPLES: list[tuple[int, int, Any]] = [
    (1, 1001, zk.CreateRequest("/a", b"hello", OPEN_ACL_UNSAFE, 0, -1)),
    (1, 1001, zk.CreateRequest("/a/b-", None, None, 3, -1)),
    (1, 1001, zk.CreateRequest("/é", b"", DIGEST, 1, -1)),
    (15, 1015, zk.CreateRequest("/a", b"hello", OPEN_ACL_UNSAFE, 1, -1)),
    (15, 1015, zk.CreateRequest("/a", None, (), 0, -1)),
    (19, 1015, zk.CreateRequest("/a", b"", OPEN_ACL_UNSAFE, 4, -1)),
    (21, 1015, zk.CreateRequest("/a", b"x", OPEN_ACL_UNSAFE, 5, 1 << 40)),
    (2, 1002, zk.DeleteRequest("/a", -1)),
    (2, 1002, zk.DeleteRequest("/ü", 1 << 30)),
    (3, 1003, zk.ExistsRequest("/a", True)),
    (4, 1004, zk.GetDataRequest("/a", False)),
    (4, 1004, zk.GetDataRequest("/ünï/ćode", True)),
    (4, 1004, zk.GetDataRequest("", True)),
    (5, 1005, zk.SetDataRequest("/a", b"hello", 1)),
    (5, 1005, zk.SetDataRequest("/a", b"", -1)),
    (5, 1005, zk.SetDataRequest("/a", None, -(1 << 31))),
    (6, 1006, zk.GetAclRequest("/a")),
    (7, 1007, zk.SetAclRequest("/a", DIGEST, 4)),
    (7, 1007, zk.SetAclRequest("/a", None, -1)),
    (8, 1008, zk.GetChildrenRequest("/", False)),
    (12, 1012, zk.GetChildrenRequest("/", True)),
    (9, 1009, zk.SyncRequest("/a")),
    (14, 1014, MULTI),
    (14, 1014, zk.MultiRequest(())),
    (22, 1022, zk.MultiReadRequest((zk.ReadOp(4, "/a"), zk.ReadOp(8, "/")))),
    (22, 1022, zk.MultiReadRequest(())),
    (16, 1016, zk.ReconfigRequest("server.1=a", None, "", -1)),
    (17, 1017, zk.WatchesRequest("/a", 3)),
    (18, 1018, zk.WatchesRequest("/a", 2)),
    (100, 1100, zk.AuthRequest("digest", b"bob:secret")),
    (102, 1102, zk.SaslToken(b"")),
    (102, 1102, zk.SaslToken(b"token")),
    (101, 1105, SET_WATCHES),
    (105, 1105, SET_WATCHES2),
    (103, 1103, zk.PathRequest("/a")),
    (104, 1104, zk.PathRequest("/")),
    (106, 1106, zk.AddWatchRequest("/a", 1, -1)),
    (107, 1107, zk.Empty()),
    (-11, 1111, zk.Empty()),
]
"""(operation code, api key, message)."""
