"""A study: the durable record of what was tried, and the answers read off it.

Needs no torch: a study can be opened, picked from and reported on while it runs, or on a machine that only has the folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from equipoise.budget import Budget, parse_budget
from equipoise.errors import InputError, StoreError
from equipoise.pareto import Knee, non_dominated
from equipoise.picks import knee_of, pick
from equipoise.progress import table
from equipoise.records import Evaluation, Reading, evaluation_from, measured
from equipoise.stats import Interval, verdict
from equipoise.store import Store

AXES = ("latency_s", "size_bytes", "drop")
"""What the front trades off; all are minimised."""
SHOWN = 12
"""Points of the front in a notebook's table; the report has all."""


@dataclass(frozen=True)
class Study:
    """All evaluations of one workload on its targets, in the order they were made.

    Attributes:
        header: Workload, targets, budget, seed, metric, machine: what the run was asked and where it ran.
        evaluations: Every trial, failed ones too.
        finals: Key -> the last, interleaved latency measurement against the untouched model.
    """

    path: Path
    header: Mapping[str, Any]
    evaluations: tuple[Evaluation, ...]
    finals: Mapping[str, Mapping[str, Any]]

    def __repr__(self) -> str:
        budget = self.header.get("budget") or "none"
        return f"Study({self.path}: {len(self.evaluations)} evaluations, {len(self.front)} on the front, budget {budget})"

    def _repr_html_(self) -> str:
        rows = [["plan", "latency", "size", "quality", "drop"]]
        for e in self.front[:SHOWN]:
            cells = (e.axis("latency_s"), e.axis("size_bytes"), e.quality, e.drop)
            rows.append([describe(e, self.baseline), *map(str, cells)])
        return table(rows, caption=repr(self))

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Open the study at `path` for reading.

        Raises:
            StoreError: No study there, or one without a baseline yet.
        """
        with Store.open(path, create=False, readonly=True) as store:
            return cls.read(store)

    @classmethod
    def read(cls, store: Store, *, raced: bool = True) -> Study:
        """Read the study out of an open store.

        Args:
            raced: Whether what was in the last race has its latency from there, which is longer and interleaved with its
                rivals; False leaves the search's own readings, from which the race's field is chosen.
        """
        headers, finals = store.all("study"), store.all("final")
        if not headers:
            raise StoreError(f"the study at {store.path} has no baseline yet. Run `equipoise optimize` on it first.")
        rows = tuple(evaluation_from(row["evaluation"]) for row in store.all("evaluation"))
        ratios = {key: ratio for final in finals for key, ratio in final["ratios"].items()}
        if raced and rows:
            base = rows[0].axis("latency_s").get()
            rows = tuple(_raced(e, base, Interval(**ratios[e.key])) if e.key in ratios else e for e in rows)
        return cls(Path(store.path), headers[-1]["header"], rows, ratios)

    @property
    def budget(self) -> Budget:
        """The budget that the study was last run with."""
        return parse_budget(self.header["budget"])

    @property
    def baseline(self) -> Evaluation:
        """The untouched model on the first target."""
        return self.evaluations[0]

    @cached_property
    def usable(self) -> tuple[Evaluation, ...]:
        """Evaluations that ended well; of one plan only the furthest fidelity."""
        best: dict[str, Evaluation] = {}
        for evaluation in self.evaluations:
            if evaluation.ok:
                best[evaluation.plan.digest] = evaluation
        return tuple(best.values())

    @cached_property
    def front(self) -> tuple[Evaluation, ...]:
        """Non-dominated evaluations over latency, size and drop, fastest first."""
        rows = [e for e in self.usable if all(e.axis(a).known for a in AXES)]
        points = [[e.axis(a).get() for a in AXES] for e in rows]
        chosen = [rows[i] for i in non_dominated(points)]
        return tuple(sorted(chosen, key=lambda e: e.axis("latency_s").get()))

    @cached_property
    def knee(self) -> Evaluation:
        """The balance point of latency (on a log scale) against drop."""
        return self._knee[0]

    @property
    def knee_rule(self) -> Knee:
        """The votes behind `knee`, and how often it wins when the points move by their measured noise."""
        return self._knee[1]

    @cached_property
    def _knee(self) -> tuple[Evaluation, Knee]:
        return knee_of(self.usable)

    @cached_property
    def best(self) -> Evaluation:
        """The evaluation that the budget asks for; the knee where there is none; the nearest where none meets it."""
        if not self.budget.constraints:
            return self.knee
        if not self.met:
            return self.nearest[0]
        return self.pick("best")

    @property
    def met(self) -> bool:
        """Whether some evaluation meets the whole budget."""
        return any(self.budget.met_by(e) for e in self.usable)

    @property
    def nearest(self) -> tuple[Evaluation, dict[str, float]]:
        """The evaluation nearest to the budget, with the relative excess of each bound that it breaks."""
        rows = [(sum(over.values()), i, e, over) for i, e in enumerate(self.usable) if (over := self.budget.excesses(e))]
        if not rows:
            raise InputError("budget must be out of reach for a nearest point to exist; some plan meets it.")
        _, _, evaluation, over = min(rows, key=lambda row: row[:2])
        return evaluation, over

    def pick(self, text: str) -> Evaluation:
        """Return the evaluation named by ``knee``, ``fastest``, ``smallest``, ``best`` or a budget."""
        if text == "knee":
            return self.knee
        if text == "best" and not self.budget.constraints:
            return self.knee
        return pick(self.usable, self.baseline, text, self.budget)

    def ratio(self, evaluation: Evaluation) -> Interval:
        """Return how many times faster than the untouched model `evaluation` is, from the last interleaved run."""
        final = self.finals.get(evaluation.key)
        if final is not None:
            return Interval(**final)
        data = evaluation.details.get("speed_up")
        if data is None:
            base, latency = (e.axis("latency_s").get() for e in (self.baseline, evaluation))
            return Interval(base / latency, 0.0, math.inf, 0)
        return Interval(**data)

    def sentence(self, evaluation: Evaluation) -> str:
        """Say what `evaluation` gains and costs: speed, size and drop with its half-interval."""
        speed = self.ratio(evaluation)
        smaller = self.baseline.axis("size_bytes").get() / evaluation.axis("size_bytes").get()
        drop = evaluation.drop
        half = (drop.high - drop.low) / 2 if drop.low is not None and drop.high is not None else None
        spread = f" ± {half:.2f}" if half is not None else ""
        faster = {
            "faster": f"{speed.value:.2f}× faster",
            "slower": f"{1 / speed.value:.2f}× slower",
            "cannot tell": f"{speed.value:.2f}× as fast (cannot tell from 1)",
        }[verdict(speed)]
        metric = self.header["metric"]
        return f"{faster}, {smaller:.2f}× smaller, drop {drop.get():.2f}{spread} {metric['unit']} of {metric['name']}"

    def verdict(self) -> str:
        """Say whether the budget was met, and if not by how much and which bound binds."""
        if not self.budget.constraints:
            rule = self.knee_rule
            stable = "" if rule.stability is None else f", the same in {100 * rule.stability:.0f}% of draws within the noise"
            return f"no budget given: the knee ({rule.rule}{stable})"
        if self.met:
            return f"budget met: {self.budget.text}"
        _, over = self.nearest
        binding = max(over, key=lambda word: over[word])
        each = ", ".join(f"{word} by {100 * value:.0f}%" for word, value in over.items())
        return f"budget NOT met: {self.budget.text}; nearest point misses {each}; the binding constraint is {binding}"


def latency_beside(base_s: float, speed_up: Interval) -> Reading:
    """Return a latency as the reference's over the speed-up measured beside it: drift between sessions cancels."""
    low = base_s / speed_up.high if math.isfinite(speed_up.high) else None
    high = base_s / speed_up.low if speed_up.low > 0 else None
    note = "reference / speed-up, interleaved blocks"
    return measured(base_s / speed_up.value, "s", low=low, high=high, n=speed_up.n, note=note)


def _raced(evaluation: Evaluation, base_s: float, speed_up: Interval) -> Evaluation:
    return replace(evaluation, cost={**evaluation.cost, "latency_s": latency_beside(base_s, speed_up)})


def describe(evaluation: Evaluation, baseline: Evaluation) -> str:
    """Say in a few words how a plan differs from the untouched model."""
    if evaluation.fidelity == "untouched":
        runtime = str(evaluation.details.get("runtime", evaluation.plan.choices.get("runtime", "")))
        return "untouched, " + " ".join(filter(None, (runtime, str(evaluation.details.get("precision", "fp32")))))
    plan, old = evaluation.plan, baseline.plan
    words = [str(plan.choices.get("runtime", "")), str(evaluation.details.get("precision", ""))]
    before = sum(int(v) for v in old.of("width").values())
    after = sum(int(v) for v in plan.of("width").values())
    if after < before:
        words.append(f"{100 * (1 - after / before):.0f}% channels cut")
    dropped = sum(v == "drop" for v in plan.of("depth").values())
    if dropped:
        words.append(f"{dropped} block{'s' if dropped > 1 else ''} dropped")
    return ", ".join(w for w in words if w)
