"""The bytes on the wire never change by accident, and WIRE.md tells the truth about them.

`tests/golden/wire.txt` holds every sample message; run this file as a script to write it anew
after a deliberate change (of an unreleased version only: released bytes are for ever).
"""

from __future__ import annotations

import re
from pathlib import Path

from duolog_protocol import zk_messages as zk
from duolog_protocol.apis import encode_error, encode_event
from duolog_protocol.preamble import PREAMBLE
from duolog_protocol.quorum_codec import (
    MAX_PEER_FRAME_BYTES,
    MAX_SMALL_FRAME_BYTES,
    encode_message,
)
from duolog_protocol.quorum_messages import (
    MAX_PROPOSAL_BYTES,
    PEER_MESSAGES,
    PEER_VERSION,
    HandshakeMessage,
)
from tests.unit.protocol.samples import ALL_APIS, PEER_SAMPLES, REQUESTS, RESPONSES

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests/golden/wire.txt"
WIRE = ROOT / "protocol/WIRE.md"


def all_bytes() -> dict[str, bytes]:
    """Name of the sample -> its frame."""
    found = {"preamble": PREAMBLE}
    of_older: dict[str, bytes] = {}
    for api in ALL_APIS:
        for index, request in enumerate(REQUESTS[api.key]):
            frame = b"".join(api.encode_request(1, request, 0))
            found[f"{api.name} {api.key} request {index}"] = frame
        for index, response in enumerate(RESPONSES[api.key]):
            frame = b"".join(api.encode_response(1, 1 << 32, response, 0))
            found[f"{api.name} {api.key} response {index}"] = frame
    found["error response"] = b"".join(encode_error(1, -101, 1 << 32, "no /a"))
    event = zk.WatchEvent(3, 3, "/a")
    found["WatchEvent 1 event"] = b"".join(
        encode_event(zk.WATCH_EVENT_KEY, 1 << 32, zk.WATCH_EVENT, event)
    )
    for message in PEER_SAMPLES:
        name = f"{type(message).__name__} {PEER_MESSAGES[type(message)].key} peer"
        index = sum(each.startswith(name) for each in found)
        context = 0 if isinstance(message, HandshakeMessage) else 1 << 32
        newest = b"".join(encode_message(message, context, PEER_VERSION))
        found[f"{name} {index}"] = newest
        for version in range(PEER_VERSION):
            older = b"".join(encode_message(message, context, version))
            if older != newest:
                of_older[f"{name} {index} version {version}"] = older
    return found | of_older


def test_no_message_has_changed() -> None:
    lines = GOLDEN.read_text().splitlines()
    golden = dict(line.split(": ") for line in lines)
    assert {name: frame.hex() for name, frame in all_bytes().items()} == golden


def test_the_worked_examples_of_the_specification_are_right() -> None:
    blocks = re.findall(r"```golden (.+)\n((?:.*\n)+?)```", WIRE.read_text())
    assert len(blocks) >= 5
    actual = all_bytes()
    for name, block in blocks:
        written = "".join(line.partition(";")[0] for line in block.splitlines())
        assert bytes.fromhex(written) == actual[name], name


def test_the_specification_lists_every_api_with_its_fields() -> None:
    text = WIRE.read_text()
    for api in ALL_APIS:
        row = re.search(rf"^\| {api.key} \| {api.name} \| (.*?) \| (.*?) \|", text, re.MULTILINE)
        assert row is not None, f"{api.name} is missing in WIRE.md"
        for schema, cell in ((api.request, row[1]), (api.response, row[2])):
            fields = [] if cell == "–" else [part.split(":")[0] for part in cell.split(", ")]
            assert fields == list(schema.cls._fields), (api.name, schema.cls.__name__)


def test_the_specification_lists_every_message_between_servers_with_its_fields() -> None:
    text = WIRE.read_text()
    for cls, (key, _) in PEER_MESSAGES.items():
        row = re.search(rf"^\| {key} \| {cls.__name__} \| (.*?) \|", text, re.MULTILINE)
        assert row is not None, f"{cls.__name__} is missing in WIRE.md"
        fields = [] if row[1] == "–" else row[1].split(", ")
        assert fields == list(cls._fields), cls.__name__
    for bound in (MAX_PEER_FRAME_BYTES, MAX_SMALL_FRAME_BYTES, MAX_PROPOSAL_BYTES):
        assert f"{bound:,}" in text, bound


if __name__ == "__main__":
    GOLDEN.write_text("".join(f"{name}: {frame.hex()}\n" for name, frame in all_bytes().items()))
