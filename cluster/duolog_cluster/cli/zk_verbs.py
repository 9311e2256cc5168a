"""What the verbs of `duolog zk` do and print."""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from duolog import Acl, EventType, Lock, Perms, Stat, WatchedEvent, ZkClient
from duolog.zk import Transaction
from duolog.zk_transaction import failure_of
from duolog_protocol.errors import (
    BadVersionError,
    ConfigError,
    Error,
    NoNodeError,
    SessionExpiredError,
)
from duolog_protocol.types import OPEN_ACL_UNSAFE

from .held_command import run_held

ACL_FORM: Final = "SCHEME:ID:PERMS[,...] with PERMS of cdrwa, as world:anyone:r"
_LETTERS: Final = {
    "c": Perms.CREATE,
    "d": Perms.DELETE,
    "r": Perms.READ,
    "w": Perms.WRITE,
    "a": Perms.ADMIN,
}
_HEX_FIELDS: Final = {"czxid", "mzxid", "pzxid", "ephemeral_owner"}
_SHOWN_BYTES: Final = 60


def show(options: argparse.Namespace, value: Any, text: str) -> None:
    """Print the value as JSON, or its text."""
    print(json.dumps(value) if options.json else text, flush=True)


def data_json(data: bytes | None) -> dict[str, Any]:
    """Data as JSON: text where it is UTF-8, else base64."""
    if data is None:
        return {"data": None}
    try:
        return {"data": data.decode()}
    except UnicodeDecodeError:
        return {"data_base64": base64.b64encode(data).decode()}


def _below(path: str, name: str) -> str:
    return f"{path.rstrip('/')}/{name}"


def _data(options: argparse.Namespace) -> bytes:
    if options.data == "-":
        return sys.stdin.buffer.read()
    text: str = options.data
    return text.encode()


# ---- reads -------------------------------------------------------------------------------------


async def ls(zk: ZkClient, options: argparse.Namespace) -> None:
    """List children."""
    change = _OneChange() if options.watch else None
    names = await zk.get_children(options.path, change)
    paths = [_below(options.path, name) for name in sorted(names)]
    if options.recursive:
        paths = [options.path, *[each for path in paths for each in await _subtree(zk, path)]]
    if options.long:
        stats = {path: await zk.exists(path) for path in paths}
        rows = [(path, stat) for path, stat in stats.items() if stat is not None]
        if options.json:
            show(options, {path: stat._asdict() for path, stat in rows}, "")
        for path, stat in [] if options.json else rows:
            kind = "e" if stat.ephemeral_owner else "-"
            name = path if options.recursive else path[path.rfind("/") + 1 :]
            print(f"{kind} {stat.num_children:>6} {stat.data_length:>9} {_time(stat.mtime)} {name}")
    else:
        shown = paths if options.recursive else sorted(names)
        if options.json or shown:
            show(options, shown, "\n".join(shown))
    if change is not None:
        await change.tell(options)


async def _subtree(zk: ZkClient, path: str) -> list[str]:
    try:
        names = await zk.get_children(path)
    except NoNodeError:
        return []
    found = [path]
    for name in sorted(names):
        found += await _subtree(zk, _below(path, name))
    return found


class _OneChange:
    """A watcher that waits for its event."""

    def __init__(self) -> None:
        self._event: asyncio.Future[WatchedEvent] = asyncio.get_running_loop().create_future()

    def __call__(self, event: WatchedEvent) -> None:
        if not self._event.done():
            self._event.set_result(event)

    async def tell(self, options: argparse.Namespace) -> None:
        event = await self._event
        if event.type is EventType.NONE:
            raise SessionExpiredError(f"the session ended before {event.path} changed")
        show_event(options, event)


def show_event(options: argparse.Namespace, event: WatchedEvent) -> None:
    """Print an event: its type, path and zxid."""
    kind = event.type.name.lower()
    value = {"type": kind, "path": event.path, "zxid": event.zxid}
    show(options, value, f"{kind:<9} {event.path}")


async def get(zk: ZkClient, options: argparse.Namespace) -> None:
    """Print the data."""
    change = _OneChange() if options.watch else None
    data, found = await zk.get(options.path, change)
    if options.json:
        shown = data_json(data) | ({"stat": found._asdict()} if options.stat else {})
        print(json.dumps(shown), flush=True)
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(data or b"")
        if sys.stdout.isatty() or options.stat or options.watch:
            sys.stdout.buffer.write(b"\n")
        sys.stdout.buffer.flush()
        if options.stat:
            print(_stat_text(found), flush=True)
    if change is not None:
        await change.tell(options)


async def stat(zk: ZkClient, options: argparse.Namespace) -> None:
    """Print the metadata."""
    found = await zk.exists(options.path)
    if found is None:
        raise NoNodeError(f"{options.path} does not exist")
    show(options, found._asdict(), _stat_text(found))


def _stat_text(found: Stat) -> str:
    return "\n".join(f"{name:<16}{_shown(name, value)}" for name, value in found._asdict().items())


