"""Real files: whole writes or an error, reads that say what memory holds, one owner per lock."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from duolog_protocol.errors import StorageError
from duolog_runtime import files as files_module
from duolog_runtime.files import MAX_BUFFERS, DirectoryLockedError, RealFile, RealFiles


@pytest.fixture
def files() -> RealFiles:
    return RealFiles()


@pytest.fixture
def file(files: RealFiles, tmp_path: Path) -> Any:
    opened = files.open(str(tmp_path / "log"), create=True)
    yield opened
    opened.close()


def test_what_is_written_is_read(file: RealFile) -> None:
    file.pwrite(b"hello", 0)
    file.pwritev([b" ", bytearray(b"wor"), memoryview(b"ld")], 5)
    assert file.pread(100, 0) == b"hello world"
    assert file.pread(3, 4) == b"o w"
    assert file.pread(10, 11) == file.pread(10, 500) == b""
    assert file.size() == 11
    file.pwritev([], 3)
    file.sync()


def test_a_write_behind_the_end_leaves_zeros(file: RealFile) -> None:
    file.pwrite(b"x", 4)
    assert file.pread(9, 0) == b"\0\0\0\0x"


def test_a_group_commit_of_more_buffers_than_a_system_call_takes(file: RealFile) -> None:
    buffers = [str(number).encode() for number in range(2 * MAX_BUFFERS + 7)]
    file.pwritev(buffers, 3)
    assert file.pread(1_000_000, 3) == b"".join(buffers)


def test_short_writes_are_finished(file: RealFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal or a nearly full disk may cut a write; the rest follows, wherever the cut is."""
    pwrite = os.pwrite

    def at_most_two(fd: int, data: Any, position: int) -> int:
        return pwrite(fd, bytes(data)[:2], position)

    def three_of_them(fd: int, buffers: Sequence[Any], position: int) -> int:
        return pwrite(fd, b"".join(buffers)[:3], position)

    monkeypatch.setattr(os, "pwrite", at_most_two)
    monkeypatch.setattr(os, "pwritev", three_of_them)
    file.pwrite(memoryview(b"abcdefg"), 0)
    file.pwritev([b"hi", b"jk", b"lmnop"], 7)
    assert file.pread(100, 0) == b"abcdefghijklmnop"


