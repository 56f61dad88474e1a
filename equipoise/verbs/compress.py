"""Every technique alone, in one line: prune, quantize, distil, without a study.

What a verb is given is first brought to the form that everything else works on: wrappers are taken off, other precisions are
converted to float32, on a copy. What it gives back has the precision of what was given.
"""

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
from equipoise.batch import Inputs, call, is_array, leaves, mapped, positional, size, take
from equipoise.batch import named as batch_of
from equipoise.compress.fold import folded
from equipoise.compress.operators import operators
from equipoise.compress.proof import SAMPLES, changed
from equipoise.compress.prune import prune as _prune
from equipoise.compress.rounding import on_grid
from equipoise.errors import InputError, must_be, unknown
from equipoise.records import Choice
from equipoise.runtimes import Program, Runtime, Session, Target
from equipoise.runtimes.base import RUNTIMES
from equipoise.runtimes.cpu import has_exact_int8
from equipoise.runtimes.export import Exporter
from equipoise.runtimes.onnxruntime import OnnxRuntime
from equipoise.runtimes.qdq import Rounding
from equipoise.schemes import SCHEMES, forms
from equipoise.training.recipe import Recipe
from equipoise.training.recover import distill as _distill
from equipoise.verbs.pretrained import is_pretrained, rebuilt
from equipoise.workloads import Split, predict
from equipoise.workloads.check import not_finite
from equipoise.workloads.divergence import KINDS, Divergence, Kind
from equipoise.workloads.meaning import SAMPLE, decide, first_tensor, squashed
from equipoise.workloads.outputs import Chosen, not_one, reduced
from equipoise.workloads.sources import LABEL_KEYS
from equipoise.workloads.wrapped import bare, copied, single


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
        run = self.session.run(mapped(given, lambda value: _as_single(value).detach().contiguous().numpy()))
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
    plain, _ = _prepared("model", model)
    example = _batch("example", example)
    data = data if data is None else _batch("data", data)
    _answers("model", plain, example)
    small = _prune(plain, example, data=data, **options)
    if options.get("ratio") == 0:
        inputs = [example] if data is None else [example, take(data, slice(SAMPLES))]
        if changed(small, plain, inputs):  # nothing was to be cut, so nothing may change
            small = copied(plain).eval()
    small = _in_precision_of(bare(model), small)
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
    wanted = Target.parse(target)
    runtime = runtimes.get(wanted.runtime)
    if reason := runtime.unavailable():
        raise must_be("target", "a runtime that can be used here", target, reason)
    if scheme not in SCHEMES or scheme == 32:
        raise must_be("scheme", f"one of {[way for way in SCHEMES if way != 32]}", scheme, "8 is int8 with static ranges.")
    if scheme not in runtime.precisions:
        having = [name for name in RUNTIMES if scheme in runtimes.get(name).precisions]
        raise must_be("target", f"a runtime with {SCHEMES[scheme].says}", target, f"Use {':cpu or '.join(having)}:cpu.")
    if (ranges, per_channel) != ("best", True):
        if runtime.name != "onnxruntime" or scheme != 8:
            asked = f"{ranges!r} and {per_channel} for {scheme} on {target}"
            raise must_be("ranges and per_channel", "left alone but for scheme 8 of onnxruntime:cpu", asked, "Leave them out.")
        runtime = OnnxRuntime(Rounding(ranges=ranges, per_channel=per_channel))
    plain, notes = _prepared("model", model)
    calibration = _batch("calibration", calibration)
    example = take(calibration, slice(2))
    whole = _judged("model", plain, example)
    inside = "" if whole is plain else "model."
    done = folded(whole, example, data=calibration)
    floats = frozenset(f"{inside}{name}" for name in float_layers)
    if SCHEMES[scheme].encoded:
        program = _held(done.model, example, calibration, runtime, scheme, floats)
    else:
        source = Exporter().source(done.model, example, topology="")
        program = runtime.compile(source, calibration=mapped(calibration, Tensor.numpy), float_layers=floats)
    session = runtime.load(program, threads=wanted.threads)
    left = {name.removeprefix(inside): why for name, why in {**done.left, **program.left}.items()}
    return Quantized(program, wanted, session, left, notes)


def _held(
    model: nn.Module, example: Inputs, calibration: Inputs, runtime: Runtime, scheme: Choice, floats: Collection[str]
) -> Program:
    """Return a program in which every layer that has a form in the scheme holds its weights so."""
    ops = operators(model, example)
    if lost := sorted(set(floats) - ops.keys()):
        raise unknown("float_layers", lost[0], ops)
    schemes = {name: scheme for name, op in ops.items() if name not in floats and scheme in forms(op.kind)}
    if not schemes:
        raise must_be("scheme", "one that some layer has a form in", scheme, "Use 8 for convolutions.")
    rounded = on_grid(model, schemes, exact=has_exact_int8(), calibration=calibration)
    return runtime.compile(Exporter().source(rounded, example, topology=""), schemes=schemes)


