"""Every technique alone, in one line: prune, quantize, distil, without a study."""

from __future__ import annotations

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
from equipoise.errors import InputError, must_be
from equipoise.runtimes import Program, Session, Target
from equipoise.runtimes.export import Exporter
from equipoise.training.recover import distill as _distill
from equipoise.workloads import Split


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
    student: nn.Module, teacher: nn.Module, data: Any, *, seconds: float = 60.0, seed: int = 0, **options: Any
) -> nn.Module:
    """Return a copy of `student` trained to answer as `teacher` does.

    Args:
        student, teacher: Modules with the same output shape; neither is changed.
        data: Inputs, or anything that `Split.of` takes; labels are used only with ``hard_weight``.
        seconds: Training time.
        seed: Of the order of the data.
        options: As `equipoise.training.distill` (temperature, lr, augment, ...).
    """
    if isinstance(data, Tensor):
        data = (data, torch.zeros(len(data), dtype=torch.long))
    split = data if isinstance(data, Split) else Split.of(data, name="train")
    if not len(split):
        raise InputError("data must hold at least one sample; got none. Pass the training inputs.")
    generator = torch.Generator().manual_seed(seed)
    return _distill(student, teacher.eval(), split, seconds=seconds, generator=generator, **options).model
