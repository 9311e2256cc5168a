"""What Kafka 3.x in ZooKeeper mode asks of its coordination server, with nothing else of Kafka.

    python -m tests.compat.kafka_model HOST:PORT

Brokers and two controllers use kazoo; what kazoo never sends (setWatches, null data, a session on
two connections) goes over a raw connection. Each chapter checks what Kafka relies on and prints
what it saw, with no ids and times in it, so that two servers can be set side by side. Sources:
Kafka's `KafkaZkClient`, `ZooKeeperClient` and `KafkaController`; znodes as in Kafka 3.8.
"""

from __future__ import annotations

import json
import queue
import random
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

from kazoo.client import KazooClient
from kazoo.exceptions import BadVersionError, KazooException, NodeExistsError
from kazoo.protocol.states import WatchedEvent

from tests.oracle import jute
from tests.oracle.jute_client import CLOSED, JuteConnection

SECONDS: Final = 30.0
"""Longest wait for an event."""
SESSION_SECONDS: Final = 18.0
CHURN_ROUNDS: Final = 60
PERSISTENT: Final = (
    "/consumers /brokers/ids /brokers/topics /config/changes /admin/delete_topics /brokers/seqid "
    "/isr_change_notification /latest_producer_id_block /log_dir_event_notification "
    "/config/topics /config/clients /config/users /config/brokers /config/ips"
)
EVENT_NAMES: Final = {1: "CREATED", 2: "DELETED", 3: "CHANGED", 4: "CHILD"}


def say(*words: object) -> None:
    """One line of what is compared."""
    print(*words, flush=True)


def to_json(**values: Any) -> bytes:
    """As Kafka writes it, keys in order."""
    return json.dumps(values, separators=(",", ":"), sort_keys=True).encode()


def outcome(result: object) -> str:
    """A result of a multi, or an error, as a word."""
    if isinstance(result, KazooException):
        return type(result).__name__
    return "ok"


class Member:
    """A process of Kafka: one session, whose watch events wait in a queue."""

    def __init__(self, hosts: str) -> None:
        self.client = KazooClient(hosts, timeout=SESSION_SECONDS)
        self.client.start()
        self.events: queue.SimpleQueue[WatchedEvent] = queue.SimpleQueue()

    def watch(self, event: WatchedEvent) -> None:
        """A watcher for any read; what the session itself goes through is no event of a node."""
        if event.path is not None and event.type in EVENT_NAMES.values():
            self.events.put(event)

    def wait(self, type_: str, path: str) -> None:
        """Take the next event, which must be this one."""
        event = self.events.get(timeout=SECONDS)
        assert (event.type, event.path) == (type_, path), (event, type_, path)

    def close(self) -> None:
        """A controlled shutdown: the session is closed, not left to expire."""
        self.client.stop()
        self.client.close()


class Broker(Member):
    """A broker: registered by an ephemeral znode, its broker epoch is that znode's czxid."""

    def __init__(self, hosts: str, broker_id: int) -> None:
        super().__init__(hosts)
        self.id = broker_id
        self.epoch = 0

    @property
    def path(self) -> str:
        """Where it is registered."""
        return f"/brokers/ids/{self.id}"

    def register(self) -> None:
        """Create and fill the znode in one transaction, as Kafka does."""
        transaction = self.client.transaction()
        transaction.create(self.path, b"", ephemeral=True)
        transaction.set_data(self.path, to_json(host="localhost", port=9092 + self.id), version=0)
        created, stat = transaction.commit()
        assert created == self.path, created
        assert stat.version == 1, stat
        self.epoch = stat.czxid


class Controller(Broker):
    """A broker that may become the controller, and keeps an image of the cluster while it is."""

    def __init__(self, hosts: str, broker_id: int) -> None:
        super().__init__(hosts, broker_id)
        self.controller_epoch = 0
        self.epoch_version = -1
        self.live: set[str] = set()
        self.topics: set[str] = set()

    def elect(self) -> str:
        """Try to become the controller; the outcome of both operations."""
        data, stat = self.client.get("/controller_epoch")
        transaction = self.client.transaction()
        transaction.create("/controller", to_json(brokerid=self.id, version=1), ephemeral=True)
        transaction.set_data("/controller_epoch", b"%d" % (int(data) + 1), version=stat.version)
        results = transaction.commit()
        if not isinstance(results[0], KazooException):
            self.controller_epoch, self.epoch_version = int(data) + 1, results[1].version
            self.live = set(self.client.get_children("/brokers/ids", watch=self.watch))
            self.topics = set(self.client.get_children("/brokers/topics", watch=self.watch))
        return f"{outcome(results[0])} {outcome(results[1])}"

    def write(self, operation: Callable[[Any], None]) -> list[str]:
        """A write that only the present controller may do."""
        transaction = self.client.transaction()
        transaction.check("/controller_epoch", self.epoch_version)
        operation(transaction)
        return [outcome(result) for result in transaction.commit()]

    def follow(self) -> None:
        """Take one event of a list of children, and read the list again with the watch set."""
        event = self.events.get(timeout=SECONDS)
        if event.path == "/brokers/ids":
            self.live = set(self.client.get_children(event.path, watch=self.watch))
        elif event.path == "/brokers/topics":
            self.topics = set(self.client.get_children(event.path, watch=self.watch))


