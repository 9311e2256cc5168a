"""Frames however they arrive: whole, byte by byte, cut anywhere, too long, or lying."""

from __future__ import annotations

import random

import pytest

from duolog_protocol.errors import FrameTooLargeError, RemoteProtocolError
from duolog_protocol.frames import Frame, FrameDecoder, encode_frame

SIZES = [0, 1, 7, 500, 65_535, 65_536, 70_000, 300_000, 1_500_000]


def content(frame: Frame) -> tuple[bytes, bytes]:
    buffer, header_start, header_end, end = frame
    return bytes(buffer[header_start:header_end]), bytes(buffer[header_end:end])


def encoded(header: bytes, attachment: bytes) -> bytes:
    return b"".join(encode_frame(header, (attachment,)))


def feed_in_pieces(decoder: FrameDecoder, stream: bytes, cuts: list[int]) -> list[Frame]:
    frames = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        frames += decoder.feed(stream[start:end])
    return frames


def test_frames_of_all_sizes_survive_any_way_of_arriving() -> None:
    rng = random.Random(1)
    sent = [(b"\x91%c" % (i % 100), rng.randbytes(size)) for i, size in enumerate(SIZES)]
    rng.shuffle(sent)
    stream = b"".join(encoded(*each) for each in sent)
    for round_ in range(30):
        cuts = sorted(rng.randrange(len(stream)) for _ in range(round_ * 3))
        decoder = FrameDecoder(1 << 21)
        assert [content(frame) for frame in feed_in_pieces(decoder, stream, cuts)] == sent
        assert decoder.pending_bytes == 0


def test_small_frames_byte_by_byte_and_cut_at_every_length() -> None:
    first, second = encoded(b"\x90", b"abc"), encoded(b"\x91\x01", b"")
    stream = first + second
    decoder = FrameDecoder(100)
    found = [content(frame) for byte in stream for frame in decoder.feed(bytes([byte]))]
    assert found == [(b"\x90", b"abc"), (b"\x91\x01", b"")]
    for cut in range(len(stream)):
        decoder = FrameDecoder(100)
        frames = decoder.feed(stream[:cut])
        assert len(frames) == (cut >= len(first))
        assert decoder.pending_bytes == cut - (len(first) if frames else 0)
        assert len(frames) + len(decoder.feed(stream[cut:])) == 2


def test_a_length_over_the_limit_is_refused_before_its_bytes_come() -> None:
    assert FrameDecoder(100).feed(encoded(b"\x90", bytes(95)))
    with pytest.raises(FrameTooLargeError, match="101 bytes is over the limit of 100"):
        FrameDecoder(100).feed((101).to_bytes(4, "big"))
    with pytest.raises(FrameTooLargeError):
        FrameDecoder(100).feed(b"\xff\xff\xff\xff\x00")


@pytest.mark.parametrize("header_bytes", [0, 5, 64 * 1024 + 1, (1 << 32) - 1])
def test_a_header_length_that_does_not_fit_is_refused(header_bytes: int) -> None:
    frame = (8).to_bytes(4, "big") + header_bytes.to_bytes(4, "big") + bytes(4)
    with pytest.raises(RemoteProtocolError, match="claims a header"):
        FrameDecoder(1 << 20).feed(frame)


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_frame_too_short_for_its_own_prefix_is_refused(length: int) -> None:
    with pytest.raises(RemoteProtocolError):
        FrameDecoder(1 << 20).feed(length.to_bytes(4, "big") + bytes(40))


def test_a_peer_that_only_claims_a_length_gets_no_memory_for_it() -> None:
    decoder = FrameDecoder(100 << 20)
    decoder.feed((100 << 20).to_bytes(4, "big") + (4).to_bytes(4, "big") + bytes(100_000))
    assert len(decoder.get_buffer()) <= 1 << 20


def test_connections_of_one_loop_may_share_their_scratch_buffer() -> None:
    scratch = memoryview(bytearray(64))
    one, two = FrameDecoder(1000, scratch), FrameDecoder(1000, scratch)
    a, b = encoded(b"\x90", b"a" * 200), encoded(b"\x90", b"b" * 200)
    found = []
    for at in range(0, len(a), 10):
        found += one.feed(a[at : at + 10])
        found += two.feed(b[at : at + 10])
    assert [content(frame)[1] for frame in found] == [b"a" * 200, b"b" * 200]
