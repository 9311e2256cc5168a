"""`duolog zk VERB`: look at and change znodes.

Owns the grammar of the verbs and how their errors are shown. What the verbs do is in `zk_verbs`
and `zk_quota`. With `--json` everything on stdout is JSON: one value, or one a line for what goes
on (`watch`); an error is a JSON object on stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from duolog import ZkClient
from duolog_protocol.errors import ConfigError, Error, ZkError

from ..zk_words import WORD_SECONDS
from . import zk_quota, zk_status, zk_verbs
from .common import add_zookeeper, parser, run_async

Action = Callable[[ZkClient, argparse.Namespace], Awaitable[None]]
Subparsers = argparse._SubParsersAction  # the type has no public name

_ROOT_BY_DEFAULT: Final = {"ls", "tree", "count", "ephemerals", "sync"}


def run(words: Sequence[str]) -> int:
    """Do what the words say."""
    options = _parser().parse_args(words)
    try:
        if options.action is None:
            return run_async(zk_status.status(options))
        run_async(_with_client(options))
    except Error as error:
        if not options.json:
            raise
        told = {"error": type(error).__name__, "message": str(error)}
        code = {"code": int(error.code)} if isinstance(error, ZkError) else {}
        print(json.dumps(told | code), file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


async def _with_client(options: argparse.Namespace) -> None:
    async with ZkClient(
        options.zookeeper, session_timeout=options.session_timeout, auth_data=options.auth
    ) as zk:
        await options.action(zk, options)


def _credential(text: str) -> tuple[str, str]:
    scheme, colon, credential = text.partition(":")
    if not scheme or not colon:
        raise argparse.ArgumentTypeError("must be SCHEME:CREDENTIAL, as digest:user:password")
    return scheme, credential


def _version(text: str) -> int:
    """Of the members: hexadecimal with or without 0x, as they show it, and as zkCli takes it."""
    return _not_negative(text, 16, "must be a version of the members, hexadecimal")


def _zxid(text: str) -> int:
    return _not_negative(text, 0, "must be a zxid, decimal or 0x...")


def _not_negative(text: str, base: int, rule: str) -> int:
    try:
        number = int(text, base)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(rule)
    return number


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    add_zookeeper(common)
    common.add_argument("--json", action="store_true", help="print JSON")
    common.add_argument(
        "--auth",
        action="append",
        default=[],
        type=_credential,
        metavar="SCHEME:CREDENTIAL",
        help="add an identity first, as digest:user:password (may be repeated)",
    )
    common.add_argument(
        "--session-timeout", type=float, default=10.0, metavar="SECONDS", help="default 10"
    )
    return common


def _parser() -> argparse.ArgumentParser:
    found = parser("zk", "Look at and change znodes.")
    verbs = found.add_subparsers(required=True, metavar="VERB")
    common = _common()

    def verb(name: str, text: str, action: Action, *, path: bool = True) -> argparse.ArgumentParser:
        each = verbs.add_parser(name, help=text, description=text, parents=[common])
        if path:
            optional = "?" if name in _ROOT_BY_DEFAULT else None
            each.add_argument("path", metavar="PATH", nargs=optional, default="/")
        each.set_defaults(action=action)
        return each

    _add_reads(verb)
    _add_writes(verb)
    _add_reconfig(verb)
    _add_quota(verbs, common)
    _add_status(verbs, common)
    return found


def _add_reads(verb: Callable[..., argparse.ArgumentParser]) -> None:
    listing = verb("ls", "list children", zk_verbs.ls)
    listing.add_argument("-l", "--long", action="store_true", help="with their metadata")
    listing.add_argument("-R", "--recursive", action="store_true", help="the whole subtree")
    listing.add_argument("-w", "--watch", action="store_true", help="wait for one change of it")
    getting = verb("get", "print the data", zk_verbs.get)
    getting.add_argument("-s", "--stat", action="store_true", help="with the metadata")
    getting.add_argument("-w", "--watch", action="store_true", help="wait for one change of it")
    verb("stat", "print the metadata", zk_verbs.stat)
    watching = verb("watch", "print every change until Ctrl-C", zk_verbs.watch)
    watching.add_argument(
        "-R", "-r", "--recursive", action="store_true", help="of the whole subtree"
    )
    watching.add_argument(
        "--after", type=_zxid, metavar="ZXID", help="begin with what happened after this zxid"
    )
    watching.add_argument("-n", "--count", type=int, default=0, help="end after so many events")
    verb("tree", "print the subtree", zk_verbs.tree)
    verb("getacl", "print the ACL, an entry a line", zk_verbs.getacl)
    verb("count", "print the number of descendants", zk_verbs.count)
    verb("ephemerals", "print this session's ephemeral znodes", zk_verbs.ephemerals)
    verb("whoami", "print the identities of the connection", zk_verbs.whoami, path=False)
    verb("sync", "wait until the server has caught up", zk_verbs.sync)


def _add_writes(verb: Callable[..., argparse.ArgumentParser]) -> None:
    setting = verb("set", "replace the data", zk_verbs.set_data)
    setting.add_argument("data", metavar="DATA", help="'-' reads stdin")
    setting.add_argument("-v", "--version", type=int, default=-1, help="only at this version")
    create = verb("create", "create a znode and print its path", zk_verbs.create)
    create.add_argument("data", metavar="DATA", nargs="?", default="", help="'-' reads stdin")
    create.add_argument("acl", metavar="ACL", nargs="?", help=f"{zk_verbs.ACL_FORM}")
    create.add_argument("-s", "--sequence", action="store_true", help="append a number")
    create.add_argument(
        "-e", "--ephemeral", action="store_true", help="while this command runs (until Ctrl-C)"
    )
    create.add_argument("-c", "--container", action="store_true", help="gone with its children")
    create.add_argument(
        "-t", "--ttl", type=float, metavar="SECONDS", help="gone when unchanged for so long"
    )
    create.add_argument("-p", "--parents", action="store_true", help="create missing parents")
    remove = verb("rm", "delete a znode", zk_verbs.rm)
    remove.add_argument("-r", "--recursive", action="store_true", help="with all below it")
    remove.add_argument("-v", "--version", type=int, default=-1, help="only at this version")
    granting = verb("setacl", "replace the ACL", zk_verbs.setacl)
    granting.add_argument("acl", metavar="ACL", help=zk_verbs.ACL_FORM)
    granting.add_argument("-v", "--version", type=int, default=-1, help="only at this aversion")
    granting.add_argument("-R", "--recursive", action="store_true", help="of the whole subtree")
    several = verb("multi", "apply operations of a file, all or none", zk_verbs.multi, path=False)
    several.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        default="-",
        help="a line each: create [-e|-s|-c|-t TTL] PATH [DATA] | set PATH DATA [VERSION] | "
        "delete PATH [VERSION] | check PATH VERSION; default stdin",
    )
    locked = verb("lock", "run a command while holding a lock", zk_verbs.lock)
    locked.add_argument("--timeout", type=float, metavar="SECONDS", help="how long to wait for it")
    locked.add_argument(
        "command", metavar="COMMAND", nargs="+", help="after '--'; it gets DUOLOG_LOCK_TOKEN"
    )


def _add_reconfig(verb: Callable[..., argparse.ArgumentParser]) -> None:
    members = "ID=HOST:PEER_PORT[:participant|:observer][;[HOST:]CLIENT_PORT]"
    changing = verb(
        "reconfig", "change the members of the ensemble", zk_status.reconfig, path=False
    )
    changing.add_argument(
        "--add", action="append", metavar="MEMBER", help=f"{members}; a known id is replaced"
    )
    changing.add_argument("--remove", action="append", metavar="ID", help="a server leaves")
    changing.add_argument(
        "--members", metavar="MEMBER[,...]", help="all members, instead of --add and --remove"
    )
    changing.add_argument(
        "-v", "--version", type=_version, metavar="HEX", help="only if that is what they show"
    )


def _add_quota(verbs: Subparsers[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    quota = verbs.add_parser("quota", help="limit what a subtree may hold")
    kinds = quota.add_subparsers(required=True, metavar="set|list|del")
    for name, text, action in (
        ("set", "set limits of a subtree", zk_quota.set_quota),
        ("list", "print limits and usage of a subtree", zk_quota.list_quota),
        ("del", "remove limits of a subtree, all without an option", zk_quota.delete_quota),
    ):
        each = kinds.add_parser(name, help=text, description=text, parents=[common])
        each.add_argument("path", metavar="PATH")
        each.set_defaults(action=action)
        if name != "list":
            for short, field, help_text in zk_quota.OPTIONS:
                if name == "set":
                    each.add_argument(short, dest=field, type=int, metavar="N", help=help_text)
                else:
                    each.add_argument(short, dest=field, action="store_true", help=help_text)


def _add_status(
    verbs: Subparsers[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """It opens no session of its own: it has to work where none can be had."""
    text = "print who of the ensemble is there, who leads, who is behind"
    ends = "Exit status: 0 a quorum serves, 1 none does"
    status = verbs.add_parser("status", help=text, description=f"{text}. {ends}", parents=[common])
    status.add_argument(
        "--server",
        dest="zookeeper",
        default=argparse.SUPPRESS,
        metavar="HOST:PORT[,...]",
        help="as --zookeeper: servers to ask first; the other members are found",
    )
    status.add_argument(
        "--timeout",
        type=float,
        default=WORD_SECONDS,
        metavar="SECONDS",
        help="how long a server may take to answer (default %(default)g)",
    )
    status.add_argument("--all", action="store_true", help="exit status 0: every member serves")
    status.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="ask again until the exit status is 0, for so long at most",
    )
    status.set_defaults(action=None)