def start_up(hosts: str) -> None:
    """The chroot and the persistent parents; two brokers may make them at the same time."""
    without_chroot = KazooClient(hosts.partition("/")[0])
    without_chroot.start()
    without_chroot.create("/kafka")
    without_chroot.stop()
    without_chroot.close()
    first, second = Member(hosts), Member(hosts)
    for path in PERSISTENT.split():
        first.client.ensure_path(path)
        second.client.ensure_path(path)
    first.client.create("/cluster/id", to_json(id="compat", version="1"), makepath=True)
    try:
        second.client.create("/cluster/id", b"{}", makepath=True)
    except NodeExistsError:
        say("the cluster id is made once")
    ids = [member.client.set("/brokers/seqid", b"").version for member in (first, second, first)]
    say("generated broker ids", ids)
    first.client.create("/controller_epoch", b"0")
    first.client.create("/migration", b"{}")
    first.close()
    second.close()


def election_and_fencing(hosts: str) -> None:
    """Two controllers: one wins, is deposed, and cannot write any more."""
    one, two = Controller(hosts, 1), Controller(hosts, 2)
    one.register()
    two.register()
    assert one.epoch < two.epoch, (one.epoch, two.epoch)
    say("election", one.elect(), "|", two.elect())
    two.client.get("/controller", watch=two.watch)
    topic = to_json(partitions={"0": [1, 2], "1": [2, 1]}, version=3)
    say("topic", one.write(lambda each: each.create("/brokers/topics/t", topic)))
    one.wait("CHILD", "/brokers/topics")
    for partition in ("0", "1"):
        parent = f"/brokers/topics/t/partitions/{partition}"
        one.client.ensure_path(parent)
        state = to_json(leader=1, leader_epoch=0, isr=[1, 2], controller_epoch=1, version=1)
        say("state", one.write(lambda each: each.create(f"{parent}/state", state)))  # noqa: B023
    state_path = "/brokers/topics/t/partitions/0/state"
    say("a stale state", one.write(lambda each: each.set_data(state_path, b"x", version=7)))
    say("a fresh state", one.write(lambda each: each.set_data(state_path, b"x", version=0)))

    two.client.delete("/controller")
    two.wait("DELETED", "/controller")
    say("election", two.elect())
    say("the deposed", one.write(lambda each: each.set_data(state_path, b"y", version=1)))
    say("the deposed", one.write(lambda each: each.create("/brokers/topics/u", b"")))
    say("the new one", two.write(lambda each: each.set_data(state_path, b"z", version=1)))
    say("epochs", one.controller_epoch, two.controller_epoch)

    # The migration to KRaft checks one more znode, and rewrites /controller as one that stays.
    def migrate(transaction: Any) -> None:
        transaction.set_data("/migration", b'{"step":1}', version=0)
        transaction.delete("/controller")
        transaction.create("/controller", to_json(brokerid=3000))

    say("migration", two.write(migrate))
    say("migration again", two.write(migrate))
    one.client.delete("/controller")
    one.close()
    two.close()


def shutdown_and_return(hosts: str) -> None:
    """A broker that closes its session is gone at once; the next epoch is higher."""
    watcher, broker = Controller(hosts, 1), Broker(hosts, 7)
    watcher.client.get_children("/brokers/ids", watch=watcher.watch)
    broker.register()
    watcher.wait("CHILD", "/brokers/ids")
    watcher.client.get_children("/brokers/ids", watch=watcher.watch)
    watcher.client.get(broker.path, watch=watcher.watch)
    first_epoch = broker.epoch
    broker.close()
    watcher.wait("DELETED", broker.path)
    watcher.wait("CHILD", "/brokers/ids")
    say("after the shutdown", watcher.client.get_children("/brokers/ids"))
    broker = Broker(hosts, 7)
    broker.register()
    assert broker.epoch > first_epoch, (broker.epoch, first_epoch)
    try:
        watcher.client.create(broker.path, b"", ephemeral=True)
    except NodeExistsError:
        owner = watcher.client.get(broker.path)[1].ephemeralOwner
        say("the owner is known", owner == broker.client.client_id[0])
    broker.close()
    watcher.close()


