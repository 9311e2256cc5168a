"""Settings of the daemons: frozen dataclasses filled from a file, the environment and flags.

Owns how text becomes typed values and which source wins: defaults < TOML file (`--config`) <
environment < flags. An unknown setting in any of them is an error that names the nearest known
one; a wrong value is an error with field, value and rule. What values *mean* together is checked
by the classes themselves, in `__post_init__`, with `require`.

A settings class is a frozen dataclass whose fields have defaults and a string under each: unit,
meaning, original name. That string is the text of `--help`. Field types: int, float, bool, str,
Literal[...] of str, tuple[str, ...], and each of them or None. Text for a field that ends in
`_bytes` may say "64MiB", for one that ends in `_ms` "30s"; the unit is part of the name.
`field(metadata={"flag": "data"})` gives a field another name outside, in all three sources.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import (
    Any,
    Final,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from duolog_protocol.errors import ConfigError

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")

_BYTES: Final = {
    "gib": 1024**3, "mib": 1024**2, "kib": 1024, "gb": 10**9, "mb": 10**6, "kb": 10**3, "b": 1,
}  # fmt: skip
_MILLISECONDS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_Given = dict[str, tuple[Any, str]]
"""Raw value and where it came from, by the name outside."""
_TRUE: Final = {"true", "yes", "on", "1"}
_FALSE: Final = {"false", "no", "off", "0"}


class HelpRequested(Exception):
    """`--help` was among the flags; `str()` of it is the text."""


@overload
def load_config(
    classes: tuple[type[A]],
    argv: Sequence[str],
    environ: Mapping[str, str],
    prefix: str,
    read_file: Callable[[str], str] = ...,
) -> tuple[A]: ...
@overload
def load_config(
    classes: tuple[type[A], type[B]],
    argv: Sequence[str],
    environ: Mapping[str, str],
    prefix: str,
    read_file: Callable[[str], str] = ...,
) -> tuple[A, B]: ...
@overload
def load_config(
    classes: tuple[type[A], type[B], type[C]],
    argv: Sequence[str],
    environ: Mapping[str, str],
    prefix: str,
    read_file: Callable[[str], str] = ...,
) -> tuple[A, B, C]: ...


def load_config(
    classes: tuple[type[Any], ...],
    argv: Sequence[str],
    environ: Mapping[str, str],
    prefix: str,
    read_file: Callable[[str], str] | None = None,
) -> tuple[Any, ...]:
    """Fill one instance of each class.

    Args:
        classes: the settings classes; together they have each field name once.
        argv: the flags, without the program's name.
        environ: only names that begin with `prefix` are looked at.
        prefix: of the environment, such as "ZKSERVER_".
        read_file: text of the TOML file at a path; raises OSError.

    Raises:
        ConfigError: an unknown setting or a wrong value.
        HelpRequested: `--help` or `-h`.
    """
    settings = _settings(classes)
    flags = _from_flags(settings, argv)
    if "help" in flags:
        raise HelpRequested(help_text(classes, prefix))
    variables = _from_environment(settings, environ, prefix)
    from_variable = variables.pop("config", None)
    config = flags.pop("config", from_variable)
    file = {} if config is None else _from_file(settings, str(config[0]), read_file or _read_text)
    given = {**file, **variables, **flags}
    values = {settings[name].field: settings[name].convert(*given[name]) for name in given}
    for setting in settings.values():
        if setting.required and setting.field not in values:
            raise ConfigError(setting.name, None, "is required")
    return tuple(
        each(**{name: values[name] for name in _field_names(each) if name in values})
        for each in classes
    )


def exit_on_config_error(program: str, load: Callable[[], A]) -> A:
    """For `__main__`: print help on stdout (exit code 0), a ConfigError on stderr (exit code 2)."""
    import sys

    try:
        return load()
    except HelpRequested as request:
        sys.stdout.write(f"{request}\n")
        raise SystemExit(0) from None
    except ConfigError as error:
        sys.stderr.write(f"{program}: {error}\n")
        raise SystemExit(2) from None


def require(holds: bool, field: str, value: object, rule: str) -> None:
    """For `__post_init__`: raise ConfigError unless the rule holds."""
    if not holds:
        raise ConfigError(field, value, rule)


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine only.

    A name other than localhost is not, whatever it means at the moment.
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def field_docs(settings_class: type[Any]) -> dict[str, str]:
    """The string under each field of a settings class; a field without one is missing."""
    import ast
    import inspect
    import textwrap

    docs: dict[str, str] = {}
    for each in reversed(settings_class.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        assert isinstance(body, ast.ClassDef), each
        for node, below in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                docs[node.target.id] = inspect.cleandoc(below.value.value)
    return docs


def help_text(classes: tuple[type[Any], ...], prefix: str) -> str:
    """What `--help` prints: every setting with type, default and documentation."""
    import textwrap

    program = prefix.rstrip("_").lower()
    lines = [
        f"usage: {program} [--config FILE.toml] [--SETTING VALUE ...]",
        "",
        "Every setting is also a key of the TOML file (tick_ms = 2000) and an environment",
        f"variable ({prefix}TICK_MS). Flags win over the environment, it wins over the file.",
    ]
    for each in classes:
        title = (each.__doc__ or each.__name__).strip().splitlines()[0]
        docs = field_docs(each)
        lines += ["", title]
        for setting in _settings((each,)).values():
            lines += ["", f"  {setting.usage}"]
            text = docs.get(setting.field, "").replace("\n", " ")
            lines += textwrap.wrap(
                f"{text} {setting.default_text}".strip(),
                94,
                initial_indent="      ",
                subsequent_indent="      ",
            )
    return "\n".join(lines)


class _Setting(NamedTuple):
    """One field, as it looks from outside."""

    name: str
    field: str
    kind: type[Any]
    choices: tuple[str, ...]
    many: bool
    optional: bool
    default: Any

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def usage(self) -> str:
        if self.kind is bool:
            return f"{self.flag} | --no-{self.flag[2:]}"
        one = "|".join(self.choices) if self.choices else self.kind.__name__.upper()
        return f"{self.flag} {one}{',...' if self.many else ''}"

    @property
    def default_text(self) -> str:
        if self.required:
            return "(required)"
        value = self.default
        if isinstance(value, tuple):
            value = ",".join(map(str, value))
        if value is None or value == "":
            value = "none"
        return f"(default: {str(value).lower() if isinstance(value, bool) else value})"

    def convert(self, raw: Any, source: str) -> Any:
        """The typed value of what a source gave. Raises ConfigError."""
        if self.optional and (raw is None or raw in ("", "none")):
            return None
        if not self.many:
            return self._convert_one(raw, source)
        items = raw
        if isinstance(raw, str):
            items = [item.strip() for item in raw.split(",")] if raw.strip() else []
        if not isinstance(items, list):
            raise self._wrong(raw, "must be a list", source)
        return tuple(self._convert_one(item, source) for item in items)

    def _convert_one(self, raw: Any, source: str) -> Any:
        if self.choices:
            if raw in self.choices:
                return raw
            raise self._wrong(raw, f"must be one of {', '.join(self.choices)}", source)
        value: Any
        if self.kind is bool:
            value, rule = _bool(raw), "must be true or false"
        elif self.kind is int:
            units, rule = self._units()
            value = _int(raw, units)
        elif self.kind is float:
            value, rule = _float(raw), "must be a number"
        else:
            value, rule = raw if isinstance(raw, str) else None, "must be text"
        if value is None:
            raise self._wrong(raw, rule, source)
        return value

    def _units(self) -> tuple[Mapping[str, int], str]:
        if self.field.endswith("_bytes"):
            return _BYTES, 'must be a whole number of bytes, or one with a unit such as "64MiB"'
        if self.field.endswith("_ms"):
            return _MILLISECONDS, 'must be whole milliseconds, or a number with a unit like "30s"'
        return {}, "must be a whole number"

    def _wrong(self, raw: Any, rule: str, source: str) -> ConfigError:
        return ConfigError(self.name, raw, f"{rule} (from {source})")


def _bool(raw: Any) -> bool | None:
    if isinstance(raw, bool):
        return raw
    text = raw.strip().lower() if isinstance(raw, str) else ""
    return True if text in _TRUE else False if text in _FALSE else None


def _int(raw: Any, units: Mapping[str, int]) -> int | None:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    if not isinstance(raw, str):
        return None
    text, factor = raw.strip().lower(), 1
    for unit in units:  # longest first: "mib" also ends in "b"
        if text.endswith(unit):
            text, factor = text[: -len(unit)].strip(), units[unit]
            break
    try:
        return int(text) * factor
    except ValueError:
        return None


def _float(raw: Any) -> float | None:
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        return None
    try:
        value = float(raw)
    except ValueError:
        return None
    return value if value - value == 0 else None  # neither infinite nor not-a-number


def _field_names(settings_class: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(settings_class)]


def _settings(classes: tuple[type[Any], ...]) -> dict[str, _Setting]:
    """All settings by their name outside."""
    settings: dict[str, _Setting] = {}
    fields: set[str] = set()
    for each in classes:
        hints = get_type_hints(each)
        for field in dataclasses.fields(each):
            if not field.init:
                continue
            name = str(field.metadata.get("flag", field.name)).replace("-", "_")
            assert name not in settings and name not in {"config", "help"}, name
            assert field.name not in fields, field.name
            fields.add(field.name)
            default = field.default
            if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            settings[name] = _setting(name, field.name, hints[field.name], default)
    return settings


def _setting(name: str, field: str, hint: Any, default: Any) -> _Setting:
    optional = many = False
    choices: tuple[str, ...] = ()
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (each for each in get_args(hint) if each is not type(None))
        optional = True
    if get_origin(hint) is tuple:
        hint, dots = get_args(hint)
        assert dots is ..., (field, hint)
        many = True
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        hint = str
    assert hint in (int, float, bool, str), (field, hint)
    return _Setting(name, field, hint, choices, many, optional, default)


def _from_flags(settings: Mapping[str, _Setting], argv: Sequence[str]) -> _Given:
    """Read `--name value`, `--name=value`, `--name` and `--no-name`; the last one wins."""
    given: _Given = {}
    rest = list(reversed(argv))
    while rest:
        argument = rest.pop()
        if argument in {"-h", "--help"}:
            given["help"] = (True, argument)
            continue
        if not argument.startswith("--") or argument == "--":
            rule = "is no setting: they are given as --name value or --name=value"
            raise ConfigError(argument, None, rule)
        flag, equals, value = argument.partition("=")
        name = flag[2:].replace("-", "_")
        setting = settings.get(name)
        negated = settings.get(name[3:]) if name.startswith("no_") else None
        if setting is None and negated is not None and negated.kind is bool and not equals:
            given[negated.name] = (False, flag)
        elif setting is None and name != "config":
            raise _unknown(name, value or None, flag, [each.flag for each in settings.values()])
        elif equals:
            given[name] = (value, flag)
        elif setting is not None and setting.kind is bool and not setting.many:
            given[name] = (True, flag)
        elif not rest or rest[-1].startswith("--"):
            raise ConfigError(name, None, f"needs a value: {flag} VALUE or {flag}=VALUE")
        else:
            given[name] = (rest.pop(), flag)
    return given


def _from_environment(
    settings: Mapping[str, _Setting], environ: Mapping[str, str], prefix: str
) -> _Given:
    given: _Given = {}
    for variable, value in environ.items():
        if variable.startswith(prefix):
            name = variable[len(prefix) :].lower()
            if name not in settings and name != "config":
                known = [prefix + each.upper() for each in settings]
                raise _unknown(variable, value, f"environment variable {variable}", known)
            given[name] = (value, f"environment variable {variable}")
    return given


def _from_file(
    settings: Mapping[str, _Setting], path: str, read_file: Callable[[str], str]
) -> _Given:
    import tomllib

    try:
        table = tomllib.loads(read_file(path))
    except OSError as error:
        raise ConfigError("config", path, f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # of TOML or of UTF-8
        raise ConfigError("config", path, f"is not a TOML file: {error}") from error
    given: _Given = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in settings:
            raise _unknown(key, value, f"file {path}", list(settings))
        if name in given:
            raise ConfigError(name, value, f"is given twice (file {path})")
        given[name] = (value, f"file {path}")
    return given


def _read_text(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _unknown(name: str, value: object, source: str, known: list[str]) -> ConfigError:
    import difflib

    # Somebody may write the originals' tickTime: compare what is left of both without decoration.
    bare = {_bare(each): each for each in known}
    near = difflib.get_close_matches(_bare(name), bare, 1, 0.5)
    hint = f"; did you mean {bare[near[0]]}?" if near else "; --help lists all settings"
    return ConfigError(name, value, f"is unknown (from {source}){hint}")


def _bare(name: str) -> str:
    snake: str = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.lstrip("-"))
    return snake.replace("-", "_").replace(".", "_").lower()
