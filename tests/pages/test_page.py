"""The page in a browser: its script's answers against Python's, and nothing hostile runs. Skipped where Chromium is absent."""

from __future__ import annotations

import html
import re

import pytest

from equipoise.budget import parse_budget
from equipoise.pages import render
from equipoise.pages.view import evaluations_of
from equipoise.pareto import non_dominated
from equipoise.records import SCHEMA
from equipoise.study.picks import pick

pytestmark = pytest.mark.slow  # opens pages in a browser

HOSTILE = "</script><img src=x onerror=\"document.title='hacked'\">"
ADDRESS = {
    "#latency=0.45ms": "latency<=0.45ms",
    "#latency=0.9ms&size=0.2MB": "latency<=0.9ms, size<=0.2MB",
    "#drop=3": "drop<=3",
}


def winner(dom: str) -> str:
    """The key of the model that the budget control names."""
    return re.search(r'id="winner"[^>]*data-key="([^"]*)"', dom).group(1)


def rivals(data):
    """Of each plan the evaluation that went furthest, as a study picks from."""
    return list({e.plan.digest: e for e in evaluations_of(data) if e.ok}.values())


def test_opens_on_the_study_s_pick_and_draws_the_front(visit, study):
    data = study()
    dom = visit(render(data))
    assert winner(dom) == data["pick"]
    usable = rivals(data)
    front = non_dominated([(e.cost["latency_s"].get(), e.drop.get()) for e in usable])
    drawn = re.search(r'data-front="([^"]*)"', dom).group(1).split()
    assert sorted(drawn) == sorted(usable[i].key for i in front)
    assert len(re.findall(r'<(?:circle|path) class="dot', dom)) >= sum(e.ok for e in evaluations_of(data)) - 1


@pytest.mark.parametrize("fragment", ADDRESS)
def test_a_moved_budget_changes_the_winner_as_export_would(visit, study, fragment):
    data = study()
    expected = pick(rivals(data), rivals(data)[0], ADDRESS[fragment], parse_budget(None))
    dom = visit(render(data), fragment)
    assert winner(dom) == expected.key != data["pick"]
    assert html.escape(f'--pick "{ADDRESS[fragment]}"', quote=False) in dom


def test_points_that_cannot_be_told_apart_are_decided_as_export_decides(visit, study):
    data = study()  # within 0.6 ms the lowest drop is of a point whose interval meets that of a faster one
    expected = pick(rivals(data), rivals(data)[0], "latency<=0.6ms", parse_budget(None))
    assert winner(visit(render(data), "#latency=0.6ms")) == expected.key


def test_an_impossible_budget_names_the_nearest_and_what_binds(visit, study):
    dom = visit(render(study()), "#latency=0.0001")
    assert winner(dom) == ""
    assert "No model measured is within these limits." in dom
    assert re.search(r"Nearest: evaluation \d+ .*latency is over by", dom)


def test_hostile_names_stay_text_in_the_browser(visit, study):
    data = study(names={"layer1.0.conv1": HOSTILE}, workload=HOSTILE)
    dom = visit(render({**data, "sentence": HOSTILE}))
    assert "<img" not in dom
    assert html.escape(HOSTILE, quote=False) in dom


def test_the_policy_stops_a_script_that_got_in(visit, study):
    planted = render(study()).replace("</body>", "<script>document.title='hacked'</script></body>")
    assert "<title>hacked" not in visit(planted, clean=False)
    open_page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", planted)
    assert "<title>hacked" in visit(open_page)  # the control: without the policy it would have run


def test_a_study_without_roles_still_runs(visit, study):
    bare = {**study(), "pick": None, "knee": None, "baseline": None, "layers": [], "progress": []}
    assert winner(visit(render(bare))) in {e.key for e in evaluations_of(bare)}


def test_an_empty_study_still_runs(visit):
    visit(render({"schema": SCHEMA, "header": {"workload": "digits", "target": "onnxruntime:cpu"}, "evaluations": []}))
