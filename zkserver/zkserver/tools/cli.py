"""The offline tools of `zkserver`: words of a command line to an exit code.

    zkserver check DIR                     zkserver import --from ZK_DIR --data DIR
    zkserver log dump FILE|DIR             zkserver import --from-json FILE --data DIR
    zkserver snapshot dump FILE|DIR        zkserver export DIR --json
    zkserver snapshot take DIR

Owns flags, messages and exit codes: 0 done, 1 damaged, 2 wrong use (no such directory, a server
has it, an unknown word). Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import io
import os
import random
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, TextIO

from duolog_protocol.errors import DataDirectoryError, StorageError

if TYPE_CHECKING:
    import argparse

    from .importing import Imported

TOOLS: Final = ("check", "log", "snapshot", "import", "export")
_MAX_LINE_CHARACTERS: Final = 64 * 1024 * 1024
_LAST_ZXID: Final = (1 << 63) - 1
_LIVE: Final = "read beside a running server: without its lock, as of about now"


class _Say:
    """Where a tool's words go."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self.out = out
        self.err = err

    def note(self, text: str) -> None:
        self.err.write(f"zkserver: {text}\n")

    def lines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.out.write(f"{line}\n")


def main(words: Sequence[str]) -> int:
    """Run a tool in a process of its own; the result is the exit code."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `... | head` ends it quietly
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")  # whatever the locale: that is what JSON is in
    return run(words, sys.stdout, sys.stderr)


def run(words: Sequence[str], out: TextIO, err: TextIO) -> int:
    """Do what the words say."""
    say = _Say(out, err)
    problem = _unknown_word(words)
    if problem:
        say.note(problem)
        return 2
    options = _parser().parse_args(list(words))
    action: Callable[[argparse.Namespace, _Say], int] = options.action
    try:
        return action(options, say)
    except DataDirectoryError as error:
        say.note(str(error))
        return 2
    except StorageError as error:
        say.note(str(error))
        return 1
    except OSError as error:
        say.note(str(error))
        return 2


def _unknown_word(words: Sequence[str]) -> str:
    """Names the nearest known word for one that is not known; empty when they are."""
    known: Sequence[str] = TOOLS
    for depth, word in enumerate(words[:2]):
        if word.startswith("-"):
            return ""
        if word not in known:
            import difflib

            near = difflib.get_close_matches(word, known, 1, 0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            where = "".join(f"{each}: " for each in words[:depth])
            return f"{where}{word!r} is none of {', '.join(known)}{hint}"
        known = {"log": ("dump",), "snapshot": ("dump", "take")}.get(word, ())
        if not known:
            return ""
    return ""


def _parser() -> argparse.ArgumentParser:
    import argparse

    found = argparse.ArgumentParser("zkserver", description="Offline tools of zkserver.")
    tools = found.add_subparsers(required=True, metavar="|".join(TOOLS))

    def tool(
        where: argparse._SubParsersAction[argparse.ArgumentParser],
        name: str,
        text: str,
        action: Callable[[argparse.Namespace, _Say], int],
    ) -> argparse.ArgumentParser:
        each = where.add_parser(name, help=text, description=text)
        each.set_defaults(action=action)
        return each

    each = tool(tools, "check", "verify a data directory; nothing is changed", _check)
    each.add_argument("directory", metavar="DIR")
    each.add_argument("--live", action="store_true", help=_LIVE)

    logs = tools.add_parser("log", help="look at transaction logs").add_subparsers(
        required=True, metavar="dump"
    )
    each = tool(logs, "dump", "print transactions, one a line", _dump_log)
    each.add_argument("path", metavar="FILE|DIR")
    each.add_argument("--from", dest="first", metavar="ZXID", type=_zxid, default=0)
    each.add_argument("--to", dest="last", metavar="ZXID", type=_zxid, default=_LAST_ZXID)
    each.add_argument("--data", action="store_true", help="with the data of znodes")
    each.add_argument("--json", action="store_true", help="JSON, one object a line")

    snapshots = tools.add_parser("snapshot", help="look at snapshots, or take one").add_subparsers(
        required=True, metavar="dump|take"
    )
    each = tool(snapshots, "dump", "print the tree of a snapshot", _dump_snapshot)
    each.add_argument("path", metavar="FILE|DIR", help="of a directory, the newest good one")
    each.add_argument("--json", action="store_true", help="JSON, as `export` writes it")
    each = tool(snapshots, "take", "take a snapshot; the server must be stopped", _take)
    each.add_argument("directory", metavar="DIR")
    each.add_argument("--retain", metavar="N", type=_retain, default=3, help="keep N (3)")

    each = tool(tools, "import", "make a data directory of something else", _import)
    source = each.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--from", dest="source", metavar="ZK_DIR", help="Apache ZooKeeper's dataDir"
    )
    source.add_argument(
        "--from-json", dest="json", metavar="FILE", help="what `export` wrote; -: stdin"
    )
    each.add_argument("--from-logs", dest="logs", metavar="ZK_LOG_DIR", help="its dataLogDir")
    each.add_argument("--data", required=True, metavar="DIR", help="to make; must be empty")
    each.add_argument("--server-id", metavar="N", type=_server_id, default=1, help="1 to 255 (1)")
    each.add_argument(
        "--ensemble-id",
        metavar="N",
        type=_ensemble_id,
        default=0,
        help="for a server of an ensemble, whose others get the same: its setting ensemble_id. Who "
        "belongs to it is told by the setting servers, not by what is imported",
    )
    each.add_argument(
        "--drop-sessions", action="store_true", help="close all sessions, with their ephemerals"
    )
    each.add_argument(
        "--ignore-digest", action="store_true", help="import although ZooKeeper's digest differs"
    )

    each = tool(tools, "export", "print the state of a data directory", _export)
    each.add_argument("directory", metavar="DIR")
    each.add_argument("--json", action="store_true", required=True, help="JSON, one object a line")
    each.add_argument("--live", action="store_true", help=_LIVE)
    return found


def _zxid(text: str) -> int:
    value = int(text, 0)
    if not 0 <= value <= _LAST_ZXID:
        raise ValueError(text)
    return value


def _retain(text: str) -> int:
    return _number(text, 3, sys.maxsize)


def _server_id(text: str) -> int:
    return _number(text, 1, 255)


def _number(text: str, first: int, last: int) -> int:
    import argparse

    value = int(text) if text.isdecimal() else -1
    if not first <= value <= last:
        raise argparse.ArgumentTypeError(f"{text!r} must be in [{first}, {last}]")
    return value


def _check(options: argparse.Namespace, say: _Say) -> int:
    from .check import check_directory
    from .read_only import ReadOnlyFiles, reading

    files = ReadOnlyFiles()
    with reading(files, options.directory, live=options.live):
        is_ok = check_directory(
            files, options.directory, lambda finding: say.lines([str(finding)]), live=options.live
        )
    say.lines(["good" if is_ok else "damaged"])
    return 0 if is_ok else 1


def _dump_log(options: argparse.Namespace, say: _Say) -> int:
    from .dumping import log_paths, read_txns, txn_fields, txn_text
    from .json_lines import dump_line
    from .read_only import ReadOnlyFiles

    files = ReadOnlyFiles()
    paths = log_paths(files, options.path)
    for txn in read_txns(files, paths, options.first, options.last, say.note):
        if options.json:
            say.out.write(dump_line(txn_fields(txn, with_data=options.data)))
        else:
            say.lines([txn_text(txn, with_data=options.data)])
    return 0


def _dump_snapshot(options: argparse.Namespace, say: _Say) -> int:
    from .dumping import read_snapshot_state, tree_text
    from .json_lines import dump_line, state_lines
    from .read_only import ReadOnlyFiles

    state = read_snapshot_state(ReadOnlyFiles(), options.path, say.note)
    if options.json:
        for line in state_lines(state):
            say.out.write(dump_line(line))
    else:
        say.lines(tree_text(state))
    return 0


def _take(options: argparse.Namespace, say: _Say) -> int:
    from duolog_runtime.files import RealFiles

    from .taking import take_snapshot

    taken = take_snapshot(
        RealFiles(),
        options.directory,
        random.SystemRandom(),
        retain_count=options.retain,
        note=say.note,
    )
    what = "taken" if taken.is_new else "not needed: it is the newest state already"
    say.lines([f"snapshot at zxid {taken.zxid:#x} {what}"])
    say.lines(f"purged {name}" for name in taken.purged)
    return 0


def _ensemble_id(text: str) -> int:
    return _number(text, 1, (1 << 64) - 1)


def _import(options: argparse.Namespace, say: _Say) -> int:
    from duolog_runtime.files import RealFiles
    from zkserver.storage.file_header import Identity

    from .importing import drop_sessions, forget_members, verify_directory, write_directory

    if options.json is not None:
        imported = _read_json(options.json)
    else:
        imported = _read_zookeeper(options, say)
    state = imported.state
    closed = drop_sessions(state) if options.drop_sessions else 0
    forget_members(state)
    rng = random.SystemRandom()
    identity = Identity(options.ensemble_id or rng.getrandbits(63) + 1, options.server_id)
    files = RealFiles()
    write_directory(files, options.data, imported, identity, rng)
    summary = [
        f"imported {imported.source}",
        f"zxid {state.last_applied_zxid:#x}: {len(state.tree.nodes)} nodes, "
        f"{len(state.sessions)} sessions" + (f", {closed} sessions closed" if closed else ""),
    ]
    del imported, state  # what is read back takes as much memory
    verify_directory(files, options.data, identity, rng)
    say.lines([*summary, f"made and read back {os.path.abspath(options.data)}"])
    return 0


def _read_zookeeper(options: argparse.Namespace, say: _Say) -> Imported:
    from .importing import read_zookeeper
    from .read_only import ReadOnlyFiles

    files = ReadOnlyFiles()
    for each in filter(None, (options.source, options.logs)):
        if not files.exists(each):
            raise DataDirectoryError(f"{each} does not exist")
    return read_zookeeper(
        files,
        options.source,
        options.logs,
        note=say.note,
        check_digest=not options.ignore_digest,
    )


def _read_json(path: str) -> Imported:
    from .importing import Imported
    from .json_lines import parse_state

    try:
        if path == "-":
            state = parse_state(_lines(sys.stdin))
        else:
            with open(path, encoding="utf-8") as file:
                state = parse_state(_lines(file))
    except UnicodeDecodeError as error:
        raise StorageError(f"{path}: not UTF-8: {error}") from error
    except StorageError as error:
        raise StorageError(f"{path}: {error}") from error
    return Imported(state, 0, path)


def _lines(file: TextIO) -> Iterable[str]:
    """Lines of bounded length."""
    while line := file.readline(_MAX_LINE_CHARACTERS):
        if len(line) == _MAX_LINE_CHARACTERS:
            raise StorageError(f"a line of over {_MAX_LINE_CHARACTERS} characters")
        yield line


def _export(options: argparse.Namespace, say: _Say) -> int:
    from .json_lines import dump_line, state_lines
    from .read_only import ReadOnlyFiles, read_state, reading

    files = ReadOnlyFiles()
    with reading(files, options.directory, live=options.live):
        state = read_state(
            files,
            options.directory,
            live=options.live,
            on_problem=lambda error: say.note(str(error)),
        )
    for line in state_lines(state):
        say.out.write(dump_line(line))
    return 0
