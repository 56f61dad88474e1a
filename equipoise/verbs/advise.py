"""``equipoise.advise``: in a minute, without training and without a study, what is worth trying on this model and machine.

The road's own pieces, on a few samples: three whole models are measured (untouched, all in int8, all widths at their least),
the operators timed alone, and as many one-knob losses read as there is time for. All else is predicted from these.
"""

from __future__ import annotations

import copy
import hashlib
import shlex
import time as clock
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from equipoise import runtimes
from equipoise.batch import Inputs, mapped, size, take
from equipoise.errors import EquipoiseError, must_be
from equipoise.measure.loads import compare_loads
from equipoise.progress import of_words
from equipoise.records import Evaluation, Fidelity, Plan, Reading, measured, unavailable
from equipoise.road import entries, probing
from equipoise.road.bench import Workbench
from equipoise.road.facts import Facts
from equipoise.road.features import Features, completed
from equipoise.road.racing import Contender
from equipoise.runtimes import Program, Target
from equipoise.runtimes.base import check_usable, everywhere
from equipoise.search import LossModel, LossTable, Space, fit_loss
from equipoise.stats import median, verdict
from equipoise.techniques import TECHNIQUES
from equipoise.units import duration, show
from equipoise.verbs.outlook import FEWEST, Telling, parts, uniform, whole_loss, within
from equipoise.verbs.prospect import Contest, Prospect

if TYPE_CHECKING:
    from torch import nn

    from equipoise.workloads import Workload

SAMPLES = 64
"""Inputs that are calibrated on, and that losses are read on."""
TIMES_SHARE, RACE_SHARE, QUANTIZE_SHARE = 0.15, 0.1, 0.3
"""Shares of the time: for timing operators, kept for the last comparison, and kept for quantizing for other runtimes."""
TIMES_MOST_S = 8.0
CANDIDATES = 40
"""Candidates that the suggested time suffices for in half of it; the other half trains."""
SUGGESTED = (600.0, 1200.0, 1800.0, 3600.0, 7200.0)
"""Times that are suggested, the first that suffices."""
STEADY_S = 1.5
"""Seconds for one comparison of latencies."""


def advise(
    model: nn.Module | Workload | str,
    example: Inputs | None = None,
    *,
    target: str | Target = "onnxruntime:cpu",
    time: str | float = "60s",
    spec: str = "",
    began: float | None = None,
    on_step: Callable[[str], None] | None = None,
) -> Prospect:
    """Tell what is worth trying on a model and this machine: without training, without a study, and with its uncertainty.

    Args:
        model: A module, or a workload or the name of one (which brings its own inputs); never changed.
        example: Inputs (N, ...), several of them a mapping by keyword or a tuple by position; needed for a module. From 16 on,
            which should then be real ones, losses are read as well.
        target: Where it must run.
        time: Wall time, a quantity or seconds. What does not fit is left out and named; the untouched model is measured in any
            case.
        spec: How the command line names the workload, for the command that is suggested.
        began: ``time.perf_counter()`` when the time began, where loading is to count as well; None for now.
        on_step: Called with a few words before each long step; None shows them in a notebook or an interactive session.
    Raises:
        InputError: No example, a target that cannot be used here, a time that cannot be read, or a model in which nothing can
            be changed.
        MissingExtraError: The target's runtime is not installed.
    Example:
        >>> found = advise("digits", target="onnxruntime:cpu", time="30s")  # doctest: +SKIP
        >>> found.command  # doctest: +SKIP
        'equipoise optimize digits --target onnxruntime:cpu --budget "drop<=1" --time 10min --store runs/digits'
    """
    started = clock.perf_counter() if began is None else began
    wanted = Target.parse(target) if isinstance(target, str) else target
    limit = duration(time)
    check_usable(wanted)
    work, inputs = _subject(model, example)
    spec = spec or (model if isinstance(model, str) else "")
    return Advising(work, wanted, limit, started, inputs, spec, on_step or of_words()).prospect()


