"""Charts as data: where a value lies, which ticks a ruler bears, and that what is drawn is what the table says."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.pages.axes import power
from equipoise.pages.chart import GRID, Chart, Point, Ruler, Series, Zone, drawing, ruler

positive = st.floats(1e-6, 1e18)


def plain(v: float) -> str:
    return f"{v:.4g}"


def chart(series, *, log=False, zones=()):
    points = [p for s in series for p in s.points]
    x = ruler("Size", [p.x for p in points], write=plain, log=log)
    y = ruler("Loss", [p.y for p in points], write=plain)
    return Chart("c", "says", x, y, series, zones)


@given(positive, st.floats(1.001, 1e9), st.booleans())
def test_a_ruler_s_ends_lie_at_0_and_1_and_ticks_between(low, factor, log):
    along = Ruler("x", low, low * factor, plain, log)
    assert along.place(low) == pytest.approx(0)
    assert along.place(low * factor) == pytest.approx(1)
    ticks = along.ticks()
    assert 2 <= len(ticks) <= 16
    assert ticks == sorted(set(ticks))
    assert all(-1e-6 <= along.place(t) <= 1 + 1e-6 for t in ticks)


@given(positive, st.floats(1.001, 1e9))
def test_the_geometric_mean_lies_halfway_on_a_logarithmic_ruler_alone(low, factor):
    middle = low * math.sqrt(factor)
    assert Ruler("x", low, low * factor, plain, log=True).place(middle) == pytest.approx(0.5)
    share = Ruler("x", low, low * factor, plain).place(middle)
    assert share == pytest.approx((math.sqrt(factor) - 1) / (factor - 1), rel=1e-3)


@pytest.mark.parametrize(
    ("low", "high", "log", "ticks"),
    [
        (0.0, 6.0, False, [0, 1, 2, 3, 4, 5, 6]),
        (0.9e3, 1.1e9, True, [10.0**k for k in range(3, 10)]),
        (2e4, 6e6, True, [3e4, 1e5, 3e5, 1e6, 3e6]),
        (0.7, 4.0, True, [0.7, 1, 1.5, 2, 3]),
    ],
)
def test_ticks_are_round(low, high, log, ticks):
    assert Ruler("x", low, high, plain, log).ticks()[: len(ticks)] == pytest.approx(ticks)


@given(st.lists(positive, min_size=1, max_size=9), st.booleans())
def test_a_ruler_holds_all_its_values_with_a_margin(values, log):
    along = ruler("x", values, write=plain, log=log)
    assert all(0 < along.place(v) < 1 for v in values)


def test_bands_reach_only_so_far():
    along = ruler("x", [1.0, 2.0], write=plain, reach=[0.9, 500.0])
    assert along.low < 0.9
    assert 2.3 < along.high < 2.5
    assert ruler("x", [1.0, 2.0, 500.0], write=plain).high > 500  # the control: a value is held whatever it is


@pytest.mark.parametrize("values", [[], [3.0], [0.0]])
def test_a_ruler_of_one_value_or_none_is_still_one(values):
    for log in (False, True):
        along = ruler("x", values, write=plain, log=log)
        assert along.low < along.high


def test_what_is_drawn_is_what_the_table_says():
    line = Series("line", "line", [Point(1, 5, 4, 6), Point(3, 2, 1, 3), Point(9, 4, 3, 5)], end="line")
    dots = Series("dots", "run", [Point(2, 3, 2.5, 3.5), Point(4, 2.5, note="odd")])
    plan = chart([line, dots], log=True)
    drawn = drawing(plan)
    assert [row[:3] for row in drawn["rows"]] == [[s.name, plain(p.x), plain(p.y)] for s in (line, dots) for p in s.points]
    assert drawn["columns"] == ["What", "Size", "Loss", "Interval", "Note"]
    assert drawn["rows"][3][3:] == ["2.5 to 3.5", ""]
    band, path = drawn["paths"]
    corners = [tuple(map(float, pair.split())) for pair in path["d"][1:].split("L")]
    for (x, y), point in zip(corners, line.points, strict=True):
        assert x == pytest.approx(GRID * plan.x.place(point.x), abs=0.1)
        assert y == pytest.approx(GRID * (1 - plan.y.place(point.y)), abs=0.1)
    assert band["d"].count("L") == 5
    for mark, row in zip(drawn["marks"], range(5), strict=True):
        assert mark["row"] == row
        point = [*line.points, *dots.points][row]
        assert float(mark["x"].rstrip("%")) == pytest.approx(100 * plan.x.place(point.x), abs=0.01)
        assert float(mark["y"].rstrip("%")) == pytest.approx(100 - 100 * plan.y.place(point.y), abs=0.01)
    assert len(drawn["bars"]) == 1


def test_a_point_with_no_interval_leaves_a_line_without_a_band():
    drawn = drawing(chart([Series("line", "line", [Point(1, 5, 4, 6), Point(3, 2)])]))
    assert [path["look"] for path in drawn["paths"]] == ["line"]


def test_words_at_the_ends_of_lines_do_not_cover_each_other():
    series = [Series(str(i), "line", [Point(1, 0), Point(2, 1 + i / 1000)], end=str(i)) for i in range(4)]
    at = [float(end["y"].rstrip("%")) for end in drawing(chart(series))["ends"]]
    assert all(b - a >= 5 for a, b in pairwise(at))


def test_a_zone_ends_at_the_chart_s_edge():
    series = [Series("s", "run", [Point(1, 1), Point(10, 2)])]
    zones = [Zone("a", "beyond", 5.0), Zone("b", "range", 2.0, 1e9)]
    for zone in drawing(chart(series, zones=zones))["zones"]:
        start, width = (float(zone[key].rstrip("%")) for key in ("at", "width"))
        assert start + width == pytest.approx(100, abs=0.02)


def test_series_that_say_the_same_share_one_entry_of_the_legend():
    series = [Series(f"run {i}", "run", [Point(i, i)], key="run") for i in (1, 2, 3)]
    assert [entry["name"] for entry in drawing(chart(series))["legend"]] == ["run"]


@given(st.floats(1e-30, 1e30))
def test_powers_of_ten_read_back(value):
    digits, ten = re.fullmatch(r"(?:([\d.]+)×)?10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", power(value)).groups()
    exponent = int(ten.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")))
    assert float(digits or 1) * 10.0**exponent == pytest.approx(value, rel=0.051)