def distill(
    student: nn.Module,
    teacher: nn.Module,
    data: Any,
    *,
    seconds: float = 60.0,
    kind: Kind | None = None,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Return a copy of `student` trained to answer as `teacher` does.

    Args:
        student, teacher: Modules with the same output shape; neither is changed.
        data: Inputs (a tensor, or a mapping of several), or anything that `Split.of` takes; labels tell what outputs mean, and
            are learned with ``hard_weight``.
        seconds: Training time.
        kind: ``softmax`` for class scores, ``bernoulli`` for yes-or-no scores, ``values`` for numbers. None sees it from
            targets and outputs. From inputs alone it cannot be seen, and takes ``values``: the squared error in each output's
            own spread, which is least where the student answers as the teacher does, be it numbers or logits.
        seed: Of the order of the data.
        options: Those of `equipoise.training.distill` (augment, steps, features, hard_loss, ...) and the fields of a
            `Recipe` (temperature, lr, batch, hard_weight, ...).
    Raises:
        InputError: No data, an unknown option, or outputs of different shapes.

    References:
        Ba & Caruana 2014, "Do deep nets really need to be deep?", section 2.3: logits learned by squared error.
    """
    alone = isinstance(data, (Tensor, np.ndarray)) or (isinstance(data, Mapping) and not data.keys() & {*LABEL_KEYS})
    if alone:
        data = (mapped(data, lambda value: _as_single(torch.as_tensor(value))), torch.zeros(size(data)))
    split = data if isinstance(data, Split) else Split.of(data, name="train")
    if not len(split):
        raise InputError("data must hold at least one sample; got none. Pass the training inputs.")
    if found := not_finite(split):
        raise found
    learner, guide = _prepared("student", student)[0], copied(_prepared("teacher", teacher)[0]).eval()
    example = split.take(2).tensors()[0]
    learner, guide = _judged("student", learner, example), _judged("teacher", guide, example)
    shapes = [tuple(_answers(name, part, example).shape) for name, part in (("student", learner), ("teacher", guide))]
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
    trained = _distill(learner, guide, split, divergence=meaning, seconds=seconds, generator=generator, **options).model
    return _in_precision_of(bare(student), trained.model if isinstance(trained, Chosen) else trained)


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


def _prepared(name: str, model: Any) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the plain float32 module inside what was given, and what was done to it."""
    if not isinstance(model, nn.Module):
        raise must_be(name, "a torch.nn.Module", type(model).__name__, "Pass the trained model itself.")
    plain = bare(model)
    notes = () if plain is model else ("wrappers and weight normalization were taken off a copy",)
    plain, said = single(plain)
    return plain, (*notes, said) if said else notes


def _batch(name: str, inputs: Any) -> Inputs:
    """Return a batch of inputs (N, ...) in float32 (or whole numbers): one tensor, or several by name or position."""
    if isinstance(inputs, (tuple, list)):
        inputs = positional(inputs)
    if isinstance(inputs, Mapping):
        found = {key: _tensor(f"{name}[{key!r}]", value) if is_array(value) else value for key, value in inputs.items()}
        if len({len(value) for value in leaves(found)}) != 1:
            lengths = {key: len(value) for key, value in batch_of(found).items()}
            raise must_be(name, "tensors of one length", lengths, "Give a row for each sample in every one.")
        return found
    return _tensor(name, inputs)


def _tensor(name: str, inputs: Any) -> Tensor:
    if not isinstance(inputs, Tensor) or inputs.dim() < 1 or len(inputs) < 1:
        got = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise must_be(name, "a tensor of inputs (N, ...), N of at least 1", got, "Pass for example one batch of your data.")
    if inputs.is_floating_point() and not bool((good := inputs.detach().isfinite().reshape(len(inputs), -1).all(1)).all()):
        row = int((~good).nonzero()[0])
        raise must_be(name, "finite", f"NaN or infinity in row {row}", "Clean the data, or look at how they are normalised.")
    return _as_single(inputs.detach())


def _as_single(inputs: Tensor) -> Tensor:
    return inputs.float() if inputs.is_floating_point() else inputs


def _judged(name: str, model: nn.Module, example: Inputs) -> nn.Module:
    """Return the model, reduced to the output that is meant where it gives a record, a mapping or a tuple."""
    answer = _answers(name, model, example)
    judged = reduced(model, answer)
    if judged is model and not isinstance(answer, Tensor):
        raise not_one(answer)
    return judged


def _answers(name: str, model: nn.Module, example: Inputs) -> Any:
    """Return what the model answers in evaluation mode."""
    subject = copied(model).eval()
    try:
        with torch.no_grad():
            outputs = call(subject, example)
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0][:200]
        given = " and ".join(f"{tuple(value.shape)} of {str(value.dtype)[6:]}" for value in leaves(example))
        what = f"a model that takes inputs {given}"
        raise must_be(name, what, f"{type(error).__name__}: {text}", "Check the shape and type of the inputs.") from error
    return outputs


def _in_precision_of(model: nn.Module, result: nn.Module) -> nn.Module:
    """Return `result` with each value in the type that it has in `model`, and new ones in that of the others beside them."""
    types = {name: v.dtype for name, v in (*model.named_parameters(), *model.named_buffers()) if v.is_floating_point()}
    if set(types.values()) <= {torch.float32}:
        return result
    beside = {name.rpartition(".")[0]: dtype for name, dtype in types.items()}
    usual = max(set(types.values()), key=list(types.values()).count)
    cast = copy.deepcopy(result)
    for part_name, part in cast.named_modules():
        for name, value in (*part._parameters.items(), *part._buffers.items()):
            if value is not None and value.is_floating_point():
                full = f"{part_name}.{name}" if part_name else name
                value.data = value.data.to(types.get(full, beside.get(part_name, usual)))
    return cast
