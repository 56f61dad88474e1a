"""What holds for every page alike: no network, one script, text that stays text, and figures that say where they came from."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest

from equipoise.errors import InputError
from equipoise.pages import render, render_scale, render_train
from equipoise.records import SCHEMA

HOSTILE = "</script><img src=x onerror=alert(1)>"
PAGES = ["study", "scale", "refused", "train"]


@pytest.fixture
def summary(request, study, scale_summary, train_summary):
    """The renderer and a summary for a kind of page."""
    kinds = {
        "study": (render, study),
        "scale": (render_scale, scale_summary),
        "refused": (render_scale, lambda: scale_summary(refused=True)),
        "train": (render_train, train_summary),
    }
    draw, make = kinds[request.param]
    return draw, make()


def texts(
    data, *, skip=("schema", "unit", "provenance", "status", "of", "size", "budget", "fidelity", "baseline", "knee", "pick")
):
    """The places of all free texts of a summary, and of the names of a scale."""
    if isinstance(data, dict):
        for key, value in data.items():
            if key in skip or key in ("evaluations", "progress"):
                continue
            if isinstance(value, str):
                yield data, key
            else:
                yield from texts(value, skip=skip)
    elif isinstance(data, list):
        for value in data:
            yield from texts(value, skip=skip)


@pytest.mark.parametrize("summary", PAGES, indirect=True)
def test_needs_no_network(summary):
    draw, data = summary
    page = draw(data)
    assert re.findall(r"(?:https?:|//[a-z0-9-]+\.[a-z])", page) == []
    assert re.findall(r'(?:src|href)="(?!data:,)[^"]*"', page) == []


@pytest.mark.parametrize("element", ["script", "style"])
@pytest.mark.parametrize("summary", PAGES, indirect=True)
def test_policy_admits_exactly_the_page_s_own_code(summary, element):
    draw, data = summary
    page = draw(data)
    body = re.search(rf"<{element}>(.*?)</{element}>", page, re.S).group(1)
    told = re.search(rf"{element}-src '([^']+)'", page).group(1)
    assert told == "sha256-" + base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
    assert "default-src 'none'" in page
    assert " style=" not in page
    assert not re.search(r"<[a-z]+[^>]* on[a-z]+=", page)


@pytest.mark.parametrize("summary", PAGES, indirect=True)
def test_every_text_stays_text(summary):
    draw, data = summary
    data = json.loads(json.dumps(data))
    places = list(texts(data))
    for holder, key in places:
        holder[key] = HOSTILE
    page = draw(data)
    assert len(places) > 10
    assert "<img" not in page
    assert page.count("</script>") == 2


@pytest.mark.parametrize("summary", PAGES, indirect=True)
def test_survives_json_and_stays_small(summary):
    draw, data = summary
    page = draw(data)
    assert draw(json.loads(json.dumps(data))) == page
    assert len(page.encode()) < 300_000


@pytest.mark.parametrize("summary", PAGES, indirect=True)
def test_refuses_another_schema(summary):
    draw, data = summary
    with pytest.raises(InputError, match=f"schema must be {SCHEMA}; got {SCHEMA + 1}"):
        draw({**data, "schema": SCHEMA + 1})


@pytest.mark.parametrize("summary", PAGES, indirect=True)
def test_every_table_has_as_many_cells_in_a_row_as_heads(summary):
    draw, data = summary
    for table in re.findall(r"<table.*?</table>", draw(data), re.S):
        heads = len(re.findall(r"<th scope=\"col\"", table))
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", table.partition("<tbody>")[2], re.S):
            spans = sum(int(span) - 1 for span in re.findall(r'colspan="(\d+)"', row))
            assert len(re.findall(r"<t[dh][ >]", row)) + spans == heads


@pytest.mark.parametrize("summary", PAGES[1:], indirect=True)
@pytest.mark.parametrize("wrong", [None, "a", []])
def test_what_is_no_summary_is_refused(summary, wrong):
    draw, _ = summary
    with pytest.raises(InputError, match=f"schema must be {SCHEMA}"):
        draw(wrong)


@pytest.mark.parametrize("summary", PAGES[1:], indirect=True)
def test_a_field_that_is_missing_or_misspelled_is_named(summary):
    draw, data = summary
    with pytest.raises(InputError, match=r"header must have .*; task missing"):
        draw({**data, "header": {k: v for k, v in data["header"].items() if k != "task"}})
    with pytest.raises(InputError, match=r"statment.*Did you mean 'statement'"):
        draw({**data, "statment": "x"})


@pytest.mark.parametrize("summary", PAGES[1:], indirect=True)
def test_charts_have_words_and_figures_beside_them(summary):
    draw, data = summary
    page = draw(data)
    charts = re.findall(r'<figure class="chart">.*?</figure>', page, re.S)
    assert len(charts) >= 2
    for chart in charts:
        assert len(re.search(r'aria-label="([^"]+)"', chart).group(1)) > 40
        rows = len(re.findall(r"<tr>", chart.partition("<tbody>")[2]))
        assert len(re.findall(r"data-row=", chart)) <= rows
        assert rows > 3
