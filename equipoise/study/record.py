"""A study: the durable record of what was tried, and the answers read off it.

Needs no torch: a study can be opened, picked from and reported on while it runs, or on a machine that only has the folder.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from equipoise.axes import AXES, TRADED
from equipoise.budget import Budget, parse_budget
from equipoise.errors import InputError, StoreError
from equipoise.markup import table
from equipoise.meters import Meters
from equipoise.pareto import Knee, non_dominated
from equipoise.public import public
from equipoise.records import Choice, Evaluation, Plan, Reading, evaluation_from, measured, reading_from
from equipoise.stats import Interval, carried, verdict
from equipoise.study.dashboard import optuna_study
from equipoise.study.header import Header, header_from
from equipoise.study.picks import knee_of, peers, pick, settled
from equipoise.study.shown import frame, plot, write_table
from equipoise.study.store import Store
from equipoise.techniques import TECHNIQUES
from equipoise.units import counted, show

_NUMBER = re.compile(r"\d+(\.\d+)?")
ALIKE = 3
"""Plans named that cannot be told apart from the pick."""
SHOWN = 12
"""Points of the front in a notebook's table; the report has all."""
TOLD = "told"
"""Kind of the record of evaluations that were told, see `Study.tell`."""


@dataclass(frozen=True)
class Study:
    """All evaluations of one workload on its targets, in the order they were made.

    Attributes:
        header: What the run was asked last, and where it ran.
        evaluations: Every trial, failed ones too; then what was told.
        finals: Key -> the last, interleaved latency measurement against the untouched model.
        unread: What was left as it is because its probe failed (``width.conv1=16``) -> why.
        extent: How far the tables of the last asking reached: ``entries``, ``read``, ``before_s`` (spent by their end),
            ``enough_s`` (with which a search would begin) and ``plans`` (how many there are); empty where that was not
            recorded.
        untrained: Where recovery had candidates but no time: ``left_s`` for it and ``least_s``, what one training takes.
    """

    path: Path
    header: Header
    evaluations: tuple[Evaluation, ...]
    finals: Mapping[str, Interval]
    unread: Mapping[str, str] = field(default_factory=dict)
    extent: Mapping[str, Any] = field(default_factory=dict)
    untrained: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        budget = self.header.budget or "none"
        tried = counted(len(self.evaluations), "evaluation")
        return f"Study({self.path}: {tried}, {len(self.front)} on the front, budget {budget})"

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
            InputError: No study there.
            StoreError: One without a baseline yet.
        """
        with Store.open(path, create=False, readonly=True) as store:
            return cls.read(store)

    @classmethod
    def read(cls, store: Store, *, raced: bool = True, race: Mapping[str, Any] | None = None) -> Study:
        """Read the study out of an open store.

        Args:
            raced: Whether latencies are those of the last race, in fresh processes; False leaves the search's own readings,
                from which the race's field is chosen.
            race: One more race, which the store could not record.
        """
        finals = [*store.all("final"), *([race] if race else [])]
        asked = [row["header"] for row in store.all("asking")]  # the last one counts
        header = header_of(store)
        rows = evaluated(store.all("evaluation"), store.all("meter"))
        if not rows or not rows[0].ok:
            raise StoreError(f"the study at {store.path} has no usable baseline. Run `equipoise optimize` on another --store.")
        reference = reading_from(finals[-1]["reference"]) if finals else rows[0].axis("latency_s")
        ratios = {key: _in_state_of(final, key, reference) for final in finals for key in final["ratios"]}
        rows += evaluated(store.all(TOLD), ())
        unread = {f"{r['knob']}={r['choice']}": r["error"] for r in store.all("table") if r.get("error")}
        extent, untrained = ((store.get(kind, asked[-1]) if asked else None) or {} for kind in ("extent", "untrained"))
        if raced and finals:
            rows = _raced(rows, reference, ratios)
        rows = following(rows, parse_budget(header.budget), header.meters)
        return cls(Path(store.path), header, rows, ratios, unread, extent, untrained)

    @property
    def budget(self) -> Budget:
        """The budget that the study was last run with."""
        return parse_budget(self.header.budget)

    @property
    def baseline(self) -> Evaluation:
        """The untouched model on the first target."""
        return self.evaluations[0]

    @cached_property
    def usable(self) -> tuple[Evaluation, ...]:
        """Evaluations that ended well; of one plan the trained one of least loss, or the last where none was trained.

        What was told of a plan counts where none of it was measured here.

        Training on can lose again what was won. A loss tells that with far less noise than a drop, of which the least of
        several readings would be one that chance made small. Where training made a plan worse in both, it counts as it was.
        """
        best: dict[str, Evaluation] = {}
        for evaluation in self.evaluations:
            digest = evaluation.plan.digest
            if evaluation.ok and not _further(best.get(digest), evaluation):
                best[digest] = evaluation
        return tuple(best.values())

    @cached_property
    def made(self) -> Study:
        """The study without what was told: what there are files of, so that it can ship."""
        return replace(self, evaluations=tuple(e for e in self.evaluations if e.fidelity != "told"))

    @cached_property
    def front(self) -> tuple[Evaluation, ...]:
        """Non-dominated evaluations over latency, size and drop (a gain counts once it is shown), fastest first."""
        rows = [e for e in self.usable if all(e.axis(a).known for a in TRADED)]
        points = [[settled(e.drop) if a == "drop" else e.axis(a).get() for a in TRADED] for e in rows]
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

    def export(self, pick: str = "best", *, out: str | Path | None = None, overwrite: bool = False) -> Any:
        """Write one point as a folder that can ship, and return the artifact: `equipoise.export` of this study."""
        return public("export")(self, pick, out=out, overwrite=overwrite)

    def ask(self, count: int = 1) -> list[Plan]:
        """Return the plans to try next, where something else makes and measures them: `equipoise.ask` of this study."""
        plans: list[Plan] = public("ask")(self, count)
        return plans

    def tell(self, plan: Plan | Mapping[str, Choice], **figures: Any) -> Evaluation:
        """Record what was found of a plan elsewhere: `equipoise.tell` of this study, which says what `figures` there are."""
        found: Evaluation = public("tell")(self, plan, **figures)
        return found

    def frame(self, rows: Sequence[Evaluation] | None = None) -> Any:
        """Return evaluations (None: the front) as a `pandas.DataFrame`: values in SI units, with the ends of their intervals.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        chosen = self.front if rows is None else rows
        return frame(chosen, [describe(e, self.baseline) for e in chosen], self._marks)

    def plot(self, axes: Any = None) -> Any:
        """Draw drop against latency with matplotlib, into `axes` where they are given; return the axes.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        known = [e for e in self.usable if e.axis("latency_s").known and e.drop.known]
        return plot(self.front, known, self._marks, unit=self.header.metric["unit"], axes=axes)

    def write_table(self, path: str | Path) -> Path:
        """Write a row for each evaluation, as `frame` has them, to a ``.csv`` or ``.parquet`` file; return its path.

        Raises:
            InputError: Another suffix.
            MissingExtraError: pandas, or what it writes Parquet with, is not installed.
        """
        return write_table(Path(path), self.evaluations, [describe(e, self.baseline) for e in self.evaluations], self._marks)

    def to_optuna(self, storage: Any = None, *, name: str | None = None) -> Any:
        """Return the evaluations as an `optuna.Study`, for its dashboard; see `dashboard.optuna_study`.

        Args:
            storage: As Optuna takes it, such as ``sqlite:///trials.db``; None keeps it in memory.
            name: Of the study there; None takes the folder's.
        """
        return optuna_study(self.header, self.evaluations, storage=storage, name=name or self.path.name)

    @property
    def _marks(self) -> dict[str, str]:
        """Key -> the word for a point that is asked for by name."""
        return {self.baseline.key: "untouched", self.knee.key: "knee", self.best.key: "best"}

    def ratio(self, evaluation: Evaluation) -> Interval:
        """Return how many times faster than the untouched model `evaluation` is, from the last interleaved run.

        The untouched model is as fast as itself: of its race against itself only the spread is kept.
        """
        found = self._found(evaluation)
        if evaluation.key != self.baseline.key:
            return found
        return replace(found, value=1.0, low=found.low / found.value, high=found.high / found.value)

    def _found(self, evaluation: Evaluation) -> Interval:
        """Return the ratio of a race, else of the evaluation's own trial, else of its latency."""
        if evaluation.key in self.finals:
            return self.finals[evaluation.key]
        if evaluation.speed_up is None:
            base, latency = (e.axis("latency_s").get() for e in (self.baseline, evaluation))
            return Interval(base / latency, 0.0, math.inf, 0)
        return interval_of(evaluation.speed_up)

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
        metric = self.header.metric
        told = "as told, " if evaluation.fidelity == "told" else ""
        return f"{told}{faster}, {smaller:.2f}× smaller, drop {drop.get():.2f}{spread} {metric['unit']} of {metric['name']}"

    @property
    def failures(self) -> tuple[Evaluation, ...]:
        """The trials that failed."""
        return tuple(e for e in self.evaluations if not e.ok)

    def failed(self) -> str:
        """Say how many trials and trainings failed and what could not be probed, with the commonest reasons; or nothing."""
        kinds = {"one-shot": "trial", "recovered": "training"}
        out = []
        for fidelity, noun in kinds.items():
            reasons = [(f"plan {e.plan.digest}", e.reason) for e in self.failures if e.fidelity == fidelity]
            total = sum(e.fidelity == fidelity for e in self.evaluations)
            if reasons:
                count = f"{counted(len(reasons), noun)} failed of {total}"
                whole = total > 1 and len(reasons) == total
                out.append((f"all {total} {noun}s failed" if whole else count) + _commonest(reasons))
        if self.unread:
            were = "was" if len(self.unread) == 1 else "were"
            out.append(
                f"{counted(len(self.unread), 'choice')} could not be probed and {were} left out"
                + _commonest(list(self.unread.items()))
            )
        return "; ".join(out)

    @property
    def searched(self) -> bool:
        """Whether a plan that a search proposed was tried and ended well; the baseline's own contenders are none."""
        return any(e.ok and e.predicted for e in self.evaluations)

    @property
    def answered(self) -> bool:
        """Whether the run has an answer: the budget is met, by something that was tried and not by doing nothing."""
        met = self.met or not self.budget.constraints
        return met and (self.searched or self.exhausted or not self.extent or self.best.key != self.baseline.key)

    @property
    def exhausted(self) -> bool:
        """Whether all plans that the model offers were tried, so that none was left to a search."""
        return not self.searched and len({e.plan for e in self.evaluations}) >= self.extent.get("plans", math.inf)

    def unsearched(self) -> str:
        """Say why nothing was searched, and how much time would be enough where time was the cause; empty where not known."""
        if self.searched or not self.extent:
            return ""
        if len(self.unread) >= self.extent["entries"]:
            return "nothing was searched: there is nothing in this model that could be changed and tried"
        trials = [e for e in self.evaluations if e.fidelity == "one-shot"]
        begun = self.extent["read"] and trials and not any(e.ok for e in trials)
        if begun or any(e.predicted for e in trials):
            return f"nothing was searched: {self.failed()}"
        if self.exhausted:
            return f"nothing was left to search: all {self.extent['plans']} plans that there are were tried"
        if self.extent["enough_s"] <= self.header.time_s:
            return "nothing was searched: there was time for it, but the run was ended or nothing was proposed"
        need = show(self.extent["before_s"], "s")
        asked, enough = show(self.header.time_s, "s"), _rounded(self.extent["enough_s"])
        what = "preparing, the baseline and the tables" if self.extent["read"] else "preparing and the baseline"
        return f"nothing was searched: {what} took {need} where {asked} was given; give --time {enough}"

    def verdict(self) -> str:
        """Say whether the budget was met, and if not by how much and which bound binds; a pick that is slower is announced."""
        said = [self._met()] if self.answered or not self.unsearched() else []
        said += [text for text in (self.unsearched(),) if text]
        if self.untrained and self.searched and not any(e.training for e in self.evaluations):
            left, least = (show(self.untrained[key], "s") for key in ("left_s", "least_s"))
            said.append(f"no plan was trained: the {left} left are less than the {least} it takes at least")
        alike = [e for e in peers(self.usable, self.best) if e.key != self.best.key]
        if alike:
            named = ", ".join(e.plan.digest[:8] for e in alike[:ALIKE]) + (", ..." if len(alike) > ALIKE else "")
            said.append(f"in speed and drop the pick cannot be told apart from {counted(len(alike), 'other plan')} ({named})")
        if verdict(self.ratio(self.best)) == "slower":
            said.append("this pick is SLOWER than the untouched model")
        return "; ".join(said)

    def _met(self) -> str:
        if not self.budget.constraints:
            rule = self.knee_rule
            stable = "" if rule.stability is None else f", the same in {100 * rule.stability:.0f}% of draws within the noise"
            return f"no budget given: the knee ({rule.rule}{stable})"
        if self.met:
            told = ", as told" if self.best.fidelity == "told" else ""
            return f"budget met{told}: {self.budget.text}"
        _, over = self.nearest
        binding = max(over, key=lambda word: over[word])
        each = ", ".join(
            f"{word} by {100 * value:.0f}%" if math.isfinite(value) else f"{word}, which was not measured"
            for word, value in over.items()
        )
        return f"budget NOT met: {self.budget.text}; nearest point misses {each}; the binding constraint is {binding}"


