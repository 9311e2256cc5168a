"""The `duolog` command: start a pair, look after topics, move records, browse znodes.

Owns the grammar of the command line and how errors end it; each verb is a module under `cli` and
is imported only when it is asked for. Exit status: 0 done, 1 it failed, 2 wrong usage, 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

VERBS: Final = {
    "up": ("cli.up", "start a zkserver and a kbroker here, until Ctrl-C"),
    "topic": ("cli.topic", "create, list, describe and delete topics"),
    "produce": ("cli.produce", "send lines of stdin or of files to a topic"),
    "consume": ("cli.consume", "print the records of a topic"),
    "zk": ("cli.zk", "look at and change znodes"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in {"-h", "--help", "help"}:
        print(usage())
        return 0 if words else 2
    if words[0] == "--version":
        from duolog_runtime.version import VERSION

        print(f"duolog {VERSION}")
        return 0
    verb = VERBS.get(words[0])
    if verb is None:
        import difflib

        near = difflib.get_close_matches(words[0], VERBS, n=1, cutoff=0.0)
        print(f"duolog: no verb {words[0]!r}; did you mean {near[0]!r}?", file=sys.stderr)
        return 2
    return _run(verb[0], words[1:])


def usage() -> str:
    """The verbs, a line each."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items()]
    return "\n".join(["usage: duolog VERB ...", "", *lines, "", "duolog VERB --help tells more."])


def _run(module: str, words: list[str]) -> int:
    from importlib import import_module

    from duolog_protocol.errors import ConfigError, Error

    try:
        code: int = import_module(f"duolog_cluster.{module}").run(words)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): that is its right.
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ConfigError as error:
        print(f"duolog: {error}", file=sys.stderr)
        return 2
    except (Error, OSError) as error:
        print(f"duolog: {error or type(error).__name__}", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
