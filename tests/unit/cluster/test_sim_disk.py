"""The simulated disk against naive models: what it may forget, must keep and refuses."""

from __future__ import annotations

import errno
import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from duolog_cluster.sim.disk import DiskFaults, PowerLoss, SimDisk
from duolog_runtime.files import DirectoryLockedError, File, Files, RealFiles, make_directory


def disk(seed: int = 1, **faults: Any) -> SimDisk:
    return SimDisk(random.Random(seed), DiskFaults(**faults))


def synced(files: SimDisk, path: str, data: bytes) -> File:
    """A file whose content and name are durable."""
    file = files.open(path, create=True)
    file.pwrite(data, 0)
    file.sync()
    files.sync_dir(path.rpartition("/")[0])
    return file


# A naive model of one file: every legal result of a crash, by brute force.


def put(content: bytes, position: int, data: bytes) -> bytes:
    content = content.ljust(position, b"\0")
    return content[:position] + data + content[position + len(data) :]


def legal_results(content: bytes, ops: list[tuple[str, int, bytes]]) -> set[bytes]:
    results = {content}
    for kind, position, data in ops:
        after = set(results)  # dropped
        for old in results:
            if kind == "truncate":
                after.add(old[:position].ljust(position, b"\0"))
            elif kind == "preallocate":
                after.add(old.ljust(position, b"\0"))
            else:
                after.add(put(old, position, data))
                for cut in range(1, len(data)):
                    left, right = data[:cut], data[cut:]
                    after.add(put(old, position, left))
                    after.add(put(old, position + cut, right))
                    after.add(put(old, position, left + bytes(len(right))))
                    after.add(put(old, position, bytes(len(left)) + right))
        results = after
    return results


def do(file: File, op: tuple[str, int, bytes]) -> None:
    kind, position, data = op
    if kind == "truncate":
        file.truncate(position)
    elif kind == "preallocate":
        file.preallocate(position)
    elif len(data) > 1:
        file.pwritev([data[:1], data[1:]], position)
    else:
        file.pwrite(data, position)


def random_op(rng: random.Random) -> tuple[str, int, bytes]:
    kind = rng.choice(["write", "write", "write", "truncate", "preallocate"])
    return kind, rng.randrange(6), bytes(rng.choices(b"abcdef", k=rng.randint(1, 3)))


@pytest.mark.parametrize("seed", range(400))
def test_a_crash_leaves_only_what_the_model_allows(seed: int) -> None:
    rng = random.Random(seed)
    files = disk(seed, garbage_rate=0.0, zeros_rate=0.3)
    content = bytes(rng.choices(b"xyz", k=rng.randrange(5)))
    file = synced(files, "/log", content)
    for _ in range(3):  # crash, go on with what is left, crash again
        ops = [random_op(rng) for _ in range(rng.randint(1, 4))]
        for op in ops:
            do(file, op)
        legal = legal_results(content, ops)
        files.crash()
        content = files.contents()["/log"]
        assert content in legal, (content, ops)
        file = files.open("/log")


def test_every_result_that_the_model_allows_happens() -> None:
    """A disk that only ever loses everything, or nothing, would find no bugs."""
    ops = [("write", 0, b"abc"), ("write", 2, b"de"), ("truncate", 1, b"")]
    legal = legal_results(b"__", ops)
    seen = set()
    for seed in range(8_000):
        files = disk(seed, drop_rate=0.5, tear_rate=0.5, garbage_rate=0.0, zeros_rate=0.4)
        file = synced(files, "/log", b"__")
        for op in ops:
            do(file, op)
        files.crash()
        seen.add(files.contents()["/log"])
    assert seen == legal


# A naive model of names.


NAMES = ["a", "b", "c"]


def apply_name(names: dict[str, bytes], op: tuple[str, ...]) -> dict[str, bytes]:
    names = dict(names)
    if op[0] == "create":
        names[op[1]] = op[2].encode()
    elif op[0] == "unlink":
        names.pop(op[1], None)
    else:
        content = op[3].encode()
        if names.get(op[1]) == content:
            del names[op[1]]
        names[op[2]] = content
    return names


