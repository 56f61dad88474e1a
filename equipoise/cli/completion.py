"""``equipoise completion bash``: the script by which a shell completes verbs, options and the names that are built in."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

from equipoise.cli.shells import SHELLS, Slot, Verb
from equipoise.errors import EXIT_OK, unknown


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "completion",
        help="what a shell needs to complete this command line",
        description="Print a script for bash, zsh or fish, made from the command line as it is. "
        'bash: eval "$(equipoise completion bash)" in ~/.bashrc; zsh: the same with zsh in ~/.zshrc, after compinit; '
        "fish: equipoise completion fish > ~/.config/fish/completions/equipoise.fish",
    )
    parser.add_argument("shell", metavar="SHELL", help=" | ".join(SHELLS))


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    if args.shell not in SHELLS:
        raise unknown("shell", args.shell, SHELLS)
    print(SHELLS[args.shell](verbs()), end="")
    return EXIT_OK


def verbs() -> list[Verb]:
    """Read off the parsers what the command line takes."""
    from equipoise.cli import VERBS, _parser

    words = _words()
    out = []
    for name, (_, says) in VERBS.items():
        actions = _parser(name)[1]._actions
        options = [_slot(action, words) for action in actions if action.option_strings]
        out.append(Verb(name, says, tuple(options), tuple(_slot(a, words) for a in actions if not a.option_strings)))
    return out


def _slot(action: argparse.Action, words: dict[str, tuple[str, ...]]) -> Slot:
    """Say of one argument what can be written there: a metavar such as ``[fit|table] FAMILY`` names it all."""
    named = re.findall(r"[\w-]+", str(action.metavar or ""))
    literal = [word for word in named if word.islower()]
    known = words.get(next(iter(action.option_strings), ""), ()) or tuple(w for word in named for w in words.get(word, ()))
    choices = action.choices if isinstance(action.choices, Sequence) else ()
    says = (action.help or "") % {"default": action.default}  # as argparse fills it in
    return Slot(
        flags=tuple(action.option_strings),
        says=" ".join(says.split()),
        name=str(action.metavar or action.dest.upper()),
        takes=action.nargs != 0,
        words=tuple(dict.fromkeys([*literal, *choices, *known])),
        many=action.nargs == "+",
        listed="[," in str(action.metavar) or "with commas" in says,
    )


def _words() -> dict[str, tuple[str, ...]]:
    """Return what a metavar or an option stands for, where that is one of a few names."""
    from equipoise.built_in import FAMILIES, TASKS, WORKLOADS
    from equipoise.cli.train import KINDS
    from equipoise.fields import FIELDS
    from equipoise.runtimes.base import RUNTIMES, spelled
    from equipoise.techniques import TECHNIQUES

    tables = {"FAMILY": FAMILIES, "TASK": TASKS, "WORKLOAD": WORKLOADS, "MODEL": WORKLOADS}
    targets = tuple(map(spelled, RUNTIMES))
    named = {key: tuple(f"{name}:" if row.data else name for name, row in table.items()) for key, table in tables.items()}
    return {
        **named,
        "FIELD": tuple(FIELDS),
        "SHELL": tuple(SHELLS),
        "TECHNIQUES": tuple(TECHNIQUES),
        **dict.fromkeys(("--target", "--device", "--server"), targets),
        "--pick": ("best", "knee", "fastest", "smallest"),
        "--kind": ("single", *KINDS),
    }
