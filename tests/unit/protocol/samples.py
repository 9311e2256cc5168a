"""One or more examples of every message; golden bytes and round trips are made of them."""

from __future__ import annotations

from typing import Any

from duolog_protocol import broker_messages as kb
from duolog_protocol import quorum_messages as quorum
from duolog_protocol import zk_messages as zk
from duolog_protocol.apis import (
    AnyApi,
    ApiVersionRange,
    ApiVersionsRequest,
    ApiVersionsResponse,
    Feature,
)
from duolog_protocol.long_requests import encode_fields
from duolog_protocol.types import OPEN_ACL_UNSAFE, Acl, Stat

STAT = Stat(
    czxid=(1 << 32) + 5,
    mzxid=(1 << 32) + 9,
    ctime=1_700_000_000_000,
    mtime=1_700_000_000_250,
    version=2,
    cversion=1,
    aversion=0,
    ephemeral_owner=0,
    data_length=5,
    num_children=1,
    pzxid=(1 << 32) + 7,
)
PASSWORD = bytes(range(16))
MULTI = (
    zk.MultiOp(zk.MultiKind.CHECK, "/a", None, None, 0, -1, 3),
    zk.MultiOp(zk.MultiKind.CREATE, "/a/b", b"xy", OPEN_ACL_UNSAFE, 1, -1, -1),
    zk.MultiOp(zk.MultiKind.SET_DATA, "/a", b"", None, 0, -1, -1),
    zk.MultiOp(zk.MultiKind.DELETE, "/c", None, None, 0, -1, -1),
)
MULTI_RESULTS = [
    zk.MultiResult(zk.MultiKind.CHECK, 0, None, None),
    zk.MultiResult(zk.MultiKind.CREATE, 0, "/a/b", STAT),
    zk.MultiResult(-1, -101, None, None),
]

