"""What `verify` does in its clean process: rebuild the source model and measure the exported files again.

Run as ``python -m equipoise.ship.recheck ARTIFACT WORKLOAD SECONDS OUT``; writes the checks and the figures as JSON to OUT. An
empty WORKLOAD means that no code which the artifact names is executed. Slack is stated in each check's note: on the machine of
the export outputs repeat to one sample, elsewhere int8 kernels may round differently, and then nothing is called broken for it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equipoise import runtimes, workloads
from equipoise.batch import Inputs, mapped, named, restored, size, take
from equipoise.budget import Constraint
from equipoise.errors import EquipoiseError
from equipoise.records import Reading, as_data, measured
from equipoise.road.bench import quick_samples
from equipoise.runtimes import Program, Target
from equipoise.runtimes.base import runs_code
from equipoise.ship.artifact import Artifact
from equipoise.ship.manifest import SOURCE_STATE
from equipoise.ship.metered import metered
from equipoise.ship.pace import raced
from equipoise.ship.promises import FP32_SLACK, SAMPLES, Check, judged, slack
from equipoise.ship.rebuilt import in_the_graph, rebuilt
from equipoise.ship.scene import ELSEWHERE, Scene, apart, guarded, near, probe, request
from equipoise.study.files import write_atomic
from equipoise.units import show
from equipoise.workloads import Split, Workload, classes
from equipoise.workloads.scoring import drop_reading, quality_reading

RESAMPLED = 0.3
"""Share of its width by which an end of a bootstrap's interval moves where fewer resamples found time."""
NOT_SHOWN = "not shown: the interval spans the bound; more samples would tell"
"""A bound that these samples neither prove nor refute."""
STEADY_SAMPLES = 64
REPEATS = 1e-6
"""Largest difference between two runs of one program on the same inputs."""
UNTRUSTED = "no code that the artifact names was executed"


def recheck(
    artifact: Artifact, work: Workload | None, *, seconds: float, found: dict[str, Reading] | None = None
) -> Iterator[Check]:
    """Yield every check that loads a file; fill `found` with the figures of the test split and of the costs.

    Args:
        work: The source model and its data; None leaves out what needs them, and says so.
    """
    figures: dict[str, Reading] = {} if found is None else found
    for first in (guarded("probe", _samples(artifact, work)), guarded("loads and runs", _opened(artifact, work))):
        checks = list(first)
        yield from checks
        if not all(check.ok for check in checks):
            return
    scene = Scene.of(artifact, work)
    yield from guarded("probe", _probe(scene))
    if work is not None:
        yield from guarded("source model", _source(artifact, work))
        yield from guarded("quality", _quality(scene, figures))
    yield from guarded("costs", _costs(scene, figures, seconds))
    yield from guarded("plan", in_the_graph(scene) if work is None else rebuilt(scene, figures))
    for bound in artifact.bounds:
        if bound.axis in figures:
            yield held(bound, figures[bound.axis])
        elif work is None:
            yield Check(f"budget {bound.word}", str(bound), "not read", "cannot tell", UNTRUSTED)
        else:
            yield judged(f"budget {bound.word}", str(bound), "not read", False, "a bound that verify did not measure")
    if work is None:
        unread = "source model, its numerics and speed, metric, quality, drop, distance, counts"
        yield Check("everything else", unread, "not read", "cannot tell", UNTRUSTED)


def _samples(artifact: Artifact, work: Workload | None) -> Iterator[Check]:
    """Whether the workload's samples are of the shape of the recorded ones: where they are not, it is another's."""
    if work is None:
        return
    recorded = probe(artifact)
    own = mapped(work.validation.take(len(recorded["outputs"])).tensors()[0], Tensor.numpy)  # as long as its longest
    told, found = _looks(restored(recorded)), _looks(own)
    yield judged(SAMPLES, told, found, told == found, "as recorded beside the program")


def _looks(inputs: Any) -> str:
    """Name types and shapes of one sample."""
    arrays = named(inputs)
    looks = {name: f"{x.dtype} of {tuple(x.shape[1:])}" for name, x in arrays.items()}
    return ", ".join(looks.values()) if len(looks) == 1 else ", ".join(f"{name}: {looks[name]}" for name in sorted(looks))