def touched(op: tuple[str, ...]) -> set[str]:
    return {op[1], op[2]} if op[0] == "rename" else {op[1]}


def legal_names(names: dict[str, bytes], ops: list[tuple[str, ...]]) -> list[dict[str, bytes]]:
    legal = []
    for choice in itertools.product((True, False), repeat=len(ops)):
        lost: set[str] = set()
        result = names
        for op, kept in zip(ops, choice, strict=True):
            if not kept:
                lost |= touched(op)
            elif lost & touched(op):
                break  # it followed a lost one on the same name
            else:
                result = apply_name(result, op)
        else:
            legal.append(result)
    return legal


@pytest.mark.parametrize("seed", range(300))
def test_names_survive_apart_from_data_and_in_order_on_each_name(seed: int) -> None:
    rng = random.Random(seed)
    files = disk(seed)
    names: dict[str, bytes] = {}
    for name in NAMES:
        if rng.random() < 0.7:
            synced(files, f"/{name}", name.encode()).close()
            names[name] = name.encode()
    before = dict(names)
    ops: list[tuple[str, ...]] = []
    for number in range(rng.randint(1, 5)):
        name, other = rng.sample(NAMES, 2)
        if name not in names:
            content = f"new{number}"
            file = files.open(f"/{name}", create=True)
            file.pwrite(content.encode(), 0)
            file.sync()
            ops.append(("create", name, content))
        elif rng.random() < 0.3:
            files.unlink(f"/{name}")
            ops.append(("unlink", name))
        else:
            files.rename(f"/{name}", f"/{other}")
            ops.append(("rename", name, other, names[name].decode()))
        names = apply_name(names, ops[-1])
    assert files.contents() == {f"/{name}": names[name] for name in names}
    files.crash()
    after = {path[1:]: content for path, content in files.contents().items()}
    assert after in legal_names(before, ops), (before, ops, after)


# Stories.


def test_what_was_synced_with_its_name_stays() -> None:
    for seed in range(50):
        files = disk(seed)
        file = synced(files, "/log", b"durable")
        file.pwrite(b"!" * 10_000, 7)
        files.crash()
        assert files.contents()["/log"].startswith(b"durable")


def test_a_synced_file_whose_name_was_not_may_vanish() -> None:
    seen = set()
    for seed in range(50):
        files = disk(seed)
        file = files.open("/log", create=True)
        file.pwrite(b"x", 0)
        file.sync()
        files.crash()
        seen.add(files.contents().get("/log"))
    assert seen == {None, b"x"}


def test_a_rename_over_a_file_is_old_or_new() -> None:
    seen = set()
    for seed in range(100):
        files = disk(seed)
        synced(files, "/state", b"old")
        file = files.open("/state.tmp", create=True)
        file.pwrite(b"new", 0)
        file.sync()
        files.rename("/state.tmp", "/state")
        files.crash()
        seen.add(files.contents()["/state"])
    assert seen == {b"old", b"new"}


def test_a_rename_without_a_sync_of_the_data_may_leave_anything_but_a_hole_in_names() -> None:
    """ST7, from the other side: the careless writer finds an empty file."""
    seen = set()
    for seed in range(200):
        files = disk(seed, garbage_rate=0.0, zeros_rate=0.0)
        synced(files, "/state", b"old")
        files.open("/state.tmp", create=True).pwrite(b"new", 0)
        files.rename("/state.tmp", "/state")
        files.sync_dir("/")
        files.crash()
        seen.add(files.contents()["/state"])
    assert b"" in seen and b"new" in seen and b"old" not in seen


def test_a_directory_that_was_not_synced_takes_its_files_along() -> None:
    seen = set()
    for seed in range(60):
        files = disk(seed)
        files.mkdir("/data/t-0")
        synced(files, "/data/t-0/log", b"x").close()
        files.sync_dir("/")
        files.crash()
        seen.add(tuple(files.contents()))
    assert seen == {(), ("/data/t-0/log",)}
    files = disk()
    files.mkdir("/data/t-0")
    synced(files, "/data/t-0/log", b"x")
    files.sync_dir("/")
    files.sync_dir("/data")
    files.crash(lose_unsynced=True)
    assert files.contents() == {"/data/t-0/log": b"x"}


