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
IMPURE = {
    *("asyncio", "concurrent", "datetime", "io", "multiprocessing", "os", "pathlib", "random"),
    *("secrets", "select", "selectors", "shutil", "signal", "socket", "subprocess", "tempfile"),
    *("threading", "time", "uvloop"),
}
# A core is given its random source; it may name the type.
IMPURE_CORE = IMPURE - {"random"}
# Storage blocks on files through the file interface; it knows no loop, no socket and no clock.
IMPURE_STORAGE = {"asyncio", "selectors", "select", "socket", "subprocess", "time", "uvloop"}
COORDINATION_CLIENT = {"duolog", "duolog.zk", "duolog.core"}
TEST_DATA = ROOT / "tests" / "data"
LAZY = {"structlog", "rich", "cramjam", "prometheus_client", "argparse", "difflib"}
MAX_LINES = 700


def sources(package: str) -> list[Path]:
    folder = ROOT / PACKAGES[package][0] / package
    return sorted(folder.rglob("*.py"))


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Full names of the modules that a file imports, wherever in it and however spelled."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= _imported_from(path, node)
    return names


def _imported_from(path: Path, node: ast.ImportFrom) -> set[str]:
    module = node.module or ""
    if node.level:
        inside = path.relative_to(ROOT).parts[1:-1]
        parent = inside[: len(inside) - node.level + 1]
        module = ".".join([*parent, module] if module else parent)
    # `from .. import storage` imports a module, `from ..storage import log` may.
    return {module} | {f"{module}.{alias.name}" for alias in node.names}


def is_below(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def test_no_spelling_of_an_import_is_overlooked() -> None:
    path = ROOT / "kbroker/kbroker/core/example.py"
    text = """
def inside():
    from .. import storage
    from ..server.apis import Apis
    from .znodes import TOPICS
import os.path
"""
    names = set[str]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            names |= _imported_from(path, node)
    assert {"kbroker.storage", "kbroker.server.apis", "kbroker.core.znodes"} <= names


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
            name in COORDINATION_CLIENT or name.startswith(("duolog.zk.", "duolog.core.zk"))
            for name in ours
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


def calls_open(path: Path) -> bool:
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open"
        for node in ast.walk(ast.parse(path.read_text()))
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_files_are_opened_through_the_file_interface(package: str) -> None:
    for path in sources(package):
        parts = path.relative_to(ROOT).parts
        if package == "duolog_protocol" or {"core", "storage", "server"} & set(parts):
            assert not calls_open(path), f"{path.relative_to(ROOT)} calls open()"


@pytest.mark.parametrize("package", ["zkserver", "kbroker"])
def test_core_storage_and_server_know_what_they_may(package: str) -> None:
    """`server` imports both others, which know neither it nor each other."""
    forbidden = {"core": ("storage", "server"), "storage": ("core", "server"), "server": ()}
    for path in sources(package):
        where = path.relative_to(ROOT)
        for here, others in forbidden.items():
            if here in where.parts:
                names = imports(path)
                for there in others:
                    found = [name for name in names if is_below(name, f"{package}.{there}")]
                    assert not found, f"{where} imports {found}"
        if "storage" in where.parts:
            impure = {name.split(".")[0] for name in imports(path)} & IMPURE_STORAGE
            assert not impure, f"{where} imports {sorted(impure)}"


def test_offline_tools_stand_beside_the_daemon() -> None:
    """They use core and storage as server does; the daemon knows nothing of them."""
    for path in sources("zkserver"):
        where = path.relative_to(ROOT)
        names = imports(path)
        if "tools" in where.parts:
            banned = {name for name in names if name.startswith(("zkserver.server", "asyncio"))}
            assert not banned, f"{where} imports {sorted(banned)}"
        else:
            at_once = imports(path, top_level_only=True)
            known = at_once if path.name == "__main__.py" else names
            assert not any(is_below(name, "zkserver.tools") for name in known), where


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
    # Called or passed on; `asyncio.sleep(0)` only lets others run.
    nap = re.compile(r"\btime\.sleep\b|\basyncio\.sleep\b(?!\(0\))")
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
