"""The transcripts' own parts: scripts that mean something, masks that hide what they say."""

from __future__ import annotations

import pytest

from .masks import Masks
from .transcripts import SCRIPTS, ScriptError, Step, parse

ZKCLI_COMMANDS = (
    "addWatch addauth close config connect create delete deleteall delquota get getAcl "
    "getAllChildrenNumber getEphemerals history listquota ls printwatches quit reconfig redo "
    "removewatches set setAcl setquota stat sync version whoami"
)
"""What `help` of zkCli.sh 3.8 lists."""
CLI_MT_COMMANDS = (
    "create create2 delete set get ls ls2 sync exists wexists myid verbose addauth config "
    "reconfig quit help od acreate acreate2 adelete aset aget als als2 aexists"
)
"""What `help` of cli_mt 3.8 lists, `od`, and the asynchronous form of each that has one."""


@pytest.mark.parametrize(
    ("shell", "commands"), [("zkCli", ZKCLI_COMMANDS), ("cli_mt", CLI_MT_COMMANDS)]
)
def test_the_scripts_use_every_command_of_the_shells(shell: str, commands: str) -> None:
    used = set()
    for path in SCRIPTS.glob("*.txt"):
        steps = parse(path.read_text())
        names = {step.session for step in steps if step.argument.split()[:1] == [shell]}
        used |= {
            step.argument.split()[0]
            for step in steps
            if step.verb in ("run", "send") and step.session in names
        }
    missing = set(commands.split()) - used
    assert not missing, f"{shell}: {sorted(missing)}"


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.txt")), ids=lambda path: path.stem)
def test_a_script_opens_a_session_before_it_uses_it(path) -> None:
    assert path.read_text().startswith("# "), "a script begins with what it is about"
    open_sessions = set()
    for step in parse(path.read_text()):
        if step.verb == "session":
            open_sessions.add(step.session)
        elif step.verb != "server":
            assert step.session in open_sessions, step.text


def test_the_grammar_of_a_script() -> None:
    steps = parse("# story\n\nsession a zkCli\na> create /x 'a b'\na! NodeCreated /x\n")
    assert steps == [
        Step("session a zkCli", "session", "a", "zkCli"),
        Step("a> create /x 'a b'", "run", "a", "create /x 'a b'"),
        Step("a! NodeCreated /x", "wait", "a", "NodeCreated /x"),
    ]
    with pytest.raises(ScriptError, match="line 2"):
        parse("# story\ncreate /x\n")


def test_masks_tell_what_differs_and_keep_what_must_not() -> None:
    ours = Masks(["127.0.0.1:1234"], 0x100000007)
    theirs = Masks(["127.0.0.1:99"], 0x3)
    for masks, port, base, session in (
        (ours, 1234, 0x100000007, 0x1A0000),
        (theirs, 99, 3, 0x100FF),
    ):
        lines = [
            f"Connecting to 127.0.0.1:{port}",
            "SLF4J: noise",
            "",
            f"cZxid = 0x{base + 2:x}",
            f"\tmzxid={base + 3:x}",
            "pZxid = 0x0",
            "ctime = Fri Nov 27 22:05:15 UTC 2026",
            "\tmtime=Thu Jan  1 00:00:00 1970",
            f"ephemeralOwner = 0x{session:x}",
            "ephemeralOwner = 0x0",
            f"Got a new session id: 0x{session + 1:x}",
            "dataVersion = 7",
            "/: rc = 0",
            "\tb",
            "\ta",
            "\tversion=0\taversion=0",
            "[b, a]",
            *["again"] * 200,
        ]
        assert masks(lines) == [
            "Connecting to <address>",
            "cZxid = <zxid +2>",
            "\tmzxid=<zxid +3>",
            "pZxid = 0x0",
            "ctime = <time>",
            "\tmtime=<epoch>",
            "ephemeralOwner = <session 1>",
            "ephemeralOwner = 0x0",
            "Got a new session id: <session 2>",
            "dataVersion = 7",
            "/: rc = 0",
            "\ta",
            "\tb",
            "\tversion=0\taversion=0",
            "[a, b]",
            "again (200 times)",
        ]


def test_one_transaction_too_many_shows() -> None:
    masks = Masks(["127.0.0.1:1"], 0)
    assert masks(["cZxid = 0x5"]) != masks(["cZxid = 0x6"])
    assert masks(["ephemeralOwner = 0x5"]) != masks(["ephemeralOwner = 0x6"])
