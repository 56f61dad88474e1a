"""The command line: instant help, one exit code for each kind of end, never a raw traceback."""

from __future__ import annotations

import argparse
import subprocess
import sys
import types

import pytest

from equipoise import cli
from equipoise.cli import EXIT_INTERRUPTED, VERBS, main
from equipoise.errors import (
    EXIT_BAD_INPUT,
    EXIT_BROKEN_PROMISE,
    EXIT_FAILED,
    EXIT_MISSING_EXTRA,
    EXIT_OK,
    EquipoiseError,
    InputError,
    missing_extra,
)

HEAVY = ("torch", "numpy", "rich", "jinja2", "sqlite3", "onnx", "onnxruntime", "sklearn", "equipoise.study.record")


@pytest.fixture
def verb(monkeypatch):
    """Put a verb of our own in the table; its `run` does what the test says."""

    def plant(run):
        module = types.ModuleType("planted_verb")
        module.add_parser = lambda subparsers: subparsers.add_parser("planted").add_argument("--count", type=int)
        module.run = run
        monkeypatch.setitem(sys.modules, "planted_verb", module)
        monkeypatch.setattr(cli, "VERBS", {**VERBS, "planted": ("planted_verb", "for tests")})

    monkeypatch.delenv("EQUIPOISE_DEBUG", raising=False)
    return plant


def raising(error: BaseException):
    def run(args):
        raise error

    return run


@pytest.mark.parametrize("words", [["--help"], ["--version"], *[[name, "--help"] for name in VERBS]], ids=" ".join)
def test_help_loads_nothing_heavy(words):
    loaded = f"[m for m in {HEAVY!r} if m in sys.modules]"
    code = f"import sys; from equipoise.cli import main; c = main({words!r}); print(c, {loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert len(done.stdout.splitlines()) > 1


def test_the_check_for_heavy_imports_sees_one():
    code = f"import sys, sqlite3; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['sqlite3']"


def test_help_names_every_verb_and_every_exit_code(capsys):
    assert main(["--help"]) == EXIT_OK
    text = capsys.readouterr().out
    assert all(f"\n    {name} " in text for name in VERBS)
    for code in (EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_MISSING_EXTRA, EXIT_BROKEN_PROMISE, EXIT_INTERRUPTED):
        assert f"\n  {code} " in text


@pytest.mark.parametrize("name", VERBS)
def test_each_verb_takes_one_name_and_explains_itself(name, capsys):
    assert main([name, "--help"]) == EXIT_OK
    assert capsys.readouterr().out.startswith(f"usage: equipoise {name} ")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EquipoiseError("the budget was not met"), EXIT_FAILED),
        (InputError("model must be a module; got 3."), EXIT_BAD_INPUT),
        (missing_extra("openvino", "openvino"), EXIT_MISSING_EXTRA),
    ],
)
def test_an_error_is_its_message_and_its_code(verb, capsys, error, code):
    verb(raising(error))
    assert main(["planted"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"equipoise: {error}\n"


def test_a_bug_is_one_line_that_tells_how_to_see_more(verb, capsys):
    verb(raising(ZeroDivisionError("division\nby zero")))
    assert main(["planted"]) == EXIT_FAILED
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "equipoise: ZeroDivisionError: division by zero (EQUIPOISE_DEBUG=1 shows the traceback)\n"


@pytest.mark.parametrize("error", [ZeroDivisionError("bug"), InputError("bad")])
def test_debug_lets_the_traceback_through(verb, monkeypatch, error):
    verb(raising(error))
    monkeypatch.setenv("EQUIPOISE_DEBUG", "1")
    with pytest.raises(type(error)):
        main(["planted"])


def test_interrupting_is_130(verb, capsys):
    verb(raising(KeyboardInterrupt()))
    assert main(["planted"]) == EXIT_INTERRUPTED
    assert "interrupted" in capsys.readouterr().err


def test_arguments_reach_the_verb_and_its_code_comes_back(verb):
    seen: list[argparse.Namespace] = []
    verb(lambda args: seen.append(args) or args.count)
    assert main(["planted", "--count", "1"]) == 1
    assert seen[0].verb == "planted"


@pytest.mark.parametrize("words", [["planted", "--count", "x"], ["planted", "--unknown"], ["--unknown"], []])
def test_bad_usage_is_2_and_goes_to_stderr(verb, capsys, words):
    verb(lambda args: 0)
    assert main(words) == EXIT_BAD_INPUT
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "usage: equipoise" in printed.err


def test_an_unknown_verb_names_the_nearest(capsys):
    assert main(["optimise"]) == EXIT_BAD_INPUT
    assert "Did you mean 'optimize'?" in capsys.readouterr().err


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "equipoise", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[0], done.stderr) == (0, "equipoise", "")


def test_a_reader_that_leaves_is_no_traceback():
    command = f"{sys.executable} -m equipoise --help | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""