def _opened(artifact: Artifact, work: Workload | None) -> Iterator[Check]:
    """Look into the files before they are loaded, then load and run them, twice."""
    for name in sorted(artifact.manifest["files"]):
        if name.endswith(".onnx"):
            yield _structure(name, artifact.read(name))
    scene = Scene.of(artifact, work)
    for name, program in (("program", scene.program), ("reference", scene.reference)):
        entry = artifact.claims.deployable if name == "program" else artifact.claims.reference
        yield _steady(name, program, Target.parse(entry.target), take(scene.samples, slice(STEADY_SAMPLES)))
    pickled = any(runs_code(program.runtime) for program in (scene.program, scene.reference))
    note = "loaded through pickle" if pickled else "no pickle"
    yield judged("loads and runs", "", f"{scene.program.runtime} {scene.program.precision}", True, note)


def _structure(name: str, content: bytes) -> Check:
    from equipoise.runtimes.structure import faults

    odd = faults(content)
    return judged(f"structure of {name}", "self-contained", "yes" if not odd else "no", not odd, "; ".join(odd[:5]))


def _source(artifact: Artifact, work: Workload) -> Iterator[Check]:
    """Compare the model, the data and the metric with those that the study was of."""
    claim, metric = artifact.claims.study, work.metric
    same = claim.fingerprint == work.fingerprint
    yield judged("source model", claim.fingerprint, work.fingerprint, same, "fingerprint of weights and data")
    for word, stated, real in (
        ("name", claim.name, work.name),
        ("metric", claim.metric.name, metric.name),
        ("metric's direction", claim.metric.maximize, metric.maximize),
        ("metric's unit", claim.metric.unit, metric.unit),
    ):
        if stated != real:
            yield judged(word, str(stated), str(real), False, "the workload's own is another")


def _steady(name: str, program: Program, target: Target, samples: Inputs) -> Check:
    """Run one program twice, in a second session, and at the batch it is timed at: all must answer alike."""
    runtime, inputs = runtimes.get(program.runtime), mapped(samples, lambda value: value.contiguous().numpy())
    session = runtime.load(program)
    first, again = (torch.from_numpy(session.run(inputs).copy()) for _ in range(2))
    fresh = torch.from_numpy(runtime.load(program).run(inputs).copy())
    off = max(apart(first, again), apart(first, fresh))
    if not off <= REPEATS or len(first) != size(inputs):
        return judged(f"{name} repeats", f"≤ {REPEATS:g}", f"{off:.2g}", False, "it answers the same inputs in different ways")
    timed = runtime.load(program, threads=target.threads, batch=target.batch)
    shown = torch.from_numpy(timed.run(request(samples, target.batch)).copy())
    wanted = first[torch.arange(target.batch) % len(first)]
    if runtimes.requested(program, target.batch, len(first)) != len(first):  # rounded in the range of each request
        wanted = torch.from_numpy(session.run(request(samples, target.batch)).copy())
    wide = FP32_SLACK if program.precision == "fp32" else 0.1
    return near(
        f"{name} repeats",
        f"≤ {REPEATS:g}",
        f"{max(off, apart(wanted, shown)):.2g}",
        apart(wanted, shown),
        tight=FP32_SLACK,
        wide=wide,
        note="two runs, a second session, and the batch that is timed",
    )


def _probe(scene: Scene) -> Iterator[Check]:
    """Compare the program's answers to the probe with those that were recorded, and its inputs with the data."""
    held_ = probe(scene.artifact)
    inputs, outputs = restored(held_), torch.from_numpy(held_["outputs"])
    answers = torch.from_numpy(runtimes.get(scene.program.runtime).load(scene.program).run(inputs))
    wide = slack(scene.program.precision, home=scene.at_home)
    yield near(
        "probe",
        f"≤ {FP32_SLACK:g}",
        f"{apart(outputs, answers):.2g}",
        apart(outputs, answers),
        tight=FP32_SLACK,
        wide=wide,
        note=f"{len(outputs)} recorded answers" + ("" if wide == FP32_SLACK else f"; {ELSEWHERE}"),
    )
    if scene.work is not None:
        real = mapped(scene.work.validation.take(len(outputs)).tensors()[0], Tensor.numpy)
        here, there = named(real), named(inputs)
        same = here.keys() == there.keys()
        same = same and all(here[k].shape == there[k].shape and bool((here[k] == there[k]).all()) for k in here)
        yield judged(
            "probe's inputs", "validation samples", "the same" if same else "others", same, f"the first {len(outputs)}"
        )


