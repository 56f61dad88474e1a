"""Is the predicted front that of brute force on small spaces, and how soon does it have hundreds of points on a study's space?

    python benchmarks/predicted_front.py runs/digits            # 2 minutes of one core; --spaces 20 for a look

Small spaces: 2 to 8 knobs of 2 to 5 choices, drawn: blocks that can be dropped with what lies in them, knobs of one layer, a
target that lacks some choices, one to three costs that do not add (products of neighbors, borders), losses that add as vectors
or as numbers. And every third one is of eight knobs of five. The gap of a space is the worst over all its plans: the least
share of an axis's range by which a point of the front would have to be better on every axis to be no worse than the plan.
A study's space is solved over latency, size and MACs with the tables and the fitted costs of its record.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.measure import machine
from equipoise.records import Knob
from equipoise.road import prediction
from equipoise.road.recorded import recorded
from equipoise.search import LossTable, Space, predicted_front
from equipoise.search.front import Cost
from equipoise.study.record import Study
from equipoise.study.store import Store

RESULT = Path(__file__).parent / "results" / "predicted_front.json"
AXES = ("latency_s", "size_bytes", "macs")
ROUNDING = 1e-12
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Chain:
    """A cost that does not add: what a knob leaves is multiplied with what the one before it leaves; borders cost extra.

    Attributes:
        shares: What each choice leaves of its knob, `(menu,)` each.
        weights: Of each knob `(knobs,)`.
        border: Paid where the choices of two neighbors differ.
    """

    space: Space
    shares: tuple[Floats, ...]
    weights: Floats
    border: float

    def many(self, genomes: NDArray[np.int64]) -> Floats:
        rows = self.space.canonical(genomes)
        left = np.stack([share[rows[:, k]] for k, share in enumerate(self.shares)], axis=1)
        before = np.concatenate([np.ones((len(rows), 1)), left[:, :-1]], axis=1)
        borders = (rows[:, 1:] != rows[:, :-1]).sum(axis=1)
        return np.asarray(0.2 + (left * before) @ self.weights + self.border * borders)


def problem(seed: int, *, full: bool = False, most: int = 8) -> tuple[Space, LossTable, list[Cost]]:
    """Return a drawn space, its losses and one to three costs; `full`: eight knobs of five choices, else up to `most`."""
    rng = np.random.default_rng(seed)
    sizes = [5] * 8 if full else [int(n) for n in rng.integers(2, 6, size=rng.integers(2, most + 1))]
    names, moot = [f"width.layer{k}" for k in range(len(sizes))], {}
    menus: list[tuple[Any, ...]] = [tuple(range(64, 64 - n, -1)) for n in sizes]
    if len(sizes) > 3 and rng.random() < 0.5:  # a block with two knobs in it
        names[1], menus[1] = "depth.block", ("keep", "drop", "halve", "third", "fourth")[: sizes[1]]
        moot["depth.block", "drop"] = (names[2], names[3])
    absent = {}
    if rng.random() < 0.3:  # a knob of the whole model
        names[0], menus[0] = "target", tuple("abcde"[: sizes[0]])
        if len(sizes) > 1 and menus[-1][-1] != "drop" and names[-1].startswith("width"):
            absent["target", "b"] = {names[-1]: (menus[-1][-1],)}
    acts = dict.fromkeys(names[-2:], ("layer",)) if rng.random() < 0.5 else {}
    space = Space(tuple(map(Knob, names, menus)), moot, acts, absent)
    columns = tuple(np.concatenate([[0.0], rng.random(n - 1) ** 2]) for n in sizes)
    pushes = [rng.normal(size=(n, 6)) for n in sizes]
    toward = tuple(rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in pushes) if rng.random() < 0.5 else None
    costs: list[Cost] = []
    for _ in range(3 if full else int(rng.integers(1, 4))):
        shares = tuple(np.concatenate([[1.0], rng.random(n - 1)]) for n in sizes)
        costs.append(Chain(space, shares, rng.random(len(sizes)), float(rng.choice([0.0, 0.05]))))
    return space, LossTable(space, columns, 0.0, toward), costs


def every(space: Space) -> NDArray[np.int64]:
    """Return all genomes of a space, those with moot choices too."""
    return np.indices(space.sizes.tolist()).reshape(len(space.knobs), -1).T


def values(genomes: NDArray[np.int64], table: LossTable, costs: Sequence[Cost]) -> Floats:
    """Return costs and loss `(n, costs + 1)`."""
    return np.stack([*(cost.many(genomes) for cost in costs), table.sums(genomes)], axis=1)


def gap(front: Floats, plans: Floats) -> float:
    """Return how far a front is from being no worse than every one of some plans, as a share of an axis's range.

    Sums of many plans and of few are not rounded alike, so what differs by rounding is no gap.
    """
    left, span, worst = np.ascontiguousarray(plans.T), np.ptp(plans, axis=0), 0.0
    for point in front:  # what a point is no worse than is covered
        left = left[:, (left < (point - ROUNDING * span)[:, None]).any(axis=0)]
        if not left.size:
            return 0.0
    for plan in left.T:
        worst = max(worst, float(((front - plan) / np.maximum(span, 1e-300)).max(axis=1).min()))
    return worst


def small_spaces(count: int) -> dict[str, Any]:
    """Solve small spaces and judge every plan of each."""
    gaps, solved, seconds, sizes = list[float](), list[float](), list[float](), list[int]()
    for seed in range(count):
        space, table, costs = problem(seed, full=seed % 3 == 2)
        began = time.perf_counter()
        found = predicted_front(space, table, costs)
        seconds.append(time.perf_counter() - began)
        plans = values(every(space), table, costs)
        gaps.append(gap(values(found, table, costs), plans))
        solved.append(gap(values(predicted_front(space, table, costs, judged=0), table, costs), plans))
        sizes.append(space.size)
        print(f"{seed}: {space.size} plans, {len(costs)} costs, {len(found)} points, gap {gaps[-1]:g}", flush=True)
    return {
        "spaces": count,
        "plans_median": median(sizes),
        "plans_most": max(sizes),
        "largest_gap": max(gaps),
        "largest_gap_solved_alone": max(solved),
        "seconds_median": median(seconds),
        "seconds_most": max(seconds),
    }


def study_space(path: Path) -> dict[str, Any]:
    """Solve the space of a study over three costs, five times; the first pays for what is kept (sizes, products) as well."""
    with Store.open(path, create=False, readonly=True) as store:
        study = Study.read(store)
        known = recorded(store, study)
    space, seconds = known.table.space, list[float]()  # without what could not be probed
    features = {target: replace(found, space=space) for target, found in known.features.items()}
    costs = [prediction.fit(axis, space, features, [e for e in known.evaluations if space.holds(e.plan)]) for axis in AXES]
    for _ in range(5):
        began = time.perf_counter()
        found = predicted_front(space, known.table, costs)
        seconds.append(time.perf_counter() - began)
    return {
        "workload": study.header.workload,
        "knobs": len(space.knobs),
        "plans": space.size,
        "costs": list(AXES),
        "points": len(found),
        "seconds_median": median(seconds),
        "seconds_most": max(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--spaces", type=int, default=90)
    args = parser.parse_args()
    found: dict[str, Any] = {"study": study_space(args.study), "small": small_spaces(args.spaces)}
    found["met"] = {
        "gap": found["small"]["largest_gap"] == 0,
        "points": found["study"]["points"] >= 300 and found["study"]["seconds_most"] < 1,
    }
    print(json.dumps(found, indent=1))
    RESULT.write_text(json.dumps({**found, "machine": machine.describe()}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
