"""Picks: the untouched model competes, failed and unmeasured ones never win."""

from __future__ import annotations

from dataclasses import replace

import pytest

from equipoise.budget import parse_budget
from equipoise.errors import EquipoiseError, InputError
from equipoise.picks import knee_of, parse_pick, pick
from equipoise.records import Evaluation, Plan, measured, unavailable

NONE = parse_budget(None)


def point(name: str, latency_ms: float, size_kb: float, drop: float, **changes: object) -> Evaluation:
    cost = {"latency_s": measured(latency_ms / 1e3, "s"), "size_bytes": measured(size_kb * 1e3, "B")}
    base = Evaluation(Plan({"name": name}), "one-shot", measured(95 - drop, "points"), measured(drop, "points"), cost)
    return replace(base, **changes)  # type: ignore[arg-type]


BASE = point("base", 10, 100, 0, fidelity="untouched")
FAST, SMALL, KNEE = point("fast", 1, 40, 30), point("small", 4, 10, 8), point("knee", 2, 30, 1)
BROKEN = point("broken", 0.1, 1, -5, error="it crashed")
BLIND = point("blind", 0.1, 1, -5, cost={"latency_s": unavailable("s", "no clock"), "size_bytes": measured(50e3, "B")})
ALL = [FAST, SMALL, KNEE, BROKEN]


@pytest.mark.parametrize(
    ("text", "budget", "expected"),
    [
        ("fastest", "", FAST),
        ("fastest", "drop<=10", KNEE),
        ("smallest", "", SMALL),
        ("smallest", "drop<=2", KNEE),
        ("knee", "", KNEE),
        ("best", "", KNEE),
        ("best", "drop<=0.5", BASE),  # the untouched model competes though it is not in the list
        ("best", "latency<=5ms", KNEE),  # drop is free: the least drop
        ("best", "drop<=40, size<=45KB", FAST),  # drop is bounded: spend it
        ("latency<=1.5ms", "drop<=1", FAST),  # a written budget takes the place of the study's
        ("size<=20KB", "", SMALL),
    ],
)
def test_pick(text: str, budget: str, expected: Evaluation) -> None:
    assert pick(ALL, BASE, text, parse_budget(budget)) is expected


@pytest.mark.parametrize("text", ["fastest", "knee", "best", "latency<=20ms, drop<=40"])
def test_failed_and_unmeasured_never_win(text: str) -> None:
    assert pick([BROKEN, BLIND, BASE], BASE, text, NONE) is BASE


def test_a_missed_budget_tells_the_nearest_and_what_binds() -> None:
    with pytest.raises(
        EquipoiseError, match=r"meets latency<=0\.5ms.*nearest has latency 1 ms; the bound on latency binds"
    ) as info:
        pick(ALL, BASE, "latency<=0.5ms", NONE)
    assert info.value.exit_code == 1


@pytest.mark.parametrize(("text", "message"), [("fasttest", "fastest"), ("latncy<=1ms", "latency"), ("latency<=1", "ms")])
def test_what_cannot_be_read_is_told(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pick(ALL, BASE, text, NONE)


def test_parse_pick() -> None:
    assert parse_pick("knee") is None
    found = parse_pick("drop<=1")
    assert found is not None
    assert found.bound("drop") == 1.0


def test_no_measured_evaluation_has_no_knee() -> None:
    with pytest.raises(InputError, match="measured evaluations"):
        knee_of([BROKEN, BLIND])
