"""Rules of the code base that a program can check: layers, banned calls, file length, documents."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "duolog_protocol": ("protocol", set[str]()),
    "duolog_runtime": ("runtime", {"duolog_protocol"}),
    "duolog": ("client", {"duolog_protocol", "duolog_runtime"}),
    "zkserver": ("zkserver", {"duolog_protocol", "duolog_runtime"}),
    "kbroker": ("kbroker", {"duolog_protocol", "duolog_runtime", "duolog"}),
    "duolog_cluster": (
        "cluster",
        {"duolog_protocol", "duolog_runtime", "duolog", "zkserver", "kbroker"},
    ),
}
IMPURE = {"asyncio", "os", "socket", "threading", "time", "uvloop", "subprocess", "random"}
# A core is given its random source; it may name the type.
IMPURE_CORE = IMPURE - {"random"}
COORDINATION_CLIENT = {"duolog", "duolog.zk", "duolog.core"}
TEST_DATA = ROOT / "tests" / "data"
LAZY = {"structlog", "rich", "cramjam", "prometheus_client", "argparse", "difflib"}
MAX_LINES = 700


def sources(package: str) -> list[Path]:
    folder = ROOT / PACKAGES[package][0] / package
    return sorted(folder.rglob("*.py"))


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Full names of the modules that a file imports; relative imports stay inside."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_down(package: str) -> None:
    allowed = PACKAGES[package][1] | {package}
    for path in sources(package):
        ours = {name.split(".")[0] for name in imports(path)} & PACKAGES.keys()
        assert ours <= allowed, f"{path.relative_to(ROOT)} imports {sorted(ours - allowed)}"


def test_the_broker_uses_the_coordination_client_only() -> None:
    for path in sources("kbroker"):
        ours = {name for name in imports(path) if name.split(".")[0] == "duolog"}
        assert all(
            name in COORDINATION_CLIENT or name.startswith("duolog.core.zk") for name in ours
        ), f"{path.relative_to(ROOT)} imports {sorted(ours)}"


@pytest.mark.parametrize("package", PACKAGES)
def test_protocol_and_cores_are_pure(package: str) -> None:
    for path in sources(package):
        names = {name.split(".")[0] for name in imports(path)}
        where = path.relative_to(ROOT)
        if package == "duolog_protocol":
            assert not names & IMPURE, f"{where} imports {sorted(names & IMPURE)}"
        elif "core" in where.parts:
            assert not names & IMPURE_CORE, f"{where} imports {sorted(names & IMPURE_CORE)}"


@pytest.mark.parametrize("package", ["zkserver", "kbroker"])
def test_core_and_storage_do_not_know_each_other(package: str) -> None:
    for path in sources(package):
        parts = path.relative_to(ROOT).parts
        for here, there in (("core", "storage"), ("storage", "core"), ("core", "server")):
            if here in parts:
                found = [
                    name
                    for name in imports(path)
                    if name == f"{package}.{there}" or name.startswith(f"{package}.{there}.")
                ]
                relative = re.search(rf"^from \.\.{there}", path.read_text(), re.MULTILINE)
                assert not found and relative is None, f"{path.relative_to(ROOT)}: {there}"


def test_offline_tools_stand_beside_the_daemon() -> None:
    """They use core and storage as server does; the daemon knows nothing of them."""
    for path in sources("zkserver"):
        where = path.relative_to(ROOT)
        names = imports(path)
        if "tools" in where.parts:
            banned = {name for name in names if name.startswith(("zkserver.server", "asyncio"))}
            assert not banned, f"{where} imports {sorted(banned)}"
        else:
            assert not any(name.startswith("zkserver.tools") for name in names), where
            at_once = re.search(r"^from \.+tools", path.read_text(), re.MULTILINE)
            assert at_once is None, where


@pytest.mark.parametrize("package", PACKAGES)
def test_slow_imports_happen_at_first_use(package: str) -> None:
    for path in sources(package):
        names = {name.split(".")[0] for name in imports(path, top_level_only=True)}
        if package == "duolog_cluster" and ("cli" in path.parts or path.name == "demo.py"):
            continue
        assert not names & LAZY, f"{path.relative_to(ROOT)} imports {sorted(names & LAZY)} at once"


def test_servers_make_no_thread_and_no_socket() -> None:
    banned = {"threading", "socket", "concurrent"}
    for package in ("zkserver", "kbroker"):
        for path in sources(package):
            if "server" in path.parts:
                names = {name.split(".")[0] for name in imports(path)}
                assert not names & banned, f"{path.relative_to(ROOT)}: {sorted(names & banned)}"


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    return [ROOT / name for name in listed.stdout.decode().splitlines() if (ROOT / name).is_file()]


def test_a_file_is_one_idea() -> None:
    for path in tracked():
        if path.suffix == ".py":
            lines = path.read_text().count("\n")
            assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines"


def test_every_module_says_what_it_owns() -> None:
    for package in PACKAGES:
        for path in sources(package):
            text = path.read_text()
            if text.strip():
                assert ast.get_docstring(ast.parse(text)), f"{path.relative_to(ROOT)}: no docstring"


def test_nothing_is_left_unfinished() -> None:
    marks = re.compile(r"\bTO" r"DO\b|\bFIX" r"ME\b|\bXX" r"X\b|raise NotImplemented" r"Error")
    for path in tracked():
        if TEST_DATA in path.parents:  # a transaction log may be called log.c
            continue
        if path.suffix in {".py", ".c", ".md", ".toml"} and path != Path(__file__):
            found = marks.search(path.read_text())
            assert found is None, f"{path.relative_to(ROOT)}: {found and found[0]}"


def test_tests_do_not_sleep() -> None:
    nap = re.compile(r"\b(time|asyncio)\.sleep\((?!0\))")
    for path in tracked():
        if path.suffix == ".py" and "tests" in path.relative_to(ROOT).parts:
            if path == Path(__file__):
                continue
            found = nap.search(path.read_text())
            assert found is None, f"{path.relative_to(ROOT)}: {found and found[0]}"


def test_broad_excepts_are_not_silent() -> None:
    silent = re.compile(r"except( Exception| BaseException)?:\s*(#.*)?\n\s*pass\b")
    for package in PACKAGES:
        for path in sources(package):
            assert not silent.search(path.read_text()), path.relative_to(ROOT)


def test_no_link_in_the_documents_is_dead() -> None:
    link = re.compile(r"\]\(([^)#:]+)(#[^)]*)?\)")
    for path in tracked():
        if path.suffix == ".md":
            for target, _ in link.findall(path.read_text()):
                assert (path.parent / target).exists(), f"{path.relative_to(ROOT)}: {target}"
