"""`docs/zkserver-operating.md` names every setting, word, command and metric, and no other."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from duolog_runtime.clocks import ManualClock
from duolog_runtime.config import field_docs
from duolog_runtime.disk import InlineDisk
from duolog_runtime.files import RealFiles
from duolog_runtime.logs import RecordingLogger
from zkserver.config import FOUR_LETTER_WORDS, ServerConfig
from zkserver.core.config import CoreConfig
from zkserver.core.tally import Tally
from zkserver.metrics import Metric, metrics
from zkserver.server.commands import COMMANDS
from zkserver.server.node import Node
from zkserver.server.stats import Summary
from zkserver.server.words import WORDS

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "zkserver-operating.md"


def table(title: str) -> dict[str, list[str]]:
    """The rows of the table under a heading, by their first cell without its quotes."""
    section = DOCUMENT.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = {}
    for line in section.splitlines():
        if line.startswith("| `"):
            first, *rest = (cell.strip() for cell in line.strip("|").split(" | "))
            rows[first.strip("`| ")] = rest
    return rows


def compare(title: str, expected: dict[str, list[str]]) -> None:
    """The table has these rows; cells beyond the expected ones are free text."""
    found = table(title)
    for name, cells in expected.items():
        line = " | ".join([f"| `{name}`", *cells, "... |"])
        assert name in found, f"{title}: add {line}"
        assert found[name][: len(cells)] == cells, f"{title}: should be {line}"
    assert found.keys() <= expected.keys(), f"{title}: {found.keys() - expected.keys()} are gone"


def settings() -> Iterator[tuple[str, object, str]]:
    for each in (ServerConfig, CoreConfig):
        docs = field_docs(each)
        for field in dataclasses.fields(each):
            name = str(field.metadata.get("flag", field.name))
            yield name, field.default, docs[field.name]


def shown(default: object) -> str:
    if default is dataclasses.MISSING:
        return "required"
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "none"
    return str(default).lower() if isinstance(default, bool) else str(default) or "none"


def test_every_setting_is_there_with_its_default() -> None:
    compare("Settings", {name: [shown(default)] for name, default, _ in settings()})


def test_an_original_name_is_told_where_there_is_one() -> None:
    rows = table("Settings")
    for name, _, text in settings():
        for original in re.findall(r"`([A-Za-z]\w*[.A-Z]\S*)`", text):
            assert original in " ".join(rows[name]), f"{name}: tell {original}"


def first_line(function: Callable[..., object]) -> str:
    return (function.__doc__ or "").partition("\n")[0]


def test_every_word_is_there_with_what_it_tells() -> None:
    assert WORDS.keys() == set(FOUR_LETTER_WORDS)
    allowed = ServerConfig(data_directory="d").four_letter_words
    rows = {
        name: ["yes" if name in allowed else "no", first_line(word.text)]
        for name, word in WORDS.items()
    }
    compare("Four-letter words", rows)


def test_every_command_is_there_with_what_it_tells() -> None:
    rows = {}
    for command in COMMANDS:
        others = " ".join(f"`{name}`" for name in command.names[1:]) or "–"
        text = first_line(command.answer)
        rows[command.names[0]] = [others, " ".join(command.methods), text]
    compare("Commands", rows)


def kind_of(metric: Metric) -> str:
    if isinstance(metric.value, Summary):
        return "summary, quantiles"
    if isinstance(metric.value, Tally):
        return "summary"
    return "counter" if metric.is_counter else "gauge"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    each = Node(
        ServerConfig(data_directory=str(tmp_path)),
        CoreConfig(),
        files=RealFiles(),
        disk=InlineDisk(),
        clock=ManualClock(),
        rng=random.Random(1),
        log=RecordingLogger(),
        on_halt=lambda: None,
    )
    yield each
    each._data.close()


def test_every_metric_is_there(node: Node) -> None:
    all_metrics = list(metrics(node._admin.view))
    compare("Metrics", {each.name: [kind_of(each)] for each in all_metrics})
    names = [each.name for each in all_metrics]
    assert len(names) == len(set(names))
