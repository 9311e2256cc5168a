"""`duolog zk ls|get|set|create|rm|stat|watch|tree`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from duolog import ZkClient
from duolog_protocol.errors import NoNodeError
from duolog_protocol.types import EventType, Stat

from .common import add_zookeeper, parser, run_async


def run(words: Sequence[str]) -> int:
    """Do what the words say."""
    options = _parser().parse_args(words)
    run_async(_with_client(options))
    return 0


def _parser() -> argparse.ArgumentParser:
    found = parser("zk", "Look at and change znodes.")
    verbs = found.add_subparsers(required=True, metavar="ls|get|set|create|rm|stat|watch|tree")

    def verb(
        name: str, text: str, action: Callable[[ZkClient, argparse.Namespace], Awaitable[None]]
    ) -> argparse.ArgumentParser:
        each = verbs.add_parser(name, help=text)
        each.add_argument(
            "path", metavar="PATH", nargs="?" if name in {"ls", "tree"} else None, default="/"
        )
        each.set_defaults(action=action)
        add_zookeeper(each)
        return each

    verb("ls", "list children", _ls).add_argument("-l", "--long", action="store_true")
    verb("get", "print the data", _get)
    setting = verb("set", "replace the data", _set)
    setting.add_argument("data", metavar="DATA", help="'-' reads stdin")
    setting.add_argument("-v", "--version", type=int, default=-1, help="only at this version")
    create = verb("create", "create a znode", _create)
    create.add_argument("data", metavar="DATA", nargs="?", default="", help="'-' reads stdin")
    create.add_argument("-s", "--sequence", action="store_true", help="append a number")
    create.add_argument(
        "-e", "--ephemeral", action="store_true", help="while this command runs (until Ctrl-C)"
    )
    create.add_argument("-p", "--parents", action="store_true", help="create missing parents")
    remove = verb("rm", "delete a znode", _rm)
    remove.add_argument("-r", "--recursive", action="store_true", help="with all below it")
    remove.add_argument("-v", "--version", type=int, default=-1, help="only at this version")
    verb("stat", "print the metadata", _stat)
    verb("watch", "print every change until Ctrl-C", _watch).add_argument(
        "-r", "--recursive", action="store_true", help="of the whole subtree"
    )
    verb("tree", "print the subtree", _tree)
    return found


async def _with_client(options: argparse.Namespace) -> None:
    async with ZkClient(options.zookeeper) as zk:
        await options.action(zk, options)


def _data(options: argparse.Namespace) -> bytes:
    if options.data == "-":
        return sys.stdin.buffer.read()
    text: str = options.data
    return text.encode()


async def _ls(zk: ZkClient, options: argparse.Namespace) -> None:
    for name in sorted(await zk.get_children(options.path)):
        if options.long:
            path = f"{options.path.rstrip('/')}/{name}"
            stat = await zk.exists(path)
            if stat is None:
                continue
            kind = "e" if stat.ephemeral_owner else "-"
            print(f"{kind} {stat.num_children:>5} {stat.data_length:>8} {_time(stat.mtime)} {name}")
        else:
            print(name)


async def _get(zk: ZkClient, options: argparse.Namespace) -> None:
    data, _ = await zk.get(options.path)
    sys.stdout.buffer.write(data or b"")
    if sys.stdout.isatty():
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()


async def _set(zk: ZkClient, options: argparse.Namespace) -> None:
    stat = await zk.set(options.path, _data(options), options.version)
    print(f"version {stat.version}")


async def _create(zk: ZkClient, options: argparse.Namespace) -> None:
    path = await zk.create(
        options.path,
        _data(options),
        ephemeral=options.ephemeral,
        sequence=options.sequence,
        makepath=options.parents,
    )
    print(path, flush=True)
    if options.ephemeral:
        async for _ in zk.states():
            continue


async def _rm(zk: ZkClient, options: argparse.Namespace) -> None:
    await zk.delete(options.path, options.version, recursive=options.recursive)


async def _stat(zk: ZkClient, options: argparse.Namespace) -> None:
    stat = await zk.exists(options.path)
    if stat is None:
        raise NoNodeError(f"{options.path} does not exist")
    for name, value in zip(Stat._fields, stat, strict=True):
        print(f"{name:<16}{_shown(name, value)}")


def _shown(name: str, value: int) -> str:
    if name in {"czxid", "mzxid", "pzxid", "ephemeral_owner"}:
        return f"{value:#x}"
    if name in {"ctime", "mtime"}:
        return _time(value)
    return str(value)


def _time(ms: int) -> str:
    if ms <= 0:
        return "-"
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")


async def _watch(zk: ZkClient, options: argparse.Namespace) -> None:
    async for event in zk.events(options.path, recursive=options.recursive):
        print(f"{EventType(event.type).name.lower():<8} {event.path}", flush=True)


async def _tree(zk: ZkClient, options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    async def grow(path: str, name: str, parent: Any) -> Any:
        try:
            data, stat = await zk.get(path)
            children = sorted(await zk.get_children(path))
        except NoNodeError:
            return parent
        label = Text(name)
        if data:
            text = data[:60].decode(errors="replace")
            label.append(f"  {text}{'…' if len(data) > 60 else ''}", style="dim")
        if stat.ephemeral_owner:
            label.append("  ephemeral", style="yellow")
        branch = Tree(label) if parent is None else parent.add(label)
        for child in children:
            await grow(f"{path.rstrip('/')}/{child}", child, branch)
        return branch

    found = await grow(options.path, options.path, None)
    if found is None:
        raise NoNodeError(f"{options.path} does not exist")
    Console().print(found)
