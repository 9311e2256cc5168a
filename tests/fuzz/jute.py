"""Fuzzing what ZooKeeper clients send: mutated sessions into the decoder, and on into a core.

Everything follows from a seed. For each input:

- decoding never raises, whatever came, and gives values of the right types;
- the same bytes cut at other places give the same requests;
- what is made of the input is bounded by its size;
- with a core behind it, no request stops the core, and one that was refused changes no state.

A failure names the seed of its block; `python -m tests.fuzz --seed N --inputs 64` plays it again.
"""

from __future__ import annotations

import random
import sys
import tracemalloc
from collections import Counter

from duolog_protocol.jute_codec import JuteCodec
from duolog_protocol.jute_decoder import JuteDecoder, JuteRequest
from duolog_protocol.zk_codec import REFUSED, Refusal
from tests.jute_support import connect_request, encode, request
from tests.unit.protocol.jute_samples import SAMPLES
from zkserver.core.config import CoreConfig
from zkserver.core.connection import Connection
from zkserver.core.core import ZkCore
from zkserver.core.events import Append, ConnectionLost, Durable, Effect, Received

BLOCK = 64
"""Inputs that share a random source, and of which one has its memory measured."""
LIMIT = 4096
"""Longest frame; small, so that the limit is met."""
_BASE_BYTES = 128 * 1024
_BYTES_PER_BYTE = 40
"""The worst body is a multi of many small operations: a tuple of seven for each 17 bytes."""
_INTERESTING = [0, 1, 2, 4, 7, 8, 11, 12, 13, 14, 64, 255, 256, LIMIT, LIMIT + 1, 65_536, 2**31 - 1]
_INTERESTING += [-1, -2, -4, -8, -11, -12, -(2**31)]

_FRAMES = [encode(xid, op, message) for xid, (op, _, message) in enumerate(SAMPLES)]
_FRAMES += [request(-2, 11), request(5, 77, b"x"), request(6, 13, b"\x00\x00\x00\x02/a" + bytes(4))]
_CONNECTS = [connect_request(), connect_request(read_only=None), connect_request(password=None)]


