"""A command line as the completion scripts of bash, zsh and fish: text made from plain records.

The scripts call nothing back: a key press costs no start of Python. Where no few words are known, files are offered.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slot:
    """One argument of a verb.

    Attributes:
        flags: Its names, ``("--store",)``; empty where it is told by its place.
        says: What it is, in a line.
        name: What stands for its value in the usage.
        takes: Whether a value follows.
        words: What the value may be, where that is one of a few; those that a path follows end with a colon.
        many: Whether it may be repeated.
        listed: Whether several may stand in one value, with commas between them.
    """

    flags: tuple[str, ...]
    says: str
    name: str
    takes: bool = True
    words: tuple[str, ...] = ()
    many: bool = False
    listed: bool = False


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb, what it is for, its options, and what stands at its places."""

    name: str
    says: str
    options: tuple[Slot, ...]
    places: tuple[Slot, ...]


_BASH = """\
# bash completion of equipoise; made by: equipoise completion bash
_equipoise() {
    local -a words places=()
    local cur prev flags='--help --version' valued='' offered='' head='' place=0 i
    read -ra words <<<"${COMP_LINE:0:COMP_POINT}"
    [[ ${COMP_LINE:0:COMP_POINT} == *' ' ]] && words+=('')
    cur=${words[-1]} prev=${words[-2]}
    case ${words[1]} in
%(verbs)s
    esac
    for ((i = 2; i < ${#words[@]} - 1; i++)); do
        if [[ " $valued " == *" ${words[i]} "* ]]; then ((i++)); elif [[ ${words[i]} != -* ]]; then ((place++)); fi
    done
    if ((${#words[@]} <= 2)); then
        offered='%(names)s --help --version'
    elif [[ " $valued " == *" $prev "* ]]; then
        case ${words[1]}$prev in
%(values)s
        esac
    elif [[ $cur == -* ]]; then
        offered=$flags
    elif ((${#places[@]})); then
        offered=${places[place < ${#places[@]} ? place : %(last)s]}
    fi
    COMPREPLY=($(compgen -P "$head" -W "$offered" -- "${cur#"$head"}"))
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *: ]] && compopt -o nospace 2>/dev/null
    [[ $cur == *[:=]* ]] && COMPREPLY=("${COMPREPLY[@]#"${cur%%"${cur##*[:=]}"}"}") # where bash ends a word
    return 0
}
complete -o bashdefault -o default -F _equipoise equipoise
"""


def bash(verbs: Sequence[Verb]) -> str:
    """Return the script for bash (4.3 or newer)."""
    cases, values = [], []
    for verb in verbs:
        flags = " ".join(_flags(verb.options))
        valued = " ".join(_flags(slot for slot in verb.options if slot.takes))
        places = " ".join(shlex.quote(" ".join(slot.words)) for slot in verb.places)
        cases.append(f"        {verb.name}) flags='{flags}' valued='{valued}' places=({places}) ;;")
        for slot in verb.options:
            if slot.words:
                head = ' head=${cur%"${cur##*,}"}' if slot.listed else ""
                values += [f"            {verb.name}{flag}) offered='{' '.join(slot.words)}'{head} ;;" for flag in slot.flags]
    names = " ".join(verb.name for verb in verbs)
    last = "${#places[@]} - 1"
    return _BASH % {"verbs": "\n".join(cases), "values": "\n".join(values), "names": names, "last": last}


_ZSH = """\
#compdef equipoise
# zsh completion of equipoise; made by: equipoise completion zsh
_equipoise() {
    local -a verbs=(
%(verbs)s
    )
    if ((CURRENT == 2)); then
        _describe verb verbs
        return
    fi
    shift words
    ((CURRENT--))
    case $words[1] in
%(cases)s
    esac
}
compdef _equipoise equipoise
"""


def zsh(verbs: Sequence[Verb]) -> str:
    """Return the script for zsh, after ``compinit``."""

    def told(slot: Slot) -> str:
        """What `_arguments` reads of one argument; a colon parts its fields, brackets hold what it says."""
        words = " ".join(word.replace(":", chr(92) + ":") for word in slot.words)
        action = "_files" if not words else f"_sequence compadd - {words}" if slot.listed else f"({words})"
        value = f":{re.sub('[^A-Za-z0-9]+', ' ', slot.name).strip()}:{action}"
        if not slot.flags:
            return shlex.quote(("*" if slot.many else "") + value)
        says = re.sub(r"([\[\]:\\])", r"\\\1", slot.says)
        return " ".join(shlex.quote(f"{flag}[{says}]{value if slot.takes else ''}") for flag in slot.flags)

    rows = "\n".join("        " + shlex.quote(f"{verb.name}:{verb.says}") for verb in verbs)
    cases = []
    for verb in verbs:
        slots = " ".join(told(slot) for slot in (*verb.options, *verb.places))
        cases.append(f"        {verb.name}) _arguments {slots} ;;")
    return _ZSH % {"verbs": rows, "cases": "\n".join(cases)}


def fish(verbs: Sequence[Verb]) -> str:
    """Return the script for fish."""
    lines = ["# fish completion of equipoise; made by: equipoise completion fish"]
    for verb in verbs:
        lines.append(f"complete -c equipoise -f -n __fish_use_subcommand -a {verb.name} -d {_fish_quoted(verb.says)}")
    for verb in verbs:
        there = f"complete -c equipoise -n '__fish_seen_subcommand_from {verb.name}'"
        for slot in verb.options:
            names = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in slot.flags)
            few = " ".join(slot.words)
            offered = f'(__fish_complete_list , \'string split " " "{few}"\')' if slot.listed else few
            value = f" -x -a {_fish_quoted(offered)}" if few else " -r" if slot.takes else ""
            lines.append(f"{there} {names}{value} -d {_fish_quoted(slot.says)}")
        if words := [word for slot in verb.places for word in slot.words]:
            lines.append(f"{there} -a {_fish_quoted(' '.join(dict.fromkeys(words)))}")
    return "\n".join(lines) + "\n"


def _fish_quoted(text: str) -> str:
    """Quote for fish, where a backslash counts between quotes too."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _flags(slots: Iterable[Slot]) -> list[str]:
    """The names of options, in order."""
    return [flag for slot in slots for flag in slot.flags]


SHELLS: dict[str, Callable[[Sequence[Verb]], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
"""Shell -> what writes its script."""
