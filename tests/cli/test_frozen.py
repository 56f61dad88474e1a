"""The command line is what scripts are written against: flags, defaults and exit codes are frozen in ``command_line.txt``."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator
from pathlib import Path

from equipoise import cli, errors
from equipoise.cli import VERBS

FROZEN = Path(__file__).with_name("command_line.txt")
TOLD = (
    "the command line changed. If that is meant: change README, docs/ and CHANGELOG in the same commit (what was removed or "
    "means something else breaks scripts), and put this into tests/cli/command_line.txt:"
)


def surface() -> str:
    """Every verb with its arguments, one a line, and the exit codes."""
    lines = [line for verb in VERBS for line in _verb(verb)]
    codes = {name: value for name, value in {**vars(errors), **vars(cli)}.items() if name.startswith("EXIT_")}
    lines += ["", *(f"{name} = {value}" for name, value in sorted(codes.items(), key=lambda code: code[1]))]
    return "\n".join(lines).lstrip() + "\n"


def _verb(verb: str) -> Iterator[str]:
    _, own, _ = cli._parser(verb)
    yield from ("", f"equipoise {verb}")
    for action in own._actions:
        if not isinstance(action, argparse._HelpAction):
            yield "  " + _argument(action)


def _argument(action: argparse.Action) -> str:
    """One argument: names, what it takes, how often, its default."""
    names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    takes = "" if action.nargs == 0 else str(action.metavar or action.dest.upper()) if action.option_strings else ""
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else ""
    many = f"nargs={action.nargs}" if action.nargs not in (None, 0) else ""
    must = "required" if action.required and action.option_strings else ""
    default = (
        ""
        if action.nargs == 0 or action.default is None
        else f"default={str(action.default) if isinstance(action.default, Path) else action.default!r}"
    )
    return " ".join(word for word in (names, choices or takes, many, must, default) if word)


def changes(frozen: str, now: str) -> list[str]:
    """The lines that differ."""
    lines = difflib.unified_diff(frozen.splitlines(), now.splitlines(), "frozen", "now", lineterm="", n=2)
    return list(lines)


def test_the_command_line_is_the_frozen_one() -> None:
    now = surface()
    assert not (found := changes(FROZEN.read_text(encoding="utf-8"), now)), "\n".join([TOLD, *found, "", now])


def test_the_help_tells_the_frozen_exit_codes() -> None:
    told = {int(code) for code in re.findall(r"^  (\d+) ", cli._EPILOG, re.M)}
    assert told == {int(code) for code in re.findall(r"^EXIT_\w+ = (\d+)", FROZEN.read_text(encoding="utf-8"), re.M)}


def test_planted_changes_are_seen() -> None:
    frozen = FROZEN.read_text(encoding="utf-8")
    for former, later in (
        ("--budget", "--bounds"),
        ("default='10min'", "default='20min'"),
        ("EXIT_BROKEN_PROMISE = 4", "EXIT_BROKEN_PROMISE = 5"),
    ):
        assert former in frozen
        assert changes(frozen, frozen.replace(former, later, 1)), former