def test_a_directory_is_renamed_with_what_is_in_it() -> None:
    for seed in range(60):
        files = disk(seed)
        files.mkdir("/t-0")
        files.sync_dir("/")
        synced(files, "/t-0/log", b"x")
        files.rename("/t-0", "/t-0.gone")
        files.crash()
        assert files.contents() in ({"/t-0/log": b"x"}, {"/t-0.gone/log": b"x"})


def test_a_file_that_left_a_removed_directory_is_never_lost() -> None:
    for seed in range(300):
        files = disk(seed)
        files.mkdir("/old")
        files.mkdir("/new")
        files.sync_dir("/")
        synced(files, "/old/log", b"x")
        files.rename("/old/log", "/new/log")
        files.rmdir("/old")
        if seed % 2:
            files.sync_dir("/")
        files.crash()
        assert list(files.contents().values()) == [b"x"], files.contents()


def test_after_a_crash_everything_open_is_dead_and_every_lock_free() -> None:
    files = disk()
    file, lock = synced(files, "/log", b"x"), files.lock("/.lock")
    with pytest.raises(DirectoryLockedError):
        files.lock("/.lock")
    files.crash()
    for use in (
        lambda: file.pwrite(b"y", 0),
        lambda: file.pread(1, 0),
        lambda: file.pread_cached(1, 0),
        file.sync,
        file.size,
    ):
        with pytest.raises(PowerLoss):
            use()
    file.close()
    again = files.lock("/.lock")
    lock.close()
    with pytest.raises(DirectoryLockedError):
        files.lock("/.lock")
    again.close()
    files.lock("/.lock").close()


def test_the_death_of_the_process_loses_nothing() -> None:
    files = disk()
    file = files.open("/log", create=True)
    file.pwrite(b"unsynced", 0)
    files.lock("/.lock")
    files.kill()
    assert files.contents() == {"/log": b"unsynced", "/.lock": b""}
    with pytest.raises(PowerLoss):
        file.sync()
    files.lock("/.lock")
    files.crash(lose_unsynced=True)
    assert files.contents() == {}, "it was still not durable"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["sync", "rename", "sync_dir"])
def test_the_power_may_fail_exactly_around_a_durable_step(when: str, kind: str) -> None:
    files = disk()
    synced(files, "/state", b"old")

    def crash_point(*point: str) -> None:
        if point[:2] == (when, kind):
            raise PowerLoss

    files.crash_points = crash_point
    file = files.open("/state.tmp", create=True)
    file.pwrite(b"new", 0)
    with pytest.raises(PowerLoss):
        try:
            file.sync()
            files.rename("/state.tmp", "/state")
            files.sync_dir("/")
        finally:
            file.close()  # what code does on the way out
    with pytest.raises(PowerLoss):
        files.open("/late", create=True)
    files.crash(lose_unsynced=True)
    done = (when, kind) == ("after", "sync_dir")
    assert files.contents() == {"/state": b"new" if done else b"old"}


def test_a_full_disk_takes_a_prefix_and_recovers_with_space() -> None:
    files = disk(full_after_bytes=10)
    file = synced(files, "/log", b"12345678")
    with pytest.raises(OSError) as caught:
        file.pwrite(b"abcdef", 8)
    assert caught.value.errno == errno.ENOSPC
    assert file.pread(100, 0) in (b"12345678", b"12345678a", b"12345678ab")
    file.truncate(8)
    with pytest.raises(OSError):
        file.preallocate(11)
    file.preallocate(10)
    file.pwrite(b"ab", 8)
    file.truncate(0)
    other = files.open("/other", create=True)
    other.pwrite(bytes(10), 0)
    files.unlink("/other")
    with pytest.raises(OSError):
        file.pwrite(b"x", 0)  # removed, but open: the space is still taken
    other.close()
    file.pwrite(b"x", 0)
    assert files.used_bytes == 1


