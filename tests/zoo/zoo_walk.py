"""One model through everything, and what became of it as plain data: the road of a user's model, short of the search.

    workload ─▶ survey ─▶ groups against a cut by hand ─▶ wrong groups planted ─▶ plans: none · shrunk · in 4 bits · int8
                                                                                  each built, compiled, written, read, run

Every answer is compared with what it must be. `verdict` is right, refused (with the product's own sentence), wrong or broken.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import re
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from silenced import silenced, unseen
from torch import Tensor, nn

from equipoise import runtimes
from equipoise.batch import Inputs, call, mapped, named, parts, take
from equipoise.compress.cut import AXES, sliced
from equipoise.compress.fakequant import rounding_inputs, simulate
from equipoise.compress.graph import Cut, Group, keeping
from equipoise.compress.group_proof import prove
from equipoise.compress.trace import copied
from equipoise.errors import EquipoiseError
from equipoise.records import Evaluation, Plan, program_ref
from equipoise.road.bench import Workbench
from equipoise.runtimes import Program, Target
from equipoise.runtimes.sessions import session
from equipoise.workloads import Workload
from equipoise.workloads.check import check

Record = dict[str, Any]
Made = tuple[nn.Module, Callable[[int], Inputs]]
"""A model in evaluation mode, and what gives so many inputs for it."""

TRAINED, HELD = 48, 16
"""Samples to calibrate and repair on, and to compare on."""
EXACT = 2e-3
"""Largest difference of two programs that should be one, as a part of the spread of the outputs over the inputs."""
GRAIN = 1e-6
"""Relative change of the inputs by a few roundings; nets of random weights exist that make percents of it (LeViT)."""
ROUNDED = 0.5
"""Largest root mean square difference of int8 from float, as a part of the spread of the outputs over the inputs."""
SIMULATED = 2.5
"""How many times the noise of simulated rounding that of int8 may be, where it is larger."""
FOUR = 0.1
"""Largest root mean square difference by kernels of 4-bit weights, which round what they read to 8 bits."""
PATTERNS = 3
"""Random patterns, each of which cuts all groups at once."""
BREAKS = "the forward pass breaks when it is cut"
PLANTED = 4
"""Most groups of a model of which wrong maps are planted."""


class Wrong(Exception):
    """An answer that is not what it must be."""


def walk(made: Callable[[], Made], *, output: Any = None) -> Record:
    """Return what became of one model; what is raised on the way ends the walk and is a part of the record.

    Args:
        output: Which output is judged, as `Workload` is told.
    """
    began = time.perf_counter()
    record: Record = {"verdict": "right", "why": "", "stage": "", "stages": {}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what other people's models say when they are built and run
            for stage, found in _stages(made, output):
                record["stage"] = stage
                if found is not None:
                    record["stages"][stage] = found
    except Wrong as error:
        record |= {"verdict": "wrong", "why": str(error)}
    except EquipoiseError as error:
        record |= {"verdict": "refused", "why": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever escapes is what the zoo looks for
        frame = traceback.extract_tb(error.__traceback__)[-1]
        words = (str(error).strip().splitlines() or [""])[0]
        record |= {"verdict": "broken", "why": f"{type(error).__name__}: {words[:300]} ({frame.name}:{frame.lineno})"}
    return record | {"seconds": round(time.perf_counter() - began, 1)}


def _stages(made: Callable[[], Made], output: Any) -> Iterator[tuple[str, Record | None]]:
    """Yield each stage as it begins, and again with what was found."""
    yield "build", None
    model, inputs = made()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    walked = Walked(model, inputs(TRAINED), inputs(HELD), output)
    for stage, take_it in STAGES.items():
        began = time.perf_counter()
        yield stage, None
        found = take_it(walked)
        if found is not None:
            yield stage, found | {"seconds": round(time.perf_counter() - began, 1)}
    if not all(torch.equal(value, before[name]) for name, value in model.state_dict().items()):
        raise Wrong("the model that was given was changed")


@dataclass(frozen=True)
class Walked:
    """A model, and all that its stages share."""

    given: nn.Module
    inputs: Inputs
    held: Inputs
    output: Any = None

    @cached_property
    def work(self) -> Workload:
        """The model as a user hands it over; what is to be learned is what it answers."""
        more: dict[str, Any] = {"model": self.given, "output": self.output, "metric": "mse"}
        whole = Workload(train=self._split(self.inputs), test=self._split(self.held), **more)
        data = {"train": self.inputs, "validation": self.held, "test": self.held}
        splits: dict[str, Any] = {role: (some, answers(whole.model, some)) for role, some in data.items()}
        return Workload(**splits, **more)

    @staticmethod
    def _split(inputs: Inputs) -> tuple[Inputs, Tensor]:
        return inputs, torch.zeros(TRAINED)[: len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs)]

    @cached_property
    def bench(self) -> Workbench:
        return Workbench(self.work, (Target("onnxruntime"),), self._save)

    @cached_property
    def blobs(self) -> dict[str, bytes]:
        return {}

    def _save(self, content: bytes) -> str:
        sha = hashlib.sha256(content).hexdigest()
        self.blobs[sha] = content
        return sha

    @cached_property
    def groups(self) -> list[Group]:
        return [group for group in self.bench.builder.subject.groups if group.prunable]

    @cached_property
    def cut(self) -> Plan:
        """Every width and every group of heads at the middle of its menu."""
        return _plan(self, "width", "middle")

    @cached_property
    def shrunk(self) -> Plan:
        """The cut, with one choice of each other technique that changes the form."""
        more = [dict(list(_plan(self, kind, "last").choices.items())[:1]) for kind in ("depth", "rank", "resolution", "length")]
        return Plan({**self.cut.choices, **{name: choice for some in more for name, choice in some.items()}})

    @cached_property
    def wanted(self) -> Tensor:
        """What the model that was given answers."""
        return answers(self.work.model, self.held)

    def same(self, got: Tensor, model: nn.Module, what: str) -> float:
        """Return how far `got` is from the model's answers; raise where that is more than roundings of its inputs make."""
        wanted = answers(model, self.held)
        off, limit = apart(got, wanted), EXACT
        if off > limit:
            limit = max(limit, apart(answers(model, grained(self.held)), wanted))
        if not off <= limit:
            raise Wrong(f"{what} is {off:.2g} of the spread off, where {limit:.2g} is allowed")
        return off

    def run(self, scored: Evaluation, *, plainly: bool = False) -> Tensor:
        """Return what the files of an evaluation answer, written and read back; `plainly` without fused kernels."""
        stored = Program.stored(program_ref(scored), self.blobs.__getitem__)
        with tempfile.TemporaryDirectory() as folder:
            stored.write(Path(folder))
            names = tuple(stored.files)
            program = Program.read(Path(folder), runtime=stored.runtime, precision=stored.precision, names=names)
        if plainly:
            plain = session(program.file("model.onnx"), basic=True)
            found = [plain.run(None, {n: v.numpy() for n, v in named(few).items()})[0] for few in parts(self.held, 8)]
        else:
            loaded = runtimes.get(program.runtime).load(program)
            found = [loaded.run(mapped(few, Tensor.numpy)) for few in parts(self.held, 8)]
        return torch.from_numpy(np.concatenate(found))


