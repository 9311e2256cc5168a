"""The guide says what is true: its settings exist, and its examples can be found and run.

The examples themselves are run by `make compat`: they need other languages' clients.
"""

from __future__ import annotations

import re

import pytest

from duolog_runtime.config import field_docs
from zkserver.config import ServerConfig
from zkserver.core.config import CoreConfig

from .guide import GUIDE, PRINTED_ADDRESS, RUNNERS, ExampleError, examples

FLAGS_OF_OTHER_NAMES = {"--data", "--config", "--help"}


def test_every_flag_that_the_guide_names_exists() -> None:
    names = {*field_docs(ServerConfig), *field_docs(CoreConfig)}
    flags = {f"--{name.replace('_', '-')}" for name in names} | FLAGS_OF_OTHER_NAMES
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", GUIDE.read_text()))
    assert named
    assert named <= flags, sorted(named - flags)


def test_a_setting_stands_beside_the_name_it_has_in_zoo_cfg() -> None:
    table = GUIDE.read_text().partition("| `zoo.cfg` | zkserver |")[2]
    rows = re.findall(r"^\| `(.+?)`.* \| `(--.+?)`", table, re.MULTILINE)
    assert len(rows) > 10
    documented = {
        f"--{name.replace('_', '-')}": text
        for settings in (ServerConfig, CoreConfig)
        for name, text in field_docs(settings).items()
    }
    for original, flag in rows:
        if flag in documented:
            assert original.split("`")[0] in documented[flag], (original, documented[flag])


def test_the_guide_has_an_example_for_each_client() -> None:
    found = examples(GUIDE.read_text())
    assert {each.language for each in found} == {"console", *RUNNERS}
    for each in found:
        assert PRINTED_ADDRESS in each.program
        assert each.output or each.language == "console"


def test_an_example_without_its_output_is_refused() -> None:
    with pytest.raises(ExampleError, match="no text block after the go example"):
        examples("```go\nx\n```\n\n```java\ny\n```\n")
