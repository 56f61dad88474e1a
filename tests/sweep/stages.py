"""What every architecture goes through, stage by stage, its numbers compared: right, refused, wrong or broken."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

import equipoise as eq
from equipoise.compress.fakequant import simulate
from equipoise.compress.fold import fold
from equipoise.errors import EquipoiseError
from equipoise.runtimes.export import Exporter

EXACT = 2e-3
"""Largest difference of two programs that should be one, as a part of the spread of the outputs over the inputs."""
GRAIN = 1e-6
"""Relative change of the inputs by a few roundings; nets of random weights exist that make percents of it (LeViT)."""
ROUNDED = 0.5
"""Largest root mean square difference of int8 from float, as a part of the spread of the outputs over the inputs."""


@dataclass(frozen=True)
class Outcome:
    """How one stage ended: `verdict` is right, refused, wrong or broken; `detail` the numbers or the words."""

    verdict: str
    detail: str
    seconds: float = 0.0

    @property
    def kept(self) -> bool:
        """Return whether the promise holds: right, or refused with a reason."""
        return self.verdict in ("right", "refused")


def outcome(stage: str, model: nn.Module, inputs: Tensor) -> Outcome:
    """Run one stage on one model; what it raises is an outcome."""
    start = time.perf_counter()
    try:
        verdict, detail = STAGES[stage](model, inputs)
    except EquipoiseError as error:
        verdict, detail = "refused", str(error)
    except Exception as error:  # noqa: BLE001 - whatever escapes is what the sweep looks for
        frame = traceback.extract_tb(error.__traceback__)[-1]
        words = (str(error).strip().splitlines() or [""])[0]
        verdict, detail = "broken", f"{type(error).__name__}: {words[:300]} ({frame.name}:{frame.lineno})"
    return Outcome(verdict, detail, time.perf_counter() - start)


@torch.no_grad()
def answers(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the outputs of the model on the inputs, a few at a time."""
    parts = [model(part) for part in inputs.split(16)]
    if not all(isinstance(part, Tensor) for part in parts):
        parts = [part["out"] if isinstance(part, Mapping) else part[0] for part in parts]
    return torch.cat(parts)


def apart(got: Tensor, wanted: Tensor) -> float:
    """Return the largest difference as a part of the largest deviation of `wanted` from its mean over the inputs."""
    return float((got - wanted).abs().max() / (wanted - wanted.mean(0)).abs().max().clamp_min(1e-12))


def noise(got: Tensor, wanted: Tensor) -> float:
    """Return the root mean square difference as a part of the spread of `wanted` over the inputs."""
    return float((got - wanted).square().mean().sqrt() / (wanted - wanted.mean(0)).square().mean().sqrt().clamp_min(1e-12))


def _compared(difference: float, limit: float, words: str) -> tuple[str, str]:
    return ("right" if difference <= limit else "wrong"), f"{words} {difference:.2g}"


def _same(got: Tensor, model: nn.Module, inputs: Tensor) -> tuple[str, str]:
    """Compare answers that should be the model's own, but for what it makes of a few roundings of its inputs."""
    wanted = answers(model, inputs)
    off, words, limit = apart(got, wanted), "differs by", EXACT
    if off > limit:
        grains = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(2))
        limit = max(limit, apart(answers(model, inputs * (1 + GRAIN * grains)), wanted))
        words = f"{limit:.2g} by {GRAIN:g} on its inputs, differs by"
    return _compared(off, limit, words)


def folded(model: nn.Module, inputs: Tensor) -> tuple[str, str]:
    """Fold and compare."""
    return _same(answers(fold(model, inputs[:2]), inputs[:16]), model, inputs[:16])


def exported(model: nn.Module, inputs: Tensor) -> tuple[str, str]:
    """Write the ONNX file of the untouched model and compare what ONNX Runtime makes of it."""
    content = Exporter().onnx(model, inputs[:2], topology="")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    got = torch.from_numpy(np.asarray(session.run(None, {"input": inputs[:16].numpy()})[0]))
    return _same(got, model, inputs[:16])


def quantized(model: nn.Module, inputs: Tensor) -> tuple[str, str]:
    """Quantize to int8; the noise must be small, or not much more than rounding costs in simulation."""
    small = eq.quantize(model, inputs)
    got = torch.cat([small(part) for part in inputs.split(16)])
    wanted = answers(model, inputs)
    off, words, limit = noise(got, wanted), "noise", ROUNDED
    if off > limit:
        simulated = noise(answers(simulate(fold(model, inputs[:2]), inputs), inputs), wanted)
        words, limit = f"simulated noise {simulated:.2g}, noise", 2.5 * simulated
    return _compared(off, limit, words)


def unpruned(model: nn.Module, inputs: Tensor) -> tuple[str, str]:
    """Prune nothing, with data to repair with, and compare."""
    same = eq.prune(model, inputs[:2], ratio=0.0, data=inputs)
    return _same(answers(same, inputs[:16]), model, inputs[:16])


def pruned(model: nn.Module, inputs: Tensor) -> tuple[str, str]:
    """Prune 30 % of the channels with data; the outputs must be finite and no worse than without repair."""
    wanted = answers(model, inputs)
    before = sum(parameter.numel() for parameter in model.parameters())
    bare = eq.prune(fold(model, inputs[:2]), inputs[:2], ratio=0.3)  # what repair starts from is folded too
    mended = eq.prune(model, inputs[:2], ratio=0.3, data=inputs)
    after = sum(parameter.numel() for parameter in mended.parameters())
    plain, best = noise(answers(bare, inputs), wanted), noise(answers(mended, inputs), wanted)
    words = f"{before} to {after} parameters, noise {plain:.2g} repaired to"
    return _compared(best, max(1.1 * plain, EXACT), words)


STAGES: Mapping[str, Callable[[nn.Module, Tensor], tuple[str, str]]] = {
    "fold": folded,
    "export": exported,
    "quantize": quantized,
    "prune 0": unpruned,
    "prune .3": pruned,
}
