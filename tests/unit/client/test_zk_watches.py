"""Which watcher hears of which event, and what is registered again."""

from __future__ import annotations

from duolog.core.zk_watches import (
    MAX_SET_WATCHES_BYTES,
    PersistentWatch,
    WatchedEvent,
    Watcher,
    WatchKind,
    WatchRegistry,
)
from duolog_protocol.types import EventType, KeeperState, WatcherType


def event(kind: EventType, path: str, zxid: int = 5) -> WatchedEvent:
    return WatchedEvent(kind, KeeperState.SYNC_CONNECTED, path, zxid)


def names(registry: WatchRegistry, kind: EventType, path: str, zxid: int = 5) -> list[str]:
    return [watcher.__name__ for watcher in registry.on_event(event(kind, path, zxid))]  # type: ignore[attr-defined]


def data(_event: WatchedEvent) -> None: ...
def exist(_event: WatchedEvent) -> None: ...
def child(_event: WatchedEvent) -> None: ...
def lasting(_event: WatchedEvent) -> None: ...
def subtree(_event: WatchedEvent) -> None: ...


def persistent(
    registry: WatchRegistry,
    path: str,
    watcher: Watcher,
    *,
    recursive: bool = False,
    armed_at: int = 1,
) -> PersistentWatch:
    watch = PersistentWatch(path, watcher, recursive=recursive, after_zxid=-1)
    registry.add_persistent(watch)
    assert registry.on_armed(watch, armed_at) == []
    return watch


def full() -> WatchRegistry:
    registry = WatchRegistry()
    registry.add(WatchKind.DATA, "/a", data)
    registry.add(WatchKind.EXIST, "/a", exist)
    registry.add(WatchKind.CHILD, "/a", child)
    persistent(registry, "/a", lasting)
    persistent(registry, "/", subtree, recursive=True)
    return registry


def test_one_shot_watches_fire_once_and_persistent_ones_stay() -> None:
    registry = full()
    assert names(registry, EventType.CHANGED, "/a") == ["data", "exist", "lasting", "subtree"]
    assert names(registry, EventType.CHANGED, "/a", 6) == ["lasting", "subtree"]
    assert names(registry, EventType.CHILD, "/a", 7) == ["child", "lasting"]
    assert names(registry, EventType.CHILD, "/a", 8) == ["lasting"]
    assert names(registry, EventType.CREATED, "/a/b/c", 9) == ["subtree"]


def test_a_deletion_takes_all_one_shot_watches_of_the_path() -> None:
    registry = full()
    found = names(registry, EventType.DELETED, "/a")
    assert found == ["data", "exist", "child", "lasting", "subtree"]
    assert registry.count == 2


def test_the_same_watcher_twice_fires_once() -> None:
    registry = WatchRegistry()
    registry.add(WatchKind.DATA, "/a", data)
    registry.add(WatchKind.DATA, "/a", data)
    registry.add(WatchKind.EXIST, "/a", data)
    assert names(registry, EventType.DELETED, "/a") == ["data"]


def test_a_forgotten_watcher_is_not_called() -> None:
    registry = full()
    registry.forget("/a", data)
    registry.forget("/a", data)
    registry.forget("/none", data)
    assert names(registry, EventType.CHANGED, "/a") == ["exist", "lasting", "subtree"]


def test_after_a_reconnect_everything_is_registered_in_bounded_requests() -> None:
    registry = full()
    (request,) = registry.to_register(9)
    assert request == (9, ["/a"], ["/a"], ["/a"], ["/a"], ["/"], True)
    for index in range(20_000):
        registry.add(WatchKind.CHILD, f"/{index:0100d}", child)
    requests = list(registry.to_register(9))
    assert len(requests) > 10
    assert sum(len(each.child_watches) for each in requests) == 20_001
    assert all(sum(map(len, each.child_watches)) <= MAX_SET_WATCHES_BYTES for each in requests)


def test_a_watch_that_is_not_armed_yet_is_not_registered_again_and_survives_the_session() -> None:
    registry = WatchRegistry()
    watch = PersistentWatch("/a", lasting, recursive=False, after_zxid=3)
    registry.add_persistent(watch)
    assert list(registry.to_register(9)) == []
    assert registry.take_all() == []
    assert names(registry, EventType.CHANGED, "/a", 4) == []
    assert [told.zxid for _, told in registry.on_armed(watch, 5)] == [4]


