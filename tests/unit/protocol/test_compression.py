"""Codecs: what other clients write is read, and nothing yields more than it may."""

from __future__ import annotations

import gzip
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import cramjam
import pytest

from duolog_protocol.compression import Codec, DecompressionError, compress, decompress

CODECS = [codec for codec in Codec if codec is not Codec.NONE]
TEXT = b"to be or not to be, that is the question. " * 60
MIB = 1 << 20


@pytest.mark.parametrize("codec", Codec)
def test_every_size_round_trips_around_the_sizes_of_blocks(codec: Codec) -> None:
    rng = random.Random(1)
    for size in (1, 100, 32767, 32768, 32769, 65535, 65536, 65537, 300_000):
        for data in (rng.randbytes(size), (TEXT * (size // len(TEXT) + 1))[:size]):
            packed = compress(codec, data)
            assert decompress(codec, packed) == data
            assert decompress(codec, memoryview(packed), size) == data


@pytest.mark.parametrize("codec", CODECS)
def test_the_bound_holds_to_the_byte(codec: Codec) -> None:
    packed = compress(codec, TEXT)
    assert decompress(codec, packed, len(TEXT)) == TEXT
    for less in (1, 2, 1000):
        with pytest.raises(DecompressionError, match="more than"):
            decompress(codec, packed, len(TEXT) - less)


@pytest.mark.parametrize("codec", CODECS)
def test_cut_at_every_length_it_is_damaged_or_short(codec: Codec) -> None:
    packed = compress(codec, TEXT * 20)
    for cut in range(len(packed)):
        try:
            short = decompress(codec, packed[:cut], MIB)
        except DecompressionError:
            continue
        assert codec is Codec.SNAPPY and len(short) < 20 * len(TEXT)  # cut between two blocks


def test_lz4_blocks_are_independent_as_java_demands() -> None:
    packed = compress(Codec.LZ4, TEXT * 60)
    assert packed.startswith(bytes.fromhex("04224d18604082"))
    assert packed.endswith(bytes(4))
    incompressible = random.Random(2).randbytes(70_000)
    assert len(compress(Codec.LZ4, incompressible)) < 70_000 + 32


def test_what_librdkafka_and_java_call_snappy_are_both_read() -> None:
    bare = bytes(cramjam.snappy.compress_raw(TEXT))
    assert decompress(Codec.SNAPPY, bare) == TEXT
    packed = compress(Codec.SNAPPY, TEXT * 30)
    assert packed.startswith(b"\x82SNAPPY\0" + b"\0\0\0\1" * 2)
    assert decompress(Codec.SNAPPY, packed) == TEXT * 30
    with pytest.raises(DecompressionError):
        decompress(Codec.SNAPPY, packed + b"\0\0\0\0")
    with pytest.raises(DecompressionError):
        decompress(Codec.SNAPPY, packed + b"\xff\xff\xff\xffx")


def test_frames_of_other_writers_are_read() -> None:
    stream = cramjam.zstd.Compressor(level=1)  # streamed, so it does not say its content's size
    stream.compress(TEXT * 100)
    assert decompress(Codec.ZSTD, bytes(stream.finish())) == TEXT * 100
    assert decompress(Codec.LZ4, bytes(cramjam.lz4.compress(TEXT * 100))) == TEXT * 100
    assert decompress(Codec.GZIP, gzip.compress(TEXT)) == TEXT
    for size in (0, 1, 255, 256, 65791, 65792):  # each width of zstd's content size
        assert decompress(Codec.ZSTD, bytes(cramjam.zstd.compress(bytes(size)))) == bytes(size)


def bomb(codec: Codec, size: int) -> bytes:
    """A few bytes that yield very many."""
    zeros = bytes(size)
    if codec is Codec.SNAPPY:
        return bytes(cramjam.snappy.compress_raw(zeros))
    return compress(codec, zeros)


@pytest.mark.parametrize("codec", CODECS)
def test_a_bomb_costs_no_more_than_the_bound(codec: Codec) -> None:
    packed = bomb(codec, 64 * MIB)
    tracemalloc.start()
    try:
        with pytest.raises(DecompressionError, match="more than 1048576 bytes"):
            decompress(codec, packed, MIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * MIB + 2 * len(packed)


CHILD = """
import resource, sys
import cramjam
from duolog_protocol.compression import Codec, DecompressionError, decompress
decompress(Codec.ZSTD, bytes(cramjam.zstd.compress(b"warm")))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for line in sys.stdin:
    codec, packed = line.split()
    try:
        decompress(Codec[codec], bytes.fromhex(packed), 1 << 20)
    except DecompressionError:
        continue
    sys.exit(f"{codec} was accepted")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_the_libraries_allocate_no_more_than_the_bound_either() -> None:
    """Memory that is not Python's: seen from outside, with sizes that lie upwards too."""
    bombs = [(codec, bomb(codec, 16 * MIB)) for codec in CODECS]
    bombs.append((Codec.ZSTD, b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 7 + b"\x7f" + bytes(30)))
    bombs.append((Codec.ZSTD, b"\x28\xb5\x2f\xfd\x00\x88" + b"\x02\x00\x40\x00" * 500))
    bombs.append((Codec.SNAPPY, b"\xff\xff\xff\xff\x0f" + bytes(1000)))
    bombs.append((Codec.SNAPPY, b"\x80\x80\x40" + bytes(20_000)))
    lines = "".join(f"{codec.name} {packed.hex()}\n" for codec, packed in bombs)
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=lines,
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).resolve().parents[3] / "protocol",
    )
    assert done.returncode == 0, done.stderr
    grown_kib = int(done.stdout)
    if sys.platform == "linux":
        assert grown_kib < 16 * 1024, grown_kib


def test_declared_sizes_are_not_believed() -> None:
    """Too large, too small, for zstd, lz4 and snappy."""
    frame = bytearray(bytes(cramjam.zstd.compress(TEXT * 40)))
    assert frame[4] >> 6 == 1 or frame[4] >> 6 == 2
    for claim in (0, 1, 255, 65535):
        frame[5:7] = claim.to_bytes(2, "little")
        with pytest.raises(DecompressionError):
            decompress(Codec.ZSTD, frame, MIB)
    block = bytes(cramjam.lz4.compress_block(TEXT, store_size=False))
    body = len(block).to_bytes(4, "little") + block + bytes(4)
    accepted = 0
    for claim in (1, len(TEXT) - 1, 1 << 40):
        for checksum in range(256):  # one of them is right
            head = bytes.fromhex("04224d186840") + claim.to_bytes(8, "little")
            try:
                assert decompress(Codec.LZ4, head + bytes((checksum,)) + body, MIB) == TEXT
                accepted += 1
            except DecompressionError:
                pass
    assert accepted <= 3
    raw = bytearray(bytes(cramjam.snappy.compress_raw(TEXT)))
    raw[0] ^= 1
    with pytest.raises(DecompressionError):
        decompress(Codec.SNAPPY, raw)


def test_a_bomb_inside_a_bomb_is_opened_once() -> None:
    inner = gzip.compress(bytes(4 * MIB))
    assert decompress(Codec.GZIP, gzip.compress(inner), MIB) == inner


def test_bytes_behind_the_end_are_refused() -> None:
    for codec in (Codec.GZIP, Codec.LZ4, Codec.ZSTD):
        with pytest.raises(DecompressionError):
            decompress(codec, compress(codec, TEXT) + b"rest", MIB)


@pytest.mark.parametrize("codec", CODECS)
def test_damaged_input_never_raises_anything_else(codec: Codec) -> None:
    rng = random.Random(codec)
    packed = compress(codec, TEXT + rng.randbytes(500))
    for _ in range(700):
        damaged = bytearray(packed)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(min(len(damaged), 40))] = rng.randrange(256)
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            assert len(decompress(codec, damaged, MIB)) <= MIB
        except DecompressionError:
            continue
