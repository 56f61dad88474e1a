"""Techniques alone, in one line, without a study: prune, quantize, distil. Those that change weights alone: `verbs.weights`."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equipoise import runtimes
from equipoise.batch import Inputs, call, leaves, mapped, positional, size, take
from equipoise.compress.fold import folded
from equipoise.compress.operators import operators
from equipoise.compress.proof import SAMPLES, changed
from equipoise.compress.prune import prune as _prune
from equipoise.compress.rounding import on_grid
from equipoise.compress.through import SETTLED, late, snapped, through
from equipoise.errors import InputError, must_be, several, unknown
from equipoise.ops import Op
from equipoise.records import Choice
from equipoise.runtimes import Program, Runtime, Session, Target
from equipoise.runtimes.base import RUNTIMES, spelled
from equipoise.runtimes.cpu import has_exact_int8
from equipoise.runtimes.export import Exporter
from equipoise.runtimes.onnxruntime import OnnxRuntime
from equipoise.runtimes.qdq import Rounding
from equipoise.schemes import SCHEMES, forms
from equipoise.training.recipe import Recipe
from equipoise.training.recover import distill as _distill
from equipoise.verbs.given import answers_of, as_single, beside, in_precision_of, inputs_of, one_output, prepared
from equipoise.verbs.pretrained import is_pretrained, rebuilt
from equipoise.workloads import Split, predict
from equipoise.workloads.check import not_finite
from equipoise.workloads.divergence import KINDS, Divergence, Kind
from equipoise.workloads.meaning import SAMPLE, decide, first_tensor, squashed
from equipoise.workloads.outputs import Chosen
from equipoise.workloads.sources import LABEL_KEYS
from equipoise.workloads.students import drawn, shape_of
from equipoise.workloads.wrapped import bare, copied


@dataclass(frozen=True)
class Quantized:
    """A model in fewer bits on one target: call it like the module it came from.

    Attributes:
        program: The files that would ship; ``program.size_bytes`` is their size.
        target: Where it runs.
        left: Why a layer was left in floating point, or a BatchNorm unfolded, by its name in the model.
        notes: What was done to the model before, in words.
    """

    program: Program
    target: Target
    session: Session
    left: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()

    def __call__(self, *inputs: Any, **named: Any) -> Tensor:
        """Return the outputs (N, ...) for inputs (N, ...), called like the model, in the floating-point type of the inputs."""
        given: Inputs = dict(named) if named else inputs[0] if len(inputs) == 1 else positional(inputs)
        run = self.session.run(mapped(given, lambda value: as_single(value).detach().contiguous().numpy()))
        outputs = torch.from_numpy(np.asarray(run))
        kinds = [value.dtype for value in leaves(given) if value.is_floating_point()]
        return outputs.to(kinds[0]) if kinds and outputs.is_floating_point() else outputs

    def save(self, folder: str | Path) -> Path:
        """Write the program's files into `folder`, which is made when absent."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        self.program.write(path)
        return path


@functools.wraps(_prune)
def prune(model: nn.Module, example: Inputs, *, data: Inputs | None = None, **options: Any) -> nn.Module:
    """Do what `equipoise.compress.prune.prune` does, on any model that training leaves behind.

    A model of Hugging Face's library comes back with a configuration of the new widths, so that `save_pretrained` writes what
    `from_pretrained` loads; where the architecture knows no such widths, a warning says so.
    """
    plain, _ = prepared("model", model)
    example, data = beside(plain, example, data)
    small = _prune(plain, example, data=data, **options)
    if options.get("ratio") == 0:
        inputs = [example] if data is None else [example, take(data, slice(SAMPLES))]
        if changed(small, plain, inputs):  # nothing was to be cut, so nothing may change
            small = copied(plain).eval()
    small = in_precision_of(bare(model), small)
    if not is_pretrained(plain):
        return small
    written = rebuilt(small, bare(model), example)
    if written is None:
        said = f"no configuration of {type(plain).__name__} has these widths: what save_pretrained writes could not be loaded"
        warnings.warn(f"{said}; keep it by torch.save(model, path)", stacklevel=2)
    return written or small


