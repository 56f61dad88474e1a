"""Whether a program is what its plan says: the plan applied again to the source model, and the weights inside the file.

The rebuilt model gives shapes, counts and the plan's own repair; the file gives bits and weights. Between the two stand the
weights that ship in fp32: they must fit the rebuilt model, and be what the file computes with, integers within half a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from equipoise.compress.student import EIGHT, ITSELF
from equipoise.compress.technique import Draft
from equipoise.compress.trace import copied
from equipoise.measure.counts import count
from equipoise.records import Choice, Knob, Plan, Reading, measured
from equipoise.road.bench import BATCH, Array, Workbench
from equipoise.runtimes import Source
from equipoise.runtimes.base import read_targets
from equipoise.runtimes.structure import Stored, layer_bits, parameters
from equipoise.schemes import scheme
from equipoise.search import Space
from equipoise.ship.manifest import WEIGHTS
from equipoise.ship.promises import FP32_SLACK, Check, judged
from equipoise.ship.scene import ELSEWHERE, Scene, apart, near
from equipoise.units import show
from equipoise.workloads import predict

REPAIRED = 1e-3
"""Relative difference of weights within which a model is what repair alone gives."""
TRAINED = 1e-6
"""Distance of a filter from every one of the source's, relative to them all, from which it was trained."""
ROUNDING = 1e-3
"""Share of half a step by which a rounded weight may be further off, since scales are rounded too."""
ALIKE = 1e-4
"""Largest relative difference of the answers of two programs that were compiled alike."""
ONNX = "model.onnx"
STUDENT = "student"


def rebuilt(scene: Scene, found: dict[str, Reading]) -> Iterator[Check]:
    """Apply the plan to the source model again and compare shapes, counts, bits and weights."""
    claims, work = scene.artifact.claims, scene.data
    repaired = claims.fidelity == "one-shot"  # whose weights can be made again; else shapes will do
    plan = _own(Plan(claims.plan))
    bench = Workbench(work, read_targets(claims.study.target), lambda content: "", shapes=not repaired, student=_new(plan))
    space = _taking(bench.facts.space, plan)
    untouched = space.untouched
    space.check(plan)
    canonical = space.decode(space.encode(plan))
    changed = {k: (untouched[k], v) for k, v in plan.choices.items() if untouched[k] != v}
    yield judged(
        "plan", f"{len(plan.choices)} knobs", f"{len(changed)} changed", canonical == plan, "as the source model offers"
    )
    yield judged("what was changed", f"{len(claims.changed)}", f"{len(changed)}", dict(claims.changed) == changed)
    draft = bench.build(plan, repair=False)
    model = copied(draft.model)
    for which, axes, net in (("", scene.artifact.promise, model), ("baseline ", scene.artifact.baseline, bench.teacher)):
        counts = count(net, work.example)
        for axis, value in (("params", counts.params), ("macs", counts.macs)):
            told, same = show(value, "1"), axes[axis].value == value
            yield judged(which + axis, str(axes[axis]), told, same, "counted on the plan, applied again")
            if not which:
                found[axis] = measured(value, "1")
    weights = _weights(scene)
    model.load_state_dict(weights)
    yield from _precision(scene, plan, draft)
    again = ONNX in claims.files and (scene.program.runtime == "openvino" or 8 in draft.request.values())
    yield from in_the_graph(scene, again=again)
    yield _answers(scene, model)
    if again:
        yield _compiled_again(scene, bench, plan, replace(draft, model=model.eval()))
    yield from _trained(bench, draft, weights) if claims.fidelity == "recovered" else [_fidelity(scene, bench, plan, weights)]


def _own(plan: Plan) -> Plan:
    """The plan without the choice of a model where it keeps the source: which others there were is no part of it."""
    return Plan({name: choice for name, choice in plan.choices.items() if (name, choice) != (STUDENT, ITSELF)})


def _new(plan: Plan) -> str:
    """The name of the student that a plan puts in the model's place; empty where it keeps the model."""
    name = str(plan.choices.get(STUDENT, ITSELF))
    return "" if name == ITSELF else name.removesuffix(EIGHT)


def _taking(space: Space, plan: Plan) -> Space:
    """The space with the plan's own numbers on its menus: another CPU likes other widths, and any smaller one can be built."""

    def menu(knob: Knob) -> Knob:
        choice = plan.choices.get(knob.name)
        fits = knob.nested and isinstance(choice, int) and isinstance(knob.menu[0], int) and 0 < choice < knob.menu[0]
        return Knob(knob.name, tuple(dict.fromkeys((*knob.menu, choice)))) if fits and choice is not None else knob

    return Space(tuple(map(menu, space.knobs)), space.moot, space.acts)