def test_a_chosen_write_finds_the_disk_full() -> None:
    files = disk(full_at_write=3, full_for_writes=2)
    file = files.open("/log", create=True)
    file.pwrite(b"a", 0)
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            file.pwritev([b"bcd", b"efg"], 1)
        assert caught.value.errno == errno.ENOSPC
    file.truncate(1)
    file.pwrite(b"z", 1)
    assert file.pread(10, 0) == b"az"


def test_a_chosen_write_fails() -> None:
    files = disk(fail_at_write=2)
    file = files.open("/log", create=True)
    with pytest.raises(OSError) as caught:
        file.pwrite(b"a", 0)
    assert caught.value.errno == errno.EIO


def test_a_failed_sync_lies_from_then_on() -> None:
    """Fsyncgate: the retry succeeds, readers see the data, and the platter never had it."""
    lost = 0
    for seed in range(40):
        files = disk(seed)
        file = synced(files, "/log", b"old")
        files.faults.fail_at_sync = files.sync_count + 1
        file.pwrite(b"new", 3)
        with pytest.raises(OSError) as caught:
            file.sync()
        assert caught.value.errno == errno.EIO
        assert files.used_after_failed_sync_count == 0
        file.sync()
        assert file.pread(10, 0) == b"oldnew"
        assert files.used_after_failed_sync_count == 1
        files.crash()
        lost += files.contents()["/log"] != b"oldnew"
    assert 5 < lost < 40


def test_a_failed_sync_of_a_directory() -> None:
    seen = set()
    for seed in range(40):
        files = disk(seed)
        files.open("/log", create=True).sync()
        files.faults.fail_at_sync = files.sync_count + 1
        with pytest.raises(OSError):
            files.sync_dir("/")
        files.sync_dir("/")
        assert files.exists("/log")
        files.crash()
        seen.add(files.exists("/log"))
    assert seen == {True, False}


def test_preallocation_pends_like_any_change() -> None:
    files = disk()
    file = synced(files, "/log", b"ab")
    file.preallocate(1 << 40)
    assert file.size() == 1 << 40
    assert file.pread(3, (1 << 40) - 2) == b"\0\0"
    files.crash(lose_unsynced=True)
    assert files.contents()["/log"] == b"ab"
    file = files.open("/log")
    file.preallocate(5)
    file.sync()
    files.crash(lose_unsynced=True)
    assert files.contents()["/log"] == b"ab\0\0\0"


def test_large_writes_are_torn_at_pages_with_every_filling() -> None:
    fillings = set()
    boundaries = 0
    for seed in range(300):
        files = disk(seed, drop_rate=0.0, tear_rate=1.0, zeros_rate=0.3, garbage_rate=0.3)
        file = synced(files, "/log", bytes([1]) * 100)
        file.pwrite(bytes([2]) * 20_000, 100)
        report = files.crash()
        assert report.torn == 1
        content = files.contents()["/log"]
        assert content[:100] == bytes([1]) * 100
        fillings |= set(content[100:])
        boundaries += len(content) % 512 == 0
    assert fillings == set(range(256))
    assert boundaries > 10


def test_bit_rot_is_on_the_platter_too() -> None:
    files = disk()
    synced(files, "/log", b"abc")
    files.flip("/log", 1, 0x01)
    assert files.contents()["/log"] == b"acc"
    files.crash()
    assert files.contents()["/log"] == b"acc"


def test_the_cache_misses_when_told_to() -> None:
    file = synced(disk(cache_miss_rate=1.0), "/log", b"abc")
    assert file.pread_cached(3, 0) is None
    file = synced(disk(), "/log", b"abc")
    assert file.pread_cached(9, 1) == b"bc"


def test_latency_sees_every_operation() -> None:
    seen: list[tuple[str, int]] = []
    files = SimDisk(random.Random(1), latency=lambda kind, size: seen.append((kind, size)))
    synced(files, "/log", b"abc").pread(2, 0)
    assert seen == [("name", 0), ("write", 3), ("sync", 0), ("sync_dir", 0), ("read", 2)]


