"""Requests that a learner forwards, whatever their length."""

from __future__ import annotations

import pytest

from duolog_protocol import zk_messages as zk
from duolog_protocol.apis import AnyApi
from duolog_protocol.errors import DecodeError
from duolog_protocol.long_requests import (
    MAX_SHORT_REQUEST_BYTES,
    decode_fields,
    encode_fields,
    is_short,
)
from duolog_protocol.quorum_codec import decode_message, encode_message
from duolog_protocol.quorum_messages import (
    MAX_IDENTITIES,
    MAX_IDENTITY_BYTES,
    Identity,
    LongRequest,
    Requests,
)
from duolog_protocol.types import OPEN_ACL_UNSAFE
from tests.unit.protocol.samples import REQUESTS
from tests.unit.protocol.test_quorum_messages import frame_of

FORWARDED = (
    zk.CONNECT,
    zk.CREATE,
    zk.DELETE,
    zk.SET_DATA,
    zk.SET_ACL,
    zk.CHECK,
    zk.MULTI,
    zk.RECONFIG,
)


@pytest.mark.parametrize("api", FORWARDED, ids=lambda each: each.name)
def test_every_request_that_is_forwarded_survives(api: AnyApi) -> None:
    for request in REQUESTS[api.key]:
        found = decode_fields(api.key, encode_fields(request))
        assert (found, type(found)) == (request, type(request))


def test_nothing_but_the_count_of_operations_and_acls_is_bounded() -> None:
    op = zk.MultiOp(zk.MultiKind.CREATE, "/" + "é" * 9_999, bytes(9_999), OPEN_ACL_UNSAFE, 0, 1, 1)
    request = zk.MultiRequest((op,) * zk.MAX_MULTI_OPS)
    assert decode_fields(zk.MULTI.key, encode_fields(request)) == request
    with pytest.raises(DecodeError, match="MultiRequest"):
        decode_fields(zk.MULTI.key, encode_fields((("/a",) * 2,)))
    with pytest.raises(DecodeError):
        decode_fields(zk.MULTI.key, encode_fields(((op,) * (zk.MAX_MULTI_OPS + 1),)))


def test_what_is_short_fits_a_native_frame() -> None:
    path = "/" + "é" * ((MAX_SHORT_REQUEST_BYTES - 6) // 2)
    request = zk.DeleteRequest(path, -1)
    size = len(encode_fields(request))
    assert size == MAX_SHORT_REQUEST_BYTES
    assert is_short(zk.DELETE.key, request, size)
    assert not is_short(zk.DELETE.key, request, size + 1)
    for size, short in ((zk.PASSWORD_BYTES, True), (zk.PASSWORD_BYTES + 1, False)):
        connect = zk.ConnectRequest(0, 1, 0, bytes(size), False)
        assert is_short(zk.CONNECT.key, connect, len(encode_fields(connect))) == short


@pytest.mark.parametrize("count", [0, 16, 17, MAX_IDENTITIES])
def test_all_identities_that_a_client_may_have_fit(count: int) -> None:
    identities = (Identity("s" * 64, "é" * (MAX_IDENTITY_BYTES // 2)),) * count
    for message in (
        Requests(1 << 60, 1 << 60, identities, bytes(9_999)),
        LongRequest(1 << 60, 1 << 60, identities, zk.DELETE.key, bytes(99_999)),
    ):
        assert decode_message(frame_of(encode_message(message, 1 << 60, 0)), 0)[0] == message
