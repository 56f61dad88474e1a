"""The scale and training pages in a browser: readouts, sorting, the bill. Skipped where Chromium is absent."""

from __future__ import annotations

import html
import re

import pytest

from equipoise.pages import render_scale, render_train

pytestmark = pytest.mark.slow  # a browser is started for each

HOSTILE = "</script><img src=x onerror=\"document.title='hacked'\">"


def acted(page: str, script: str) -> str:
    """The page with a visitor in it: without its policy, and with a script that does what a hand would."""
    open_page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    return open_page.replace("</body>", f"<script>{script}</script></body>")


def tip(dom: str) -> list[str]:
    """The lines of the one readout that is shown."""
    shown = re.findall(r'<div class="tip" role="status"(?! hidden)[^>]*>(.*?)</div>', dom, re.S)
    assert len(shown) == 1
    return [html.unescape(line) for line in re.findall(r"<(?:b|span)>(.*?)</(?:b|span)>", shown[0])]


def column(dom: str, table: str, number: int) -> list[str]:
    """The values of a column of a table of figures, in the order shown."""
    body = re.search(rf'<table class="figures[^"]*" id="{table}">.*?<tbody>(.*?)</tbody>', dom, re.S).group(1)
    rows = [re.findall(r"<t[hd]([^>]*)>", row) for row in re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.S)]
    return [re.search(r'data-value="([^"]*)"', row[number]).group(1) for row in rows]


def press(chart: int, *keys: str) -> str:
    """A script that focuses a chart and presses keys."""
    events = "".join(f"stage.dispatchEvent(new KeyboardEvent('keydown', {{ key: '{key}' }}));" for key in keys)
    return f"const stage = document.querySelectorAll('.plane > svg')[{chart}]; stage.focus(); {events}"


@pytest.mark.parametrize("refused", [False, True])
def test_the_scale_page_runs_clean_under_its_policy(visit, scale_summary, refused):
    dom = visit(render_scale(scale_summary(refused=refused)))
    assert "Save as CSV" in dom
    assert ('id="bill"' in dom) != refused


def test_the_training_page_runs_clean_under_its_policy(visit, train_summary):
    assert "Save as CSV" in visit(render_train(train_summary()))


def test_hostile_names_stay_text(visit, scale_summary):
    data = scale_summary(notes=[HOSTILE])
    data["runs"][0]["label"] = data["candidates"][0]["label"] = data["answer"]["reason"] = HOSTILE
    dom = visit(render_scale(data))
    assert "<img" not in dom
    assert "<title>hacked" not in dom


@pytest.mark.parametrize(("requests", "dearest"), [(0, False), (5e9, True)])
def test_the_bill_names_the_cheapest_that_keeps_the_limits(visit, scale_summary, requests, dearest):
    data = scale_summary()
    for i, row in enumerate(data["candidates"]):
        row["train_cost"]["value"] = 5.0 - i  # the larger, the cheaper to train: the two costs pull apart
        row["regret"]["value"] = 0.001
    type_in = f"const n = document.getElementById('requests'); n.value = {requests:.0f};"
    dom = visit(acted(render_scale(data), f"{type_in} n.dispatchEvent(new Event('input', {{ bubbles: true }}));"))
    allowed = [row for row in data["candidates"] if not row["breaks"]]
    total = [r["train_cost"]["value"] + requests * r["price_per_million"]["value"] / 1e6 for r in allowed]
    best = allowed[min(range(len(total)), key=total.__getitem__)]
    assert (best is allowed[0]) == dearest
    name = ", ".join(f"{k} {v}" for k, v in best["scale"].items())
    assert re.search(r'id="cheapest"[^>]*data-name="([^"]*)"', dom).group(1) == name
    assert [float(v) for v in column(dom, "candidates", 1)][: len(total)] == pytest.approx(total)


def test_a_heading_sorts_and_sorts_back(visit, scale_summary):
    data = scale_summary()
    losses = [str(run["loss"]["value"]) for run in data["runs"]]
    click = "const head = [...document.querySelectorAll('#runs thead button')].find((b) => b.textContent === 'Loss');"
    at = 3 + 1  # name, params, forward FLOPs, quality, loss
    assert column(visit(render_scale(data)), "runs", at) == losses
    once = column(visit(acted(render_scale(data), f"{click} head.click();")), "runs", at)
    twice = column(visit(acted(render_scale(data), f"{click} head.click(); head.click();")), "runs", at)
    assert once == sorted(losses, key=float)
    assert twice == sorted(losses, key=float, reverse=True)


def test_arrow_keys_read_the_points_as_the_table_says(visit, scale_summary):
    data = scale_summary()
    read = tip(visit(acted(render_scale(data), press(0, "ArrowRight"))))
    first = data["curves"][0]
    assert read[0] == "3×10¹² FLOPs, predicted"
    assert read[1] == "Params 30 k"
    assert read[2] == f"Loss {first['loss'][0]:.4g}"
    assert read[3] == f"Interval {first['low'][0]:.4g} to {first['high'][0]:.4g}"
    back = tip(visit(acted(render_scale(data), press(0, "ArrowLeft"))))
    assert back[0].startswith("recommended")


def test_the_pointer_reads_the_point_under_it(visit, train_summary):
    data = train_summary()
    hover = """const mark = document.querySelector('.mark.best'), box = mark.getBoundingClientRect();
      const at = { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2, bubbles: true };
      mark.dispatchEvent(new PointerEvent('pointermove', at));"""
    read = tip(visit(acted(render_train(data), hover)))
    assert read == ["kept", f"Step {data['best']['step']}", f"Loss {data['best']['validation_loss']:.4g}"]


@pytest.mark.parametrize("width", [500, 1280])
def test_nothing_runs_off_the_side(visit, scale_summary, train_summary, width):
    measure = "document.title = String(document.documentElement.scrollWidth - document.documentElement.clientWidth);"
    for page in (render_scale(scale_summary()), render_train(train_summary())):
        assert "<title>0</title>" in visit(acted(page, measure), width=width)
