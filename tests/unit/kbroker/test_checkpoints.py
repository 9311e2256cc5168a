"""The small files of a log directory: texts as Kafka writes them, old or new but never half."""

from __future__ import annotations

import random

import pytest

from duolog_protocol.errors import DataDirectoryError
from duolog_protocol.types import TopicPartition
from kbroker.storage import checkpoints as files_of
from kbroker.storage.checkpoints import (
    CheckpointFormatError,
    LogDirCheckpoints,
    MetaProperties,
    OffsetCheckpoint,
)
from tests.unit.kbroker.storage_support import MemoryFiles

A, B = TopicPartition("a", 0), TopicPartition("b", 11)
META = MetaProperties(3, "cluster", "dir")


def text(files: MemoryFiles, path: str) -> bytes:
    return bytes(files.nodes[path].data)


def with_file(path: str, data: bytes) -> MemoryFiles:
    files = MemoryFiles()
    files.open(path, create=True).pwrite(data, 0)
    return files


def test_an_offset_checkpoint_is_kafkas_text_and_reads_back() -> None:
    files = MemoryFiles()
    checkpoint = OffsetCheckpoint(files, "d/c")
    checkpoint.stage(B, 7)
    checkpoint.stage(A, 2**40)
    assert checkpoint.written == {}
    checkpoint.write()
    assert text(files, "d/c") == b"0\n2\na 0 1099511627776\nb 11 7\n"
    assert OffsetCheckpoint(files, "d/c").written == {A: 2**40, B: 7}
    checkpoint.stage(B, None)
    checkpoint.write()
    assert OffsetCheckpoint(files, "d/c").written == {A: 2**40}


def test_lowering_holds_against_a_higher_value_that_was_staged() -> None:
    files = MemoryFiles()
    checkpoint = OffsetCheckpoint(files, "d/c")
    checkpoint.stage(A, 50)
    checkpoint.write()
    checkpoint.stage(A, 80)
    checkpoint.lower(A, 60)
    checkpoint.write()
    assert checkpoint.written == {A: 60}
    checkpoint.lower(A, 20)
    assert OffsetCheckpoint(files, "d/c").written == {A: 20}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"0",
        b"0\n",
        b"1\n0\n",
        b"0\n1\n",
        b"0\n1\na 0 5",
        b"0\n1\na 0\n",
        b"0\n1\na 0 x\n",
        b"0\n2\na 0 5\n",
        b"0\n1\na 0 5\nb 0 5\n",
        b"0\n-1\n",
        b"\xff\xfe",
        bytes(40),
    ],
)
def test_a_damaged_checkpoint_names_file_and_line(data: bytes) -> None:
    with pytest.raises(CheckpointFormatError, match="d/c, line"):
        OffsetCheckpoint(with_file("d/c", data), "d/c")


@pytest.mark.parametrize("seed", range(30))
def test_after_power_loss_a_checkpoint_is_old_or_new(seed: int) -> None:
    files = MemoryFiles()
    all_of = LogDirCheckpoints(files, "d")
    one = all_of.partition(A)
    one.stage(recovery_point=5, log_start_offset=1)
    all_of.write()
    for free_bytes in (None, 3):
        files.free_bytes = free_bytes
        one.stage(recovery_point=9, log_start_offset=2)
        try:
            all_of.write()
        except OSError:
            assert free_bytes is not None
        lost = LogDirCheckpoints(files.after_power_loss(random.Random(seed)), "d").partition(A)
        assert (lost.recovery_point, lost.log_start_offset) == (9, 2)


def test_a_deleted_partition_leaves_no_line_for_the_next_of_its_name() -> None:
    files = MemoryFiles()
    all_of = LogDirCheckpoints(files, "d")
    all_of.partition(A).stage(recovery_point=5, log_start_offset=1)
    all_of.partition(A).stage_high_watermark(4)
    all_of.write()
    assert LogDirCheckpoints(files, "d").partition(A).high_watermark == 4
    all_of.partition(A).forget()
    again = LogDirCheckpoints(files, "d").partition(A)
    assert (again.recovery_point, again.log_start_offset, again.high_watermark) == (0, None, 0)


def test_meta_properties_say_whose_directory_it_is() -> None:
    files = MemoryFiles()
    assert files_of.read_meta_properties(files, "d") is None
    files_of.write_meta_properties(files, "d", META)
    assert (
        text(files, "d/meta.properties")
        == b"version=0\nbroker.id=3\ncluster.id=cluster\ndirectory.id=dir\n"
    )
    found = files_of.read_meta_properties(files, "d")
    assert found == META
    files_of.check_meta_properties(found, directory="d", broker_id=3, cluster_id="cluster")
    for broker_id, cluster_id in ((4, "cluster"), (3, "other")):
        with pytest.raises(DataDirectoryError, match="d belongs to"):
            files_of.check_meta_properties(
                found, directory="d", broker_id=broker_id, cluster_id=cluster_id
            )


def test_meta_properties_of_another_version_or_form_are_refused() -> None:
    path = "d/meta.properties"
    with pytest.raises(DataDirectoryError, match="version '1'"):
        files_of.read_meta_properties(with_file(path, b"version=1\nnode.id=3\n"), "d")
    for data in (b"version=0\nbroker.id=x\ncluster.id=c\n", b"version=0\n", b"version\n"):
        with pytest.raises(CheckpointFormatError):
            files_of.read_meta_properties(with_file(path, data), "d")
    comments = b"#\n# Mon\nversion=0\nbroker.id=3\ncluster.id=c\n"
    assert files_of.read_meta_properties(with_file(path, comments), "d") == MetaProperties(
        3, "c", ""
    )


def test_the_clean_shutdown_mark_is_taken_once_and_durably() -> None:
    files = MemoryFiles()
    assert files_of.take_clean_shutdown(files, "d") is None
    files_of.write_clean_shutdown(files, "d", 42)
    assert text(files, "d/.kafka_cleanshutdown") == b'{"version":0,"brokerEpoch":42}'
    assert files_of.take_clean_shutdown(files, "d") == 42
    lost = files.after_power_loss(random.Random(1))
    assert files_of.take_clean_shutdown(lost, "d") is None


@pytest.mark.parametrize("data", [b"", b"{", b"\xff"])
def test_a_damaged_mark_means_an_unclean_start(data: bytes) -> None:
    files = with_file("d/.kafka_cleanshutdown", data)
    assert files_of.take_clean_shutdown(files, "d") is None
    assert not files.exists("d/.kafka_cleanshutdown")


def test_partition_metadata_binds_a_directory_to_a_topic_id() -> None:
    files = MemoryFiles()
    topic_id = "AAECAwQFBgcICQoLDA0ODw"
    assert files_of.read_partition_metadata(files, "d") is None
    files_of.write_partition_metadata(files, "d", topic_id)
    assert text(files, "d/partition.metadata") == f"version: 0\ntopic_id: {topic_id}\n".encode()
    assert files_of.read_partition_metadata(files, "d") == topic_id
    for data in (b"", b"version: 1\n", b"version: 0\n", b"version: 0\ntopic_id: short\n"):
        with pytest.raises(CheckpointFormatError):
            files_of.read_partition_metadata(with_file("d/partition.metadata", data), "d")
