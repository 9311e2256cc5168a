"""Which watcher hears of which event, and what is registered again."""

from __future__ import annotations

from duolog.core.zk_watches import (
    MAX_SET_WATCHES_BYTES,
    WatchedEvent,
    WatchKind,
    WatchRegistry,
)
from duolog_protocol.types import EventType, KeeperState


def event(kind: EventType, path: str) -> WatchedEvent:
    return WatchedEvent(kind, KeeperState.SYNC_CONNECTED, path)


def names(registry: WatchRegistry, kind: EventType, path: str) -> list[str]:
    return [str(watcher.__name__) for watcher in registry.on_event(event(kind, path))]  # type: ignore[attr-defined]


def data(_event: WatchedEvent) -> None: ...
def exist(_event: WatchedEvent) -> None: ...
def child(_event: WatchedEvent) -> None: ...
def lasting(_event: WatchedEvent) -> None: ...
def subtree(_event: WatchedEvent) -> None: ...


def full() -> WatchRegistry:
    registry = WatchRegistry()
    registry.add(WatchKind.DATA, "/a", data)
    registry.add(WatchKind.EXIST, "/a", exist)
    registry.add(WatchKind.CHILD, "/a", child)
    registry.add_persistent("/a", lasting, recursive=False)
    registry.add_persistent("/", subtree, recursive=True)
    return registry


def test_one_shot_watches_fire_once_and_persistent_ones_stay() -> None:
    registry = full()
    assert names(registry, EventType.CHANGED, "/a") == ["data", "exist", "lasting", "subtree"]
    assert names(registry, EventType.CHANGED, "/a") == ["lasting", "subtree"]
    assert names(registry, EventType.CHILD, "/a") == ["child", "lasting"]
    assert names(registry, EventType.CHILD, "/a") == ["lasting"]
    assert names(registry, EventType.CREATED, "/a/b/c") == ["subtree"]


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


def test_after_a_reconnect_everything_is_registered_in_bounded_requests() -> None:
    registry = full()
    (request,) = registry.to_register(9)
    assert request == (9, ["/a"], ["/a"], ["/a"], ["/a"], ["/"], False)
    for index in range(20_000):
        registry.add(WatchKind.CHILD, f"/{index:0100d}", child)
    requests = list(registry.to_register(9))
    assert len(requests) > 10
    assert sum(len(each.child_watches) for each in requests) == 20_001
    assert all(sum(map(len, each.child_watches)) <= MAX_SET_WATCHES_BYTES for each in requests)


def test_a_lost_session_tells_every_watcher_and_forgets_it() -> None:
    registry = full()
    assert {path for path, _ in registry.take_all()} == {"/a", "/"}
    assert registry.count == 0
    assert list(registry.to_register(1)) == []


def test_a_removed_persistent_watch_hears_nothing_more() -> None:
    registry = full()
    registry.remove_persistent("/", subtree, recursive=True)
    registry.remove_persistent("/", subtree, recursive=True)
    assert names(registry, EventType.CREATED, "/x") == []
