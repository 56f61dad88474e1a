"""The workbench: a plan becomes a model, the model a file, the file an evaluation on the target.

What is scored is the file that would ship: quality is read from the runtime's own outputs, latency from its own session,
timed in blocks beside the untouched model's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import safetensors.torch
import torch

from equipoise import meters, runtimes
from equipoise.batch import Inputs, call, mapped, size, take
from equipoise.compress.builder import Builder
from equipoise.compress.fold import folded
from equipoise.compress.rounding import on_grid
from equipoise.compress.subject import Subject
from equipoise.compress.technique import Draft
from equipoise.compress.trace import HOLDING, Watched, copied, unwatched
from equipoise.errors import EquipoiseError
from equipoise.measure.counts import LayerCount, count
from equipoise.measure.loads import compare_loads
from equipoise.meters import Meters
from equipoise.records import (
    Choice,
    Evaluation,
    Fidelity,
    LayerRow,
    Plan,
    ProgramRef,
    Reading,
    digest,
    measured,
    program_ref,
    unavailable,
)
from equipoise.road import faithful
from equipoise.road.facts import TARGET, Facts
from equipoise.road.racing import Contender
from equipoise.road.students import students
from equipoise.road.survey import survey
from equipoise.runtimes import Program, Session, Source, Target, cuda, requested
from equipoise.runtimes.cpu import cores, has_exact_int8, liked_channels
from equipoise.runtimes.decoding import ProgramWriter, looks_back
from equipoise.runtimes.export import Exporter
from equipoise.runtimes.layers import layer_nodes
from equipoise.schemes import scheme
from equipoise.study.record import latency_beside
from equipoise.training.remembered import Remembered
from equipoise.training.samples import bears_channels_last, channels_last
from equipoise.workloads import Metric, Workload, asked, predict
from equipoise.workloads.running import at_once, one_thread, threads
from equipoise.workloads.scoring import drop_reading, quality_reading
from equipoise.workloads.weights import packed

Array = np.ndarray[Any, Any]

QUICK_SAMPLES = 2000
"""Validation samples that a one-shot trial is scored on; a recovered one is scored on the whole split."""
ASKED_SAMPLES = 400
"""The same where the metric asks questions of its own: to score a Transformer on 1,014 sentences, each translated by a beam of
4 and compared word by word, took a minute of two cores."""
CALIBRATION_SAMPLES = 256
BATCH = 250
SHARED_OUT = 2**24
"""Multiplications of a sample from which a model is built on all cores.