def test_one_seed_is_one_history() -> None:
    def history(seed: int) -> list[Any]:
        rng = random.Random(seed)
        files = SimDisk(random.Random(seed))
        trace: list[Any] = []
        for _ in range(5):
            for path in ("/a", "/b"):
                file = files.open(path, create=True)
                for _ in range(20):
                    do(file, random_op(rng))
                if rng.random() < 0.5:
                    file.sync()
            if rng.random() < 0.5:
                files.sync_dir("/")
            trace += [files.crash(), files.contents()]
        return trace

    assert history(7) == history(7)
    assert history(7) != history(8)


# The real thing, without crashes.


class Program:
    """One random program, run on any Files: its trace is all that a caller can see."""

    def __init__(self, files: Files, root: str, seed: int) -> None:
        self.files, self.root, self.rng = files, root, random.Random(seed)
        self.opened: list[File] = []
        self.trace: list[Any] = []

    def run(self, count: int) -> list[Any]:
        for _ in range(count):
            step = self.rng.choice(
                [self.open, self.use, self.use, self.use, self.rename, self.names, self.directory]
            )
            try:
                self.trace.append(step())
            except OSError as error:
                self.trace.append((type(error).__name__, error.errno))
        for file in self.opened:
            self.trace.append(file.pread(100, 0))
            file.close()
        return self.trace

    def path(self) -> str:
        return f"{self.root}/{self.rng.choice(['a', 'b', 'c', 'd', 'd/a', 'd/b', 'd/e', 'd/e/a'])}"

    def open(self) -> int:
        create, exclusive = self.rng.random() < 0.8, self.rng.random() < 0.2
        self.opened.append(self.files.open(self.path(), create=create, exclusive=exclusive))
        return self.opened[-1].size()

    def use(self) -> Any:
        if not self.opened:
            return None
        file, rng = self.rng.choice(self.opened), self.rng
        do(file, random_op(rng))
        if rng.random() < 0.1:
            file.sync()
        return file.size(), file.pread(rng.randrange(20), rng.randrange(12))

    def rename(self) -> None:
        self.files.rename(self.path(), self.path())

    def names(self) -> Any:
        path = self.path()
        if self.rng.random() < 0.5:
            return self.files.exists(path)
        if self.files.exists(path):
            self.files.unlink(path)
        return self.files.list(self.root)

    def directory(self) -> Any:
        path = self.path()
        match self.rng.randrange(4):
            case 0:
                self.files.mkdir(path)
            case 1:
                self.files.rmdir(path)
            case 2:
                self.files.sync_dir(path)
            case _:
                return self.files.list(path)
        return None


@pytest.mark.parametrize("seed", range(150))
def test_without_crashes_it_is_a_real_disk(seed: int, tmp_path: Path) -> None:
    real = Program(RealFiles(), str(tmp_path), seed).run(60)
    files = disk(seed)
    files.mkdir("/root")
    assert Program(files, "/root", seed).run(60) == real
    there = {
        "/root/" + str(path.relative_to(tmp_path)): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    assert files.contents() == there
    assert files.used_bytes == sum(map(len, there.values()))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("killed_before", [1, 2, 3])
def test_a_directory_that_a_killed_process_made_survives_a_power_loss(
    seed: int, killed_before: int
) -> None:
    """Found by a simulated ensemble: the next process saw it, and took it for durable."""
    disk = SimDisk(random.Random(seed))
    syncs = 0

    def kill(when: str, kind: str, _: str) -> None:
        nonlocal syncs
        syncs += (when, kind) == ("before", "sync_dir")
        if syncs == killed_before:
            raise PowerLoss

    disk.crash_points = kill
    with pytest.raises(PowerLoss):
        make_directory(disk, "/a/b/c")
    disk.crash_points = None
    disk.kill()  # the process only: the page cache stays
    make_directory(disk, "/a/b/c")
    file = disk.open("/a/b/c/file", create=True)
    file.pwrite(b"kept", 0)
    file.sync()
    disk.sync_dir("/a/b/c")
    disk.crash(lose_unsynced=True)
    assert disk.contents() == {"/a/b/c/file": b"kept"}