def _shown(name: str, value: int) -> str:
    if name in _HEX_FIELDS:
        return f"{value:#x}"
    if name in {"ctime", "mtime"}:
        return _time(value)
    return str(value)


def _time(ms: int) -> str:
    if ms <= 0:
        return "-"
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")


async def watch(zk: ZkClient, options: argparse.Namespace) -> None:
    """Print every change."""
    count = 0
    stream = zk.events(options.path, recursive=options.recursive, after_zxid=options.after)
    async with stream as events:
        async for event in events:
            show_event(options, event)
            if event.type is EventType.COMPACTED:
                print("changes before this are no longer known: look again", file=sys.stderr)
            count += 1
            if count == options.count:
                return


async def tree(zk: ZkClient, options: argparse.Namespace) -> None:
    """Print the subtree."""
    if options.json:
        found = await _tree_json(zk, options.path)
        if found is None:
            raise NoNodeError(f"{options.path} does not exist")
        print(json.dumps(found))
        return
    from rich.console import Console

    branch = await _grow(zk, options.path, options.path, None)
    if branch is None:
        raise NoNodeError(f"{options.path} does not exist")
    Console().print(branch)


async def _tree_json(zk: ZkClient, path: str) -> dict[str, Any] | None:
    try:
        data, found = await zk.get(path)
        names = sorted(await zk.get_children(path))
    except NoNodeError:
        return None
    children = [await _tree_json(zk, _below(path, name)) for name in names]
    ephemeral = bool(found.ephemeral_owner)
    shown = {"path": path, "ephemeral": ephemeral, "children": [each for each in children if each]}
    return shown | data_json(data)


async def _grow(zk: ZkClient, path: str, name: str, parent: Any) -> Any:
    from rich.text import Text
    from rich.tree import Tree

    try:
        data, found = await zk.get(path)
        children = sorted(await zk.get_children(path))
    except NoNodeError:
        return parent
    label = Text(name)
    if data:
        text = data[:_SHOWN_BYTES].decode(errors="replace")
        label.append(f"  {text}{'…' if len(data) > _SHOWN_BYTES else ''}", style="dim")
    if found.ephemeral_owner:
        label.append("  ephemeral", style="yellow")
    branch = Tree(label) if parent is None else parent.add(label)
    for child in children:
        await _grow(zk, _below(path, child), child, branch)
    return branch


async def count(zk: ZkClient, options: argparse.Namespace) -> None:
    """Print the number of descendants."""
    number = await zk.get_all_children_number(options.path)
    show(options, number, str(number))


async def ephemerals(zk: ZkClient, options: argparse.Namespace) -> None:
    """Print the session's ephemeral znodes."""
    paths = await zk.get_ephemerals(options.path)
    if options.json or paths:
        show(options, paths, "\n".join(paths))


async def whoami(zk: ZkClient, options: argparse.Namespace) -> None:
    """Print the identities of the connection."""
    found = await zk.whoami()
    text = "\n".join(f"{each.scheme}:{each.user}" for each in found)
    show(options, [each._asdict() for each in found], text)


async def sync(zk: ZkClient, options: argparse.Namespace) -> None:
    """Wait until the server has caught up."""
    await zk.sync(options.path)
    zxid = zk.last_zxid_seen
    show(options, {"path": options.path, "zxid": zxid}, f"{zxid:#x}")


# ---- ACLs --------------------------------------------------------------------------------------


def parse_acl(text: str) -> tuple[Acl, ...]:
    """The ACL of `SCHEME:ID:PERMS[,...]`. Raises ConfigError."""
    found: list[Acl] = []
    for entry in text.split(","):
        scheme, _, rest = entry.strip().partition(":")
        id_, colon, letters = rest.rpartition(":")
        if not scheme or not colon or not letters or set(letters) - _LETTERS.keys():
            raise ConfigError("acl", entry, f"must be {ACL_FORM}")
        perms = 0
        for letter in letters:
            perms |= _LETTERS[letter]
        found.append(Acl(perms, scheme, id_))
    return tuple(found)


def acl_text(acl: Acl) -> str:
    """An entry as `parse_acl` reads it."""
    letters = "".join(letter for letter, perm in _LETTERS.items() if acl.perms & perm)
    return f"{acl.scheme}:{acl.id}:{letters}"


async def getacl(zk: ZkClient, options: argparse.Namespace) -> None:
    """Print the ACL."""
    acls, _ = await zk.get_acls(options.path)
    value = [each._asdict() | {"text": acl_text(each)} for each in acls]
    show(options, value, "\n".join(map(acl_text, acls)))


async def setacl(zk: ZkClient, options: argparse.Namespace) -> None:
    """Replace the ACL."""
    acl = parse_acl(options.acl)
    if options.recursive:
        await _check_aversion(zk, options)
        # All are listed before the new ACL can forbid it; parents come last, so that one which
        # fails can be repeated.
        for path in reversed((await _subtree(zk, options.path))[1:]):
            with contextlib.suppress(NoNodeError):
                await zk.set_acls(path, acl)
    found = await zk.set_acls(options.path, acl, options.version)
    show(options, found._asdict(), f"aversion {found.aversion}")


