"""Settings: four sources in order, typed values, and errors that name field, value and rule."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from duolog_protocol.errors import ConfigError
from duolog_runtime.config import (
    HelpRequested,
    exit_on_config_error,
    field_docs,
    is_loopback,
    load_config,
    require,
)

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class EnsembleSettings:
    """Equal on every server."""

    tick_ms: int = 2_000
    """Length of a tick in milliseconds (`tickTime`)."""
    sync_limit_ticks: int = 5
    """How far a follower
    may fall behind."""

    def __post_init__(self) -> None:
        require(self.tick_ms > 0, "tick_ms", self.tick_ms, "must be above 0")


@dataclass(frozen=True)
class ServerSettings:
    """This server's own."""

    port: int = 2181
    """Client port (`clientPort`)."""
    data_dir: str = field(default="data", metadata={"flag": "data"})
    """Where everything is kept (`dataDir`)."""
    snapshot_bytes: int = 1 << 20
    """Log bytes between snapshots."""
    ratio: float = 0.5
    """Some ratio."""
    insecure: bool = False
    """Listen beyond loopback without authentication."""
    fsync: bool = True
    """Wait for the disk."""
    rack: str | None = None
    """Where the machine stands."""
    metrics_port: int | None = None
    """Port of the metrics; none is off."""
    durability: Literal["fsync", "replicated"] = "fsync"
    """What an acknowledgement means."""
    servers: tuple[str, ...] = ()
    """Addresses of the ensemble."""


CLASSES = (EnsembleSettings, ServerSettings)


def load(
    *argv: str, environ: dict[str, str] | None = None, file: str | None = None
) -> tuple[EnsembleSettings, ServerSettings]:
    def read_file(path: str) -> str:
        if file is None:
            raise FileNotFoundError(2, "No such file or directory", path)
        return file

    return load_config(CLASSES, argv, environ or {}, "ZKSERVER_", read_file)


def refused(*argv: str, **sources: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(*argv, **sources)
    return caught.value


def test_without_any_source_the_defaults_hold() -> None:
    assert load() == (EnsembleSettings(), ServerSettings())


def test_flags_win_over_the_environment_and_that_over_the_file() -> None:
    file = "tick_ms = 1\nport = 1\nratio = 1\nsync-limit-ticks = 9"
    environ = {"ZKSERVER_TICK_MS": "2", "ZKSERVER_PORT": "2", "PATH": "/bin"}
    ensemble, server = load("--config", "x.toml", "--tick-ms", "3", environ=environ, file=file)
    assert (ensemble.tick_ms, server.port, server.ratio) == (3, 2, 1.0)
    assert ensemble.sync_limit_ticks == 9
    assert isinstance(server.ratio, float)


def test_the_environment_may_name_the_file() -> None:
    ensemble, _ = load(environ={"ZKSERVER_CONFIG": "x.toml"}, file="tick_ms = 7")
    assert ensemble.tick_ms == 7


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--port=1"], "port", 1),
        (["--port", "1", "--port", "2"], "port", 2),
        (["--port", "-1"], "port", -1),
        (["--data", "/srv/zk"], "data_dir", "/srv/zk"),
        (["--data="], "data_dir", ""),
        (["--snapshot-bytes", "64MiB"], "snapshot_bytes", 64 << 20),
        (["--snapshot-bytes", "3 kb"], "snapshot_bytes", 3_000),
        (["--snapshot-bytes", "5B"], "snapshot_bytes", 5),
        (["--snapshot_bytes", "1_000"], "snapshot_bytes", 1_000),
        (["--ratio", "0.25"], "ratio", 0.25),
        (["--insecure"], "insecure", True),
        (["--insecure=no"], "insecure", False),
        (["--no-fsync"], "fsync", False),
        (["--insecure", "--no-insecure"], "insecure", False),
        (["--rack", "a"], "rack", "a"),
        (["--rack", "none"], "rack", None),
        (["--metrics-port", "9"], "metrics_port", 9),
        (["--metrics-port="], "metrics_port", None),
        (["--durability", "replicated"], "durability", "replicated"),
        (["--servers", "a:1, b:2"], "servers", ("a:1", "b:2")),
        (["--servers="], "servers", ()),
    ],
)
def test_flags_become_typed_values(argv: list[str], name: str, value: object) -> None:
    _, server = load(*argv)
    assert getattr(server, name) == value
    assert type(getattr(server, name)) is type(value)


@pytest.mark.parametrize(
    ("text", "milliseconds"), [("250", 250), ("250ms", 250), ("30s", 30_000), ("2m", 120_000)]
)
def test_a_duration_may_say_its_unit(text: str, milliseconds: int) -> None:
    assert load("--tick-ms", text)[0].tick_ms == milliseconds


def test_the_file_has_values_of_its_own_types() -> None:
    file = 'insecure = true\nservers = ["a:1", "b:2"]\ndata = "/srv"\nsnapshot_bytes = "1KiB"'
    _, server = load("--config=x", file=file)
    assert server.insecure and server.servers == ("a:1", "b:2")
    assert (server.data_dir, server.snapshot_bytes) == ("/srv", 1024)


