"""The scale page as text: the answer a manager reads, the refusal, and what is unknown."""

from __future__ import annotations

import csv
import html
import io
import re

import pytest

from equipoise.errors import InputError
from equipoise.pages import render_scale
from equipoise.pages.scale import bill, expectation, headline, page_data, span
from equipoise.pages.scale_charts import compute_chart, size_chart
from equipoise.pages.scale_summary import read_scale
from equipoise.records import SCHEMA, as_data, measured, unavailable


def words(page):
    """The page's text without markup."""
    body = re.sub(r"<script.*?</script>|<style>.*?</style>|<svg.*?</svg>", "", page, flags=re.S)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))).replace("\u00a0", " ")


def cells(page, table):
    """The cells of a table of figures, by row."""
    body = re.search(rf'<table class="figures" id="{table}">.*?<tbody>(.*?)</tbody>', page, re.S).group(1)
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.S)
    return [[words(cell).strip() for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)] for row in rows]


def test_says_the_answer_first(scale_summary):
    found = read_scale(scale_summary())
    assert (
        headline(found).replace("\u00a0", " ") == "Train about 1.2–2.3 M parameters; 1.6 M is the cheapest to train and serve."
    )
    assert re.fullmatch(
        r"Expected accuracy \d\d\.\d \(90 % interval \d\d\.\d to \d\d\.\d\), 1\.63 h of training, \$0\.82 to train, "
        r"3\.04 ms a request, 6\.48 MB to store\.",
        expectation(found).replace("\u00a0", " "),
    )
    text = words(render_scale(scale_summary()))
    assert headline(found).replace("\u00a0", " ") in text
    assert expectation(found).replace("\u00a0", " ") in text
    assert "✓ latency ≤ 5 ms" in text


def test_a_range_of_one_size_is_told_as_one(scale_summary):
    data = scale_summary()
    data["answer"]["range"] = [data["answer"]["recommended"]["params"]["value"]] * 2
    assert headline(read_scale(data)).replace("\u00a0", " ") == "Train about 1.6 M parameters."


def test_a_refusal_says_why_and_which_runs_to_add(scale_summary):
    page = render_scale(scale_summary(refused=True))
    text = words(page)
    assert "No size can be recommended yet." in text
    assert "spans a factor of 11" in text
    assert "Train about" not in text
    rows = cells(page, "additions")
    assert [row[0] for row in rows] == ["width 48, depth 3", "width 64, depth 3", "width 96, depth 3"]
    assert rows[2][-1] == "reaches nearer"
    assert 'id="candidates"' not in page


def test_limits_that_no_size_keeps_show_the_nearest(scale_summary):
    nearest = scale_summary()["candidates"][0]
    answer = {"status": "refused", "reason": "No size keeps both.", "nearest": nearest, "binding": "latency ≤ 0.1 ms"}
    text = words(render_scale(scale_summary(answer=answer)))
    assert "No size keeps the limits." in text
    assert "The limit that binds: latency ≤ 0.1 ms." in text
    assert "The nearest size" in text


def test_every_run_and_candidate_is_in_the_tables(scale_summary):
    data = scale_summary()
    page = render_scale(data)
    runs, candidates = cells(page, "runs"), cells(page, "candidates")
    assert len(runs) == 13
    assert len(candidates) == 5
    for run, row in zip(data["runs"], runs, strict=True):
        assert f"{run['loss']['value']:.4g}" in " ".join(row)
    assert "held out" in runs[-1][-1]
    assert "not annealed" in runs[3][-1]
    assert "breaks latency<=5ms" in candidates[4][0]
    assert "recommended" in candidates[2][0]


def test_unknown_figures_say_so_and_why(scale_summary):
    data = scale_summary()
    page = render_scale(data)
    text = words(page)
    assert text.count("no energy counter is readable on this machine") == 3  # once for each place that shows it
    assert all("unavailable 1" in " ".join(row) for row in cells(page, "candidates"))
    data["candidates"][0]["latency_s"] = as_data(unavailable("s", "the clock was lost"))
    changed = cells(render_scale(data), "candidates")
    assert sum("unavailable 1" in cell or "unavailable 2" in cell for cell in changed[0]) == 2
    assert sum("unavailable" in cell for cell in changed[1]) == 1  # the control


def test_a_value_that_is_not_finite_is_unavailable(scale_summary):
    data = scale_summary()
    data["candidates"][0]["latency_s"] = {**data["candidates"][0]["latency_s"], "value": float("nan")}
    data["curves"][0]["loss"][3] = float("inf")
    data["frontier"]["high"][2] = float("nan")
    page = render_scale(data)
    assert "not a finite number" in words(page)
    assert not re.search(r"\b(?:nan|inf|NaN|Infinity)\b", re.sub(r"<script>.*?</script>", "", page, flags=re.S))


