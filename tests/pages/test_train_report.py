"""The training page as text: what was reached, the verdict with its evidence, and what is unknown."""

from __future__ import annotations

import html
import re

import pytest

from equipoise.errors import InputError
from equipoise.pages import render_train
from equipoise.pages.train import MOST, headline, loss_chart, metric_chart, rate_chart
from equipoise.pages.train_summary import read_train
from equipoise.records import as_data, measured, unavailable
from equipoise.workloads.metrics import METRICS


def words(page):
    body = re.sub(r"<script.*?</script>|<style>.*?</style>|<svg.*?</svg>", "", page, flags=re.S)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))).replace("\u00a0", " ")


def test_says_what_was_reached_and_the_verdict(train_summary):
    data = train_summary()
    text = words(render_train(data))
    assert "Accuracy 83.40 after 2.05 min: over-fit." in text
    for said in (data["diagnosis"]["reason"], data["stopped"], "flip the images", "twice the data", "two short runs"):
        assert said in text
    assert text.index("flip the images") < text.index("weight decay 5e-4")  # the order given
    assert "optimizer sgd" in text


def test_unknown_gains_and_costs_say_why(train_summary):
    text = words(render_train(train_summary()))
    assert "no RAPL counter is readable on this machine" in text
    assert "weight decay 5e-4 – unavailable cheap; nothing was run with it" in text


def test_remedies_of_unknown_gain_are_not_said_to_be_in_order_of_it(train_summary):
    data = train_summary()
    assert "In order of expected gain" in words(render_train(data))
    data["diagnosis"]["remedies"] = data["diagnosis"]["remedies"][1:]
    text = words(render_train(data))
    assert "In order of expected gain" not in text
    assert "the surest comes first" in text


def test_curves_hold_every_look_that_saw_something(train_summary):
    data = train_summary()
    data["curve"][4]["validation_loss"] = None
    data["curve"][5]["train_loss"] = float("nan")
    found = read_train(data)
    train, validation, foretold, kept = loss_chart(found).series
    assert [p.x for p in train.points] == [p["step"] for i, p in enumerate(data["curve"]) if i != 5]
    assert [p.x for p in validation.points] == [p["step"] for i, p in enumerate(data["curve"]) if i != 4]
    assert [p.high for p in foretold.points] == data["extrapolation"]["high"]
    assert [p.x for p in kept.points] == [data["best"]["step"]]
    assert loss_chart(found).zones[0].low == 1500
    assert not metric_chart(found).zones  # the metric was not foretold
    assert len(rate_chart(found).series[0].points) == 30


def test_a_long_curve_is_thinned_to_its_ends(train_summary):
    curve = [{"step": i, "train_loss": 1 / i} for i in range(1, 5001)]
    points = loss_chart(read_train(train_summary(curve=curve, best=None, extrapolation=None))).series[0].points
    assert len(points) <= MOST + 1
    assert (points[0].x, points[-1].x) == (1, 5000)


def test_a_run_without_a_diagnosis_or_a_look_still_has_a_page(train_summary):
    bare = {"diagnosis": None, "extrapolation": None, "best": None, "curve": [], "reached": {}, "recipe": {}, "notes": None}
    data = train_summary(**bare)
    assert headline(read_train(data)) == "Trained."
    assert "<figure" not in render_train(data)


def test_the_headline_takes_what_is_known(train_summary):
    data = train_summary()
    data["reached"]["quality"] = as_data(unavailable("points", "no metric was given"))
    assert headline(read_train(data)).replace("\u00a0", " ") == "Validation loss 0.62 after 2.05 min: over-fit."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reached": {"quality": 83.4}}, "reached.quality must be a reading"),
        ({"reached": {"qualty": None}}, "Did you mean 'quality'"),
        ({"curve": [{"train_loss": 3.0}]}, r"curve\[0\] must have step"),
        ({"extrapolation": {"of": "loss", "steps": [], "value": [], "low": [], "high": []}}, "of must be one of"),
        ({"diagnosis": {"verdict": "x", "remedies": [{"do": "y"}]}}, r"remedies\[0\] must have do, gain; gain missing"),
    ],
)
def test_a_wrong_field_is_named(train_summary, change, message):
    with pytest.raises(InputError, match=message):
        render_train(train_summary(**change))


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_every_metric_has_a_page_in_its_own_unit(train_summary, metric):
    data = train_summary()
    data["header"]["metric"] = {"name": metric.name, "unit": metric.unit}
    data["reached"]["quality"] = as_data(measured(1.25, metric.unit))
    assert "1.25" in headline(read_train(data))
    data["reached"]["quality"] = as_data(measured(1.25, f"other {metric.unit}"))
    with pytest.raises(InputError, match="unit must be one of"):
        read_train(data)