def _quality(scene: Scene, found: dict[str, Reading]) -> Iterator[Check]:
    """Numerics and quality on validation and test."""
    claims, validation, metric = scene.artifact.claims, scene.data.validation, scene.data.metric
    allowed = {len(validation)} | ({min(quick_samples(metric), len(validation))} if claims.fidelity == "one-shot" else set())
    n, base_n = claims.promise["quality"].n, claims.baseline["quality"].n
    if metric.ask is not None:  # it may count other things, such as episodes, whatever it is asked on
        n, base_n = n if n in allowed else len(validation), len(validation)
    whole = n in allowed and base_n == len(validation)
    yield judged("samples", f"{n} and {base_n}", f"{len(validation)} in the split", whole, "a promise is of the whole split")
    if not whole:
        return
    kept = validation.take(n)
    answers, before = scene.outputs(scene.program, kept), scene.outputs(scene.reference, kept)
    yield from _numerics(scene, kept, answers, before)
    yield from _validation(scene, kept, answers, before)
    yield from _test(scene, found)


def _numerics(scene: Scene, kept: Split, answers: Tensor, before: Tensor) -> Iterator[Check]:
    """Compare both programs with the source model on real samples."""
    source, claims, meaning = scene.source(kept), scene.artifact.claims, scene.data.divergence
    labels = meaning.kind == "softmax"
    note = "largest difference to the source"
    off = apart(source, before)
    yield judged("reference numerics", f"≤ {FP32_SLACK:g}", f"{off:.2g}", off <= FP32_SLACK, note)
    if claims.fidelity == "untouched" and scene.program.precision == "fp32":
        off = apart(source, answers)
        yield judged("numerics", f"≤ {FP32_SLACK:g}", f"{off:.2g}", off <= FP32_SLACK, note)
    agree = float((classes(source) == classes(answers)).double().mean()) if labels else math.nan
    loss = meaning.between(before, answers, kept=meaning.kept_of(kept))
    home, size = scene.at_home, abs(claims.loss)
    yield near(
        "distance to source",
        f"{claims.loss:.5f}",
        f"{loss:.5f}",
        abs(loss - claims.loss),
        tight=1e-3 * size + 1e-5,
        wide=0.02 * size + 1e-5 if home else 0.5 * size + 1e-2,
        note="distance to the reference's answers" + (f"; top-1 agreement {agree:.2%}" if labels else "") + _where(scene),
    )


def _validation(scene: Scene, kept: Split, answers: Tensor, before: Tensor) -> Iterator[Check]:
    """Repeat the figures that were promised on the validation split; the same file gives the same ones."""
    promise, baseline = scene.artifact.promise, scene.artifact.baseline
    metric, work = scene.data.metric, scene.data
    (before, _), (answers, targets) = scene.judged(scene.reference, kept, before), scene.judged(scene.program, kept, answers)
    each = metric.read(before, targets).each
    binary = each is not None and bool(torch.isin(each, torch.tensor([0.0, 100.0])).all())
    quality = metric.score(answers, targets)
    scale = max(1.0, abs(quality)) if not binary else 0.0
    tight, wide = (25 / len(targets), 150 / len(targets)) if binary else (1e-4 * scale, 1e-3 * scale)
    if not scene.at_home:
        wide = 1.0 if binary else 1e-2 * scale
    drop = drop_reading(metric, before.numpy(), answers.numpy(), targets)
    whole = (before, targets)
    if len(kept) < len(work.validation):
        whole = scene.judged(scene.reference, work.validation, scene.outputs(scene.reference, work.validation))
    untouched = metric.score(*whole)
    note = f"± {tight:.2g} points" + _where(scene)
    for name, stated, real, times in (
        ("quality on validation", promise["quality"], measured(quality, "points"), 1),
        ("drop on validation", promise["drop"], drop, 2),
        ("baseline on validation", baseline["quality"], measured(untouched, "points"), 1),
    ):
        off = _off(stated, real, resampled="bootstrap" in real.note)
        yield near(name, str(stated), str(real), off, tight=tight, wide=times * wide, note=note)


def _off(a: Reading, b: Reading, *, resampled: bool = False) -> float:
    """Largest difference between two readings, their intervals too; infinite where only one has an interval.

    The ends of a bootstrap's interval move a little with the number of resamples, which depends on the time that they took.
    """
    ends = [
        0.0 if x is y is None else math.inf if x is None or y is None else abs(x - y)
        for x, y in ((a.low, b.low), (a.high, b.high))
    ]
    if resampled and b.low is not None and b.high is not None:
        ends = [max(0.0, end - RESAMPLED * (b.high - b.low)) for end in ends]
    values = math.inf if (a.value is None) != (b.value is None) else abs((a.value or 0.0) - (b.value or 0.0))
    return max(values, *ends)