def in_the_graph(scene: Scene, *, again: bool = False) -> Iterator[Check]:
    """Compare the weights that ship in fp32, and the plan's bits, with what the ONNX files hold; needs no source model.

    Layers in int8 may hold others: their channels are brought to one scale, their weights rounded for what they read.

    Args:
        again: Whether these are held to the plan by being compiled again.
    """
    weights = {name: value.double().numpy() for name, value in _weights(scene).items() if value.is_floating_point()}
    claims = scene.artifact.claims
    if ONNX not in claims.files:
        yield Check(
            "weights in the file", WEIGHTS, "not read", "cannot tell", f"{scene.program.runtime} files are not looked into"
        )
        return
    content = scene.artifact.read(ONNX)
    held = parameters(content)
    ways = {name: way for name, way in Plan(claims.plan).of("bits").items() if not _gone(claims.plan, name)}
    real = layer_bits(content)
    if _new(Plan(claims.plan)):  # its layers are other ones, all alike
        ways = dict.fromkeys(real, 8 if str(claims.plan[STUDENT]).endswith(EIGHT) else 32)
    static = tuple(f"{name}." for name, way in ways.items() if way == 8 and scene.program.runtime == "onnxruntime")
    other = [name for name, value in weights.items() if name in held and not _within(held[name], value)]
    wrong = [name for name in other if not name.startswith(static)] if static else other
    adapted = len(other) - len(wrong)
    lost = [name for name in ways if f"{name}.weight" in weights and f"{name}.weight" not in held]
    told = f"{len(weights.keys() & held.keys()) - adapted} of {len(weights)} compared"
    note = "floats equal, integers within half a step" + (
        f"; {adapted} of int8 layers, compiled again below" if adapted else ""
    )
    if wrong:
        yield judged("weights in the file", WEIGHTS, f"{len(wrong)} others", False, ", ".join(wrong[:5]))
    elif lost:
        why = f"{len(lost)} layers are stored under other names, such as {lost[0]}"
        yield Check("weights in the file", WEIGHTS, told, "cannot tell", why)
    elif adapted and not again:
        why = f"{adapted} of int8 layers are rounded for what they read: the source model compiles them again"
        yield Check("weights in the file", WEIGHTS, told, "cannot tell", why)
    else:
        yield judged("weights in the file", WEIGHTS, told, True, note)
    if scene.program.runtime == "onnxruntime":
        yield _bits(ways, claims.left_float, real)


def _bits(ways: Mapping[str, Choice], floats: Sequence[str], real: Mapping[str, int]) -> Check:
    """Compare the plan's schemes, layer by layer, with the widths of the integers that reach the operators."""
    wanted = {name: 32 if name in floats else scheme(way).bits for name, way in ways.items()}
    held = {name: [bits for other, bits in real.items() if other == name or other.startswith(name + ".")] for name in ways}
    wrong = [f"{name} has {some[0]}" for name, some in held.items() if any(bits != wanted[name] for bits in some)]
    lost = [name for name, some in held.items() if not some]
    told = f"{sum(min(some, default=32) < 32 for some in held.values())} of {len(ways)} layers in fewer than 32 bits"
    stated = f"{sum(bits < 32 for bits in wanted.values())} of {len(ways)}"
    if lost and not wrong:
        return Check("bits", stated, told, "cannot tell", f"{lost[0]} is stored under another name")
    return judged("bits", stated, told, not wrong, "; ".join(wrong[:5]))


def _precision(scene: Scene, plan: Plan, draft: Draft) -> Iterator[Check]:
    """Hold the program's precision to the plan's bits, or those of a new model."""
    ways = {way for name, way in plan.of("bits").items() if not _gone(plan.choices, name)}
    if draft.drawn:
        ways = set(draft.request.values()) or {32}
    expected = "fp32" if ways <= {32} else "int8" if ways == {8} else "mixed"
    stated = scene.artifact.claims.deployable.precision
    yield judged("precision", stated, expected, stated == expected, "of the plan's bits")


def _answers(scene: Scene, model: torch.nn.Module) -> Check:
    """Run the weights that ship in fp32 in the rebuilt plan and compare with the program's answers."""
    kept = scene.data.validation.take(BATCH)
    own, answers = predict(model.eval(), kept, batch=BATCH)[0], scene.outputs(scene.program, kept)
    off = apart(own, answers)
    if scene.program.precision == "fp32":
        return judged(
            "weights", "the program's in fp32", f"{off:.2g}", off <= FP32_SLACK, "difference to the program's answers"
        )
    mine, source = (float((x - answers).double().square().mean().sqrt()) for x in (own, scene.source(kept)))
    ok = math.isfinite(off) and mine <= 1.05 * source + 1e-2
    return judged(
        "weights", "the program's in fp32", f"{mine:.3g}", ok, f"distance of the answers; the source's is {source:.3g}"
    )


