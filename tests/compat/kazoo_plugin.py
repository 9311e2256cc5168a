"""A pytest plugin that gives kazoo's own suite one of our servers in place of its Java cluster.

    pytest -p tests.compat.kazoo_plugin --servers 3 --outcomes FILE --pyargs kazoo.tests

kazoo's harness asks `kazoo.testing.harness.get_global_cluster()` for a list of servers, which it
starts and stops; this module answers with one standalone server, or an ensemble. The settings are
those of kazoo's harness. It runs in the environment that kazoo is installed into.
"""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from .servers import TLS_FILES, Server, Settings, ensemble, server

# kazoo.testing.common makes its certificates with these two; ours are files.
for _name in ("OpenSSL", "jks"):
    sys.modules.setdefault(_name, types.ModuleType(_name))
os.environ.setdefault("ZOOKEEPER_VERSION", "3.8.0")

from kazoo.testing import harness  # noqa: E402


class Cluster(list[Server]):
    """What kazoo calls a cluster; its servers live until the run ends."""

    def start(self) -> None:
        """Start the members that are down."""
        for each in self:
            each.launch()
        for each in self:
            each.wait()

    def stop(self) -> None:
        """Stop every member."""
        for each in self:
            each.stop()

    def terminate(self) -> None:
        """Called after every test class: the servers stay up, which saves minutes."""

    def reset(self) -> None:
        """Begin again with no data."""
        for each in self:
            each.forget()
        self.start()

    def get_logs(self) -> list[str]:
        """Last lines of every member."""
        return [line for each in self for line in each.get_logs()]

    def get_ssl_client_configuration(self) -> dict[str, bytes]:
        """PEM texts that kazoo's TLS test writes to files."""
        return {
            "client_key": (TLS_FILES / "client.key").read_bytes(),
            "client_cert": (TLS_FILES / "client.pem").read_bytes(),
            "ca_cert": (TLS_FILES / "ca.pem").read_bytes(),
        }


class Outcomes:
    """Writes one line `<outcome> <test>` per test."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w")
        self._worst: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the verdict of one phase; the worst of the three phases is the test's."""
        name = short_name(report.nodeid)
        if report.failed or (report.skipped and self._worst.get(name) != "failed"):
            self._worst[name] = report.outcome
        else:
            self._worst.setdefault(name, report.outcome)
        if report.when == "teardown":
            self._file.write(f"{self._worst[name]} {name}\n")
            self._file.flush()


def short_name(node_id: str) -> str:
    """`test_lock.py::T::test_x`, wherever kazoo is installed."""
    path, mark, test = node_id.partition("::")
    return path.rpartition("/")[2] + mark + test


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("compat")
    group.addoption("--server", choices=("ours", "apache"), default="ours")
    group.addoption("--servers", type=int, default=1, help="1: a standalone one")
    group.addoption("--outcomes", type=Path, help="file to write one line per test to")
    group.addoption("--only", type=Path, help="file of test names; nothing else runs")


def pytest_configure(config: pytest.Config) -> None:
    settings = Settings(tls=True, sasl=True)
    kind, count = config.getoption("--server"), config.getoption("--servers")
    cluster = Cluster([server(kind, settings)] if count == 1 else ensemble(kind, count, settings))

    def get_global_cluster() -> Any:
        return cluster

    harness.get_global_cluster = get_global_cluster
    outcomes = config.getoption("--outcomes")
    if outcomes is not None:
        config.pluginmanager.register(Outcomes(outcomes))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    only = config.getoption("--only")
    if only is not None:
        names = set(only.read_text().split())
        dropped = [item for item in items if short_name(item.nodeid) not in names]
        items[:] = [item for item in items if short_name(item.nodeid) in names]
        config.hook.pytest_deselected(items=dropped)
