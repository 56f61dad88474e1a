"""A genetic search over a space of one's own: any genes, one objective or several, asked and told or by itself."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest

import equipoise as eq
from equipoise.errors import InputError
from equipoise.search.evolution import Evolver, evolve
from equipoise.search.genes import Genes, Real

MIXED = {
    "rate": Real(1e-4, 1.0, log=True),
    "width": range(8, 65, 8),
    "kind": ["relu", "gelu", "tanh"],
    "batch": [16, 32, 128],
}


def bowl(x: float, y: float) -> float:
    return (x - 1) ** 2 + (y + 2) ** 2


PLANE: dict[str, Any] = {"x": Real(-5, 5), "y": Real(-5, 5)}


def worth(rate: float, width: int, kind: str, batch: int) -> tuple[float, float]:
    """Best at rate 0.01, gelu and batch 32; a wider one costs more and loses less."""
    return (math.log10(rate) + 2) ** 2 + 8 / width + 0.3 * (kind != "gelu") + 0.1 * (batch != 32), float(width)


def test_a_minimum_is_found_and_a_maximum() -> None:
    found = eq.evolve(PLANE, bowl, evaluations=1500, seed=0)
    assert bowl(**found.best) < 1e-3
    assert len(found.candidates) == 1500
    turned = evolve(PLANE, lambda x, y: -bowl(x, y), evaluations=1500, maximize=True, seed=0)
    assert turned.candidates == found.candidates
    assert turned.objectives[:, 0].max() == -found.objectives[:, 0].min()


@pytest.mark.parametrize("seed", range(5))
def test_it_beats_its_random_start_and_random_draws(seed: int) -> None:
    found = evolve(PLANE, bowl, evaluations=200, seed=seed)
    start = found.objectives[: found.history[0][0]].min()
    drawn = Genes(PLANE).decode(Genes(PLANE).sample(np.random.default_rng(seed), 200))
    assert found.objectives.min() < min(start, *(bowl(**candidate) for candidate in drawn))


def test_genes_of_every_kind_keep_to_their_values_and_are_searched_together() -> None:
    found = evolve(MIXED, worth, evaluations=600, seed=1)
    for candidate in found.candidates:
        assert 1e-4 <= candidate["rate"] <= 1.0
        assert all(candidate[name] in MIXED[name] for name in ("width", "kind", "batch"))  # type: ignore[operator]
    front = [found.candidates[i] for i in found.front]
    assert {candidate["width"] for candidate in front} == set(MIXED["width"])  # type: ignore[arg-type]
    assert all(candidate["kind"] == "gelu" and candidate["batch"] == 32 for candidate in front)
    assert all(abs(math.log10(candidate["rate"]) + 2) < 0.2 for candidate in front)
    assert found.best in front
    assert found.objectives[list(found.front), 0].tolist() == sorted(found.objectives[list(found.front), 0])


def test_the_same_seed_finds_the_same_however_the_function_is_called() -> None:
    def together(**genes: Any) -> Any:
        return bowl(genes["x"], genes["y"])

    one, same, other = (evolve(PLANE, bowl, evaluations=100, seed=s) for s in (3, 3, 4))
    assert one.candidates == same.candidates != other.candidates
    at_once = evolve(PLANE, together, evaluations=100, seed=3, many=True)
    assert at_once.candidates == one.candidates
    assert np.allclose(at_once.objectives, one.objectives)


def test_asking_and_telling_is_the_same_search() -> None:
    search = Evolver(PLANE, population=12, seed=5)
    while len(search._rows) < 100:
        for candidate in search.ask(min(12 if not search._rows else 4, 100 - len(search._rows))):
            search.tell(candidate, bowl(**candidate))
    assert search.found().candidates == evolve(PLANE, bowl, evaluations=100, population=12, seed=5).candidates


def test_answers_may_come_late_and_in_any_order() -> None:
    search = Evolver(PLANE, population=8, seed=0)
    out: list[Any] = []
    for turn in range(60):
        out += search.ask(3)
        search.tell(out.pop(turn % len(out)), turn)
    assert len({tuple(c.values()) for c in out}) == len(out) == 120
    assert len(search.found().candidates) == 60


def test_a_small_space_is_used_up_and_nothing_twice() -> None:
    found = evolve({"a": ["x", "y", "z"], "b": range(4)}, lambda a, b: ord(a) + b, evaluations=1000, seed=0)
    assert found.stopped == "exhausted"
    assert len({tuple(c.values()) for c in found.candidates}) == len(found.candidates) == 12
    assert found.best == {"a": "x", "b": 0}
    assert evolve({"only": [7]}, lambda only: only, seed=0).best == {"only": 7}


def test_what_breaks_a_constraint_stands_behind_what_breaks_none() -> None:
    found = evolve(PLANE, bowl, evaluations=1000, constraints=lambda x, y: (x + y, -3 - x), seed=0)  # the minimum holds both
    assert bowl(**found.best) < 0.01
    found = evolve(PLANE, bowl, evaluations=1500, constraints=lambda x, y: 2 - x, seed=0)
    assert found.best["x"] == pytest.approx(2, abs=0.02)
    assert found.excess[found.front[0]] == 0
    none = evolve(PLANE, bowl, evaluations=300, constraints=lambda x, y: 9 - x, seed=0)
    assert none.best["x"] == pytest.approx(5, abs=0.2)  # the least broken


def test_it_ends_for_each_reason() -> None:
    assert evolve(PLANE, bowl, evaluations=50, seed=0).stopped == "evaluations"
    reached = evolve(PLANE, bowl, goal=0.5, seed=0)
    assert reached.stopped == "goal"
    assert reached.objectives.min() <= 0.5
    assert evolve(PLANE, lambda x, y: -bowl(x, y), goal=-0.5, maximize=True, seed=0).candidates == reached.candidates
    assert evolve(PLANE, lambda x, y: 1.0, patience=5, seed=0).stopped == "converged"
    assert evolve(PLANE, lambda x, y: (x, -x), patience=3, evaluations=10_000, seed=0).stopped == "converged"
    assert evolve(PLANE, bowl, time=1e-6, seed=0).stopped == "time"
    assert evolve(PLANE, bowl, on_generation=lambda search: len(search.history) == 3, seed=0).stopped == "callback"


def test_what_failed_is_no_parent_and_no_result() -> None:
    found = evolve(PLANE, lambda x, y: math.nan if x < 0 else bowl(x, y), evaluations=400, seed=0)
    assert 0 < len(found.candidates) < 400
    assert all(candidate["x"] >= 0 for candidate in found.candidates)
    with pytest.raises(InputError, match="100 that failed"):
        evolve(PLANE, lambda x, y: math.nan, evaluations=100, seed=0)


@pytest.mark.parametrize("several", [False, True])
def test_a_constraint_that_failed_is_not_kept(several: bool) -> None:
    def limits(x: float) -> Any:
        failed = math.nan if abs(x) < 1 else -1.0
        return (-1.0, failed) if several else failed

    found = evolve({"x": Real(-5, 5)}, lambda x: x * x, constraints=limits, evaluations=200, seed=1)
    assert abs(found.best["x"]) >= 1
    assert len(found.candidates) < 200
    assert np.isfinite(found.excess).all()


def test_a_constraint_told_as_nan_failed_and_one_told_as_infinite_is_broken() -> None:
    search = Evolver(PLANE, seed=0)
    failed, broken = search.ask(2)
    search.tell(failed, 1.0, [math.nan])
    with pytest.raises(InputError, match="1 that failed"):
        search.found()
    search.tell(broken, 2.0, [math.inf])
    assert search.found().candidates == (broken,)
    assert not search.found().feasible
    kept = search.ask()[0]
    search.tell(kept, 3.0, [-math.inf])
    assert search.found().best == kept
    assert search.found().feasible


def test_what_breaks_a_constraint_reaches_no_goal() -> None:
    found = evolve({"x": Real(-5, 5)}, lambda x: x * x, constraints=lambda x: 2 - x, goal=1, evaluations=60, seed=0)
    assert found.stopped == "evaluations"
    none = evolve({"x": Real(-5, 5)}, lambda x: x * x, constraints=lambda x: 9 - x, goal=1, evaluations=60, seed=0)
    assert none.stopped == "evaluations"
    assert not none.feasible
    assert math.isnan(none.history[-1][1])


@pytest.mark.parametrize("gene", [range(10**18), range(10**18, 0, -1), range(-(10**12), 10**12, 7), range(2**63 - 1)])
def test_a_range_of_any_length_is_searched_at_once(gene: range) -> None:
    at = gene[len(gene) // 3]
    found = evolve({"n": gene}, lambda n: abs(n - at), seeds=[{"n": gene[0]}, {"n": gene[-1]}], evaluations=400, seed=0)
    assert [candidate["n"] for candidate in found.candidates[:2]] == [gene[0], gene[-1]]
    assert all(type(candidate["n"]) is int and candidate["n"] in gene for candidate in found.candidates)
    assert abs(found.best["n"] - at) < 0.01 * abs(gene[-1] - gene[0])


def test_a_value_of_a_range_may_be_any_number_that_equals_it() -> None:
    genes = Genes({"n": range(8, 65, 8)})
    assert genes.decode(np.array([genes.encode({"n": value}) for value in (16, 16.0, np.int64(16))])) == [{"n": 16}] * 3


@pytest.mark.parametrize("error", [ValueError("my own bug"), TypeError("my own bug"), KeyError("my own bug")])
@pytest.mark.parametrize("place", ["objective", "constraints"])
def test_what_a_function_raises_is_passed_on(error: Exception, place: str) -> None:
    def faulty(x: float, y: float) -> float:
        raise error

    functions: dict[str, Any] = {"objective": bowl, "constraints": bowl} | {place: faulty}
    with pytest.raises(type(error)) as caught:
        evolve(PLANE, **functions, seed=0)
    assert caught.value is error


def test_a_wrapper_takes_what_it_takes_itself() -> None:
    def inner(point: tuple[float, float]) -> float:
        return bowl(*point)

    @functools.wraps(inner)
    def wrapper(**genes: float) -> float:
        return inner((genes["x"], genes["y"]))

    assert len(evolve(PLANE, wrapper, evaluations=20, seed=0).candidates) == 20


def test_seeds_come_first() -> None:
    known = {"x": 1.0, "y": -2.0}
    found = evolve(PLANE, bowl, seeds=[known], evaluations=60, seed=0)
    assert found.candidates[0] == pytest.approx(known)
    assert found.best == pytest.approx(known)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"space": {}}, "one gene or more"),
    ({"space": {"x": []}}, "one value or more"),
    ({"space": {"x": [1, 1]}}, "each of them once"),
    ({"space": {"x": "abc"}}, "a list of values"),
    ({"evaluations": 0}, "evaluations"),
    ({"population": 3}, "population"),
    ({"seed": -1}, "seed"),
    ({"time": "soon"}, "time"),
    ({"seeds": [{"x": 9.0, "y": 0.0}]}, "from -5 to 5"),
    ({"seeds": [{"x": 1.0}]}, "given a value of 'y'"),
    ({"seeds": [{"x": 1.0, "y": 0.0, "z": 0}]}, "'z'"),
    ({"maximize": [True, False]}, "one for each of 1 objectives"),
    ({"objective": lambda x: x}, "genes' names"),
    ({"objective": 3}, "genes' names"),
    ({"constraints": lambda x: x}, "constraints must be a function of the genes' names"),
    ({"objective": lambda x, y: "good"}, "objective returns must be numbers"),
    ({"constraints": lambda x, y: "kept"}, "constraints returns must be numbers"),
    ({"objective": lambda x, y: ()}, "one number or more"),
    ({"patience": 0}, "patience"),
    ({"patience": 2.0}, "patience"),
    ({"goal": "a"}, "goal"),
    ({"goal": math.nan}, "goal"),
    ({"goal": 1.0, "objective": lambda x, y: (x, y)}, "2 objectives"),
    ({"on_generation": "print"}, "on_generation"),
    ({"space": {"x": range(10**19)}}, "one value or more, 9.2e"),
    ({"seeds": [{"x": "a"}], "space": {"x": range(10**18)}}, "one of range"),
    ({"seeds": [{"x": 0.5}], "space": {"x": range(10**18)}}, "one of range"),
    ({"objective": lambda x, y: 1.0, "many": True}, "rows of numbers"),
]


@pytest.mark.parametrize(("changed", "told"), WRONG)
def test_what_is_wrong_is_told(changed: dict[str, Any], told: str) -> None:
    given: dict[str, Any] = {"space": PLANE, "objective": bowl, "evaluations": 50, "seed": 0} | changed
    with pytest.raises(InputError, match=told):
        evolve(**given)


NO_ENDS: list[tuple[Any, Any, bool]] = [
    (1, 1, False),
    (2, 1, False),
    (0, math.inf, False),
    (0, 1, True),
    (math.nan, 1, False),
    ("a", "b", False),
    (0, None, True),
    (-1e308, 1e308, False),
    (0, 10**400, False),
]


@pytest.mark.parametrize(("low", "high", "log"), NO_ENDS)
def test_a_range_has_two_ends(low: Any, high: Any, log: bool) -> None:
    with pytest.raises(InputError, match="Real"):
        Real(low, high, log=log)


def test_a_candidate_is_told_once() -> None:
    search = Evolver(PLANE, seed=0)
    (candidate,) = search.ask()
    search.tell(candidate, 1.0)
    with pytest.raises(InputError, match="told once"):
        search.tell(candidate, 2.0)
    with pytest.raises(InputError, match="as before"):
        search.tell({"x": 0.0, "y": 0.0}, (1.0, 2.0))
    with pytest.raises(InputError, match="objectives must be numbers"):
        search.tell({"x": 0.0, "y": 0.0}, "good")  # type: ignore[arg-type]


def test_nothing_is_found_before_something_is_told() -> None:
    with pytest.raises(InputError, match="after tell"):
        Evolver(PLANE, seed=0).found()