def notifications(hosts: str) -> None:
    """Brokers tell the controller by sequential znodes, which it reads and deletes."""
    controller, broker = Controller(hosts, 1), Broker(hosts, 2)
    parent = "/isr_change_notification"
    controller.client.get_children(parent, watch=controller.watch)
    made = [broker.client.create(f"{parent}/isr_change_", b"{}", sequence=True) for _ in range(12)]
    say("notifications", made[0], made[-1])
    controller.wait("CHILD", parent)
    names = sorted(controller.client.get_children(parent))
    pending = [controller.client.delete_async(f"{parent}/{name}", -1) for name in names]
    say("deleted", sum(each.get(timeout=SECONDS) for each in pending))
    transaction = broker.client.transaction()
    transaction.set_data("/latest_producer_id_block", to_json(block_start=0), version=0)
    say("producer ids", [outcome(each) for each in transaction.commit()])
    try:
        broker.client.set("/latest_producer_id_block", b"", version=0)
    except BadVersionError:
        say("a block is given once")
    controller.close()
    broker.close()


def raw_session(port: int) -> None:
    """What kazoo does not send: null data, a deep pipeline, setWatches, a session that moves."""
    client = JuteConnection(port)
    client.connect(int(SESSION_SECONDS * 1000))
    acl = jute.OPEN_ACL
    ids = "/kafka/brokers/ids"
    multi = client.call(
        "multi",
        (
            ("create", f"{ids}/9", None, acl, 1),
            ("set_data", f"{ids}/9", b"{}", 0),
        ),
    )
    say("registered", [(result.kind, result.error) for result in multi.values[0]])
    client.call("create", "/kafka/null", None, acl, 0)
    data, stat = client.call("get_data", "/kafka/null", False).values
    say("null data", data, stat.data_length)

    # Read and arm in one operation; the event comes before the reply that shows the change.
    client.request("get_data", "/kafka/null", True)
    client.request("set_data", "/kafka/null", b"1", 0)
    client.request("get_data", "/kafka/null", False)
    say("order", [describe(frame) for frame in client.receive_due()])

    # Conditional writes, many at a time.
    paths = [f"/kafka/p{number}" for number in range(40)]
    for path in paths:
        client.request("create", path, b"", acl, 0)
    frames = client.receive_due()
    assert all(frame.error == 0 for frame in frames), frames
    xids = [client.request("set_data", path, b"x", number % 2) for number, path in enumerate(paths)]
    frames = client.receive_due()
    assert [frame.xid for frame in frames] == xids, "replies out of order"
    say("pipeline", *(frame.error for frame in frames))

    reconnect_with_watches(client, port)


def reconnect_with_watches(client: JuteConnection, port: int) -> None:
    """The connection goes, things happen, the same session comes back with its watches."""
    acl = jute.OPEN_ACL
    for name in ("kept", "changed", "removed"):
        client.call("create", f"/kafka/{name}", b"", acl, 0)
    seen = client.call("exists", "/kafka/kept", False).zxid
    other = JuteConnection(port)
    other.connect()
    other.call("set_data", "/kafka/changed", b"2", 0)
    other.call("delete", "/kafka/removed", -1)
    other.call("create", "/kafka/made", b"", acl, 0)
    other.call("create", "/kafka/brokers/topics/new", b"", acl, 0)

    again = JuteConnection(port)
    again.connect(session_id=client.session_id, password=client.password, last_zxid_seen=seen)
    say("the same session", again.session_id == client.session_id)
    again.request(
        "set_watches",
        seen,
        ("/kafka/kept", "/kafka/changed", "/kafka/removed"),
        ("/kafka/made", "/kafka/still-not"),
        ("/kafka/brokers/topics", "/kafka/brokers/ids"),
    )
    say("missed", *sorted_within(describe(frame) for frame in again.receive_due()))
    other.call("set_data", "/kafka/kept", b"", -1)
    other.call("create", "/kafka/still-not", b"", acl, 0)
    other.call("create", "/kafka/brokers/ids/11", b"", acl, 1)
    say("armed", *(describe(again.receive()) for _ in range(3)))

    # The first owner of the session may not write any more.
    client.request("set_data", "/kafka/null", b"late", -1)
    say("the old connection", client.receive_due() == [CLOSED])
    unchanged, _ = again.call("get_data", "/kafka/null", False).values
    say("its write", unchanged)

    # The end of the session is seen, with what it owned, before the reply of a later read.
    other.request("get_children", "/kafka/brokers/ids", True)
    other.receive_due()
    again.request("close")
    frames = again.receive_due()
    while frames[-1] is not CLOSED:
        frames.append(again.receive())
    say("closed", [describe(frame) for frame in frames][-2:])
    say("seen", describe(other.receive()))
    left = other.call("get_children", "/kafka/brokers/ids", False).values[0]
    say("left", sorted(left))
    other.call("close")
    other.drop()
    client.drop()
    again.drop()


