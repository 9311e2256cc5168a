"""A short round of `zk_chaos` on real servers, and what the harness itself must do."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from bench.ensembles import free_places

from tests.oracle.logs import has_gap
from tests.sim.checkers.zk_records import Logged

from .proxies import Network
from .zk_chaos import Chaos, plan_of, without_second_closes

ROUND_S = 8.0


def test_three_servers_under_faults_keep_every_promise(tmp_path: Path) -> None:
    chaos = Chaos("zkserver", tmp_path, plant=False, servers=3)
    assert chaos.round("ci.0", ROUND_S) is not None
    assert chaos.totals["writes"] > 100


def test_a_way_that_is_cut_lets_nothing_through_until_it_is_healed() -> None:
    places = free_places(2)
    with socket.socket() as listener, Network(places) as network:
        listener.bind(("127.0.0.1", places[1].peer_port))
        listener.listen()
        listener.settimeout(10)
        seen = network.seen_by(1)[1]
        near = socket.create_connection(("127.0.0.1", seen.peer_port))
        far, _ = listener.accept()
        with near, far:
            near.sendall(b"a")
            far.settimeout(10)
            assert far.recv(10) == b"a"
            network.cut([(1, 2)])
            far.sendall(b"b")
            near.settimeout(10)
            assert near.recv(10) == b"b", "the other way is open"
            near.sendall(b"c")
            near.close()
            far.settimeout(0.1)
            with pytest.raises(TimeoutError):
                far.recv(10)
            network.heal([(1, 2)])
            far.settimeout(10)
            assert far.recv(10) == b"c"
            assert far.recv(10) == b"", "the end has come, too"


def test_a_server_is_seen_by_itself_as_it_is() -> None:
    places = free_places(3)
    network = Network(places)
    seen = network.seen_by(2)
    assert seen[1] == places[1]
    assert {each.peer_port for each in seen}.isdisjoint({places[0].peer_port, places[2].peer_port})
    assert [each.client_port for each in seen] == [each.client_port for each in places]


def test_a_seed_makes_one_plan() -> None:
    assert plan_of("zkserver", "5.1", None) == plan_of("zkserver", "5.1", None)
    assert {plan_of("zkserver", f"5.{n}", None).voters for n in range(20)} == {3, 5}


def test_a_hole_in_a_log_is_seen() -> None:
    def log(*zxids: int) -> list[Logged]:
        return [Logged(zxid, 1, 1, "write") for zxid in zxids]

    first, second = 1 << 32, 2 << 32
    assert not has_gap(log(first + 1, first + 2, second + 1, second + 2))
    assert has_gap(log(first + 1, first + 3))
    assert has_gap(log(first + 2))
    assert has_gap(log(first + 1, second + 2))


def test_a_second_close_is_none() -> None:
    log = [Logged(1, 7, 0, "close"), Logged(2, 8, 0, "close"), Logged(3, 7, 0, "close")]
    assert [each.kind for each in without_second_closes(log)] == ["close", "close", "other"]
