"""What is not ours is shown as it is: no name, path, metric or message is read as markup or steers the terminal."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.table import Table

from equipoise import cli
from equipoise.cli import doctor, optimize, profile, scale, verify
from equipoise.cli.live import Live, table
from equipoise.cli.terminal import console, doing, visible
from equipoise.events import Event
from equipoise.records import Evaluation, Plan, ProgramRef, measured
from equipoise.study.record import describe

HOSTILE = [
    "[/]",
    "[bold",
    "[/bold]",
    "[red]x[/red]",
    "[link=http://x]y[/link]",
    ":smile:",
    "a[b]c",
    r"\[x]",
    "[@click=f()]z[/]",
]


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch) -> Callable[[], Screen]:
    """Make stderr a terminal, from the moment of the call on: pytest sets streams anew before each test."""

    def start() -> Screen:
        held = Screen()
        monkeypatch.setattr(sys, "stderr", held)
        return held

    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return start


def seen(text: str) -> str:
    """What a terminal shows of `text`, without its colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def evaluation(latency_s=1e-3, *, runtime="", fidelity="untouched") -> Evaluation:
    cost = {"latency_s": measured(latency_s, "s"), "size_bytes": measured(1000, "B")}
    drop = measured(0.0, "points", low=-0.5, high=0.5, n=400)
    plan = Plan({"width.a": 4, **({"target": f"{runtime}:cpu?threads=1&batch=1"} if runtime else {})})
    program = ProgramRef(runtime or "onnxruntime", "fp32", f"{runtime or 'onnxruntime'}:cpu?threads=1&batch=1", {})
    return Evaluation(plan, fidelity, measured(90, "points"), drop, cost, program=program)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_text_in_a_line_a_cell_or_a_heading_is_shown_as_it_is(name, capsys):
    out = Table(title=name, box=None)
    out.add_column(name)
    out.add_row(name)
    console(width=80).print(out)
    console(width=80).print(name, style="bold")
    assert capsys.readouterr().out.count(name) == 4


def test_a_name_cannot_steer_the_terminal(capsys):
    name = "conv\x1b[2J\x1b]0;title\x07\u202eevil\udcff\r"
    console(width=80).print(name)
    doing(name)
    said = "".join(capsys.readouterr())
    assert not set(said) & set("\x1b\x07\u202e\udcff\r")
    assert said.count(r"conv\x1b[2J\x1b]0;title\x07\u202eevil\udcff\r") == 2


def test_ordinary_text_passes_unchanged():
    text = "3.34× faster, 80 µs – “naïve”\n\tКот 猫 👍 a\u00a0b"
    assert visible(text) == text


def test_no_verb_makes_a_console_of_its_own_or_writes_markup():
    """Planted: the same look at a line that does both."""

    def offences(source: str) -> list[str]:
        tree = ast.parse(source)
        names = [
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rich")
            for alias in node.names
            if alias.name in ("Console", "escape", "print")
        ]
        texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        return names + [t for t in texts if re.search(r"\[/?(bold|dim|red|green|yellow|/)?\]", t)]

    for path in Path(cli.__file__).parent.glob("*.py"):
        if path.name != "terminal.py":
            assert offences(path.read_text()) == [], path.name
    assert offences('from rich.console import Console\nsay("[bold]x[/bold]")') == ["Console", "[bold]x[/bold]"]


def test_a_budgets_further_axes_are_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    plain, base = evaluation(), evaluation()
    held = replace(
        plain, cost={**plain.cost, "peak_memory_bytes": measured(22e6, "B"), "price_per_million": measured(0.4, "$")}
    )
    console().print(table("accuracy", [held, base], base, marked={}, words=["memory", "price"]))
    head, first, second = seen(capsys.readouterr().out).splitlines()
    assert "peak memory" in head
    assert "price per million" in head
    assert "22 MB" in first
    assert "$0.4" in first
    assert "not measured" in second


@pytest.mark.parametrize("name", HOSTILE)
def test_the_verbs_show_hostile_names_as_they_are(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    console().print(table(name, [evaluation(runtime=name)], evaluation(runtime=name), marked={}))
    assert capsys.readouterr().out.count(name) == 2  # the metric's name and the plan's runtime
    words = dict.fromkeys(("name", "promised", "found", "note"), name)
    check = SimpleNamespace(**words, ok=False, state="cannot tell")
    found = SimpleNamespace(checks=[check], ok=False, broken=[], untold=[check], seconds=1.0, headline=name, recorded="")
    verify._show(found)
    assert capsys.readouterr().out.count(name) == 7
    assert all(module.__name__ for module in (doctor, optimize, profile, scale))


@pytest.mark.parametrize("name", HOSTILE)
def test_the_running_view_shows_hostile_names_as_they_are(name, screen):
    held = screen()
    with Live() as live:
        live.doing(f"loading {name}")
        live(Event("tables", f"loss of {name}", 1.0, 60.0))
        live(Event("evaluate", "untouched", 2.0, 60.0, evaluation(runtime=name)))
        live(Event("tables", f"loss of {name}", 2.0, 60.0))
    shown = seen(held.getvalue())
    assert f"loss of {name}" in shown
    assert f"untouched, {name}, fp32" in shown


def test_the_header_of_the_table_stands_on_a_line_of_its_own(screen):
    held = screen()
    with Live() as live:
        live(Event("evaluate", "untouched", 15.0, 60.0, evaluation()))
    last = seen(held.getvalue()).splitlines()[-5:]
    (bar,) = [line for line in last if "━" in line]
    (heading,) = [line for line in last if line.startswith("plan")]
    assert "1 evaluation" in bar
    assert "plan" not in bar
    assert "━" not in heading


def test_failures_are_counted_and_the_best_within_the_budget_is_marked(screen):
    held = screen()
    broken = replace(evaluation(), error="ValueError: no")
    with Live(budget="drop<=1") as live:
        live(Event("evaluate", "untouched", 15.0, 60.0, evaluation()))
        live(Event("evaluate", "one-shot", 16.0, 60.0, broken))
    shown = seen(held.getvalue())
    assert "1 evaluation, 1 failed" in shown
    assert "best within the budget" in shown


def test_the_view_is_up_before_anything_slow_is_imported(screen):
    held = screen()
    with Live() as live:
        live.doing("loading torch")
    assert "start  loading torch" in seen(held.getvalue())


def test_a_pipe_gets_plain_lines(capsys):
    with Live() as live:
        live.doing("loading torch")
        live(Event("baseline", "the untouched model", 0.0, 60.0))
    assert capsys.readouterr().err == "loading torch ...\n[   0.0/60 s] baseline the untouched model\n"


def test_quiet_is_quiet(capsys):
    with Live(quiet=True) as live:
        live.doing("loading torch")
        live(Event("baseline", "the untouched model", 0.0, 60.0))
    assert capsys.readouterr() == ("", "")


def test_the_untouched_model_is_described_by_its_runtime_and_precision():
    one, several = evaluation(), evaluation(runtime="openvino")
    assert describe(one, one) == "untouched, onnxruntime, fp32"
    assert describe(several, several) == "untouched, openvino, fp32"


def test_a_reader_that_leaves_ends_a_table_without_a_word(tmp_path):
    errors = tmp_path / "errors"
    subprocess.run(["bash", "-c", f"{sys.executable} -m equipoise doctor 2>{errors} | true"], check=True)
    assert errors.read_text() == ""