ZK_REQUESTS: dict[int, list[Any]] = {
    18: [ApiVersionsRequest("duolog", "0.1.0")],
    1000: [zk.ConnectRequest(0, 10_000, 0, bytes(16), False)],
    1001: [
        zk.CreateRequest("/a", b"hello", OPEN_ACL_UNSAFE, 0, -1),
        zk.CreateRequest("/a/b-", None, None, 3, -1),
    ],
    1002: [zk.DeleteRequest("/a", -1)],
    1003: [zk.ExistsRequest("/a", True)],
    1004: [zk.GetDataRequest("/a", False)],
    1005: [zk.SetDataRequest("/a", b"hello", 1), zk.SetDataRequest("/a", None, -1)],
    1008: [zk.GetChildrenRequest("/", False)],
    1009: [zk.SyncRequest("/")],
    1011: [zk.Empty()],
    1013: [zk.CheckRequest("/a", 4)],
    1014: [zk.MultiRequest(MULTI), zk.MultiRequest(())],
    1006: [zk.GetAclRequest("/a")],
    1007: [zk.SetAclRequest("/a", (Acl(1, "digest", "bob:hash"),), -1)],
    1016: [
        zk.ReconfigRequest("server.4=10.0.0.4:2888:2888:observer;2181", None, None, -1),
        zk.ReconfigRequest(None, "3", None, 0x1_0000_0001),
    ],
    1017: [zk.WatchesRequest("/a", 3)],
    1018: [zk.WatchesRequest("/a", 2)],
    1022: [
        zk.MultiReadRequest(
            (
                zk.ReadOp(zk.MultiKind.GET_DATA, "/a"),
                zk.ReadOp(zk.MultiKind.GET_CHILDREN, "/"),
            )
        )
    ],
    1100: [zk.AuthRequest("digest", b"bob:secret")],
    1103: [zk.PathRequest("/")],
    1104: [zk.PathRequest("/a")],
    1105: [zk.SetWatchesRequest(1 << 32, ["/a"], ["/b"], ["/", "/c"], [], ["/d"], True)],
    1106: [zk.AddWatchRequest("/a", 1, -1)],
    1107: [zk.Empty()],
    1111: [zk.Empty()],
}
ZK_RESPONSES: dict[int, list[Any]] = {
    18: [
        ApiVersionsResponse(
            "zkserver",
            "0.1.0",
            (ApiVersionRange(18, 0, 0), ApiVersionRange(1004, 0, 0)),
            (Feature("zk.feature.level", 1),),
            1 << 21,
        )
    ],
    1000: [zk.ConnectResponse(10_000, 0x0100_0000_0000_0001, PASSWORD, False, 1)],
    1001: [zk.CreateResponse("/a", STAT)],
    1002: [zk.Empty()],
    1003: [zk.StatResponse(STAT)],
    1004: [zk.GetDataResponse(STAT, b"hello"), zk.GetDataResponse(STAT, None)],
    1005: [zk.StatResponse(STAT)],
    1008: [zk.GetChildrenResponse(STAT, ["a", "zookeeper"]), zk.GetChildrenResponse(STAT, [])],
    1009: [zk.SyncResponse("/")],
    1011: [zk.Empty()],
    1013: [zk.Empty()],
    1014: [zk.MultiResponse(MULTI_RESULTS), zk.MultiResponse([])],
    1006: [zk.GetAclResponse(list(OPEN_ACL_UNSAFE), STAT)],
    1007: [zk.StatResponse(STAT)],
    1016: [zk.GetDataResponse(STAT, b"version=100000001")],
    1017: [zk.Empty()],
    1018: [zk.Empty()],
    1022: [
        zk.MultiReadResponse(
            [
                zk.ReadResult(zk.MultiKind.GET_DATA, 0, b"hello", STAT, None),
                zk.ReadResult(zk.MultiKind.GET_CHILDREN, 0, None, None, b"a/b"),
                zk.ReadResult(-1, -101, None, None, None),
            ]
        )
    ],
    1100: [zk.Empty()],
    1103: [zk.GetEphemeralsResponse(["/a/e"])],
    1104: [zk.GetAllChildrenNumberResponse(12)],
    1105: [zk.Empty()],
    1106: [zk.Empty()],
    1107: [zk.WhoAmIResponse((zk.ClientIdentity("ip", "127.0.0.1"),))],
    1111: [zk.Empty()],
}
BROKER_REQUESTS: dict[int, list[Any]] = {
    0: [
        kb.ProduceRequest(
            None,
            -1,
            30_000,
            (
                kb.ProducePartition("events", 0, b"\x00batch-one"),
                kb.ProducePartition("events", 1, b"\x00batch-two"),
            ),
        )
    ],
    1: [
        kb.FetchRequest(
            *(-1, -1, 500, 1, 52_428_800, 0, 0, -1, ""),
            (kb.FetchPartition("events", 0, 3, 42, -1, -1, 1 << 20),),
        )
    ],
    2: [kb.ListOffsetsRequest(-1, 0, (kb.ListOffsetsPartition("events", 0, -1, -2),))],
    3: [kb.MetadataRequest(("events",), True, False), kb.MetadataRequest(None, False, False)],
    19: [
        kb.CreateTopicsRequest(
            [
                kb.NewTopicRequest(
                    "events",
                    -1,
                    -1,
                    (kb.ReplicaAssignment(0, (1, 2)),),
                    (kb.TopicConfig("retention.ms", "1000"), kb.TopicConfig("durability", None)),
                ),
            ],
            30_000,
            False,
        )
    ],
    20: [kb.DeleteTopicsRequest(("events",), 30_000)],
    22: [kb.InitProducerIdRequest(None, -1, -1, -1)],
    32: [kb.DescribeConfigsRequest(("events",))],
}
BROKER_RESPONSES: dict[int, list[Any]] = {
    0: [
        kb.ProduceResponse(
            (kb.ProducePartitionResponse("events", 0, 0, None, 42, -1, 0, -1, -1),),
        )
    ],
    1: [
        kb.FetchResponse(
            0,
            (
                kb.FetchPartitionResponse(
                    *("events", 0, 0, 43, 43, 0),
                    (kb.AbortedTransaction(7, 3),),
                    -1,
                    kb.EpochEndOffset(2, 40),
                    *(-1, -1),
                    b"\x00batch",
                ),
                kb.FetchPartitionResponse(*("events", 1, 1, -1, -1, -1), (), -1, None, -1, -1, b""),
            ),
        )
    ],
    2: [
        kb.ListOffsetsResponse(
            (kb.ListOffsetsPartitionResponse("events", 0, 0, -1, 0, 3),),
        )
    ],
    3: [
        kb.MetadataResponse(
            "AAAAAAAAAAAAAAAAAAAAAA",
            1,
            [kb.BrokerMetadata(1, "127.0.0.1", 9092, None)],
            [kb.TopicMetadata(0, "events", "BBBBBBBBBBBBBBBBBBBBBB", False)],
            [kb.PartitionMetadata(0, 0, 0, 1, 3, (1,), (1,), ())],
        )
    ],
    19: [
        kb.CreateTopicsResponse(
            (kb.CreateTopicResponse("events", "BBBBBBBBBBBBBBBBBBBBBB", 0, None, 1, 1),),
        )
    ],
    20: [
        kb.DeleteTopicsResponse((kb.DeleteTopicResponse("events", "", 3, "no such topic"),)),
    ],
    22: [kb.InitProducerIdResponse(1000, 0)],
    32: [
        kb.DescribeConfigsResponse(
            [
                kb.DescribeConfigsResult(
                    "events",
                    0,
                    None,
                    (kb.ConfigEntry("retention.ms", "1000", False, "how long to keep records"),),
                ),
            ]
        )
    ],
}
REQUESTS = ZK_REQUESTS | BROKER_REQUESTS
RESPONSES = ZK_RESPONSES | BROKER_RESPONSES
ALL_APIS: list[AnyApi] = list((zk.ZK_APIS | kb.BROKER_APIS).values())

