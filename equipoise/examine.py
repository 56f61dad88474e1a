"""What `verify` does in its clean process: rebuild the source model and measure the exported files again.

Run as ``python -m equipoise.examine ARTIFACT WORKLOAD SECONDS OUT``; writes the checks as JSON to OUT. Slack is stated in each
check's note: on the machine of the export outputs repeat to one sample, elsewhere int8 kernels may round differently.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equipoise import runtimes, workloads
from equipoise.artifact import SOURCE_STATE, Artifact
from equipoise.budget import Constraint
from equipoise.errors import EquipoiseError, InputError
from equipoise.measure import latency
from equipoise.measure.counts import count
from equipoise.measure.machine import describe
from equipoise.records import Plan, Reading, as_data, measured, unavailable
from equipoise.runtimes import Program, Target
from equipoise.stats import Interval
from equipoise.store import write_atomic
from equipoise.units import show
from equipoise.verify import Check
from equipoise.workbench import BATCH, Workbench, damage
from equipoise.workloads import Split, Workload, classes, predict
from equipoise.workloads.scoring import drop_reading, quality_reading

FP32_SLACK = 1e-3
"""Largest difference of fp32 outputs, relative to the largest output."""
RATIO_SLACK = 1.15
"""Between two sessions a ratio moves by more than its interval within one."""
LATENCY_SLACK = 1.25
BASELINE_SLACK = 3.0
"""Absolute times move with the load of the machine; the ratio is what is held tightly."""
FEWEST_ROUNDS = 6


@dataclass(frozen=True)
class Scene:
    """What every check looks at."""

    artifact: Artifact
    work: Workload
    program: Program
    reference: Program
    at_home: bool  # on the machine and versions of the export

    def outputs(self, program: Program, split: Split) -> Tensor:
        """Answers of a program to a split, scored as the study scored it."""
        session = runtimes.get(program.runtime).load(program, threads=os.cpu_count() or 1)
        return predict(lambda x: session.run(x.numpy()), split, batch=BATCH)[0]

    def source(self, split: Split) -> Tensor:
        """Answers of the rebuilt source model."""
        return predict(self.work.model, split, batch=BATCH)[0]


def examine(artifact: Artifact, work: Workload, *, seconds: float) -> Iterator[Check]:
    """Yield every check that needs the model: source, numerics, quality, latency, size, plan, bounds."""
    yield _source(artifact, work)
    try:
        program, reference = artifact.program, artifact.reference
        scene = Scene(artifact, work, program, reference, _at_home(artifact, program.runtime))
        kept = work.validation.take(artifact.promise["quality"].n)
        answers = scene.outputs(program, kept)
        before = scene.outputs(reference, kept)
    except (InputError, RuntimeError, ValueError) as error:
        yield Check("loads and runs", "", str(error), False)
        return
    yield Check("loads and runs", "", f"{program.runtime} {program.precision}, {len(answers)} answers", True, "no pickle")
    yield from _numerics(scene, kept, answers, before)
    yield from _probe(scene)
    yield from _validation(scene, kept, answers, before)
    found: dict[str, Reading] = {}
    yield from _test(scene, found)
    yield from _costs(scene, found, seconds)
    yield from _plan(scene, found, answers, kept)
    for bound in artifact.bounds:
        yield _bound(bound, found.get(bound.axis, unavailable(bound.unit, "verify does not measure it")))


def _source(artifact: Artifact, work: Workload) -> Check:
    recorded = artifact.manifest["study"]["fingerprint"]
    if recorded is None:
        return Check("source model", "", work.fingerprint, True, "the study recorded no fingerprint")
    return Check(
        "source model", str(recorded), work.fingerprint, recorded == work.fingerprint, "fingerprint of weights and data"
    )


def _at_home(artifact: Artifact, runtime: str) -> bool:
    here, there = describe(), artifact.manifest["machine"]
    same = all(here.get(key) == there.get(key) for key in ("cpu", "flags"))
    return same and here["versions"].get(runtime) == dict(there.get("versions") or {}).get(runtime)


def _numerics(scene: Scene, kept: Split, answers: Tensor, before: Tensor) -> Iterator[Check]:
    """Compare both programs with the source model on real samples."""
    source = scene.source(kept)
    apart = _apart(source, before)
    agree = float((classes(source) == classes(answers)).double().mean()) if _labels(scene.work) else math.nan
    yield Check(
        "reference numerics", f"≤ {FP32_SLACK:g}", f"{apart:.2g}", apart <= FP32_SLACK, "largest difference to the source"
    )
    if scene.artifact.manifest["fidelity"] == "untouched" and scene.program.precision == "fp32":
        apart = _apart(source, answers)
        yield Check("numerics", f"≤ {FP32_SLACK:g}", f"{apart:.2g}", apart <= FP32_SLACK, "largest difference to the source")
    promised = scene.artifact.manifest["loss"]
    if promised is None:
        return
    loss = damage(source.numpy(), answers.numpy(), scene.work.divergence)
    slack = 0.02 * abs(promised) + 1e-5 if scene.at_home else 0.5 * abs(promised) + 1e-2
    note = f"distance to the source's answers, ± {slack:.2g}" + (f"; top-1 agreement {agree:.2%}" if agree == agree else "")
    yield Check("distance to source", f"{promised:.5f}", f"{loss:.5f}", abs(loss - promised) <= slack, note)


def _probe(scene: Scene) -> Iterator[Check]:
    """Compare the program's answers to the probe with those that were recorded."""
    if "probe.safetensors" not in scene.artifact.manifest["files"]:
        return
    from safetensors.numpy import load

    probe = load(scene.artifact.read("probe.safetensors"))
    session = runtimes.get(scene.program.runtime).load(scene.program)
    apart = _apart(torch.from_numpy(probe["outputs"]), torch.from_numpy(session.run(probe["inputs"])))
    slack = FP32_SLACK if scene.at_home or scene.program.precision == "fp32" else 0.1
    yield Check("probe", f"≤ {slack:g}", f"{apart:.2g}", apart <= slack, f"{len(probe['inputs'])} recorded answers")