def header_of(store: Store) -> Header:
    """Return what a study was asked last.

    Raises:
        StoreError: It has no baseline yet.
    """
    headers, asked = store.all("study"), store.all("asking")
    if not headers:
        raise StoreError(f"the study at {store.path} has no baseline yet. Run `equipoise optimize` on it first.")
    return header_from(((asked and store.get("study", asked[-1]["header"])) or headers[-1])["header"])


def interval_of(speed_up: Reading) -> Interval:
    """Return a recorded speed-up as the interval that it was."""
    low, high = (0.0 if speed_up.low is None else speed_up.low), (math.inf if speed_up.high is None else speed_up.high)
    return Interval(speed_up.get(), low, high, speed_up.n)


def _in_state_of(final: Mapping[str, Any], key: str, reference: Reading) -> Interval:
    """Return a race's ratio of one evaluation, as it is in the state of the machine in which `reference` was read."""
    ratio, then, slope = Interval(**final["ratios"][key]), final["reference"], final["elasticity"].get(key)
    if slope is None or then["value"] == reference.get():
        return ratio
    return carried(ratio, slower=reference.get() / then["value"], elasticity=tuple(slope))


def _commonest(reasons: Sequence[tuple[str, str]]) -> str:
    """Say the commonest of some (place, reason), with its number where there are others, and the first place that has it.

    Reasons that differ in their numbers alone, such as sizes, are one.
    """
    kinds = [_NUMBER.sub("0", reason) for _, reason in reasons]
    kind, count = Counter(kinds).most_common(1)[0]
    place, reason = reasons[kinds.index(kind)]
    often = "" if count == len(reasons) else f" {count} times"
    return f"{', most often' if often else ''}{often}: {reason} ({place})"


