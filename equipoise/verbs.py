"""Every technique alone, in one line: prune, quantize, distil, without a study."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equipoise import runtimes
from equipoise.compress.fold import fold
from equipoise.compress.prune import prune as prune
from equipoise.errors import InputError, must_be, unknown
from equipoise.runtimes import Program, Session, Target
from equipoise.runtimes.export import Exporter
from equipoise.training.recipe import Recipe
from equipoise.training.recover import distill as _distill
from equipoise.workloads import Split, predict
from equipoise.workloads.meaning import KINDS, SAMPLE, Divergence, Kind, decide, first_tensor, squashed


@dataclass(frozen=True)
class Quantized:
    """A model in int8 on one target: call it like the module it came from.

    Attributes:
        program: The files that would ship; ``program.size_bytes`` is their size.
        target: Where it runs.
    """

    program: Program
    target: Target
    session: Session

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the outputs (N, ...) for inputs (N, ...)."""
        return torch.from_numpy(np.asarray(self.session.run(inputs.numpy())))

    def save(self, folder: str | Path) -> Path:
        """Write the program's files into `folder`, which is made when absent."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        self.program.write(path)
        return path


def quantize(
    model: nn.Module, calibration: Tensor, *, target: str = "onnxruntime:cpu", float_layers: Collection[str] = ()
) -> Quantized:
    """Return `model` in int8 by the target's own quantizer, in the scheme that is right and fastest on this CPU.

    Args:
        model: Any module with one tensor in and one out; not changed.
        calibration: Representative inputs (N, ...), unlabelled, 100 or more; ranges are read from them.
        target: ``runtime[:device][?threads=N&batch=N]``.
        float_layers: Dotted names of layers to leave in fp32.
    Raises:
        InputError: A runtime without int8 or not usable here, an unknown layer, or a model that cannot be exported.
    Example:
        >>> small = quantize(net, inputs[:256])            # doctest: +SKIP
        >>> small(inputs[:1]).shape, small.program.size_bytes   # doctest: +SKIP
    """
    wanted = Target.parse(target)
    runtime = runtimes.get(wanted.runtime)
    if reason := runtime.unavailable():
        raise must_be("target", "a runtime that can be used here", target, reason)
    if 8 not in runtime.precisions:
        raise must_be("target", "a runtime with an int8 quantizer", target, "Use onnxruntime:cpu or openvino:cpu.")
    example = calibration[:2]
    source = Exporter().source(fold(model, example), example, topology="")
    program = runtime.compile(source, calibration=calibration.numpy(), float_layers=frozenset(float_layers))
    return Quantized(program, wanted, runtime.load(program, threads=wanted.threads))


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
        data: Inputs, or anything that `Split.of` takes; labels tell what outputs mean, and are learned with ``hard_weight``.
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
    alone = isinstance(data, (Tensor, np.ndarray))
    if alone:
        data = (torch.as_tensor(data), torch.zeros(len(data)))
    split = data if isinstance(data, Split) else Split.of(data, name="train")
    if not len(split):
        raise InputError("data must hold at least one sample; got none. Pass the training inputs.")
    if kind not in (None, *KINDS):
        raise unknown("kind", str(kind), KINDS)
    options = _with_recipe(options)
    if alone and options["recipe"].hard_weight:
        raise must_be("hard_weight", "0 where there are no labels", options["recipe"].hard_weight, "Pass (inputs, targets).")
    meaning = (
        Divergence("values") if alone and kind in (None, "values") else _meaning(teacher, split, options.get("hard_loss"), kind)
    )
    generator = torch.Generator().manual_seed(seed)
    return _distill(
        student, teacher, split, seconds=seconds, kind=meaning.kind, axis=meaning.axis, probabilities=meaning.probabilities,
        generator=generator, **options,
    ).model  # fmt: skip


def _with_recipe(options: dict[str, Any]) -> dict[str, Any]:
    """Put the options that are fields of a recipe into one."""
    fields = {field.name for field in dataclasses.fields(Recipe)}
    known = {name for name in inspect.signature(_distill).parameters if name not in ("student", "teacher", "data")}
    for name in options:
        if name not in fields | known:
            raise unknown("option", name, sorted(fields | known))
    chosen = {name: value for name, value in options.items() if name in fields}
    rest = {name: value for name, value in options.items() if name not in fields}
    return {**rest, "recipe": dataclasses.replace(rest.get("recipe") or Recipe(), **chosen)}


def _meaning(teacher: nn.Module, split: Split, loss: Any, kind: Kind | None) -> Divergence:
    """See from some samples what the teacher's outputs mean; a kind that is given holds."""
    asked = copy.deepcopy(teacher).eval()
    outputs, targets = predict(lambda inputs: first_tensor(asked(inputs)), split.take(SAMPLE), batch=SAMPLE)
    found = decide(outputs.float(), targets, loss=loss, probabilities=squashed(asked, split))
    if kind is None or kind == found.kind:
        return found
    return Divergence(kind, found.axis, kind != "values" and squashed(asked, split))
