"""The page as text: what it says, what it never lets through, and what it weighs."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest

from equipoise.errors import InputError
from equipoise.pages import embed, render
from equipoise.pages.axes import axes_of, figure
from equipoise.pages.view import comparison, evaluations_of, layer_totals, page_data
from equipoise.records import SCHEMA, as_data, measured, unavailable

HOSTILE = "</script><img src=x onerror=alert(1)>"


def test_says_the_sentence_and_the_rule_of_the_pick(study):
    data = study()
    page = render(data).replace("\u00a0", " ")
    assert data["sentence"] in page
    assert data["pick_rule"] in page
    assert "✓ latency ≤ 700 µs" in page


def test_tells_which_bound_is_missed(study):
    bounds = page_data(data := study(budget="latency<=1us, drop<=50"), evaluations_of(data))["bounds"]
    assert [b["holds"] for b in bounds] == [False, True]


def test_needs_no_network(study):
    page = render(study())
    addresses = re.findall(r"(?:https?:|//[a-z0-9-]+\.[a-z])", page)
    assert addresses == []
    assert re.findall(r'(?:src|href)="(?!data:,)[^"]*"', page) == []


@pytest.mark.parametrize("element", ["script", "style"])
def test_policy_admits_exactly_the_page_s_own_code(study, element):
    page = render(study())
    body = re.search(rf"<{element}>(.*?)</{element}>", page, re.S).group(1)
    told = re.search(rf"{element}-src '([^']+)'", page).group(1)
    assert told == "sha256-" + base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
    assert "default-src 'none'" in page
    assert " style=" not in page  # an inline style would be refused by the policy
    assert not re.search(r"<[a-z]+[^>]* on[a-z]+=", page)


def test_two_hundred_evaluations_weigh_at_most_300_kilobytes(study):
    assert len(render(study(200)).encode()) <= 300_000


def test_a_name_that_is_no_text_is_written_out(study):
    page = render(study(names={"stem": "bad\udcff"}, workload="na\udcfeme"))
    assert "na\\udcfeme" in page.encode().decode()


def test_names_of_the_model_are_text_everywhere(study):
    data = study(names={"stem": HOSTILE, "layer1.0.conv1": "\u2028'\"&<b>"}, workload=HOSTILE, damage_unit=HOSTILE)
    page = render({**data, "sentence": HOSTILE, "notes": [HOSTILE], "pick_rule": HOSTILE})
    assert "<img" not in page
    assert "\u2028" not in embed(data)
    assert page.count("</script>") == 2


def test_embedded_json_reads_back_unchanged():
    value = {"a": [HOSTILE, "\u2028\u2029 & é"], "b": 0.1}
    assert json.loads(str(embed(value))) == value
    assert not set("<>&") & set(embed(value))


def test_embedding_is_what_protects():
    assert HOSTILE in json.dumps(HOSTILE)  # the control: plain JSON would let it through
    assert HOSTILE not in embed(HOSTILE)


def test_a_study_killed_at_once_still_has_a_page(study):
    empty = {"schema": SCHEMA, "header": {"workload": "digits", "target": "onnxruntime:cpu"}, "evaluations": []}
    assert "No pick yet" in render(empty).replace("\u00a0", " ")
    first = {**study(), "knee": None, "pick": None, "layers": [], "progress": []}
    first["evaluations"] = first["evaluations"][:1]
    assert "<h2" in render(first)


def test_unread_axes_are_never_shown_as_numbers(study):
    data = study()
    assert "energy_j" not in [a.key for a in axes_of(data, evaluations_of(data))]
    rows = {row["label"]: row for row in page_data(data, evaluations_of(data))["provenance"]}
    assert rows["Energy"]["provenance"] == "unavailable"
    assert rows["Peak memory"]["provenance"] == "estimated"
    data["evaluations"][3]["cost"]["latency_s"] = as_data(unavailable("s", "no clock"))
    latency = [row["cells"][0] for row in page_data(data, evaluations_of(data))["rows"]]
    assert latency[3] == "–"


def test_numbers_that_are_not_finite_stay_out_of_the_page(study):
    data = study()
    data["evaluations"][1]["predicted"]["damage"] = float("inf")
    data["layers"][0]["loss"] = float("nan")
    assert "Infinity" not in re.search(r'id="study">(.*?)</script>', render(data)).group(1)


def test_refuses_another_schema(study):
    with pytest.raises(InputError, match=f"schema must be {SCHEMA}; got {SCHEMA + 1}"):
        render({**study(), "schema": SCHEMA + 1})


def test_summary_survives_its_json(study):
    data = study()
    assert render(json.loads(json.dumps(data))) == render(data)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [(1.0, 0.5, "2.00× faster"), (1.0, 2.0, "2.00× slower"), (1.0, 1.001, "unchanged")],
)
def test_ratio_in_words(study, before, after, words):
    data = study()
    for role, seconds in (("baseline", before), ("pick", after)):
        entry = next(e for e, key in zip(data["evaluations"], _keys(data), strict=True) if key == data[role])
        entry["cost"]["latency_s"] = as_data(measured(seconds, "s"))
    evaluations = evaluations_of(data)
    by_key = {e.key: e for e in evaluations}
    rows = comparison(axes_of(data, evaluations), by_key[data["baseline"]], by_key[data["pick"]])
    assert rows[0]["change"] == words


@pytest.mark.parametrize(("value", "text"), [(0.481, "0.481"), (1234.5, "1,234"), (12.345, "12.3"), (3e-7, "3.0e-07")])
def test_figures(value, text):
    assert figure(value) == text


def test_layer_totals_are_the_sums(study):
    layers = study()["layers"]
    before = sum(layer["before"]["params"] for layer in layers)
    after = sum((layer["after"] or {"params": 0})["params"] for layer in layers)
    assert layer_totals(layers)["params"] == f"{before / 1e3:.0f} k → {after / 1e3:.0f} k"


def _keys(data):
    return [e.key for e in evaluations_of(data)]


def test_a_ratio_timed_side_by_side_replaces_the_quotient(study):
    data = study()
    for entry, key in zip(data["evaluations"], _keys(data), strict=True):
        entry |= {"key": key, "speed_up": as_data(measured(3.25, "1", low=3.1, high=3.4, n=12))}
    page = render(data)
    assert "3.25× faster" in page
    assert "[3.10, 3.40]" in page
    for entry in data["evaluations"]:
        entry["speed_up"] |= {"value": 1.0, "n": 0}  # what a study says when it never timed the two together
    assert "3.25×" not in render(data)


def test_columns_that_no_layer_fills_are_left_out(study):
    data = study(damage_unit="squared spreads")
    assert "Loss, squared spreads" in render(data)
    for layer in data["layers"]:
        layer["loss"] = None
    assert '<th scope="col" class="num">Loss' not in render(data)
    assert "nats" not in render(data)


def test_a_traceback_is_one_line_in_the_table(study):
    data = study()
    data["evaluations"][-1]["error"] = "Traceback:\n  deep\nValueError: 1 < 2"
    row = page_data(data, evaluations_of(data))["rows"][-1]
    assert row["error"] == "ValueError: 1 < 2"
    assert "deep" in re.search(r'id="study">(.*?)</script>', render(data)).group(1)
