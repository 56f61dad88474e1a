"""Progress in a notebook and short words for every record, with an IPython that is only played."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise import progress
from equipoise.events import Event
from equipoise.markup import table
from equipoise.progress import Line, of_events, of_words
from equipoise.records import Evaluation, Plan, measured
from equipoise.runtimes import Program
from equipoise.study.record import Study
from equipoise.study.store import Store
from equipoise.workloads import Split


@pytest.fixture
def notebook(monkeypatch) -> list[dict[str, str]]:
    """An IPython kernel is running; what it was shown is listed, the first display and its updates."""
    return played(monkeypatch, types.SimpleNamespace(kernel=object()))


def played(monkeypatch, shell) -> list[dict[str, str]]:
    shown: list[dict[str, str]] = []

    class Handle:
        def update(self, bundle, *, raw):
            shown.append(bundle)

    def display(bundle, *, raw, display_id):
        shown.append(bundle)
        return Handle()

    session, shows = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    session.get_ipython = lambda: shell
    shows.display = display
    monkeypatch.setitem(sys.modules, "IPython", session)
    monkeypatch.setitem(sys.modules, "IPython.display", shows)
    return shown


def test_a_notebook_sees_one_line_that_renews_itself(notebook):
    listen = of_events()
    listen(Event("tables", "loss of [/]<b>", 15.0, 60.0))
    listen(Event("evaluate", "one-shot", 30.0, 60.0))
    assert [bundle["text/plain"] for bundle in notebook] == [
        " 25 % tables  loss of [/]<b>  45 s left",
        " 50 % evaluate  one-shot  30 s left",
    ]
    assert "loss of [/]&lt;b&gt;" in notebook[0]["text/html"]
    assert "━" in notebook[0]["text/html"]


def test_the_line_is_drawn_now_and_then_and_at_a_new_stage(notebook, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    listen = of_events()
    for second in (0.0, 0.1, 0.2, 0.6, 0.7):
        now[0] = 100.0 + second
        listen(Event("tables", str(second), second, 60.0))
    listen(Event("search", "new", 1.0, 60.0))
    assert [bundle["text/plain"].split()[3] for bundle in notebook] == ["0.0", "0.6", "new"]


def test_a_terminal_session_gets_a_line_that_is_written_over(monkeypatch, capsys):
    assert played(monkeypatch, types.SimpleNamespace()) == []
    of_words()("counting")
    out, err = capsys.readouterr()
    assert (out, err.strip(), err[0]) == ("", "counting", "\r")


def test_a_script_sees_nothing(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    of_events()(Event("tables", "x", 1.0, 60.0))
    of_words()("counting")
    assert capsys.readouterr() == ("", "")
    played(monkeypatch, None)  # imported by some library, and no session
    of_words()("counting")
    assert capsys.readouterr() == ("", "")


def test_a_display_that_fails_ends_the_showing_and_not_the_run(monkeypatch):
    shown = played(monkeypatch, types.SimpleNamespace(kernel=object()))
    line = Line(types.SimpleNamespace(kernel=object()))
    monkeypatch.setattr(sys.modules["IPython.display"], "display", lambda *_, **__: 1 / "x")
    line("tables", "x")
    line("search", "y")
    assert shown == []


@pytest.mark.slow
def test_train_and_profile_show_their_progress(notebook, tmp_path):
    eq.train("mlp", "digits", {"width": 8, "depth": 1}, store=tmp_path, steps=20)
    assert notebook[-1]["text/plain"].startswith("100 % train  step 20")
    notebook.clear()
    eq.profile(nn.Linear(4, 3), torch.zeros(2, 4), targets=["torch"], seconds=0.1)
    assert notebook[0]["text/plain"] == "counting"


def test_optimize_and_scale_take_it_where_no_listener_is_given():
    import inspect

    for verb in (eq.optimize, eq.scale):
        assert inspect.signature(verb).parameters["listen"].default is None


def evaluation(latency_s: float, **more) -> Evaluation:
    widths = {f"width.layer{i}": 64 for i in range(300)}
    plan = Plan({**widths, "bits.fc": 8, "target": "torch:cpu?threads=1&batch=1", "width.x": int(latency_s * 1e6)})
    cost = {"latency_s": measured(latency_s, "s"), "size_bytes": measured(1000, "B")}
    drop = measured(0.5, "points", low=0.0, high=1.0, n=400)
    return Evaluation(plan, "one-shot", measured(90, "points"), drop, cost, samples={"x": (0.1,) * 9000}, **more)


@pytest.fixture
def study(tmp_path, header) -> Study:
    from equipoise.records import as_data

    with Store.open(tmp_path / "s") as store:
        metric = {"name": "<script>alert(1)</script>", "unit": "points", "maximize": True}
        store.put("study", "1", {"header": as_data(header(budget="drop<=1", metric=metric))}, seconds=0)
        for row in (evaluation(2e-3), evaluation(1e-3), evaluation(3e-3, error="Traceback\nValueError: <b>no</b>")):
            store.put("evaluation", row.key, {"evaluation": as_data(row)}, seconds=1)
        return Study.read(store)


def test_a_study_is_one_line_and_in_a_notebook_a_small_table(study):
    assert repr(study) == f"Study({study.path}: 3 evaluations, 1 on the front, budget drop<=1)"
    page = study._repr_html_()
    assert page.startswith("<table>")
    assert len(page) < 3000
    assert "0.50 [0.00, 1.00]" in page


def test_every_record_is_a_short_line(study):
    x, y = torch.randn(90, 4), torch.arange(90) % 3
    work = eq.Workload(model=nn.Linear(4, 3), train=(x[:60], y[:60]), test=(x[60:], y[60:]), name="toy")
    assert repr(work) == "Workload(toy: Linear of 15 params; 48 train, 12 validation, 30 test samples; accuracy)"
    assert repr(work.train) == "Split(train: 48 samples)"
    assert repr(study.evaluations[0].plan).endswith(": 1 bits, 1 target, 301 width)")
    assert repr(study.evaluations[0]).endswith("quality 90.00, drop 0.50 [0.00, 1.00], latency_s 2 ms, size_bytes 1 KB)")
    assert repr(study.evaluations[2]).endswith("failed: ValueError: <b>no</b>)")
    assert repr(Program("torch", "fp32", {"a": b"x" * 10**6})) == "Program(torch, fp32: a; 1,000,000 bytes)"
    assert len(repr(study.evaluations)) < 500
    assert repr(Split.of((x, y), name="more")) == "Split(more: 90 samples)"


@pytest.mark.slow
def test_a_profile_is_one_line_and_a_small_table():
    found = eq.profile(nn.Linear(10, 3), torch.zeros(2, 10), targets=["torch"], batch=1, seconds=0.1)
    assert repr(found).startswith("Profile(Linear: 33 params, 30 MACs, torch:cpu ")
    assert len(repr(found)) < 200
    assert len(found._repr_html_()) < 2000


def test_a_table_escapes_what_it_is_given():
    assert "<script>" not in table([["<script>"], ["<script>"]], caption="<script>")