def _compiled_again(scene: Scene, bench: Workbench, plan: Plan, draft: Draft) -> Check:
    """Compile the weights that ship in fp32 again, with the plan's bits: the quantizer repeats itself here.

    Those of an OpenVINO program lie in the ONNX file beside it.
    """
    beside = scene.program.runtime == "openvino"
    source = Source.of_onnx(scene.artifact.read(ONNX)) if beside else bench.source(draft.model)
    name, made = "compiled again", bench.compile(draft, source, bench.target_of(plan))
    origin = f"{ONNX}, whose weights are compared above" if beside else WEIGHTS
    if made.digest == scene.program.digest:
        return judged(name, "the same program", "the same", True, f"from {origin}")
    kept = scene.data.validation.take(BATCH)
    off = apart(scene.outputs(made, kept), scene.outputs(scene.program, kept))
    wide = FP32_SLACK if scene.at_home else 0.2
    note = f"difference of the answers; compiled from {origin}" + ("" if scene.at_home else f"; {ELSEWHERE}")
    return near(name, f"≤ {ALIKE:g}", f"{off:.2g}", off, tight=ALIKE, wide=wide, note=note)


def _fidelity(scene: Scene, bench: Workbench, plan: Plan, weights: Mapping[str, Tensor]) -> Check:
    """Tell whether the weights are the source's own, or those that repair alone gives."""
    stated = scene.artifact.claims.fidelity
    repaired = bench.teacher.state_dict() if stated == "untouched" else bench.on_grid(bench.build(plan)).model.state_dict()
    off = max((apart(repaired[k].double(), w.double()) for k, w in weights.items() if w.is_floating_point()), default=0.0)
    told = f"weights {off:.2g} from {'the source' if stated == 'untouched' else 'repair alone'}"
    wide = REPAIRED if scene.at_home else math.inf
    return near("fidelity", stated, told, off, tight=REPAIRED, wide=wide, note="" if scene.at_home else ELSEWHERE)


def _trained(bench: Workbench, draft: Draft, weights: Mapping[str, Tensor]) -> Iterator[Check]:
    """Tell whether weights were trained: what repair alone gives has the source's own filters in the first layer.

    Nothing before that layer was changed, so that repair leaves its filters as they are; training moves them all. A new model
    was drawn by its name, and has moved from there.
    """
    if draft.drawn:
        drawn = draft.model.state_dict()
        moved = max(apart(drawn[name].double(), w.double()) for name, w in weights.items() if w.dim() > 1)
        yield judged("fidelity", "recovered", f"weights {moved:.2g} from as drawn", moved > TRAINED, "training moves them")
        return
    name = f"{next(iter(bench.builder.subject.ops), '')}.weight"
    source, found = bench.teacher.state_dict().get(name), weights.get(name)
    if source is None or found is None or source.shape[1:] != found.shape[1:]:
        yield Check("fidelity", "recovered", "not read", "cannot tell", "the first layer was put in another form")
        return
    filters, own = found.double().flatten(1), source.double().flatten(1)
    apart_ = torch.cdist(filters, own, compute_mode="donot_use_mm_for_euclid_dist")  # (filters, the source's)
    off = float(apart_.amin(1).max() / own.norm())
    yield judged("fidelity", "recovered", f"filters {off:.2g} from the source's", off > TRAINED, "training moves them all")


def _within(held: Stored, value: Array) -> bool:
    """Whether a stored tensor is `value`, to half a step of its integers."""
    if held.value.shape != value.shape or not np.isfinite(held.value).all():
        return False
    slack = held.step / 2 * (1 + ROUNDING) + 1e-6 * np.abs(value).max(initial=1e-12)
    return bool((np.abs(held.value - value) <= slack).all())


def _gone(plan: Mapping[str, int | str], layer: str) -> bool:
    """Whether a layer lies in a block that the plan drops."""
    dropped = [name.removeprefix("depth.") for name, choice in plan.items() if choice == "drop"]
    return any(layer.startswith(block + ".") for block in dropped)


def _weights(scene: Scene) -> dict[str, Tensor]:
    from safetensors.torch import load

    found: dict[str, Tensor] = load(scene.artifact.read(WEIGHTS))
    return found