def fuzz(seed: int, inputs: int, *, with_core: bool = True) -> Counter[str]:
    """Play inputs and return how often each outcome came. Raises AssertionError."""
    outcomes: Counter[str] = Counter()
    for block in range(-(-inputs // BLOCK)):
        block_seed = seed + block
        rng = random.Random(block_seed)
        core = Target(block_seed) if with_core else None
        try:
            for index in range(min(BLOCK, inputs - block * BLOCK)):
                _play(rng, outcomes, core, measured=index == 0)
            if core is not None:
                core.check()
        except Exception as error:
            error.add_note(f"replay: python -m tests.fuzz --seed {block_seed} --inputs {BLOCK}")
            raise
    return outcomes


def _play(
    rng: random.Random, outcomes: Counter[str], core: Target | None, *, measured: bool
) -> None:
    stream = _stream(rng)
    if measured:
        tracemalloc.start()
        base = tracemalloc.get_traced_memory()[0]
    decoder = JuteDecoder(LIMIT)
    requests = decoder.feed(stream)
    if measured:
        peak = tracemalloc.get_traced_memory()[1] - base
        tracemalloc.stop()
        bound = sys.getsizeof(bytearray(256 * 1024)) + _BASE_BYTES + _BYTES_PER_BYTE * len(stream)
        assert peak < bound, (peak, bound, stream)
    _check_types(requests, stream)
    _check_split(rng, stream, requests)
    outcomes["inputs"] += 1
    for api_key, _, message in requests:
        if api_key == REFUSED:
            outcomes[f"refused {message.code}{' and closed' if message.closes else ''}"] += 1
        else:
            outcomes["accepted"] += 1
    if decoder.pending_bytes:
        outcomes["incomplete"] += 1
    if core is not None:
        core.take(decoder, requests)


def _check_types(requests: list[JuteRequest], stream: bytes) -> None:
    assert len(requests) <= 1 + len(stream) // 12, (len(requests), len(stream))
    for api_key, xid, message in requests:
        assert type(api_key) is int, api_key
        assert -(1 << 31) <= xid < 1 << 31, xid
        assert isinstance(message, tuple), message
        if api_key == REFUSED:
            assert type(message) is Refusal, message
            assert message.code or message.closes, message


def _check_split(rng: random.Random, stream: bytes, requests: list[JuteRequest]) -> None:
    cut = JuteDecoder(LIMIT, _SCRATCH)
    again: list[JuteRequest] = []
    position = 0
    while position < len(stream):
        size = rng.choice((1, 3, 11, 17, 40, 200, 5000))
        again += cut.feed(stream[position : position + size])
        position += size
    assert again == requests, (stream, again, requests)


_SCRATCH = memoryview(bytearray(64))
"""Smaller than most frames: a read is cut by the buffer, too."""


def _stream(rng: random.Random) -> bytes:
    """A session of a few requests, mutated in a few places."""
    frames = [rng.choice(_CONNECTS)] + [rng.choice(_FRAMES) for _ in range(rng.randrange(1, 5))]
    kind = rng.randrange(8)
    if kind == 0:
        return _noise(rng, b"".join(frames[:1]))
    if kind == 1:
        return b"".join(frames)
    at = rng.randrange(1, len(frames)) if rng.randrange(8) else 0
    data = bytearray(frames[at])
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _mutate(rng, data)
    if rng.randrange(3) and len(data) >= 4:
        data[:4] = (len(data) - 4).to_bytes(4, "big")
    frames[at] = bytes(data)
    return b"".join(frames)


def _noise(rng: random.Random, before: bytes) -> bytes:
    noise = rng.randbytes(rng.randrange(1, 60))
    if rng.randrange(2):
        code = rng.choice((1, 2, 4, 5, 6, 7, 14, 22, 100, 101, 105, rng.randrange(256)))
        noise = request(rng.getrandbits(31), code, noise)
    return before + noise if rng.randrange(4) else noise


def _mutate(rng: random.Random, data: bytearray) -> None:
    if not data:
        return
    at = rng.randrange(len(data))
    match rng.randrange(6):
        case 0:
            data[at] ^= 1 << rng.randrange(8)
        case 1:
            data[at : at + 4] = rng.choice(_INTERESTING).to_bytes(4, "big", signed=True)
        case 2:
            del data[at : at + rng.choice((1, 4, 9, 1000))]
        case 3:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 30)))
        case 4:
            other = rng.choice(_FRAMES)
            data[at:] = other[rng.randrange(len(other)) :]
        case _:
            data[at:at] = data[at : at + rng.choice((4, 12, 60))] * rng.choice((1, 2, 80))


class Target:
    """A core behind the decoder, its log always durable at once."""

    def __init__(self, seed: int) -> None:
        self.core = ZkCore(CoreConfig(), random.Random(seed))
        self.log: list[bytes] = []
        self._settle(self.core.start(1, 0, 0))

    def take(self, decoder: JuteDecoder, requests: list[JuteRequest]) -> None:
        """One connection's life."""
        core = self.core
        connection = Connection(JuteCodec(decoder), "fuzz")
        for each in requests:
            before = (core.last_applied_zxid, len(self.log))
            self._settle(core.step(Received(connection, [each], 1000), 0))
            if each[0] == REFUSED:
                assert (core.last_applied_zxid, len(self.log)) == before, each
        self._settle(core.step(ConnectionLost(connection), 0))

    def _settle(self, effects: list[Effect]) -> None:
        while effects:
            appends = [effect for effect in effects if type(effect) is Append]
            effects = []
            for append in appends:
                self.log += append.records
                effects += self.core.step(Durable(append.last_zxid), 0)

    def check(self) -> None:
        """Everything that is kept twice agrees, and what was logged can be read back."""
        self.core.check_invariants()
        again = ZkCore(CoreConfig(), random.Random(0))
        for record in self.log:
            again.replay(record)
        assert again.last_applied_zxid == self.core.last_applied_zxid
        assert list(again.state.tree.nodes) == list(self.core.state.tree.nodes)