def _subject(model: nn.Module | Workload | str, example: Inputs | None) -> tuple[Workload, int]:
    """Return a workload of a few samples, and how many of them are real."""
    from torch import nn

    from equipoise.verbs.given import answers_of, inputs_of, one_output, prepared
    from equipoise.workloads import Workload, as_workload

    if not isinstance(model, nn.Module):
        work = as_workload(model)
        if example is not None:
            got = type(example).__name__
            raise must_be("advise(example)", "left out for a workload, which brings its own", got, "Leave it out.")
        few = copy.copy(work)
        for split in ("validation", "calibration"):
            object.__setattr__(few, split, getattr(work, split).take(SAMPLES))
        return few, len(few.validation)
    if example is None:
        raise must_be("advise(example)", "a batch of inputs (N, ...)", None, "Pass a tensor such as one batch of your data.")
    batch = inputs_of("example", example)
    given = size(batch)
    rows = np.arange(max(given, FEWEST))[:SAMPLES] % given
    inputs = mapped(batch, lambda value: value.cpu()[rows])
    plain = one_output("model", copy.deepcopy(prepared("model", model)[0]).eval(), inputs)
    answers = answers_of("model", plain, inputs)
    scores = answers.ndim == 2 and answers.shape[1] > 1
    data = (inputs, answers.argmax(1) if scores else answers.clone())
    metric = "accuracy" if scores else "mse"
    name = type(model).__name__
    work = Workload(model=plain, train=data, validation=data, calibration=data, test=data, metric=metric, name=name)
    return work, given if given >= FEWEST else 0


