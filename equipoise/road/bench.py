"""The workbench: a plan becomes a model, the model a file, the file an evaluation on the target.

What is scored is the file that would ship: quality is read from the runtime's own outputs, latency from its own session,
timed in blocks beside the untouched model's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import safetensors.torch
import torch

from equipoise import runtimes
from equipoise.batch import Inputs, mapped, take
from equipoise.compress.pruner import Pruner
from equipoise.compress.trace import WEIGHTED
from equipoise.errors import InputError
from equipoise.measure.counts import count
from equipoise.measure.loads import compare_loads
from equipoise.records import Choice, Evaluation, Fidelity, Plan, Reading, as_data, measured, unavailable
from equipoise.road import faithful
from equipoise.road.racing import Contender
from equipoise.runtimes import Program, Session, Source, Target
from equipoise.runtimes.export import Exporter, layer_nodes
from equipoise.runtimes.ops import specs
from equipoise.search import Knob, Space
from equipoise.study.record import latency_beside
from equipoise.workloads import Workload, predict
from equipoise.workloads.running import at_once, one_thread
from equipoise.workloads.scoring import drop_reading, quality_reading
from equipoise.workloads.weights import packed

Array = np.ndarray[Any, Any]

WIDTH_LEVELS = (0.75, 0.5, 0.375, 0.25)
"""Fractions of a group's channels that a width knob offers, rounded to what the target likes (METHODS 2.1)."""
QUICK_SAMPLES = 2000
"""Validation samples that a one-shot trial is scored on; a recovered one is scored on the whole split."""
CALIBRATION_SAMPLES = 256
BATCH = 250
WHOLE = "Equipoise changes Conv and Linear layers; `equipoise profile` lists those of your model."