def _validation(scene: Scene, kept: Split, answers: Tensor, before: Tensor) -> Iterator[Check]:
    """Repeat the figures that were promised on the validation split; the same file gives the same ones."""
    promise, baseline, metric, targets = scene.artifact.promise, scene.artifact.baseline, scene.work.metric, kept.targets()
    each = metric.per_sample(before, targets)
    binary = each is not None and bool(torch.isin(each, torch.tensor([0.0, 1.0])).all())
    quality = metric.score(answers, targets)
    slack = (
        (150 / len(targets) if scene.at_home else 1.0) if binary else (1e-3 if scene.at_home else 1e-2) * max(1.0, abs(quality))
    )
    note = f"± {slack:.2g} points"
    yield _equal("quality on validation", promise["quality"], quality, slack, note)
    yield _equal("drop on validation", promise["drop"], metric.drop(metric.score(before, targets), quality), 2 * slack, note)
    everything = scene.work.validation.take(baseline["quality"].n)
    untouched = metric.score(scene.source(everything), everything.targets())
    yield _equal("baseline on validation", baseline["quality"], untouched, slack, note)


def _test(scene: Scene, found: dict[str, Reading]) -> Iterator[Check]:
    """Score the test split, which nothing has looked at so far."""
    split, metric = scene.work.test, scene.work.metric
    targets = split.targets()
    answers, source = scene.outputs(scene.program, split), scene.source(split)
    quality = metric.score(answers, targets)
    drop = drop_reading(metric, source.numpy(), answers.numpy(), targets)
    found["drop"], found["quality"] = drop, quality_reading(metric, answers.numpy(), targets)
    promised = scene.artifact.promise["drop"]
    told = f"{quality:.2f} against {metric.score(source, targets):.2f}"
    yield Check("quality on test", "", told, math.isfinite(quality), f"{len(targets)} samples never used before")
    met = _overlap(promised, drop)
    yield Check("drop on test", str(promised), str(drop), met, "paired with the source; the intervals must meet")