@pytest.mark.parametrize("value", [1.6e6, "1.6 M", {"value": 3}, {"value": 1.0, "unit": "furlong"}])
def test_a_figure_without_provenance_is_refused(scale_summary, value):
    data = scale_summary()
    data["candidates"][1]["params"] = value
    with pytest.raises(InputError, match=r"candidates\[1\]\.params"):
        render_scale(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"law": {"E": 1.0}}, "law must have E, A, B, a, b, size; A, B, a, b, size missing"),
        ({"law": {"E": None, "A": 1, "B": 1, "a": 1, "b": 1, "size": "params"}}, "law.E must be a finite number"),
        ({"law": {"E": 1, "A": 1, "B": 1, "a": 1, "b": 1, "size": "param"}}, "law.size must be one of .*Did you mean 'params'"),
        ({"answer": {"status": "maybe", "reason": ""}}, "status must be one of recommended, refused"),
        ({"answer": {"status": "recommended", "reason": ""}}, "recommended must be a row"),
        ({"answer": {"status": "refused", "reason": "", "range": [1]}}, "range must be"),
        ({"candidates": [{"latency": 3}]}, "Did you mean 'latency_s'"),
        ({"curves": [{"compute": 1.0, "sizes": [1], "loss": [1, 2], "low": [1], "high": [1]}]}, "lists of one length"),
        ({"curves": [{"compute": 0, "sizes": [1], "loss": [1], "low": [1], "high": [1]}]}, "compute must be a number above 0"),
        ({"runs": [{"params": 3}]}, r"runs\[0\] must have"),
        ({"header": 3}, "header must be a mapping"),
    ],
)
def test_a_wrong_field_is_named(scale_summary, change, message):
    with pytest.raises(InputError, match=message):
        render_scale(scale_summary(**change))


def test_the_least_that_can_be_told_is_still_a_page():
    answer = {"status": "refused", "reason": "Too few runs: 2 of at least 8."}
    empty = {"schema": SCHEMA, "header": {"family": "mlp", "task": "digits"}, "law": None, "frontier": None, "answer": answer}
    text = words(render_scale({**empty, "runs": [], "curves": [], "candidates": []}))
    assert "Too few runs" in text
    assert "No law was fitted" in text


def test_a_law_over_flops_measures_sizes_in_them(scale_summary):
    data = scale_summary()
    data["law"]["size"] = "flops"
    found = read_scale(data)
    assert "FLOPs a sample" in headline(found)
    assert size_chart(found).x.label == "Forward FLOPs a sample"


def test_the_charts_hold_every_run_and_mark_what_was_not_seen(scale_summary):
    data = scale_summary()
    found = read_scale(data)
    for chart, key in ((size_chart(found), "params"), (compute_chart(found), "compute")):
        drawn = sorted(p.x for s in chart.series if s.look in ("run", "held") for p in s.points)
        assert drawn == sorted(run[key] for run in data["runs"])
        largest = max(run[key] for run in data["runs"] if not run.get("held_out") and run.get("annealed") is not False)
        assert [zone.low for zone in chart.zones if zone.look == "beyond"] == [largest]
    assert [(z.low, z.high) for z in size_chart(found).zones if z.look == "range"] == [(1.2e6, 2.3e6)]


def test_a_run_that_failed_is_told_of_but_not_drawn(scale_summary):
    data = scale_summary()
    data["runs"][0]["loss"] = as_data(unavailable("1", "loss became NaN at step 12"))
    chart = size_chart(read_scale(data))
    assert sum(len(s.points) for s in chart.series if s.look in ("run", "held")) == 12
    assert "loss became NaN at step 12" in words(render_scale(data))


def test_the_bill_is_training_plus_requests_in_one_unit(scale_summary):
    data = scale_summary()
    money = bill(read_scale(data))
    assert money["unit"] == "$"
    for part, row in zip(money["parts"], data["candidates"], strict=True):
        assert part["once"] == row["train_cost"]["value"]
        assert part["each"] == pytest.approx(row["price_per_million"]["value"] / 1e6)
    assert [part["within"] for part in money["parts"]] == ["yes"] * 4 + [""]
    for row in data["candidates"]:
        row["train_cost"] = as_data(unavailable("$", "no price was given"))
    time = bill(read_scale(data))
    assert time["unit"] == "s"
    assert time["parts"][0]["each"] == data["candidates"][0]["latency_s"]["value"]
    for row in data["candidates"]:
        row["latency_s"] = as_data(unavailable("s", "no clock"))
    assert bill(read_scale(data)) is None
    assert 'id="bill"' not in render_scale(data)


@pytest.mark.parametrize(
    ("low", "high", "text"), [(1.2e6, 2.3e6, "1.2–2.3 M"), (9e5, 1.1e6, "900 k–1.1 M"), (400, 900, "400–900")]
)
def test_a_range_says_its_unit_once(low, high, text):
    assert span(low, high) == text


def test_the_branch_is_compared_figure_by_figure(scale_summary):
    data = scale_summary()
    rows = {row["label"]: row for row in page_data(read_scale(data))["branches"]}
    before, after = (data["compress_branch"][side]["train_s"]["value"] for side in ("direct", "compressed"))
    assert rows["Training time"]["change"] == f"{after / before:.2f}× longer"
    assert rows["Accuracy"]["change"] == "+0.00 points"
    assert rows["Energy a request"]["before"] == "unavailable"
    assert "no energy counter" in rows["Energy a request"]["unknown"]


def test_money_reads_as_money(scale_summary):
    data = scale_summary()
    data["answer"]["recommended"] = {**data["answer"]["recommended"], "train_cost": as_data(measured(4.2, "$"))}
    assert "$4.2 to train" in expectation(read_scale(data)).replace("\u00a0", " ")


def test_the_page_names_the_columns_that_scale_fit_reads(scale_summary):
    page = render_scale(scale_summary())
    names = re.search(r'const names = (\["label", "params".*?\]);', page).group(1)
    offered = next(csv.reader(io.StringIO(names.strip("[]").replace(", ", ","))))
    runs = pytest.importorskip("equipoise.scaling.runs")
    known = {runs.ALIASES.get(name, name) for name in offered}
    assert {*runs.REQUIRED, "flops_per_sample", "unique", "quality", "seconds", "seed", "annealed", "label"} <= known