def quantize(
    model: nn.Module,
    calibration: Inputs,
    *,
    target: str = "onnxruntime:cpu",
    scheme: Choice = 8,
    float_layers: Collection[str] = (),
    ranges: str = "best",
    per_channel: bool = True,
) -> Quantized:
    """Return `model` in fewer bits on a target; by default in int8, in the form that is right and fastest on this CPU.

    Args:
        model: Any module with one tensor out, or one called ``logits`` or ``out`` among several; not changed.
        calibration: Representative inputs (N, ...), unlabelled, 100 or more; ranges are read from them, and what rounding one
            weight loses is made good by the others on them. Several inputs are a mapping by the keywords of the model's
            forward, or a tuple by position.
        target: ``runtime[:device][?threads=N&batch=N]``.
        scheme: How layers are held and computed, a name of `equipoise.schemes.SCHEMES`: 8 (static ranges, by the target's own
            quantizer), ``8-dynamic`` (products whose inputs are rounded for each request), ``8-weights`` and ``4-weights``
            (by group, for products, filters and tables), ``float16``, ``bfloat16``. A layer that has no form of its own in a
            scheme, as a convolution with dynamic ranges, stays in fp32.
        float_layers: Dotted names of layers to leave in fp32. A layer that the quantizer cannot take is left so by itself
            and named in `Quantized.left`.
        ranges: Of ONNX Runtime's scheme 8: how the range of a tensor is read off the calibration inputs, ``mse`` (of least
            squared error), ``percentile`` (99.99 %), ``minmax``, or ``best``, the first or the last of them by the error of the
            answers on calibration inputs. OpenVINO's quantizer has its own.
        per_channel: Of the same: whether each output channel of the weights has a scale of its own, or all of them have one.
    Raises:
        InputError: A runtime without the scheme or not usable here, an unknown layer, or a model that cannot be exported.
    Example:
        >>> small = quantize(net, inputs[:256])            # doctest: +SKIP
        >>> small(inputs[:1]).shape, small.program.size_bytes   # doctest: +SKIP
    """
    names = several("float_layers", float_layers)
    wanted = Target.parse(target)
    runtime = runtimes.get(wanted.row)
    if reason := runtime.unavailable():
        raise must_be("target", "a runtime that can be used here", target, reason)
    if not isinstance(scheme, (int, str)) or scheme not in SCHEMES or scheme == 32:
        raise must_be("scheme", f"one of {[way for way in SCHEMES if way != 32]}", scheme, "8 is int8 with static ranges.")
    if scheme not in runtime.precisions:
        having = [spelled(row) for row in RUNTIMES if scheme in runtimes.get(row).precisions]
        raise must_be("target", f"a runtime with {SCHEMES[scheme].says}", target, f"Use {' or '.join(having)}.")
    if (ranges, per_channel) != ("best", True):
        if runtime.name != "onnxruntime" or scheme != 8:
            asked = f"{ranges!r} and {per_channel} for {scheme} on {target}"
            raise must_be("ranges and per_channel", "left alone but for scheme 8 of onnxruntime:cpu", asked, "Leave them out.")
        runtime = OnnxRuntime(Rounding(ranges=ranges, per_channel=per_channel))
    plain, notes = prepared("model", model)
    calibration = inputs_of("calibration", calibration)
    example = take(calibration, slice(2))
    whole = one_output("model", plain, example)
    inside = "" if whole is plain else "model."
    done = folded(whole, example, data=calibration)
    floats = frozenset(f"{inside}{name}" for name in names)
    ops = operators(done.model, example)
    if SCHEMES[scheme].encoded:
        program = _held(done.model, ops, example, calibration, runtime, scheme, floats)
    else:
        source = Exporter().source(done.model, example, topology="")
        program = runtime.compile(source, calibration=mapped(calibration, Tensor.numpy), float_layers=floats)
    if not ops.keys() - program.left.keys() - floats:
        why = next(iter(program.left.values()), "as float_layers asks")
        warnings.warn(f"nothing was quantized: every layer was left in floating point ({why})", stacklevel=2)
    session = runtime.load(program, threads=wanted.threads)
    left = {name.removeprefix(inside): why for name, why in {**done.left, **program.left}.items()}
    return Quantized(program, wanted, session, left, notes)