_ZXID = (3 << 32) + 7
_VOTE = quorum.Vote(2, (2 << 32) + 9, 1)
PEER_SAMPLES: list[quorum.PeerMessage] = [
    quorum.PeerHello(2, 0xE5, quorum.PeerPurpose.LEARNER, 1, "zk-2.a", 7001),
    quorum.PeerWelcome(1, 1),
    quorum.PeerRefusal(2, "another ensemble"),
    quorum.Notification(quorum.PeerState.LOOKING, _VOTE, 5, True),
    quorum.Notification(quorum.PeerState.LOOKING, quorum.Vote(0, 0, 0), 0),
    quorum.FollowerInfo(2, 2, 1),
    quorum.LeaderInfo(3),
    quorum.AckEpoch(2, (2 << 32) + 9, True),
    quorum.Truncate((2 << 32) + 8),
    quorum.Proposal(
        *(_ZXID, _ZXID + 1),
        (_ZXID.to_bytes(8, "big") + b"one", (_ZXID + 1).to_bytes(8, "big")),
    ),
    quorum.NewLeader(3),
    quorum.NewLeaderAck(3),
    quorum.UpToDate((2 << 32) + 9),
    quorum.Ack(_ZXID),
    quorum.Commit(_ZXID),
    quorum.Ping(3),
    quorum.Pong(3),
    quorum.Requests(
        *(7, 0x1_0000_0002),
        (quorum.Identity("ip", "10.0.0.1"),),
        b"".join(zk.SET_DATA.encode_request(3, zk.SetDataRequest("/a", b"b", -1), 0)),
    ),
    quorum.Answers(7, (_ZXID, _ZXID), (quorum.RequestFailure(1, False, -112, "no", -1, 0),)),
    quorum.SessionsHeard((0x1_0000_0002,)),
    quorum.SessionTaken(0x1_0000_0002),
    quorum.SnapshotBegin(_ZXID),
    quorum.SnapshotChunk(b"chunk"),
    quorum.SnapshotEnd(_ZXID, 1, 0xE3069283),
    quorum.ChunkStored(),
    quorum.LongRequest(
        *(8, 0x1_0000_0002),
        tuple(quorum.Identity("digest", f"user{number}:x") for number in range(17)),
        *(zk.DELETE.key, encode_fields(zk.DeleteRequest("/a", -1))),
    ),
    quorum.HistoryStored(_ZXID),
]