@dataclass
class Advising:
    """One round of advice: what is measured within its time, and what follows from it.

    Attributes:
        work: Of a few samples.
        inputs: How many of them are real; 0 where losses would tell nothing.
    """

    work: Workload
    target: Target
    limit_s: float
    started: float
    inputs: int
    spec: str
    on_step: Callable[[str], None]
    skipped: list[str] = field(default_factory=list)
    tried: dict[Plan, Evaluation] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bench = Workbench(self.work, (self.target,), self._save, criterion="l2")

    def left(self) -> float:
        """Seconds until the time is up."""
        return self.limit_s - (clock.perf_counter() - self.started)

    def prospect(self) -> Prospect:
        """Measure and predict, in the order of what tells most."""
        self.on_step("looking for what can be changed")
        facts = self.bench.facts
        self.facts, self.space = facts, facts.space
        self.on_step(f"measuring the model on {self.target.runtime}")
        first = self._try(self.space.untouched, "untouched")
        one_s = clock.perf_counter()
        times = self._times(facts)
        self._anchors()
        one_s = clock.perf_counter() - one_s
        read, failed, count = self._losses(facts)
        contests = self._contests(first)
        space, known = entries.offered(self.space, {key: loss.mean for key, loss in read.items()}, failed)
        model = self._loss_model(space, entries.table_of(space, known, read)) if known else None
        precisions = tuple(runtimes.get(self.target.row).precisions)
        features = Features(self.space, facts.layers, completed(times, facts.layers, precisions), precisions) if times else None
        told = Telling(self.space, str(self.target), self.inputs, self.tried, self.bench.builder.offers, features, model)
        techniques = [told.technique(kind) for kind in TECHNIQUES if any(knob.kind == kind for knob in self.space.knobs)]
        search_s = self._search_s(one_s)
        return Prospect(
            name=self.work.name,
            target=str(self.target),
            inputs=self.inputs,
            unit="squared spreads" if self.work.divergence.kind == "values" else "nats",
            contests=tuple(contests),
            parts=tuple(parts(first, facts, times)),
            techniques=tuple(sorted(techniques, key=lambda row: -max(level.times_faster.value or 0.0 for level in row.levels))),
            together=tuple(told.together()),
            left_whole=facts.left_whole,
            read=len(read),
            entries=count,
            skipped=tuple(self.skipped),
            command=self._command(contests, search_s),
            search_s=search_s,
            seconds=clock.perf_counter() - self.started,
        )

    # ---- what is measured ----------------------------------------------------------------------------------------------------

    def _try(self, plan: Plan, fidelity: Fidelity, *, repair: bool = True) -> Evaluation:
        """Measure one whole model, not trained; one that was not repaired tells its costs alone."""
        draft = self.bench.untouched if fidelity == "untouched" else self.bench.build(plan, repair=repair)
        scored = self.bench.score(plan, draft, fidelity=fidelity)
        reference = self.tried[self.space.untouched].axis("latency_s").get() if self.tried else None
        found = self.bench.time(scored, self.blobs.__getitem__, reference_s=reference, seconds=STEADY_S)
        self.tried[plan] = found if repair else replace(found, damage=None)
        return found

    def _times(self, facts: Facts) -> dict[str, float]:
        """Time the operators alone."""
        self.on_step("timing the layers")
        seconds = max(1.0, min(TIMES_MOST_S, TIMES_SHARE * self.limit_s, 0.5 * self.left()))
        knobs = frozenset(knob.name for knob in self.space.knobs)
        return probing.layer_times(self.target, facts.layers, knobs, seconds=seconds)[0]

    def _anchors(self) -> None:
        """Measure the model in int8, and with all its widths at their least."""
        kinds = {knob.kind for knob in self.space.knobs}
        if 8 in runtimes.get(self.target.row).precisions and "bits" in kinds:
            self._anchor(uniform(self.space, "bits", choice=8), "int8 as a whole")
        if "width" in kinds:
            self._anchor(uniform(self.space, "width"), "all widths at their least, as a whole", repair=False)

    def _anchor(self, plan: Plan, what: str, *, repair: bool = True) -> None:
        if self.left() < RACE_SHARE * self.limit_s:
            self.skipped.append(f"there was no time to measure {what}")
            return
        self.on_step(f"measuring {what}")
        try:
            self._try(plan, "one-shot", repair=repair)
        except Exception as error:  # noqa: BLE001 - what others' code cannot do is told, and the rest goes on
            self.skipped.append(f"{what} could not be measured: {probing.one_line(error)}")

    def _contests(self, first: Evaluation) -> list[Contest]:
        """Time the untouched model on every runtime and in every precision that there is time for, side by side."""
        programs, reasons, losses = self._programs(first)
        self.on_step("timing the runtimes side by side")
        request = self.bench.samples(max(self.target.batch, 1))
        loads = {key: Contender(program, key[0]).load(request) for key, program in programs.items()}
        seconds = max(STEADY_S, min(4.0, self.left() / 2))
        timed = compare_loads({f"{where} {precision}": load for (where, precision), load in loads.items()}, seconds=seconds)
        base = f"{self.target} fp32"
        rows = []
        for (where, precision), program in programs.items():
            name = f"{where} {precision}"
            ratio = timed.speedup(base, name)
            loss = losses.get((where, precision), unavailable("1", "not read"))
            faster = measured(1.0, "1") if name == base else ratio.reading("1")
            said = "" if name == base else verdict(ratio)
            bytes_ = measured(float(program.size_bytes), "B")
            rows.append(Contest(str(where), precision, timed.latency(name), faster, said, bytes_, loss))
        rows.sort(key=lambda row: row.latency.value or np.inf)
        none = {unit: unavailable(unit, "not measured") for unit in ("s", "1", "B")}
        lost = [
            Contest(str(where), precision, none["s"], none["1"], "", none["B"], none["1"], reason)
            for (where, precision), reason in reasons.items()
        ]
        return [*rows, *lost]

    def _programs(
        self, first: Evaluation
    ) -> tuple[dict[tuple[Target, str], Program], dict[tuple[Target, str], str], dict[tuple[Target, str], Reading]]:
        """Compile the untouched model for every runtime, in floats and in int8; what fails or finds no time has its reason."""
        programs = {(self.target, "fp32"): self.bench.reference_program}
        losses = {(self.target, "fp32"): measured(0.0, "1", note="the model itself")}
        reasons: dict[tuple[Target, str], str] = {}
        whole = (
            self.tried.get(uniform(self.space, "bits", choice=8)) if any(k.kind == "bits" for k in self.space.knobs) else None
        )
        if whole is not None and whole.program is not None and whole.plan != first.plan:
            programs[self.target, "int8"] = Program.stored(whole.program, self.blobs.__getitem__)
            losses[self.target, "int8"] = whole_loss(whole, self.inputs)
        source = self.bench.source(self.bench.teacher)
        for other in everywhere():
            where = replace(other, threads=self.target.threads, batch=self.target.batch)
            runtime = runtimes.get(where.row)
            for bits in (way for way in (32, 8) if way in runtime.precisions):
                key = (where, "fp32" if bits == 32 else "int8")
                if key in programs:
                    continue
                if reason := runtime.unavailable():
                    reasons[key] = reason
                    continue
                if self.left() < (RACE_SHARE if bits == 32 else QUANTIZE_SHARE - RACE_SHARE) * self.limit_s:
                    reasons[key] = "there was no time to compile it"
                    continue
                self.on_step(f"compiling {key[1]} for {where.row}")
                try:
                    if bits == 32:
                        programs[key] = runtime.compile(source)
                    else:
                        calibration = take(self.bench.calibration, slice(SAMPLES))
                        programs[key] = runtime.compile(source, calibration=calibration, float_layers=frozenset())
                except Exception as error:  # noqa: BLE001 - another runtime's compiler may fail as it likes; that is its row
                    reasons[key] = str(error) if isinstance(error, EquipoiseError) else probing.one_line(error)
                    continue
                if self.inputs and bits == 8:
                    damage = self.bench.damage(self.bench.outputs(programs[key], min(SAMPLES, self.inputs)))
                    losses[key] = measured(damage, "1", n=self.inputs)
        return programs, reasons, losses

    def _losses(self, facts: Facts) -> tuple[dict[entries.Key, entries.Loss], dict[entries.Key, str], int]:
        """Read one-knob losses, the most telling first, while there is time."""
        macs = {row.name: float(row.macs) for row in self.tried[self.space.untouched].layers if row.macs}
        todo = entries.ordered(self.space, facts, macs)
        if not self.inputs:
            return {}, {}, len(todo)
        prober = probing.prober(self.bench)
        read: dict[entries.Key, entries.Loss] = {}
        failed: dict[entries.Key, str] = {}
        took: list[float] = []
        for knob, choice in todo:
            expected = median(took) if took else 0.0
            if self.left() < QUANTIZE_SHARE * self.limit_s + expected:
                break
            self.on_step(f"reading what {knob.name}={choice} loses ({len(read) + 1} of {len(todo)})")
            began = clock.perf_counter()
            try:
                read[knob.name, choice] = prober.loss(probing.change_of(self.bench.builder, prober, knob.name, choice), SAMPLES)
            except Exception as error:  # noqa: BLE001 - a probe runs the user's model: what fails is left as it is
                failed[knob.name, choice] = probing.one_line(error)
            took.append(clock.perf_counter() - began)
        if len(read) + len(failed) < len(todo):
            told = f"{len(read)} of {len(todo)} losses of single changes were read; the others are told from these"
            self.skipped.append(told if read else "there was no time to read what single changes lose")
        return read, failed, len(todo)

    def _loss_model(self, space: Space, table: LossTable) -> LossModel:
        """Return what predicts losses."""
        inside = [e for e in self.tried.values() if e.damage is not None and within(space, e.plan)]
        damages = np.array([max(0.0, e.damage or 0.0) for e in inside])
        return fit_loss(table, space.encode_all([e.plan for e in inside]), damages)

    def _save(self, content: bytes) -> str:
        sha = hashlib.sha256(content).hexdigest()
        self.blobs[sha] = content
        return sha

    # ---- what to run next ----------------------------------------------------------------------------------------------------

    def _search_s(self, anchors_s: float) -> float:
        """Seconds for which a search is worth starting: so many candidates in half of it, each as long as those tried here."""
        each = max([e.seconds for e in self.tried.values() if e.fidelity == "one-shot"], default=anchors_s)
        need = 2 * CANDIDATES * each
        return next((seconds for seconds in SUGGESTED if seconds >= need), SUGGESTED[-1])

    def _command(self, contests: list[Contest], search_s: float) -> str:
        """The command to run next: on the target, and beside it on a runtime that was faster here."""
        best = next((row for row in contests if row.latency.known), None)
        targets = [str(self.target)]
        if best is not None and best.target != targets[0] and best.verdict == "faster":
            targets.append(best.target)
        words = ",".join(t.replace("?threads=1&batch=1", "") for t in targets)
        store = "".join(c if c.isalnum() else "-" for c in self.work.name).strip("-") or "study"
        named = shlex.quote(self.spec) if self.spec else "WORKLOAD"
        return (
            f'equipoise optimize {named} --target "{words}" --budget "drop<=1" --time {show(search_s, "s").replace(" ", "")} '
            f"--store runs/{store}"
        )