async def _check_aversion(zk: ZkClient, options: argparse.Namespace) -> None:
    found = await zk.exists(options.path)
    if found is None:
        raise NoNodeError(f"{options.path} does not exist")
    if options.version not in (-1, found.aversion):
        raise BadVersionError(f"the aversion of {options.path} is {found.aversion}")


# ---- writes ------------------------------------------------------------------------------------


async def set_data(zk: ZkClient, options: argparse.Namespace) -> None:
    """Replace the data."""
    found = await zk.set(options.path, _data(options), options.version)
    show(options, found._asdict(), f"version {found.version}")


async def create(zk: ZkClient, options: argparse.Namespace) -> None:
    """Create a znode."""
    acl = parse_acl(options.acl) if options.acl else OPEN_ACL_UNSAFE
    data = _data(options)
    if options.parents:
        await zk.ensure_path(options.path[: options.path.rfind("/")] or "/")
    try:
        path, found = await zk.create(
            options.path,
            data,
            acl,
            options.ephemeral,
            options.sequence,
            include_data=True,
            container=options.container,
            ttl=options.ttl,
        )
    except ValueError as error:
        raise ConfigError("create", options.path, str(error)) from None
    show(options, {"path": path, "stat": found._asdict()}, path)
    if options.ephemeral:
        async for _ in zk.states():
            if zk.client_id is None or zk.client_id[0] != found.ephemeral_owner:
                raise SessionExpiredError(f"{path} is gone: its session has ended")


async def rm(zk: ZkClient, options: argparse.Namespace) -> None:
    """Delete a znode."""
    await zk.delete(options.path, options.version, options.recursive)
    if options.json:
        show(options, {"deleted": options.path}, "")


def _create_parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(add_help=False, exit_on_error=False, prog="create")
    found.add_argument("-e", dest="ephemeral", action="store_true")
    found.add_argument("-s", dest="sequence", action="store_true")
    found.add_argument("-c", dest="container", action="store_true")
    found.add_argument("-t", dest="ttl", type=float)
    found.add_argument("path")
    found.add_argument("data", nargs="?", default="")
    return found


def add_operation(transaction: Transaction, line: str) -> None:
    """Add an operation as a line of a multi has it. Raises ConfigError."""
    try:
        kind, *words = shlex.split(line)
        if kind == "create":
            each, rest = _create_parser().parse_known_args(words)
            if rest:
                raise ValueError(f"unknown {rest[0]}")
            transaction.create(
                each.path,
                each.data.encode(),
                None,
                each.ephemeral,
                each.sequence,
                container=each.container,
                ttl=each.ttl,
            )
        elif kind == "set" and len(words) in (2, 3):
            transaction.set_data(words[0], words[1].encode(), int((*words, "-1")[2]))
        elif kind in {"delete", "rm"} and len(words) in (1, 2):
            transaction.delete(words[0], int((*words, "-1")[1]))
        elif kind == "check" and len(words) in (1, 2):
            transaction.check(words[0], int((*words, "-1")[1]))
        else:
            raise ValueError("not an operation")
    except (ValueError, argparse.ArgumentError, SystemExit) as error:
        rule = "must be create, set, delete or check with its arguments"
        raise ConfigError("line", line, f"{rule} ({error})") from None


async def multi(zk: ZkClient, options: argparse.Namespace) -> None:
    """Apply operations, all or none."""
    if options.file == "-":
        text = sys.stdin.read()
    else:
        text = Path(options.file).read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    transaction = zk.transaction()
    for line in lines:
        add_operation(transaction, line)
    results = await transaction.commit()
    shown: list[Any] = []
    for line, result in zip(lines, results, strict=True):
        failed = isinstance(result, Error)
        shown.append(
            {"operation": line, "error": type(result).__name__}
            if failed
            else {"operation": line, "result": _plain(result)}
        )
        if not options.json:
            told = f"{type(result).__name__}: {result}" if failed else str(_plain(result))
            print(f"{line}  ->  {told}")
    if options.json:
        print(json.dumps(shown))
    failure = failure_of(results)
    if failure is not None:
        raise failure


def _plain(result: Any) -> Any:
    return f"version {result.version}" if isinstance(result, Stat) else result


async def lock(zk: ZkClient, options: argparse.Namespace) -> None:
    """Run a command while holding a lock; it is stopped when the lock is in doubt."""
    held = Lock(zk, options.path, f"pid {os.getpid()}")
    await held.acquire(timeout=options.timeout)
    try:
        environment = os.environ | {"DUOLOG_LOCK_TOKEN": str(held.token)}
        code = await run_held(options.command, environment, held.lost)
    finally:
        if not held.lost.is_set():  # else the end of the session releases it: do not wait here
            await held.release()
    if held.lost.is_set():
        raise Error(f"the lock {options.path} was in doubt: the command was stopped")
    if code:
        raise Error(f"the command ended with {code}")