@pytest.mark.parametrize(
    ("argv", "rule"),
    [
        (["--tik-ms", "5"], "unknown (from --tik-ms); did you mean --tick-ms?"),
        (["--tickTime", "5"], "did you mean --tick-ms?"),
        (["--zzzz", "5"], "--help lists all settings"),
        (["--no-port"], "unknown (from --no-port)"),
        (["--no-fsync=1"], "unknown"),
        (["2181"], "they are given as --name value"),
        (["--"], "they are given as --name value"),
        (["--port"], "needs a value: --port VALUE"),
        (["--port", "--insecure"], "needs a value"),
        (["--port", "http"], "must be a whole number (from --port)"),
        (["--port", "1.5"], "must be a whole number"),
        (["--port", "1KiB"], "must be a whole number"),
        (["--snapshot-bytes", "64 parsecs"], 'one with a unit such as "64MiB"'),
        (["--tick-ms", "MiB"], 'a number with a unit like "30s"'),
        (["--ratio", "nan"], "must be a number"),
        (["--ratio", "much"], "must be a number"),
        (["--insecure=maybe"], "must be true or false"),
        (["--durability", "hope"], "must be one of fsync, replicated"),
        (["--tick-ms", "0"], "must be above 0"),
        (["--config", "missing.toml"], "cannot be read: No such file"),
    ],
)
def test_a_wrong_flag_is_named_with_its_rule(argv: list[str], rule: str) -> None:
    assert rule in str(refused(*argv))


@pytest.mark.parametrize(
    ("file", "rule"),
    [
        ("tik_ms = 5", "unknown (from file x); did you mean tick_ms?"),
        ('port = "http"', "must be a whole number (from file x)"),
        ("port = true", "must be a whole number"),
        ("port = 1.0", "must be a whole number"),
        ("ratio = false", "must be a number"),
        ("data = 5", "must be text"),
        ("insecure = 2", "must be true or false"),
        ("servers = 5", "must be a list"),
        ("servers = [5]", "must be text"),
        ("[port]\nx = 1", "must be a whole number"),
        ("tick-ms = 1\ntick_ms = 2", "given twice"),
        ("port = ", "is not a TOML file"),
        ("config = 'y'", "unknown"),
    ],
)
def test_a_wrong_file_is_named_with_its_rule(file: str, rule: str) -> None:
    assert rule in str(refused("--config", "x", file=file))


def test_a_wrong_environment_is_named_with_its_rule() -> None:
    unknown = refused(environ={"ZKSERVER_TIK_MS": "5"})
    assert (unknown.field, unknown.value) == ("ZKSERVER_TIK_MS", "5")
    assert "did you mean ZKSERVER_TICK_MS?" in unknown.rule
    wrong = refused(environ={"ZKSERVER_PORT": "tcp://10.0.0.1:2181"})
    assert (wrong.field, wrong.value) == ("port", "tcp://10.0.0.1:2181")
    assert wrong.rule == "must be a whole number (from environment variable ZKSERVER_PORT)"


def test_a_setting_without_a_default_is_required() -> None:
    @dataclass(frozen=True)
    class Strict:
        """Strict."""

        server_id: int

    with pytest.raises(ConfigError, match=r"server_id = None: is required"):
        load_config((Strict,), [], {}, "X_")
    (strict,) = load_config((Strict,), ["--server-id", "3"], {}, "X_")
    assert strict.server_id == 3


def test_help_has_every_setting_with_default_and_documentation() -> None:
    with pytest.raises(HelpRequested) as caught:
        load("--port", "1", "--help")
    text = str(caught.value)
    for line in (
        "usage: zkserver",
        "--tick-ms INT",
        "Length of a tick in milliseconds (`tickTime`). (default: 2000)",
        "How far a follower may fall behind. (default: 5)",
        "--data STR",
        "--insecure | --no-insecure",
        "--durability fsync|replicated",
        "--servers STR,...",
        "(default: none)",
        "ZKSERVER_TICK_MS",
    ):
        assert line in text
    with pytest.raises(HelpRequested):
        load("-h")


def test_every_field_has_a_document() -> None:
    for each in CLASSES:
        assert field_docs(each).keys() == {entry.name for entry in dataclasses.fields(each)}


def test_the_program_ends_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        exit_on_config_error("zkserver", lambda: load("--port", "x"))
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "zkserver: setting port = 'x': must be a whole number (from --port)\n"
    )
    with pytest.raises(SystemExit) as caught:
        exit_on_config_error("zkserver", lambda: load("--help"))
    assert caught.value.code == 0
    assert "usage: zkserver" in capsys.readouterr().out
    assert exit_on_config_error("zkserver", lambda: 5) == 5


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not a TOML file"):
        load_config(CLASSES, ["--config", str(path)], {}, "ZKSERVER_")


def test_starting_with_flags_alone_loads_no_parser() -> None:
    code = (
        "import sys; from dataclasses import dataclass; from duolog_runtime.config import *\n"
        "@dataclass(frozen=True)\n"
        "class S:\n    port: int = 1\n"
        "assert load_config((S,), ['--port', '2'], {}, 'X_') == (S(2),)\n"
        "late = {'argparse', 'difflib', 'tomllib', 'textwrap', 'asyncio'}\n"
        "assert not late & sys.modules.keys(), late & sys.modules.keys()"
    )
    path = f"{ROOT / 'protocol'}:{ROOT / 'runtime'}"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, check=True)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("127.example.org", False),
        ("127.0.0.1.example.org", False),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("128.0.0.1", False),
    ],
)
def test_only_an_address_of_this_machine_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