def _costs(scene: Scene, found: dict[str, Reading], seconds: float) -> Iterator[Check]:
    """Time the program beside the reference, in shuffled blocks, and weigh both."""
    promise, baseline = scene.artifact.promise, scene.artifact.baseline
    manifest = scene.artifact.manifest
    calls = {
        "reference": _caller(scene.reference, manifest["reference"]["target"], scene.work),
        "program": _caller(scene.program, manifest["deployable"]["target"], scene.work),
    }
    timed = latency.compare(calls, seconds=seconds, rounds=200, precision=0.01)
    if timed.rounds < FEWEST_ROUNDS:
        timed = latency.compare(calls, rounds=FEWEST_ROUNDS)
    ratio = timed.speedup("reference", "program")
    now, base_now = timed.p50("program"), timed.p50("reference")
    if "speed_up" in promise:
        yield _ratio(promise["speed_up"], ratio, timed.rounds)
    if "latency_s" in promise and "latency_s" in baseline:
        expected = baseline["latency_s"].get() / ratio.value
        apart = max(expected / promise["latency_s"].get(), promise["latency_s"].get() / expected)
        note = f"now {now}; the promised baseline / the ratio found must agree within {LATENCY_SLACK:g}×"
        yield Check("latency", str(promise["latency_s"]), show(expected, "s"), apart <= LATENCY_SLACK, note)
        apart = max(base_now.get() / baseline["latency_s"].get(), baseline["latency_s"].get() / base_now.get())
        kept = apart <= BASELINE_SLACK or not scene.at_home
        note = f"within {BASELINE_SLACK:g}×: absolute times move with the load" + ("" if scene.at_home else "; another machine")
        yield Check("baseline latency", str(baseline["latency_s"]), str(base_now), kept, note)
        if scene.at_home and expected < now.get():  # what it would be at the load of the export
            now = measured(expected, "s", low=expected * ratio.value / ratio.high, n=now.n, note="at the load of the export")
    found["latency_s"] = now
    batch = Target.parse(manifest["deployable"]["target"]).batch
    found["throughput_per_s"] = measured(batch / (now.low or now.get()), "1/s", n=now.n)
    for name, figures, program in (("size", promise, scene.program), ("baseline size", baseline, scene.reference)):
        if "size_bytes" in figures:
            yield _equal(name, figures["size_bytes"], program.size_bytes, 0.0, "bytes of the files that ship")
    found["size_bytes"] = measured(scene.program.size_bytes, "B")


def _plan(scene: Scene, found: dict[str, Reading], answers: Tensor, kept: Split) -> Iterator[Check]:
    """Rebuild the plan from the source model: shapes, counts, and the weights beside the program."""
    manifest, work = scene.artifact.manifest, scene.work
    try:
        bench = Workbench.prepare(work, (Target.parse(manifest["deployable"]["target"]),), lambda content: "")
        model = bench.build(Plan(manifest["plan"]), repair=False)
    except (EquipoiseError, KeyError, ValueError, TypeError, RuntimeError) as error:
        yield Check("plan", "", f"{type(error).__name__}: {error}", False, "the plan cannot be applied to the source model")
        return
    for axes, built in ((scene.artifact.promise, model), (scene.artifact.baseline, bench.teacher)):
        counts = count(built, work.example)
        for axis, value in (("params", counts.params), ("macs", counts.macs)):
            if axis in axes:
                which = axis if built is model else f"baseline {axis}"
                yield _equal(which, axes[axis], value, 0.0, "counted on the plan, applied again")
            if built is model:
                found[axis] = measured(value, "1")
    if "model.safetensors" in manifest["files"]:
        yield _weights(scene, model, answers, kept)