def _rounded(seconds: float) -> str:
    """Write a time as it would be asked for, rounded up."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds > 2 * size:
            return f"{math.ceil(seconds / size)}{unit}"
    return f"{max(10, 10 * math.ceil(seconds / 10))}s"


def latency_beside(base_s: float, speed_up: Interval) -> Reading:
    """Return a latency as the reference's over the speed-up measured beside it: drift between sessions cancels."""
    low = base_s / speed_up.high if math.isfinite(speed_up.high) else None
    high = base_s / speed_up.low if speed_up.low > 0 else None
    note = "the reference's over the speed-up beside it"
    return measured(base_s / speed_up.value, "s", low=low, high=high, n=speed_up.n, note=note)


def _further(held: Evaluation | None, other: Evaluation) -> bool:
    """Whether of two evaluations of one plan the earlier, `held`, counts, not the other: see `Study.usable`."""
    if held is not None and other.fidelity == "told":
        return True
    if held is None or other.fidelity != "recovered":
        return False
    less = (held.damage or 0.0) < (other.damage or 0.0)
    return less and (held.fidelity == "recovered" or held.drop.get() <= other.drop.get())


def _raced(rows: tuple[Evaluation, ...], reference: Reading, ratios: Mapping[str, Interval]) -> tuple[Evaluation, ...]:
    """Put every latency beside the untouched model's of the last race: by its ratio there, else by that of its own trial."""

    def latency(e: Evaluation) -> Reading | None:
        if e is rows[0]:
            return reference
        ratio = ratios.get(e.key) or (interval_of(e.speed_up) if e.speed_up else None)
        if ratio is None:
            return None
        beside = latency_beside(reference.get(), ratio)
        return replace(beside, provenance="told") if e.fidelity == "told" else beside

    return tuple(replace(e, cost={**e.cost, "latency_s": beside}) if (beside := latency(e)) else e for e in rows)