A run of 256 images on two quiet cores: ResNet-20 (41 M) 0.21 s in place of 0.35, EfficientNet-Lite0 3.5 for 5.9; smaller models
gain there too, but lose on contended cores, see `workloads.running.one_thread`."""


@dataclass(frozen=True)
class Workbench:
    """All that is prepared once per workload, each part when it is first needed.

    Attributes:
        save: Keeps bytes and returns their SHA-256 (the store's blobs).
        extra: Words of axes that are measured beside those of every evaluation.
        shapes: Whether the shapes of plans will do, so that no statistics are collected.
        watched, criterion: As `Subject.prepare`.
        student: Names a family, and a scale of it perhaps, whose new models stand beside the trained one; empty for none.
    """

    work: Workload
    targets: tuple[Target, ...]
    save: Callable[[bytes], str]
    meters: Meters = field(default_factory=Meters)
    extra: tuple[str, ...] = ()
    shapes: bool = False
    watched: Watched = unwatched
    criterion: str = "obs"
    student: str = ""
    exporter: Exporter = field(default_factory=Exporter)

    @cached_property
    def teacher(self) -> torch.nn.Module:
        """The untouched model with its BatchNorm folded."""
        with one_thread():
            return folded(self.work.model, self.work.example, data=self._calibration).model

    @property
    def device(self) -> torch.device:
        """Where models are trained: on the card that a target names, else on the CPU."""
        there: torch.device = cuda.card.device if any(t.device != "cpu" for t in self.targets) else torch.device("cpu")
        return there

    @cached_property
    def threads(self) -> int:
        """Threads to build and probe with: one, as small products lose by being shared out, but all for a large model."""
        return cores() if count(self.teacher, self.work.example).macs >= SHARED_OUT else 1

    @cached_property
    def builder(self) -> Builder:
        """What makes of plans models: groups traced and proven, statistics collected (seconds)."""
        with threads(self.threads):
            make = Subject.of_shapes if self.shapes else partial(Subject.prepare, criterion=self.criterion)
            likes = liked_channels() if self.device.type == "cpu" else cuda.LIKED
            exact, watched = has_exact_int8(), self.watched
            subject = make(self.teacher, self.work.example, self._calibration, likes=likes, exact=exact, watched=watched)
            return Builder(replace(subject, students=students(self.student, self.work)) if self.student else subject)

    @cached_property
    def _calibration(self) -> Inputs:
        return self.laid(self.work.calibration.take(CALIBRATION_SAMPLES).tensors()[0])

    @cached_property
    def _last(self) -> bool:
        return bears_channels_last(self.work.model, self.work.example)

    def laid(self, inputs: Inputs) -> Inputs:
        """Return inputs as torch runs them in the least time: images with channels last, unless the model does not bear it.

        EfficientNet-Lite0 on 256 photographs of 160 pixels, one thread: 5.9 s in place of 11.4; 3.5 on two.
        """
        return channels_last(inputs) if self._last else inputs

    @cached_property
    def facts(self) -> Facts:
        """What can be changed, on these targets."""
        found = survey(self.builder, {str(t): runtimes.get(t.row).precisions for t in self.targets})
        return replace(found, classes=self.classes)

    @cached_property
    def classes(self) -> int:
        """Among how many classes the untouched model chooses; 0 where its answers are no class scores."""
        with one_thread(), torch.inference_mode():
            logits = self.work.divergence.logits(call(self.teacher, take(self.work.example, slice(1))))
        return 0 if logits is None else logits.shape[-1]

    @cached_property
    def calibration(self) -> Inputs:
        """Inputs that int8 ranges are read from, (N, ...)."""
        return mapped(self._calibration, lambda value: np.ascontiguousarray(value.numpy()))

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
    def unset(self) -> frozenset[str]:
        """Names of the layers with weights that have no precision of their own to choose."""
        weighted = {name for name, layer in self.teacher.named_modules() if isinstance(layer, HOLDING)}
        return frozenset(weighted - set(self.builder.subject.ops))

    def target_of(self, plan: Plan) -> Target:
        """Return the target that a plan runs on."""
        return Target.parse(str(plan.choices.get(TARGET, self.targets[0])))

    def build(self, plan: Plan, *, repair: bool = True) -> Draft:
        """Return the draft of a plan, not trained."""
        with threads(self.threads):
            return self.builder.build(plan, repair=repair)

    @property
    def untouched(self) -> Draft:
        """The draft of the plan that changes nothing."""
        return Draft(self.teacher)

    def restore(self, plan: Plan, weights: bytes) -> Draft:
        """Return a plan's draft with stored safetensors weights."""
        draft = self.build(plan, repair=False)
        model = copied(draft.model)
        model.load_state_dict(safetensors.torch.load(weights))
        return replace(draft, model=model)

    @cached_property
    def answers(self) -> Callable[[Inputs], torch.Tensor]:
        """What the untouched model answers, for teaching: its compiled program on all cores, faster than torch for the same."""
        program = self.reference_program
        session = runtimes.get(program.runtime).load(program, threads=cores())

        def answer(inputs: Inputs) -> torch.Tensor:
            given = mapped(inputs, lambda value: value.contiguous().numpy())
            return torch.from_numpy(np.asarray(session.run(given), dtype=np.float32))

        return answer

    @cached_property
    def remembered(self) -> Callable[[Inputs], torch.Tensor]:
        """The same for samples that are not changed at random: each is asked for once."""
        return Remembered(self.answers)

    def source(self, model: torch.nn.Module, *, of: str = "") -> Source:
        """Return the model in the forms that runtimes read; models made of the same modules share one export.

        Args:
            of: What else must be the same: of a new model its shapes, as its scale may be in more than its modules.
        """
        topology = digest([of, *([name, type(part).__name__, _held(part)] for name, part in model.named_modules())])
        return self.exporter.source(model, self.work.example, topology=topology)

    def compile(self, draft: Draft, source: Source, target: Target, *, samples: int | None = None) -> Program:
        """Return the program that would ship for a draft; `samples` limits the calibration set.

        Layers that no knob sets (a Conv1d) are quantized with all the others, or else left in floats: what a plan does not say
        would cost every mixed plan the same, whatever it chose. A layer that the file does not hold, as what it computes is a
        constant there, is left aside.
        """
        runtime = runtimes.get(target.row)
        options: dict[str, Any] = {}
        held = {name: way for name, way in draft.request.items() if scheme(way).encoded}
        static = 8 in draft.request.values()
        there = layer_nodes(source.onnx()).keys() if held or static else set()
        if some := {name: way for name, way in held.items() if name in there}:
            options["schemes"] = some
        if static:
            floats = frozenset(there & self._weighted(draft) - {name for name, way in draft.request.items() if way == 8})
            floats = floats if floats - self.unset else frozenset()
            options |= {"calibration": take(self.calibration, slice(samples)), "float_layers": floats}
        program = runtime.compile(source, **options)
        lost = dict.fromkeys(held.keys() - there, "the file holds no weights of it: what it computes is a constant there")
        return replace(program, left={**program.left, **lost}) if lost else program

    @staticmethod
    def _weighted(draft: Draft) -> set[str]:
        return {name for name, layer in draft.model.named_modules() if isinstance(layer, HOLDING)}

    def on_grid(self, draft: Draft) -> Draft:
        """Return a draft whose weights lie where its schemes hold them: what is scored, shipped and stored is one model."""
        with threads(self.threads):
            model = on_grid(draft.model, draft.request, exact=has_exact_int8(), calibration=self._calibration)
        return replace(draft, model=model)

    def samples(self, count: int) -> Inputs:
        """Return the first inputs of the validation split, as runtimes take them."""
        return mapped(self.work.validation.take(count).tensors()[0], torch.Tensor.numpy)

    def outputs(self, program: Program, samples: int) -> Array:
        """Run the first `samples` of the validation split through `program`, on all cores."""
        kept, batch = self.work.validation.take(samples), requested(program, self.targets[0].batch, self.at_once)
        return predict(Answering(program), kept, batch=batch)[0].numpy()

    @cached_property
    def reference_program(self) -> Program:
        """The untouched model compiled for the first target."""
        return self.compile(self.untouched, self.source(self.teacher), self.targets[0])

    def asked(self, program: Program, samples: int) -> tuple[Array, torch.Tensor]:
        """Return what the metric makes a program answer of the first `samples` of validation, and what it is to answer."""
        outputs, targets = asked(self.work.metric, Answering(program), self.work.validation.take(samples))
        return outputs.numpy(), targets

    @cached_property
    def _asked_reference(self) -> dict[int, tuple[Array, torch.Tensor]]:
        """As `asked` of the untouched model's program, by samples."""
        return {}

    @cached_property
    def reference(self) -> Array:
        """The untouched model's answers to the validation split, from its program on the first target."""
        return self.outputs(self.reference_program, len(self.work.validation))

    def score(
        self, plan: Plan, draft: Draft, *, fidelity: Fidelity, predicted: Mapping[str, float] | None = None
    ) -> Evaluation:
        """Compile a draft and score the program: quality on validation, size, counts; all but what must be timed alone."""
        began = time.perf_counter()
        draft = self.on_grid(draft)
        target, source = self.target_of(plan), self.source(draft.model, of=_shapes(draft.drawn) if draft.drawn else "")
        program = self.compile(draft, source, target)
        samples = len(self.work.validation)
        if fidelity in ("one-shot", "untrained"):
            samples = min(quick_samples(self.work.metric), samples)
        outputs = self.reference[:samples] if self._is_reference(program) else self.outputs(program, samples)
        self._hold(program, draft.model, outputs, untouched=fidelity == "untouched")
        damage = self.damage(outputs)
        if not math.isfinite(damage):
            raise EquipoiseError(f"its answers to {samples} validation samples are not all finite")
        quality, drop = self._quality(program, outputs, samples)
        counts = count(draft.model, self.work.example)
        files = {name: self.save(content) for name, content in program.files.items()}
        onnx = self.save(source.onnx()) if program.runtime == "openvino" else ""  # the artifact ships it beside the IR
        return Evaluation(
            plan=plan,
            fidelity=fidelity,
            quality=quality,
            drop=drop,
            cost={
                "size_bytes": measured(program.size_bytes, "B", note="bytes of the files that ship"),
                "params": measured(counts.params, "1"),
                "macs": measured(counts.macs, "1", note="one sample"),
            },
            predicted=dict(predicted or {}),
            damage=damage,
            program=ProgramRef(program.runtime, program.precision, str(target), files, onnx, program.left),
            weights=self.save(packed(draft.model)),
            layers=tuple(_row(layer, draft.request, draft.model) for layer in counts.by_layer),
            seconds=time.perf_counter() - began,
        )

    def time(
        self, scored: Evaluation, read: Callable[[str], bytes], *, reference_s: float | None, seconds: float
    ) -> Evaluation:
        """Return a scored evaluation with what must be measured alone: latency beside the untouched model, and the `extra`.

        Args:
            read: Returns the bytes of a blob.
            reference_s: Seconds of the untouched model as recorded by the baseline; None while that is being measured.
            seconds: Wall time for the latency comparison.
        """
        began = time.perf_counter()
        ref = program_ref(scored)
        program, target = Program.stored(ref, read), Target.parse(ref.target)
        request = self.samples(max(t.batch for t in self.targets))
        contenders = {
            "reference": Contender(self.reference_program, self.targets[0]).load(request),
            "candidate": Contender(program, target).load(request),
        }
        timed = compare_loads(contenders, seconds=seconds)
        speed = timed.speedup("reference", "candidate")
        latency = timed.latency("reference") if reference_s is None else latency_beside(reference_s, speed)
        cost = self.meters.read(self.extra, {"latency_s": latency, **scored.cost}, program, target, _rows(request, target))
        return replace(
            scored,
            cost=cost,
            samples={f"latency_s.{k}": timed.times(k) for k in contenders},
            speed_up=speed.reading("1") if speed.bounded else None,
            seconds=scored.seconds + time.perf_counter() - began,
        )

    def metered(self, word: str, scored: Evaluation, read: Callable[[str], bytes]) -> Reading:
        """Return what the meter of one more axis reads of a scored evaluation; `read` returns the bytes of a blob."""
        ref = program_ref(scored)
        target = Target.parse(ref.target)
        return meters.read(word, Program.stored(ref, read), target, _rows(self.samples(target.batch), target))

    def _hold(self, program: Program, model: torch.nn.Module, outputs: Array, *, untouched: bool) -> None:
        """Raise where a float program differs from its model; the untouched one is held to the user's own, unfolded model."""
        if program.precision == "fp32":
            few = min(len(outputs), faithful.ORIGINAL_SAMPLES if untouched else faithful.CANDIDATE_SAMPLES)
            inputs, targets = self.work.validation.take(few).tensors()
            given, what = (self.work.model, "the untouched model's program") if untouched else (model, "the program")
            with one_thread():
                faithful.hold(outputs, given, inputs, targets, self.work.metric, what=what)

    def _is_reference(self, program: Program) -> bool:
        """Whether a program is the untouched model's, whose answers are known; each takes half a minute of what writes."""
        return program.runtime == self.reference_program.runtime and program.files == self.reference_program.files

    def damage(self, outputs: Array) -> float:
        """Return how far `outputs`, of the first samples of validation, are from the untouched model's."""
        kept = None if self.kept is None else self.kept[: len(outputs)]
        return self.work.divergence.between(self.reference[: len(outputs)], outputs, kept=kept)

    def _quality(self, program: Program, outputs: Array, samples: int) -> tuple[Reading, Reading]:
        """Metric, and drop against the untouched model on the same samples, each with its interval."""
        metric, targets, before = self.work.metric, self.validated[:samples], self.reference[:samples]
        if metric.ask is not None:
            if samples not in self._asked_reference:
                self._asked_reference[samples] = self.asked(self.reference_program, samples)
            before, targets = self._asked_reference[samples]
            outputs = before if self._is_reference(program) else self.asked(program, samples)[0]
        quality = quality_reading(metric, outputs, targets, note=f"{metric.name}, validation split")
        return quality, drop_reading(metric, before, outputs, targets)


@dataclass(frozen=True)
class Answering:
    """What answers for a program, on all cores."""

    program: Program

    @cached_property
    def _session(self) -> Session:
        return runtimes.get(self.program.runtime).load(self.program, threads=cores())

    def __call__(self, inputs: Inputs) -> Array:
        """Return the outputs of a batch of tensors."""
        return np.asarray(self._session.run(mapped(inputs, torch.Tensor.numpy)))

    def writer(self) -> ProgramWriter | None:
        """Return what writes with it word by word; None of a program that keeps nothing of what it has read."""
        return ProgramWriter(self.program, threads=cores()) if looks_back(self.program) else None


def quick_samples(metric: Metric) -> int:
    """Return the most validation samples that a one-shot trial is scored on."""
    return QUICK_SAMPLES if metric.ask is None else ASKED_SAMPLES


def _shapes(model: torch.nn.Module) -> str:
    """Name the shapes of a model's weights: in floats and in 8 bits a new model is one export."""
    return digest([[name, list(value.shape)] for name, value in model.state_dict().items()])


def _held(part: torch.nn.Module) -> list[str]:
    """A module's own parameters: with the bias that repair has given to a layer the graph is another."""
    return [name for name, value in part._parameters.items() if value is not None]


def _rows(samples: Inputs, target: Target) -> Inputs:
    """One request of a target's batch, from samples that may be fewer or more."""
    return mapped(take(samples, np.arange(target.batch) % size(samples)), np.ascontiguousarray)


def _row(layer: LayerCount, request: Mapping[str, Choice], model: torch.nn.Module) -> LayerRow:
    """A layer as it is reported; its channels lie on dimension 1 of a map, on the last one of tokens.

    Of one that is never called, as another module's code reads its weights, they are the rows of what it holds.
    """
    if layer.output:
        channels = layer.output[1 if layer.kind.startswith(("Conv", "BatchNorm")) and len(layer.output) > 1 else -1]
    else:
        held = [value for value in model.get_submodule(layer.name).parameters(recurse=False) if value.dim()]
        channels = max(map(len, held), default=1)
    return LayerRow(layer.name, layer.kind, channels, layer.params, layer.macs, scheme(request.get(layer.name, 32)).bits)


def failed(
    plan: Plan, fidelity: Fidelity, error: str, *, leg: int = 0, predicted: Mapping[str, float] | None = None
) -> Evaluation:
    """Return the record of a failed trial; what was `predicted` tells that the search proposed it."""
    nothing = unavailable("points", "the trial failed")
    return Evaluation(plan, fidelity, nothing, nothing, {}, predicted=predicted or {}, error=error, leg=leg)