def _weights(scene: Scene, model: torch.nn.Module, answers: Tensor, kept: Split) -> Check:
    """Put the shipped weights into the rebuilt plan and compare its answers with the program's."""
    from safetensors.torch import load

    promised = "the program's weights in fp32"
    try:
        model.load_state_dict(load(scene.artifact.read("model.safetensors")))
        own = predict(model.eval(), kept, batch=BATCH)[0]
    except (RuntimeError, ValueError) as error:
        return Check("weights", promised, str(error).splitlines()[0], False, "model.safetensors does not fit the plan")
    if scene.program.precision == "fp32":
        apart = _apart(own, answers)
        return Check("weights", promised, f"{apart:.2g}", apart <= FP32_SLACK, "largest difference to the program's answers")
    mine, source = (damage(x.numpy(), answers.numpy(), scene.work.divergence) for x in (own, scene.source(kept)))
    ok = mine <= max(1.05 * source, 1e-2)
    return Check("weights", promised, f"{mine:.4f}", ok, f"distance to the program's answers, the source's is {source:.4f}")


def _bound(bound: Constraint, reading: Reading) -> Check:
    """Check one bound of the budget against the end of the interval that is kindest to it."""
    if reading.value is None:
        return Check(f"budget {bound.word}", str(bound), str(reading), False)
    kindest = reading.low if bound.upper else reading.high
    ok = bound.excess(reading.value if kindest is None else kindest) == 0
    note = "" if not ok or bound.excess(reading.value) == 0 else "the interval spans the bound: not broken, not proven either"
    return Check(f"budget {bound.word}", str(bound), str(reading), ok, note)


def _ratio(promised: Reading, found: Interval, rounds: int) -> Check:
    low, high = (promised.low or promised.get()) / RATIO_SLACK, (promised.high or promised.get()) * RATIO_SLACK
    told = [f"{v.value:.2f}× [{v.low or 0:.2f}, {v.high or math.inf:.2f}]" for v in (promised, found)]
    ok = found.bounded and found.high >= low and found.low <= high
    return Check(
        "times faster", told[0], told[1], ok, f"{rounds} rounds of shuffled blocks; intervals meet within {RATIO_SLACK:g}×"
    )


def _equal(name: str, promised: Reading, found: float, slack: float, note: str) -> Check:
    ok = promised.value is not None and abs(promised.value - found) <= slack
    return Check(name, str(promised), show(found, promised.unit), ok, note)


def _overlap(a: Reading, b: Reading) -> bool:
    """Whether two readings can be of one truth; without intervals, within one point."""
    if a.value is None or b.value is None:
        return False
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return b.value <= a.value + 1.0
    return a.low <= b.high and b.low <= a.high


def _caller(program: Program, target: str, work: Workload) -> Callable[[], object]:
    """Return a callable that answers one request on the recorded target."""
    place = Target.parse(target)
    inputs = work.validation.take(place.batch).tensors()[0]
    request = np.ascontiguousarray(inputs[torch.arange(place.batch) % len(inputs)].numpy())
    session = runtimes.get(program.runtime).load(program, threads=place.threads, batch=place.batch)
    return lambda: session.run(request)


def _apart(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest value; infinite where shapes differ or an answer is not finite."""
    if a.shape != b.shape or not bool(torch.isfinite(b).all()):
        return math.inf
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))


def _labels(work: Workload) -> bool:
    return work.divergence.kind == "softmax"


def _source_state(artifact: Artifact) -> dict[str, Tensor] | None:
    """Weights of a source model that its workload would otherwise train anew."""
    if SOURCE_STATE not in artifact.manifest["files"]:
        return None
    from safetensors.torch import load

    state: dict[str, Tensor] = load(artifact.read(SOURCE_STATE))
    return state


def main(words: list[str]) -> int:
    """Examine one artifact and write what was found."""
    path, spec, seconds, out = words
    result: Mapping[str, Any]
    try:
        artifact = Artifact.load(path)
        work = workloads.load(spec, state=_source_state(artifact))
        result = {"checks": as_data(list(examine(artifact, work, seconds=float(seconds))))}
    except EquipoiseError as error:
        result = {"error": str(error), "exit_code": error.exit_code}
    write_atomic(Path(out), json.dumps(result).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