def test_a_full_disk_leaves_a_prefix_and_raises(
    file: RealFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    space = [5]

    def until_full(fd: int, data: Any, position: int) -> int:
        if not space[0]:
            raise OSError(errno.ENOSPC, "full")
        written = pwrite(fd, bytes(data)[: space[0]], position)
        space[0] -= written
        return written

    monkeypatch.setattr(os, "pwrite", until_full)
    monkeypatch.setattr(os, "pwritev", lambda fd, some, at: until_full(fd, b"".join(some), at))
    with pytest.raises(OSError, match="full") as caught:
        file.pwritev([b"abc", b"def", b"ghi"], 0)
    assert caught.value.errno == errno.ENOSPC
    assert file.pread(100, 0) == b"abcde"


def test_a_write_that_makes_no_progress_ends(
    file: RealFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", lambda fd, data, position: 0)
    with pytest.raises(OSError) as caught:
        file.pwrite(b"abc", 0)
    assert caught.value.errno == errno.ENOSPC


def test_short_reads_are_finished(file: RealFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.pwrite(b"abcdefgh", 0)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: pread(fd, min(size, 3), at))
    assert file.pread(7, 0) == b"abcdefg"
    assert file.pread(100, 2) == b"cdefgh"


def test_a_cached_read_is_the_truth_or_none(file: RealFile) -> None:
    """Whether this file system can tell is not ours to say; a wrong answer never is right."""
    file.pwrite(b"abcdef", 0)
    for size, position in ((3, 0), (6, 0), (100, 2), (5, 6), (5, 900), (0, 0)):
        data = file.pread_cached(size, position)
        assert data is None or data == file.pread(size, position)


def test_a_cached_read_that_is_short_in_the_middle_is_none(
    file: RealFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pages further on are not in memory: half an answer would look like the end."""
    file.pwrite(b"abcdef", 0)

    def two_bytes(fd: int, buffers: list[bytearray], position: int, flags: int) -> int:
        data = os.pread(fd, 2, position)
        buffers[0][: len(data)] = data
        return len(data)

    monkeypatch.setattr(os, "RWF_NOWAIT", 8, raising=False)
    monkeypatch.setattr(os, "preadv", two_bytes)
    assert file.pread_cached(6, 0) is None
    assert file.pread_cached(6, 4) == b"ef"
    assert file.pread_cached(2, 0) == b"ab"


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EOPNOTSUPP])
def test_a_cached_read_that_would_wait_or_is_not_supported_is_none(
    file: RealFile, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "RWF_NOWAIT", 8, raising=False)
    monkeypatch.setattr(os, "preadv", refuse)
    assert file.pread_cached(1, 0) is None


def test_a_cached_read_on_a_system_without_the_flag_is_none(
    file: RealFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "RWF_NOWAIT", raising=False)
    assert file.pread_cached(1, 0) is None


def test_preallocation_grows_with_zeros_and_never_cuts(file: RealFile) -> None:
    file.pwrite(b"abc", 0)
    file.preallocate(8)
    assert file.pread(100, 0) == b"abc\0\0\0\0\0"
    file.preallocate(2)
    assert file.size() == 8
    file.truncate(2)
    file.truncate(4)
    assert file.pread(100, 0) == b"ab\0\0"


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="asks Linux which blocks are on the disk; elsewhere a log only grows, as `Files` says",
)
def test_reserved_space_is_zeros_on_the_disk_and_what_is_skipped_is_not(file: RealFile) -> None:
    assert file.is_allocated()
    file.truncate(3_000_000)
    assert not file.is_allocated()
    file.truncate(2)
    file.pwrite(b"ab", 0)
    file.preallocate(2_500_000)
    assert file.is_allocated() and file.size() == 2_500_000
    assert file.pread(3_000_000, 0) == b"ab" + bytes(2_499_998)


def test_a_failed_sync_of_reserved_space_is_reported(
    file: RealFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EINVAL, "lost")

    monkeypatch.setattr(os, "posix_fallocate", lambda *_: None)
    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="lost"):
        file.preallocate(100)


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="needs posix_fadvise; without it `begin_sync` does nothing, and `sync` does it all",
)
def test_a_sync_may_be_begun_before_it_is_waited_for(
    file: RealFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def advise(_fd: int, position: int, size_bytes: int, _advice: int) -> None:
        asked.append((position, size_bytes))
        raise OSError(errno.EINVAL, "no")  # it is a hint

    monkeypatch.setattr(os, "posix_fadvise", advise)
    file.pwrite(b"abc", 0)
    file.begin_sync(0, 3)
    assert asked == [(0, 3)]
    monkeypatch.setattr(files_module, "_BEGIN_WRITE_BACK", None)
    file.begin_sync(0, 3)
    assert asked == [(0, 3)]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_preallocation_falls_back_where_it_is_not_supported(
    file: RealFile, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    file.preallocate(100)
    assert file.size() == 100
    monkeypatch.delattr(os, "posix_fallocate")
    file.preallocate(200)
    assert file.size() == 200


def test_preallocation_on_a_full_disk_raises(
    file: RealFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="full"):
        file.preallocate(100)


def test_a_failed_sync_is_reported(file: RealFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="broken"):
        file.sync()


def test_opening_creates_only_when_asked(files: RealFiles, tmp_path: Path) -> None:
    path = str(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        files.open(path)
    files.open(path, exclusive=True).close()
    with pytest.raises(FileExistsError):
        files.open(path, create=True, exclusive=True)
    with_content = files.open(path, create=True)
    with_content.pwrite(b"x", 0)
    with_content.close()
    reopened = files.open(path, create=True)
    assert reopened.size() == 1, "opening never cuts"
    reopened.close()
    reopened.close()
    with pytest.raises(OSError):
        reopened.pread(1, 0)


def test_names_come_and_go(files: RealFiles, tmp_path: Path) -> None:
    root = str(tmp_path)
    files.mkdir(f"{root}/data/deep")
    files.mkdir(f"{root}/data/deep")
    for name in ("b", "a", "c"):
        files.open(f"{root}/data/{name}", create=True).close()
    assert files.list(f"{root}/data") == ["a", "b", "c", "deep"]
    files.rename(f"{root}/data/a", f"{root}/data/b")
    files.unlink(f"{root}/data/c")
    files.sync_dir(f"{root}/data")
    assert files.list(f"{root}/data") == ["b", "deep"]
    with pytest.raises(OSError):
        files.rmdir(f"{root}/data")
    files.rmdir(f"{root}/data/deep")
    assert not files.exists(f"{root}/data/deep")
    assert files.exists(f"{root}/data/b")
    with pytest.raises(FileNotFoundError):
        files.list(f"{root}/nowhere")


def test_the_directory_of_a_bare_name_is_the_working_directory(
    files: RealFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files.mkdir("data")
    files.sync_dir(os.path.dirname("data"))
    assert files.exists(str(tmp_path / "data"))


def test_a_second_owner_is_refused_even_in_the_same_process(
    files: RealFiles, tmp_path: Path
) -> None:
    path = str(tmp_path / ".lock")
    held = files.lock(path)
    with pytest.raises(DirectoryLockedError, match=r"\.lock is locked") as caught:
        RealFiles().lock(path)
    assert isinstance(caught.value, StorageError)
    held.close()
    files.lock(path).close()


def test_a_file_system_without_locks_is_not_a_lock_that_somebody_holds(
    files: RealFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match="no locks available"):
        files.lock(str(tmp_path / ".lock"))


def test_a_durable_write_is_one_call_where_the_system_has_one(
    file: RealFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a write, then a sync, where it has none, or not for this file."""
    calls: list[str] = []
    pwritev, fdatasync = os.pwritev, os.fdatasync

    def write(fd: int, buffers: Sequence[Any], position: int, flags: int = 0) -> int:
        calls.append("through" if flags else "write")
        if flags and refuses:
            raise OSError(errno.EOPNOTSUPP, "not here")
        return pwritev(fd, buffers, position, flags)

    def sync(fd: int) -> None:
        calls.append("sync")
        fdatasync(fd)

    monkeypatch.setattr(os, "pwritev", write)
    monkeypatch.setattr(os, "fdatasync", sync)
    refuses = False
    file.pwritev_durably([b"ab", b"cd"], 1)
    if files_module._WRITE_THROUGH is not None:
        assert calls == ["through"]
    refuses = True
    calls.clear()
    file.pwritev_durably([b"ef"], 5)
    assert calls[-2:] == ["write", "sync"]
    monkeypatch.setattr(files_module, "_WRITE_THROUGH", None)
    calls.clear()
    file.pwritev_durably([b"gh"], 7)
    assert calls == ["write", "sync"]
    many = [b"."] * (MAX_BUFFERS + 1)
    file.pwritev_durably(many, 9)
    assert file.pread(10_000, 0) == b"\0abcdefgh" + b"".join(many)


def test_a_durable_write_that_is_cut_short_is_finished_and_synced(
    file: RealFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwritev = os.pwritev
    synced: list[int] = []

    def three_bytes(fd: int, buffers: Sequence[Any], position: int, flags: int = 0) -> int:
        return pwritev(fd, [b"".join(buffers)[:3]], position)

    monkeypatch.setattr(os, "pwritev", three_bytes)
    monkeypatch.setattr(os, "fdatasync", synced.append)
    file.pwritev_durably([b"ab", b"cdef"], 0)
    assert file.pread(100, 0) == b"abcdef"
    assert len(synced) == 1


def test_a_durable_write_that_fails_is_reported(
    file: RealFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int, buffers: Sequence[Any], position: int, flags: int = 0) -> int:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "pwritev", fail)
    with pytest.raises(OSError, match="broken"):
        file.pwritev_durably([b"a"], 0)