@torch.no_grad()
def answers(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return the outputs of the model on the inputs, a few at a time."""
    return torch.cat([call(model, few) for few in parts(inputs, 16)])


def apart(got: Tensor, wanted: Tensor) -> float:
    """Return the largest difference as a part of the largest deviation of `wanted` from its mean over the inputs."""
    if got.shape != wanted.shape or not bool(got.isfinite().all()):
        return float("inf")
    return float((got - wanted).abs().max() / (wanted - wanted.mean(0)).abs().max().clamp_min(1e-12))


def noise(got: Tensor, wanted: Tensor) -> float:
    """Return the root mean square difference as a part of the spread of `wanted` over the inputs."""
    return float((got - wanted).square().mean().sqrt() / (wanted - wanted.mean(0)).square().mean().sqrt().clamp_min(1e-12))


def precise(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """Return both in double precision, where the model's code allows that."""
    double = copied(model).double(), mapped(inputs, lambda value: value.double() if value.is_floating_point() else value)
    with contextlib.suppress(Exception):
        if apart(answers(*double).float(), answers(model, inputs)) < 1:
            return double
    return model, inputs


def grained(inputs: Inputs) -> Inputs:
    """Return the inputs off by a few roundings; whole numbers stay."""
    generator = torch.Generator().manual_seed(2)

    def moved(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        return value * (1 + GRAIN * torch.randn(value.shape, generator=generator))

    return mapped(inputs, moved)


# ---- what the model offers ---------------------------------------------------------------------------------------------------


def surveyed(walked: Walked) -> Record:
    """Check the workload and read off what can be changed."""
    check(walked.work)
    bench = walked.bench
    offers, facts = bench.builder.offers, bench.facts
    heads = {group.name for group in walked.groups if group.places > 1}
    offered = [name for name in (row.knob.name for row in facts.offered) if name in offers]
    kinds = collections.Counter(_kind(name, heads) for name in offered)
    refused = collections.Counter(
        (name.partition(".")[0], _reason(offer.refused, walked.work.model)) for name, offer in offers.items() if offer.refused
    )
    left = collections.Counter(_reason(why, walked.work.model) for why in bench.builder.subject.left.values())
    return {
        "params": sum(p.numel() for p in walked.given.parameters()),
        "offered": dict(kinds),
        "refused": [[kind, why, count] for (kind, why), count in sorted(refused.items())],
        "batchnorm_left": [[why, count] for why, count in sorted(left.items())],
    }


def _kind(knob: str, heads: set[str]) -> str:
    kind, _, place = knob.partition(".")
    return "heads" if kind == "width" and place in heads else kind


def _reason(why: str, model: nn.Module) -> str:
    """A reason without the names and numbers of one place, so that like ones can be counted."""
    if why.startswith(BREAKS):
        return BREAKS
    known, words = {name for name, _ in model.named_modules() if name}, why.split(" ")
    named = [word in known and ("." in word or place == 0 or words[place - 1] == "in") for place, word in enumerate(words)]
    plain = " ".join("a layer" if is_name else word for word, is_name in zip(words, named, strict=True))
    return re.sub(r"a convolution in \d+ groups", "a convolution in groups", plain)


# ---- groups ------------------------------------------------------------------------------------------------------------------


def cut_by_hand(walked: Walked) -> Record | None:
    """Cut all groups at once, in patterns that the proof never saw, beside the whole model that reads zeros instead."""
    model, groups = walked.bench.builder.subject.model, walked.groups
    if not groups:
        return None
    worst = 0.0
    model, few = precise(model, take(walked.held, slice(4)))
    for turn in range(PATTERNS):
        kept = {group.name: unseen(group.size, 31 * turn + place) for place, group in enumerate(groups)}
        nets = sliced(model, keeping(model, groups, kept)), silenced(model, groups, kept)
        got, wanted = (answers(net, few) for net in nets)
        if not (off := apart(got, wanted)) <= EXACT:
            raise Wrong(f"cut in a pattern of its own it is {off:.2g} of the spread from the same cut by hand")
        worst = max(worst, off)
    return {"groups": len(groups), "patterns": PATTERNS, "off": worst}


def planted(walked: Walked) -> Record | None:
    """Plant wrong maps of some groups, heads first; the proof must reject each."""
    chosen = sorted(walked.groups, key=lambda group: group.places <= 1)[:PLANTED]
    plants = [plant for group in chosen for plant in wrong_maps(group)]
    subject = walked.bench.builder.subject
    believed = [what for what, plant in plants if not prove(subject.model, subject.example, [plant])[plant.name]]
    if believed:
        raise Wrong(f"wrong maps are believed: {'; '.join(believed)}")
    return {"planted": len(plants), "of_heads": sum(g.places > 1 for g in chosen)} if plants else None


def wrong_maps(group: Group) -> Iterator[tuple[str, Group]]:
    """Yield groups in which a layer's places are other channels': the first writer's, the last reader's; and half heads."""
    for axis, place in (("out", 0), ("in", -1)):
        cut = [cut for cut in group.cuts if cut.axis == axis and cut.layer in (*group.producers, *group.consumers)][place]
        turned = replace(cut, positions=(*cut.positions[1:], cut.positions[0]))
        yield f"{group.name}: {cut.layer} {axis} turned by one", _with(group, cut, turned)
    if group.places > 1 and all(len(spots) % 2 == 0 for cut in group.cuts if cut.axis in AXES for spots in cut.positions):
        halves = tuple(replace(cut, positions=_halved(cut.positions)) if cut.axis in AXES else cut for cut in group.cuts)
        if all(cut.axis in AXES for cut in halves):
            yield f"{group.name}: half heads", replace(group, size=2 * group.size, cuts=halves)


def _with(group: Group, old: Cut, new: Cut) -> Group:
    return replace(group, cuts=tuple(new if cut is old else cut for cut in group.cuts))


def _halved(positions: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    return tuple(half for spots in positions for half in (spots[: len(spots) // 2], spots[len(spots) // 2 :]))


# ---- plans -------------------------------------------------------------------------------------------------------------------


def untouched(walked: Walked) -> Record:
    """The plan that changes nothing answers as the model that was given, and so does its file."""
    draft = walked.bench.build(Plan({}))
    off = walked.same(answers(draft.model, walked.held), walked.work.model, "a plan that changes nothing")
    scored = walked.bench.score(Plan({}), walked.bench.untouched, fidelity="untouched")
    return {"off": off, "file_off": walked.same(walked.run(scored), walked.work.model, "the file"), **_sizes(scored)}


def repaired(walked: Walked) -> Record | None:
    """Every width and every group of heads at the middle of its menu, in torch; repair must not make it worse."""
    plan = walked.cut
    if not plan.choices:
        return None
    bare, mended = (walked.bench.build(plan, repair=repair).model for repair in (False, True))
    plain, best = (noise(answers(model, walked.held), walked.wanted) for model in (bare, mended))
    if not best <= max(1.1 * plain, EXACT):
        raise Wrong(f"repair makes a cut worse: noise {plain:.2g} before, {best:.2g} after")
    return {"noise": best, "noise_unrepaired": plain}


def shrunk(walked: Walked) -> Record | None:
    """The same with a block dropped, a layer in thin ones and a smaller input: one choice of each technique, as a file."""
    plan = walked.shrunk
    if not plan.choices:
        return None
    scored, found = _built(walked, plan)
    before, after = (sum(p.numel() for p in walked.bench.teacher.parameters()), int(scored.cost["params"].get()))
    if walked.cut.choices and after >= before:
        raise Wrong(f"a cut from {before} params leaves {after}")
    kinds = sorted({name.partition(".")[0] for name in plan.choices})
    return found | {"changed": kinds, "params": after, "params_before": before}


def in_four_bits(walked: Walked) -> Record | None:
    """The shrunk model, each layer that has that form in 4-bit weights: the file holds what torch computes with."""
    layers = _plan(walked, "bits", "4-weights").choices
    if not layers:
        return None
    _, found = _built(walked, Plan({**walked.shrunk.choices, **layers}), kernels=FOUR)
    return found | {"layers": len(layers)}


def in_integers(walked: Walked) -> Record | None:
    """Every layer in int8; the noise must be small, or not much more than rounding costs in simulation."""
    plan = _plan(walked, "bits", 8)
    if not plan.choices:
        return None
    bench = walked.bench
    scored = bench.score(plan, bench.build(plan), fidelity="one-shot")
    off, limit = noise(walked.run(scored), walked.wanted), ROUNDED
    found = {"layers": len(plan.choices), "noise": off, "left_float": len(program_ref(scored).left), **_sizes(scored)}
    if off > limit:
        imitated = answers(simulate(bench.teacher, walked.inputs), walked.held)
        found["simulated"] = noise(imitated, walked.wanted)
        limit = SIMULATED * found["simulated"]
    if not off <= limit:
        raise Wrong(f"int8 has a noise of {off:.2g} of the spread, where {limit:.2g} is allowed")
    return found


def _plan(walked: Walked, kind: str, choice: Any) -> Plan:
    """Every knob of a kind at one choice: of that name, or the middle or last one of its menu."""
    menus = {row.knob.name: row.knob.menu for row in walked.bench.facts.offered if row.knob.kind == kind}
    if choice in ("middle", "last"):
        return Plan({name: menu[len(menu) // 2 if choice == "middle" else -1] for name, menu in menus.items()})
    return Plan({name: choice for name, menu in menus.items() if choice in menu})


def _built(walked: Walked, plan: Plan, *, kernels: float = 0.0) -> tuple[Evaluation, Record]:
    """Build, score, write, read back and run a plan; its file and its stored weights must answer as its model.

    Args:
        kernels: By how much fused kernels may be off, which round what they read (or as much more as rounding that costs in
            simulation); the file without them may not.
    """
    bench = walked.bench
    built = bench.build(plan)
    draft = bench.on_grid(built)
    if not bool(answers(draft.model, walked.held).isfinite().all()):
        raise Wrong("its answers are not finite")
    scored = bench.score(plan, built, fidelity="one-shot")
    off = walked.same(walked.run(scored, plainly=bool(kernels)), draft.model, "the file")
    found: Record = {"file_off": off, **_sizes(scored)}
    if kernels:
        wanted = answers(draft.model, walked.held)
        found["kernels_off"] = noise(walked.run(scored), wanted)
        if found["kernels_off"] > kernels:
            imitated = rounding_inputs(draft.model, [name for name in draft.request if name in _products(draft.model)])
            kernels = SIMULATED * noise(answers(imitated, walked.held), wanted)
        if not found["kernels_off"] <= kernels:
            raise Wrong(f"the file as it runs has a noise of {found['kernels_off']:.2g}, where {kernels:.2g} is allowed")
    restored = bench.restore(plan, walked.blobs[scored.weights])
    walked.same(answers(restored.model, walked.held), draft.model, "the model with its stored weights")
    return scored, found


def _products(model: nn.Module) -> set[str]:
    return {name for name, part in model.named_modules() if isinstance(part, nn.Linear)}


def _sizes(scored: Evaluation) -> Record:
    return {"bytes": int(scored.cost["size_bytes"].get())}


STAGES: Mapping[str, Callable[[Walked], Record | None]] = {
    "survey": surveyed,
    "by hand": cut_by_hand,
    "planted": planted,
    "untouched": untouched,
    "repaired": repaired,
    "shrunk": shrunk,
    "4 bits": in_four_bits,
    "int8": in_integers,
}