def evaluated(rows: Sequence[Mapping[str, Any]], metered: Sequence[Mapping[str, Any]]) -> tuple[Evaluation, ...]:
    """Return recorded evaluations, each with what was read of it when it was asked for later."""
    later: dict[str, dict[str, Reading]] = {}
    for row in metered:
        later.setdefault(row["evaluation"], {})[AXES[row["word"]].key] = reading_from(row["reading"])
    found = (evaluation_from(row["evaluation"]) for row in rows)
    return tuple(replace(e, cost={**e.cost, **later[e.key]}) if later and e.key in later else e for e in found)


def following(rows: Iterable[Evaluation], budget: Budget, meters: Meters) -> tuple[Evaluation, ...]:
    """Return evaluations with the axes of the budget that follow from others beside them: never recorded, always worked out."""
    more = ((e, meters.following(budget, e.cost)) for e in rows)
    return tuple(replace(e, cost={**e.cost, **found}) if found else e for e, found in more)


def describe(evaluation: Evaluation, baseline: Evaluation) -> str:
    """Say in a few words how a plan differs from the untouched model."""
    words: list[str] = [evaluation.fidelity] if evaluation.fidelity in ("untouched", "told") else []
    if evaluation.program is not None:
        words += [_place(evaluation.program.target), evaluation.program.precision]
    for kind, row in TECHNIQUES.items():
        old, new = baseline.plan.of(kind), evaluation.plan.of(kind)
        every = [(choice, new.get(place, choice)) for place, choice in old.items()]
        words.append(row.says([pair for pair in every if pair[0] != pair[1]], every))
    return ", ".join(word for word in words if word)


def _place(target: str) -> str:
    """Write a target without what goes without saying: ``onnxruntime``, ``openvino threads=2``."""
    runtime, _, options = target.partition("?")
    unusual = [option for option in options.split("&") if option not in ("threads=1", "batch=1", "")]
    return " ".join([runtime.removesuffix(":cpu"), *unusual])
