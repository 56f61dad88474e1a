"""The scripts of `equipoise completion` are asked in the shells themselves what they would offer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from equipoise.built_in import FAMILIES, TASKS
from equipoise.cli import VERBS, main
from equipoise.cli.completion import verbs
from equipoise.cli.shells import SHELLS, Slot, Verb
from equipoise.runtimes.base import RUNTIMES, Target

_BASH = 'source "$1"; COMP_LINE=$2 COMP_POINT=${#2}; _equipoise equipoise; printf "%s\\n" "${COMPREPLY[@]}"'
_FISH = 'source $argv[1]; complete -C $argv[2] | string replace -r "\\t.*" ""; true'
_ZSH = r"""
zmodload zsh/zpty
zpty asked zsh -f -i
zpty -w asked "PS1=; autoload -Uz compinit; compinit -u -D; source $1; print re''ady"
zpty -r -m asked said '*ready*'
zpty -w -n asked "$2"$'\t'
zpty -r -m asked said "*$3*"
"""
"""A terminal in which the third word must appear after the second and a tab."""


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> dict[str, Path]:
    """What the installed command prints, in a file for each shell."""
    folder = tmp_path_factory.mktemp("completion")
    out = {}
    for shell in SHELLS:
        done = subprocess.run(
            [sys.executable, "-m", "equipoise", "completion", shell], capture_output=True, text=True, check=True, timeout=120
        )
        out[shell] = folder / f"equipoise.{shell}"
        out[shell].write_text(done.stdout)
    return out


def offered(shell: str, script: Path, line: str) -> list[str]:
    """Return what `shell` offers after `line`."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on this machine")
    words = {"bash": ["--norc", "-c", _BASH, "bash"], "fish": ["--no-config", "-c", _FISH]}
    done = subprocess.run(
        [shell, *words[shell], str(script), line],
        capture_output=True, text=True, check=True, timeout=60, cwd=script.parent,
        env={**os.environ, "HOME": str(script.parent), "TERM": "dumb"},
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_a_shell_completes(script, shell):
    def ask(line: str) -> list[str]:
        return offered(shell, script[shell], line)

    assert set(VERBS) <= set(ask("equipoise "))
    assert ask("equipoise tra") == ["train"]
    assert ask("equipoise export --ove") == ["--overwrite"]
    assert ask("equipoise export runs/a --pick k") == ["knee"]
    assert ask("equipoise optimize dig") == ["digits"]
    assert {row if ":" in row else f"{row}:cpu" for row in RUNTIMES} == set(ask("equipoise profile digits --target "))
    assert "torch:cuda" in ask("equipoise optimize digits --target ")
    assert ask("equipoise export runs/a --as k") == ["kserve"]
    assert ask("equipoise split digits --device ope") == ["openvino:cpu"]
    assert ask("equipoise optimize digits --only width,de") == ["width,depth"]
    assert "--budget" not in ask("equipoise export --")


def test_bash_knows_the_place_and_the_colon(script):
    def ask(line: str) -> list[str]:
        return offered("bash", script["bash"], line)

    assert {word.rstrip(":") for word in ask("equipoise train ")} == set(FAMILIES)
    assert {word.rstrip(":") for word in ask("equipoise train --seed 3 --quiet cnn ")} == set(TASKS)
    assert ask("equipoise profile digits --target openvino:c") == ["cpu"]  # the word begins after the colon
    assert ask("equipoise profile digits --target onnxruntime:cpu,op") == ["cpu,openvino:cpu"]
    assert ask("equipoise profile digits --target onnxruntime:cpu?threads=1,openv") == ["1,openvino:cpu"]
    assert ask("equipoise train cnn cifar10:fo") == []  # and files are offered
    assert ask("equipoise nothing ") == []


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("export --ove", "rwrite"),
        ("optimize dig", "its"),
        ("expla", "in"),
        ("export runs --as kse", "rve"),
        ("profile digits --target onnxruntime:cpu,openv", "ino:cpu"),
        ("split digits --device open", "vino:cpu"),
        ("profile digits --target openv", "ino:cpu"),
    ],
)
def test_zsh_completes(script, typed, completed):
    if shutil.which("zsh") is None:
        pytest.skip("no zsh on this machine")
    asked = ["zsh", "-f", "-c", _ZSH, "zsh", str(script["zsh"]), f"equipoise {typed}", completed]
    done = subprocess.run(asked, env={**os.environ, "TERM": "dumb"}, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_fish_goes_on_after_a_comma(script):
    asked = "equipoise profile digits --target onnxruntime:cpu,openv"
    assert offered("fish", script["fish"], asked) == ["onnxruntime:cpu,openvino:cpu"]


def test_every_target_that_is_offered_is_one():
    words = [slot.words for verb in verbs() for slot in verb.options if slot.flags[0] in ("--target", "--device", "--server")]
    assert len(words) == 6
    assert {str(Target.parse(word)).partition("?")[0] for word in words[0]} == set(words[0])
    assert len({tuple(w) for w in words}) == 1


def test_every_verb_and_option_is_in_every_script(script):
    for verb in verbs():
        for shell, file in script.items():
            text = file.read_text()
            assert verb.name in text
            for flag in (flag for slot in verb.options for flag in slot.flags):
                assert (f"-l {flag[2:]}" if shell == "fish" and flag.startswith("--") else flag.lstrip("-")) in text


def test_what_an_argument_says_cannot_break_the_script(tmp_path):
    says = 'it\'s [a] $(touch broken) `touch broken`: "50%" \\'
    verb = Verb("go", says, (Slot(("--at",), says, "X", words=("here", "there")),), (Slot((), says, "Y", many=True),))
    for shell, write in SHELLS.items():
        file = tmp_path / shell
        file.write_text(write([verb]))
        if shell != "zsh" and shutil.which(shell):
            assert offered(shell, file, "equipoise go --at t") == ["there"]
        elif shutil.which(shell):
            subprocess.run([shell, "-n", str(file)], check=True)
    assert not list(tmp_path.glob("broken"))


def test_another_shell_is_refused(capsys):
    assert main(["completion", "cmd"]) == 2
    assert "shell must be one of bash, fish, zsh; got 'cmd'" in capsys.readouterr().err


def test_torch_is_not_needed():
    code = "import sys; from equipoise.cli import main; main(['completion', 'bash']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