@dataclass(frozen=True)
class Workbench:
    """All that is prepared once per workload; make one with `Workbench.prepare`.

    Attributes:
        teacher: The user's model, evaluation mode, BatchNorm folded; a copy.
        save: Keeps bytes and returns their SHA-256 (the store's blobs).
    """

    work: Workload
    targets: tuple[Target, ...]
    pruner: Pruner
    save: Callable[[bytes], str]
    exporter: Exporter = field(default_factory=Exporter)

    @classmethod
    def prepare(cls, work: Workload, targets: tuple[Target, ...], save: Callable[[bytes], str]) -> Workbench:
        """Fold the model, trace its groups and collect its statistics (seconds)."""
        calibration = work.calibration.take(CALIBRATION_SAMPLES).tensors()[0]
        with one_thread():
            return cls(work, targets, Pruner.prepare(work.model, work.example, calibration), save)

    @property
    def teacher(self) -> torch.nn.Module:
        """The untouched model with its BatchNorm folded."""
        return self.pruner.teacher

    @cached_property
    def calibration(self) -> Inputs:
        """Inputs that int8 ranges are read from, (N, ...)."""
        return mapped(self.work.calibration.take(CALIBRATION_SAMPLES).tensors()[0], torch.Tensor.numpy)

    @cached_property
    def validated(self) -> torch.Tensor:
        """The targets of the whole validation split; its inputs are read batch by batch, wherever they are needed."""
        return self.work.validation.targets()

    @cached_property
    def kept(self) -> torch.Tensor | None:
        """Which positions of the validation split's outputs count; None where all do."""
        return self.work.divergence.kept_of(self.work.validation)

    @property
    def at_once(self) -> int:
        """Samples that are run together."""
        return at_once(self.work.example, BATCH)

    @cached_property
    def space(self) -> Space:
        """The knobs read off this model and these targets; the untouched choice comes first in each menu."""
        knobs = []
        if len(self.targets) > 1:
            knobs.append(Knob("runtime", tuple(t.runtime for t in self.targets)))
        for group in self.pruner.groups:
            if group.prunable and len(menu := widths(group.size, self.multiple)) > 1:
                knobs.append(Knob(f"width.{group.name}", menu))
        knobs += [Knob(f"depth.{name}", ("keep", "drop")) for name in self.pruner.blocks]
        if any(8 in runtimes.get(t.runtime).precisions for t in self.targets):
            knobs += [Knob(f"bits.{name}", (32, 8)) for name in self.layers]
        if not knobs:
            raise InputError(f"model must offer something to change; got nothing that can be cut or quantized. {WHOLE}")
        return Space(tuple(knobs), self._moot(knobs))

    def _moot(self, knobs: list[Knob]) -> dict[tuple[str, Choice], tuple[str, ...]]:
        """Choices that do nothing under another one: inside a dropped block, and int8 on a runtime without it."""
        moot: dict[tuple[str, Choice], tuple[str, ...]] = {}
        for block in self.pruner.blocks:
            inside = tuple(k.name for k in knobs if k.kind in ("width", "bits", "depth") and k.place.startswith(block + "."))
            moot[(f"depth.{block}", "drop")] = inside
        if len(self.targets) > 1:
            bits = tuple(k.name for k in knobs if k.kind == "bits")
            for target in self.targets:
                if 8 not in runtimes.get(target.runtime).precisions:
                    moot[("runtime", target.runtime)] = bits
        return moot

    @property
    def multiple(self) -> int:
        """Channel counts are kept to multiples of this: AVX2 kernels slow down off it (METHODS, fact 5)."""
        return 8

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that carry weights and can be quantized, in execution order."""
        return tuple(specs(self.teacher, self.work.example))

    @cached_property
    def unset(self) -> frozenset[str]:
        """Names of the layers with weights that have no precision of their own to choose."""
        weighted = {name for name, layer in self.teacher.named_modules() if isinstance(layer, WEIGHTED)}
        return frozenset(weighted - set(self.layers))

    def target_of(self, plan: Plan) -> Target:
        """Return the target that a plan runs on."""
        name = plan.choices.get("runtime", self.targets[0].runtime)
        return next(t for t in self.targets if t.runtime == name)

    def restore(self, plan: Plan, weights: bytes) -> torch.nn.Module:
        """Return a plan's model with stored safetensors weights."""
        model = self.build(plan, repair=False)
        model.load_state_dict(safetensors.torch.load(weights))
        return model

    @cached_property
    def reference_on_all_cores(self) -> Session:
        """The untouched model's program with a thread for each core, for scoring and teaching."""
        return runtimes.get(self.reference_program.runtime).load(self.reference_program, threads=os.cpu_count() or 1)

    def build(self, plan: Plan, *, repair: bool = True) -> torch.nn.Module:
        """Return the compressed model of a plan: pruned, blocks dropped, weights repaired; not trained."""
        cut = {name: int(w) for name, w in plan.of("width").items() if w != self.space.untouched[f"width.{name}"]}
        drops = [name for name, choice in plan.of("depth").items() if choice == "drop"]
        with one_thread():
            return self.pruner.build(cut, drops, repair=repair)

    def source(self, plan: Plan, model: torch.nn.Module) -> Source:
        """Return the model in the forms that runtimes read; models that drop the same blocks share one export."""
        topology = ",".join(sorted(n for n, c in plan.of("depth").items() if c == "drop"))
        return self.exporter.source(model, self.work.example, topology=topology)

    def compile(self, plan: Plan, source: Source, *, samples: int | None = None) -> Program:
        """Return the program that would ship for `plan`; `samples` limits the calibration set.

        Layers that no knob sets (a Conv1d) are quantized with all the others, or else left in floats: what a plan does not say
        would cost every mixed plan the same, whatever it chose.
        """
        bits = plan.of("bits")
        runtime = runtimes.get(self.target_of(plan).runtime)
        if not any(b == 8 for b in bits.values()):
            return runtime.compile(source)
        gone = [n for n, c in plan.of("depth").items() if c == "drop"]
        floats = frozenset(n for n, b in bits.items() if b == 32 and not any(n.startswith(g + ".") for g in gone))
        if floats and self.unset:  # the file is read for nothing else
            floats |= self.unset & layer_nodes(source.onnx()).keys()
        return runtime.compile(source, calibration=take(self.calibration, slice(samples)), float_layers=floats)

    def samples(self, count: int) -> Inputs:
        """Return the first inputs of the validation split, as runtimes take them."""
        return mapped(self.work.validation.take(count).tensors()[0], torch.Tensor.numpy)

    def outputs(self, program: Program, samples: int) -> Array:
        """Run the first `samples` of the validation split through `program`, on all cores."""
        session = runtimes.get(program.runtime).load(program, threads=os.cpu_count() or 1)
        kept = self.work.validation.take(samples)
        return predict(lambda few: session.run(mapped(few, torch.Tensor.numpy)), kept, batch=self.at_once)[0].numpy()

    @cached_property
    def reference_program(self) -> Program:
        """The untouched model compiled for the first target."""
        return self.compile(self.space.untouched, self.source(self.space.untouched, self.teacher))

    @cached_property
    def reference(self) -> Array:
        """The untouched model's answers to the validation split, from its program on the first target."""
        return self.outputs(self.reference_program, len(self.work.validation))

    def evaluate(
        self,
        plan: Plan,
        model: torch.nn.Module,
        *,
        fidelity: Fidelity,
        reference_s: float | None,
        predicted: Mapping[str, float] | None = None,
        seconds: float = 1.0,
    ) -> Evaluation:
        """Score a plan's model on its target: quality on validation, latency beside the reference, exact size.

        Args:
            reference_s: Seconds of the untouched model as recorded by the baseline; None while that is being measured.
            seconds: Wall time for the latency comparison.
        """
        began = time.perf_counter()
        target, source = self.target_of(plan), self.source(plan, model)
        program = self.compile(plan, source)
        samples = len(self.work.validation) if fidelity != "one-shot" else min(QUICK_SAMPLES, len(self.work.validation))
        outputs = self.outputs(program, samples)
        self._hold(program, model, outputs, untouched=fidelity == "untouched")
        quality, drop = self._quality(outputs, samples)
        request = self.samples(max(t.batch for t in self.targets))
        contenders = {
            "reference": Contender(self.reference_program, self.targets[0]).load(request),
            "candidate": Contender(program, target).load(request),
        }
        timed = compare_loads(contenders, seconds=seconds)
        speed = timed.speedup("reference", "candidate")
        counts = count(model, self.work.example)
        files = {f"program:{name}": self.save(content) for name, content in program.files.items()}
        files["weights"] = self.save(packed(model))
        if program.runtime == "openvino":  # the artifact ships the plan's ONNX beside the IR
            files["onnx"] = self.save(source.onnx())
        return Evaluation(
            plan=plan,
            fidelity=fidelity,
            quality=quality,
            drop=drop,
            cost={
                "latency_s": timed.latency("reference") if reference_s is None else latency_beside(reference_s, speed),
                "size_bytes": measured(program.size_bytes, "B", note="bytes of the files that ship"),
                "params": measured(counts.params, "1"),
                "macs": measured(counts.macs, "1", note="one sample"),
            },
            predicted=dict(predicted or {}),
            samples={f"latency_s.{k}": timed.times(k) for k in contenders},
            files=files,
            details={
                "runtime": program.runtime,
                "precision": program.precision,
                "target": str(target),
                "loss": self.damage(outputs),
                **({"speed_up": as_data(speed)} if speed.bounded else {}),
                "layers": self._layer_rows(plan, counts),
                **({"left_float": dict(program.left)} if program.left else {}),
            },
            seconds=time.perf_counter() - began,
        )

    def _hold(self, program: Program, model: torch.nn.Module, outputs: Array, *, untouched: bool) -> None:
        """Raise where a float program differs from its model; the untouched one is held to the user's own, unfolded model."""
        if program.precision == "fp32":
            few = min(len(outputs), faithful.ORIGINAL_SAMPLES if untouched else faithful.CANDIDATE_SAMPLES)
            inputs, targets = self.work.validation.take(few).tensors()
            given, what = (self.work.model, "the untouched model's program") if untouched else (model, "the program")
            with one_thread():
                faithful.hold(outputs, given, inputs, targets, self.work.metric, what=what)

    def damage(self, outputs: Array) -> float:
        """Return how far `outputs`, of the first samples of validation, are from the untouched model's."""
        kept = None if self.kept is None else self.kept[: len(outputs)]
        return self.work.divergence.between(self.reference[: len(outputs)], outputs, kept=kept)

    def _quality(self, outputs: Array, samples: int) -> tuple[Reading, Reading]:
        """Metric, and drop against the untouched model on the same samples, each with its interval."""
        metric, targets = self.work.metric, self.validated[:samples]
        quality = quality_reading(metric, outputs, targets, note=f"{metric.name}, validation split")
        return quality, drop_reading(metric, self.reference[:samples], outputs, targets)

    def _layer_rows(self, plan: Plan, counts: Any) -> list[dict[str, Any]]:
        bits = plan.of("bits")
        return [
            {
                "name": layer.name,
                "kind": layer.kind,
                "out": layer.output[1] if len(layer.output) > 1 else 1,
                "params": layer.params,
                "macs": layer.macs,
                "bits": int(bits.get(layer.name, 32)),
            }
            for layer in counts.by_layer
        ]


def widths(size: int, multiple: int) -> tuple[int, ...]:
    """Return a width knob's menu: the whole group first, then smaller multiples of `multiple`.

    Example:
        >>> widths(64, 8), widths(16, 8), widths(6, 8)
        ((64, 48, 32, 24, 16), (16, 8), (6,))
    """
    rounded = {max(multiple, round(size * level / multiple) * multiple) for level in WIDTH_LEVELS}
    return (size, *sorted((w for w in rounded if w < size), reverse=True))


def failed(plan: Plan, fidelity: Fidelity, error: str, *, leg: int = 0) -> Evaluation:
    """Return the record of a failed trial."""
    nothing = unavailable("points", "the trial failed")
    return Evaluation(plan, fidelity, nothing, nothing, {}, error=error, leg=leg)