def test_a_watch_that_nobody_wants_any_more_is_told_its_past_until_the_answer_or_the_end() -> None:
    """So another watch must not take it for news."""
    for end in ("answer", "connection"):
        registry = WatchRegistry()
        persistent(registry, "/a", lasting)
        assert names(registry, EventType.CHANGED, "/a", 4) == ["lasting"]
        cancelled = PersistentWatch("/a", subtree, recursive=False, after_zxid=3)
        registry.add_persistent(cancelled)
        registry.on_asked(cancelled, True)
        registry.remove_persistent(cancelled)
        assert names(registry, EventType.CHANGED, "/a", 4) == []
        if end == "answer":
            registry.on_asked(cancelled, False)
        else:
            registry.hold_all()
            assert registry.release_all(4) == []
        assert names(registry, EventType.CHANGED, "/a", 5) == ["lasting"]
        assert names(registry, EventType.CHANGED, "/a", 5) == ["lasting"], "of one transaction"


def test_a_lost_session_tells_every_watcher_and_forgets_it() -> None:
    registry = full()
    assert {path for path, _ in registry.take_all()} == {"/a", "/"}
    assert registry.count == 0
    assert list(registry.to_register(1)) == []


def test_a_removed_persistent_watch_hears_nothing_more() -> None:
    registry = WatchRegistry()
    watch = persistent(registry, "/", subtree, recursive=True)
    other = persistent(registry, "/", lasting, recursive=True)
    assert not registry.remove_persistent(watch)
    assert not registry.remove_persistent(watch)
    assert names(registry, EventType.CREATED, "/x") == ["lasting"]
    assert registry.remove_persistent(other)


def test_watches_are_removed_by_type_and_their_watchers_named() -> None:
    registry = full()
    found = registry.take_removed("/a", WatcherType.DATA)
    assert found == [
        (EventType.DATA_WATCH_REMOVED, data),
        (EventType.DATA_WATCH_REMOVED, exist),
    ]
    found = registry.take_removed("/a", WatcherType.CHILDREN)
    assert found == [(EventType.CHILD_WATCH_REMOVED, child)]
    found = registry.take_removed("/a", WatcherType.PERSISTENT)
    assert found == [(EventType.PERSISTENT_WATCH_REMOVED, lasting)]
    assert registry.take_removed("/", WatcherType.PERSISTENT) == []
    found = registry.take_removed("/", WatcherType.ANY)
    assert found == [(EventType.PERSISTENT_WATCH_REMOVED, subtree)]
    assert registry.count == 0


def test_compacted_concerns_the_persistent_watches_of_exactly_its_path() -> None:
    registry = full()
    persistent(registry, "/a", subtree, recursive=True)
    assert names(registry, EventType.COMPACTED, "/a") == ["lasting", "subtree"]
    assert names(registry, EventType.COMPACTED, "/a/b", 6) == []
    assert registry.count == 6


def test_what_is_told_again_for_one_watch_is_not_told_again_to_another() -> None:
    registry = WatchRegistry()
    persistent(registry, "/a", lasting, armed_at=10)
    assert names(registry, EventType.CHANGED, "/a", 12) == ["lasting"]
    late = PersistentWatch("/a", subtree, recursive=True, after_zxid=3)
    registry.add_persistent(late)
    registry.on_asked(late, True)
    assert names(registry, EventType.CHANGED, "/a", 14) == ["lasting"]  # not its past yet
    for zxid in (5, 9, 12, 14):
        assert names(registry, EventType.CHANGED, "/a", zxid) == []
    registry.on_asked(late, False)
    assert [told.zxid for _, told in registry.on_armed(late, 15)] == [5, 9, 12, 14]
    assert names(registry, EventType.CHANGED, "/a", 16) == ["lasting", "subtree"]


def test_an_event_that_two_requests_tell_again_is_heard_once() -> None:
    registry = WatchRegistry()
    persistent(registry, "/a", subtree, recursive=True)
    for number in range(MAX_SET_WATCHES_BYTES // 400):
        persistent(registry, f"/{number:0100}", lasting)
    persistent(registry, "/a/y", lasting)
    registry.hold_all()
    requests = list(registry.to_register(3))
    last = len(requests) - 1
    assert last > 0
    assert requests[0].persistent_recursive_watches == []
    for chunk, paths in ((last - 1, ["/a/y"]), (last, ["/a/x", "/a/y"])):
        registry.begin_chunk(chunk)
        for path in paths:
            assert registry.on_event(event(EventType.CHANGED, path, 20)) == []
    told = [each.path for watcher, each in registry.release_all(30) if watcher is subtree]
    assert told == ["/a/x", "/a/y"]