def _held(
    model: nn.Module,
    ops: Mapping[str, Op],
    example: Inputs,
    calibration: Inputs,
    runtime: Runtime,
    scheme: Choice,
    floats: Collection[str],
) -> Program:
    """Return a program in which every layer that has a form in the scheme holds its weights so."""
    if lost := sorted(set(floats) - ops.keys()):
        raise unknown("float_layers", lost[0], ops)
    schemes = {name: scheme for name, op in ops.items() if name not in floats and scheme in forms(op.kind)}
    if not schemes:
        raise must_be("scheme", "one that some layer has a form in", scheme, "Use 8 for convolutions.")
    rounded = on_grid(model, schemes, exact=has_exact_int8(), calibration=calibration)
    return runtime.compile(Exporter().source(rounded, example, topology=""), schemes=schemes)


def distill(
    student: nn.Module | str,
    teacher: nn.Module,
    data: Any,
    *,
    seconds: float | None = None,
    kind: Kind | None = None,
    scheme: Choice | Mapping[str, Choice] | None = None,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Return a copy of `student` trained to answer as `teacher` does.

    Args:
        student: A module, or a new model of a family for the same inputs and outputs: ``"mobilenet"`` (its default scale),
            ``"mobilenet:0.25"`` (that factor of its size) or ``"cnn:width=16,depth=6"``.
        teacher: A module with the same output shape. Neither is changed.
        data: Inputs (a tensor, or a mapping of several), or anything that `Split.of` takes; labels tell what outputs mean, and
            are learned with ``hard_weight``.
        seconds: Training time; None: as many ``steps`` as are asked for, or else a minute.
        kind: ``softmax`` for class scores, ``bernoulli`` for yes-or-no scores, ``values`` for numbers. None sees it from
            targets and outputs. From inputs alone it cannot be seen, and takes ``values``: the squared error in each output's
            own spread, which is least where the student answers as the teacher does, be it numbers or logits.
        scheme: How the student will be held, as of `quantize`, or layer -> scheme. It then learns what rounding costs it: over
            the second half of the training, layers compute as they will in the file, and the weights that come back lie on the
            grid of their scheme, from which ``quantize(student, inputs, scheme=...)`` moves them no more. None: in floats.
        seed: Of the order of the data.
        options: Those of `equipoise.training.distill` (augment, steps, features, hard_loss, ...) and the fields of a
            `Recipe` (temperature, lr, batch, hard_weight, ...).
    Raises:
        InputError: No data, an unknown option, scheme or layer, or outputs of different shapes.
    Example:
        >>> taught = distill(small, net, inputs, scheme="4-weights")            # doctest: +SKIP
        >>> file = quantize(taught, inputs[:256], scheme="4-weights").program   # doctest: +SKIP

    References:
        Ba & Caruana 2014, "Do deep nets really need to be deep?", section 2.3: logits learned by squared error.
    """
    alone = isinstance(data, (Tensor, np.ndarray)) or (isinstance(data, Mapping) and not data.keys() & {*LABEL_KEYS})
    if alone:
        data = (mapped(data, lambda value: as_single(torch.as_tensor(value))), torch.zeros(size(data)))
    split = data if isinstance(data, Split) else Split.of(data, name="train")
    if not len(split):
        raise InputError("data must hold at least one sample; got none. Pass the training inputs.")
    if found := not_finite(split):
        raise found
    guide, example = copied(prepared("teacher", teacher)[0]).eval(), split.take(2).tensors()[0]
    if isinstance(student, str):
        guide = one_output("teacher", guide, example)
        student = drawn(student, shape_of(example, answers_of("teacher", guide, example), guide))
    learner = prepared("student", student)[0]
    learner, guide = one_output("student", learner, example), one_output("teacher", guide, example)
    shapes = [tuple(answers_of(name, part, example).shape) for name, part in (("student", learner), ("teacher", guide))]
    if shapes[0] != shapes[1]:
        raise must_be("student", f"a model that answers in the teacher's shape {shapes[1]}", shapes[0], "Give both one head.")
    if kind not in (None, *KINDS):
        raise unknown("kind", str(kind), KINDS)
    options = _with_recipe(options)
    if alone and options["recipe"].hard_weight:
        raise must_be("hard_weight", "0 where there are no labels", options["recipe"].hard_weight, "Pass (inputs, targets).")
    meaning = (
        Divergence("values") if alone and kind in (None, "values") else _meaning(guide, split, options.get("hard_loss"), kind)
    )
    generator = torch.Generator().manual_seed(seed)
    if seconds is None and options.get("steps") is None:
        seconds = 60.0
    if scheme is not None:
        if options.get("before_step") is not None:
            raise must_be("before_step", "left out where a scheme is given", "a function", "Leave one of them out.")
        where = next(learner.parameters()).device
        calibration = mapped(split.take(SETTLED).tensors()[0], lambda value: value.to(where))
        schemes = _asked(learner, take(calibration, slice(2)), scheme, inside="model." if isinstance(learner, Chosen) else "")
        learner = through(learner, schemes, exact=has_exact_int8())
        options["before_step"] = late(calibration, exact=has_exact_int8())
    trained = _distill(learner, guide, split, divergence=meaning, seconds=seconds, generator=generator, **options).model
    trained = trained if scheme is None else snapped(trained)
    return in_precision_of(bare(student), trained.model if isinstance(trained, Chosen) else trained)


def _asked(model: nn.Module, example: Inputs, scheme: Choice | Mapping[str, Choice], *, inside: str) -> dict[str, Choice]:
    """Return layer -> scheme: as told, or every layer that has a form in the one scheme."""
    ops = operators(model, example)
    told = (
        {f"{inside}{name}": way for name, way in scheme.items()} if isinstance(scheme, Mapping) else dict.fromkeys(ops, scheme)
    )
    for name, way in told.items():
        if name not in ops:
            raise unknown("layer", name.removeprefix(inside), (known.removeprefix(inside) for known in ops))
        if way not in SCHEMES:
            raise must_be("scheme", f"one of {list(SCHEMES)}", way, "8 is int8 with static ranges.")
    formed = {name: way for name, way in told.items() if way == 8 or way in forms(ops[name].kind)}
    lost = told.keys() - formed.keys() if isinstance(scheme, Mapping) else set()
    if lost or not formed:
        name = min(lost, default="")
        got = f"{told[name]!r} for {name.removeprefix(inside)}" if name else scheme
        raise must_be("scheme", "one that the layer has a form in", got, "Use 8 for convolutions.")
    return formed


def _with_recipe(options: dict[str, Any]) -> dict[str, Any]:
    """Put the options that are fields of a recipe into one."""
    fields = {field.name for field in dataclasses.fields(Recipe)}
    known = inspect.signature(_distill).parameters.keys() - {"student", "teacher", "data", "divergence"}
    for name in options:
        if name not in fields | known:
            raise unknown("option", name, sorted(fields | known))
    chosen = {name: value for name, value in options.items() if name in fields}
    rest = {name: value for name, value in options.items() if name not in fields}
    return {**rest, "recipe": dataclasses.replace(rest.get("recipe") or Recipe(), **chosen)}


def _meaning(teacher: nn.Module, split: Split, loss: Any, kind: Kind | None) -> Divergence:
    """See from some samples what the teacher's outputs mean; a kind that is given holds."""
    asked = copy.deepcopy(teacher).eval()
    outputs, targets = predict(lambda inputs: first_tensor(call(asked, inputs)), split.take(SAMPLE), batch=SAMPLE)
    found = decide(outputs.float(), targets, loss=loss, probabilities=squashed(asked, split))
    if kind is None or kind == found.kind:
        return found
    return Divergence(kind, found.axis, kind != "values" and squashed(asked, split))