def describe(frame: Any) -> str:
    """A reply or an event, without ids."""
    if isinstance(frame, jute.Event):
        return f"{EVENT_NAMES[frame.type]}:{frame.path}"
    if isinstance(frame, jute.Reply):
        return f"reply:{frame.error}" if frame.xid > 0 else f"reply:{frame.xid}:{frame.error}"
    return str(frame)


def sorted_within(words: Iterable[str]) -> list[str]:
    """Events in sorted order, the reply after them where it came."""
    found = list(words)
    assert found[-1].startswith("reply:"), found
    return [*sorted(found[:-1]), found[-1]]


def churn(hosts: str, seed: int) -> None:
    """Brokers come and go, topics too, the controller changes; its image ends up as the tree is."""
    rng = random.Random(seed)
    candidates = [Controller(hosts, 101), Controller(hosts, 102)]
    brokers: dict[int, Broker] = {}
    leader = candidates[0]
    elected = [leader.elect()]
    topic_count = 0
    for _ in range(CHURN_ROUNDS):
        action = rng.choice(["start", "start", "stop", "topic", "topic", "drop", "depose"])
        if action == "start" and len(brokers) < 8:
            broker_id = rng.choice([each for each in range(200, 220) if each not in brokers])
            brokers[broker_id] = Broker(hosts, broker_id)
            brokers[broker_id].register()
        elif action == "stop" and brokers:
            brokers.pop(rng.choice(sorted(brokers))).close()
        elif action == "topic":
            name = f"/brokers/topics/churn-{topic_count}"
            topic_count += 1
            assert leader.write(lambda each: each.create(name, b"")) == ["ok", "ok"]  # noqa: B023
        elif action == "drop" and leader.topics:
            path = f"/brokers/topics/{rng.choice(sorted(leader.topics))}"
            if not leader.client.get_children(path):
                assert leader.write(lambda each: each.delete(path)) == ["ok", "ok"]  # noqa: B023
        elif action == "depose":
            deposed, leader = leader, candidates[leader is candidates[0]]
            deposed.client.delete("/controller")
            elected.append(leader.elect())
            assert deposed.write(lambda each: each.create("/x", b""))[0] == "BadVersionError"
        catch_up(leader)
    say("elections", *sorted(set(elected)), leader.controller_epoch)
    say("live", sorted(leader.live), "topics", sorted(leader.topics))
    for each in [*brokers.values(), *candidates]:
        each.close()


def catch_up(leader: Controller) -> None:
    """Follow events until the image is the tree, which nobody changes meanwhile."""
    live = set(leader.client.get_children("/brokers/ids"))
    topics = set(leader.client.get_children("/brokers/topics"))
    while (leader.live, leader.topics) != (live, topics):
        leader.follow()


def words(port: int) -> None:
    """The four-letter words that Kafka's scripts use."""
    from .servers import ask

    say("ruok", ask(port, "ruok"))
    say("srvr", "Mode: standalone" in ask(port, "srvr"))
    say("stat", ask(port, "stat").splitlines()[1])


def main(address: str) -> None:
    """The whole story against one server."""
    port = int(address.rpartition(":")[2])
    hosts = f"{address}/kafka"
    start_up(hosts)
    election_and_fencing(hosts)
    shutdown_and_return(hosts)
    notifications(hosts)
    raw_session(port)
    churn(hosts, seed=1)
    words(port)
    say("the end")


if __name__ == "__main__":
    main(sys.argv[1])
