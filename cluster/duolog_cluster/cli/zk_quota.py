"""`duolog zk quota`: limits of a subtree, in the znodes and texts that ZooKeeper 3.8 has for them.

A quota of `/a` is `/zookeeper/quota/a/zookeeper_limits`, its usage `zookeeper_stats` beside it.
Only hard limits are enforced, and only by servers that are told to; a soft one is logged.

Source: ZooKeeper `SetQuotaCommand`, `StatsTrack`; the text is what its zkCli writes.
"""

from __future__ import annotations

import argparse
import contextlib
from typing import Any, Final

from duolog import ZkClient
from duolog_protocol.errors import ConfigError, Error, NodeExistsError, NoNodeError, NotEmptyError
from duolog_protocol.paths import parent_of

from .zk_verbs import show

ROOT: Final = "/zookeeper/quota"
LIMITS: Final = "zookeeper_limits"
STATS: Final = "zookeeper_stats"
OPTIONS: Final = (
    ("-n", "count", "znodes, soft"),
    ("-b", "bytes", "bytes of data, soft"),
    ("-N", "countHardLimit", "znodes, hard"),
    ("-B", "byteHardLimit", "bytes of data, hard"),
)
_FIELDS: Final = tuple(field for _, field, _ in OPTIONS)


def parse(data: bytes | None) -> dict[str, int]:
    """The numbers of a limits or stats text; -1 is no limit."""
    found: dict[str, int] = {}
    for part in (data or b"").decode(errors="replace").replace(";", ",").split(","):
        name, _, value = part.partition("=")
        digits = value.strip("= ")
        if digits.lstrip("-").isdecimal():
            found[name.strip()] = int(digits)
    return found


def limits_text(limits: dict[str, int]) -> bytes:
    """The text of limits, as ZooKeeper 3.8 writes it (so that 3.6 can read it)."""
    value = {field: limits.get(field, -1) for field in _FIELDS}
    return (
        f"count={value['count']},bytes={value['bytes']}=;"
        f"byteHardLimit={value['byteHardLimit']};countHardLimit={value['countHardLimit']}"
    ).encode()


async def set_quota(zk: ZkClient, options: argparse.Namespace) -> None:
    """Set limits; those that are not named stay."""
    wanted = {field: getattr(options, field) for field in _FIELDS}
    given = {field: value for field, value in wanted.items() if value is not None}
    if not given:
        raise Error("name a limit: -n, -b, -N or -B")
    path = options.path
    place = _place(zk, path)
    if await zk.exists(path) is None:
        raise NoNodeError(f"{path} does not exist")
    await _refuse_nested(zk, path)
    try:
        data, _ = await zk.get(f"{place}/{LIMITS}")
        limits = parse(data) | given
        await zk.set(f"{place}/{LIMITS}", limits_text(limits))
    except NoNodeError:
        limits = given
        await zk.ensure_path(place)
        await zk.create(f"{place}/{LIMITS}", limits_text(limits))
    with contextlib.suppress(NodeExistsError):
        await zk.create(f"{place}/{STATS}", b"count=0,bytes=0")  # the server keeps it
    _show(options, limits, None)


def _place(zk: ZkClient, path: str) -> str:
    """Where the quota of a path is kept. Raises ConfigError."""
    if path == "/":
        raise ConfigError("path", path, "the root has no quota")
    if zk.chroot:
        raise ConfigError("zookeeper", zk.chroot, "no chroot here: quotas are outside of it")
    return ROOT + path


async def _refuse_nested(zk: ZkClient, path: str) -> None:
    """One quota on a branch, as in ZooKeeper. Raises Error."""
    above = path
    while above != "/":
        above = parent_of(above)
        if above != "/" and await zk.exists(f"{ROOT}{above}/{LIMITS}") is not None:
            raise Error(f"{path} has a parent with a quota: {above}")
    if await zk.exists(ROOT + path) is None:
        return
    waiting = [path]
    while waiting:
        each = waiting.pop()
        for name in await zk.get_children(ROOT + each):
            if name == LIMITS and each != path:
                raise Error(f"{path} has a child with a quota: {each}")
            if name not in {LIMITS, STATS}:
                waiting.append(f"{each}/{name}")


async def list_quota(zk: ZkClient, options: argparse.Namespace) -> None:
    """Print limits and usage."""
    place = _place(zk, options.path)
    try:
        limits, _ = await zk.get(f"{place}/{LIMITS}")
        usage, _ = await zk.get(f"{place}/{STATS}")
    except NoNodeError:
        raise NoNodeError(f"{options.path} has no quota") from None
    _show(options, parse(limits), parse(usage))


def _show(
    options: argparse.Namespace, limits: dict[str, int], usage: dict[str, int] | None
) -> None:
    value: dict[str, Any] = {"path": options.path, "limits": limits}
    if usage is not None:
        value["usage"] = usage
    known = {field: number for field, number in limits.items() if number >= 0}
    lines = [f"limit  {field} {number}" for field, number in known.items()]
    lines += [f"usage  {field} {number}" for field, number in (usage or {}).items()]
    show(options, value, "\n".join(lines) or "no limits")


async def delete_quota(zk: ZkClient, options: argparse.Namespace) -> None:
    """Remove the named limits, or the whole quota."""
    place = _place(zk, options.path)
    named = [field for field in _FIELDS if getattr(options, field)]
    try:
        data, _ = await zk.get(f"{place}/{LIMITS}")
    except NoNodeError:
        raise NoNodeError(f"{options.path} has no quota") from None
    if named:
        limits = parse(data) | dict.fromkeys(named, -1)
        await zk.set(f"{place}/{LIMITS}", limits_text(limits))
        _show(options, limits, None)
        return
    for name in (LIMITS, STATS):
        try:
            await zk.delete(f"{place}/{name}")
        except NoNodeError:
            continue
    while place != ROOT:
        try:
            await zk.delete(place)
        except (NotEmptyError, NoNodeError):
            break
        place = parent_of(place)
    if options.json:
        show(options, {"path": options.path, "limits": None}, "")