def _where(scene: Scene) -> str:
    return "" if scene.at_home else f"; {ELSEWHERE}"


def _test(scene: Scene, found: dict[str, Reading]) -> Iterator[Check]:
    """Score the test split, which nothing has looked at so far."""
    split, metric = scene.data.test, scene.data.metric
    answers, targets = scene.judged(scene.program, split, scene.outputs(scene.program, split))
    source, _ = scene.judged(scene.data.model, split, scene.source(split))
    quality = metric.score(answers, targets)
    drop = drop_reading(metric, source.numpy(), answers.numpy(), targets)
    found["drop"], found["quality"] = drop, quality_reading(metric, answers.numpy(), targets)
    promised, validation = scene.artifact.promise["drop"], scene.artifact.promise["quality"]
    told = f"{quality:.2f} against {metric.score(source, targets):.2f} untouched"
    note = f"{len(targets)} samples that the search never saw; {validation} on validation"
    yield judged("quality on test", "", told, math.isfinite(quality), note)
    yield _meets(promised, drop)


def _meets(promised: Reading, drop: Reading) -> Check:
    """Whether the drop that was promised on validation and the one on test can be of one truth."""
    name, told = "drop on test", (str(promised), str(drop))
    if promised.low is None or promised.high is None or drop.low is None or drop.high is None:
        return Check(name, *told, "cannot tell", "no interval: this metric has no value per sample")
    met = promised.low <= drop.high and drop.low <= promised.high
    return judged(name, *told, met or drop.high < promised.low, "paired with the source; the intervals must meet")


def _costs(scene: Scene, found: dict[str, Reading], seconds: float) -> Iterator[Check]:
    """Race the program beside the reference, read what else is promised, and weigh both."""
    yield from raced(scene, found, seconds)
    yield from metered(scene, found)
    found["times_smaller"] = measured(scene.reference.size_bytes / scene.program.size_bytes, "1")
    found["size_bytes"] = measured(scene.program.size_bytes, "B")
    for name, figures, program in (
        ("size", scene.artifact.promise, scene.program),
        ("baseline size", scene.artifact.baseline, scene.reference),
    ):
        if "size_bytes" in figures:
            yield _equal(name, figures["size_bytes"], program.size_bytes, 0.0, "bytes of the files that ship")


def held(bound: Constraint, reading: Reading) -> Check:
    """Hold a bound against the interval found: broken when the whole of it lies beyond, not shown when it spans the bound."""
    name = f"budget {bound.word}"
    if reading.value is None:
        return Check(name, str(bound), str(reading), "cannot tell", reading.note)
    low, high = (reading.value if end is None else end for end in (reading.low, reading.high))
    kindest, hardest = (low, high) if bound.upper else (high, low)
    if bound.excess(kindest) > 0:
        return Check(name, str(bound), str(reading), "broken", "the whole interval lies beyond the bound")
    if bound.excess(hardest) > 0:
        return Check(name, str(bound), str(reading), "cannot tell", NOT_SHOWN)
    return Check(name, str(bound), str(reading), "kept", "the whole interval lies within the bound")


def _equal(name: str, promised: Reading, found: float, slack: float, note: str) -> Check:
    ok = promised.value is not None and abs(promised.value - found) <= slack
    return judged(name, str(promised), show(found, promised.unit), ok, note)


def _source_state(artifact: Artifact) -> dict[str, Tensor] | None:
    """Weights of a source model that its workload would otherwise train anew."""
    if not artifact.claims.study.source_state:
        return None
    from safetensors.torch import load

    state: dict[str, Tensor] = load(artifact.read(SOURCE_STATE))
    return state


def main(words: list[str]) -> int:
    """Examine one artifact and write what was found."""
    path, spec, seconds, out = words
    result: Mapping[str, Any]
    found: dict[str, Reading] = {}
    try:
        artifact = Artifact.load(path)
        work = workloads.load(spec, state=_source_state(artifact)) if spec else None
        write_atomic(Path(out).with_suffix(".loaded"), b"")
        checks = list(recheck(artifact, work, seconds=float(seconds), found=found))
        result = {"checks": as_data(checks), "found": as_data(found)}
    except EquipoiseError as error:
        result = {"error": str(error), "exit_code": error.exit_code}
    write_atomic(Path(out), json.dumps(result).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
