"""The first stage of transfer: the last layer alone, on the answers of all before it, which are computed once and kept.

Nothing else moves: the model runs in evaluation mode, so BatchNorm layers keep their statistics. What is left is convex for the
usual losses; it is solved in seconds for every penalty of a short row, of which the validation split picks one.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from equipoise.batch import call, mapped
from equipoise.errors import EquipoiseError
from equipoise.training.losses import Loss
from equipoise.training.progress import Progress
from equipoise.training.samples import Batches
from equipoise.training.validation import CurvePoint, Metric

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Weights of half the squared length of the layer's weights in the loss, as shares of the features' mean variance."""
ITERATIONS = 100
"""Of L-BFGS for each penalty; it starts where the one before ended."""
STAGE = "the samples read by the frozen layers"
BATCH = 32
"""Samples that run through the frozen layers at a time."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A model whose last layer was fitted.

    Attributes:
        model: In evaluation mode.
        point: What it reached, as a look before the first step of what follows.
        samples: Training samples that were read.
        sample_s: Seconds in which a sample runs through the frozen layers.
    """

    model: nn.Module
    point: CurvePoint
    samples: int
    sample_s: float

    def packed(self, head: str) -> bytes:
        """Return its last layer and its figures as a safetensors file."""
        told = {"point": asdict(self.point), "samples": self.samples, "sample_s": self.sample_s}
        tensors = {name: value.cpu().contiguous() for name, value in self.model.get_submodule(head).state_dict().items()}
        return bytes(save(tensors, {"fitted": json.dumps(told)}))


def fit_head(
    model: nn.Module,
    head: str,
    data: Batches,
    validation: Batches,
    *,
    loss: Loss,
    metric: Metric | None = None,
    seconds: float | None = None,
    device: torch.device | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Fitted:
    """Return a copy of `model` whose linear layer `head` is fitted to the data, all else as it was.

    Args:
        model: Left as it is.
        head: Name of the layer whose output is the model's answer.
        data: Training split, read once, without random changes.
        validation: Picks the penalty, by its loss.
        loss: (outputs, targets) -> scalar, a mean over the samples.
        metric: Told beside the loss.
        seconds: As many of the training samples are read as this allows, and one batch at least; None reads all.
        device: Where to compute; None is that of the model.
        on_step: Called with the `Progress` of each batch.
    Raises:
        EquipoiseError: The loss cannot be made finite.

    References:
        Kornblith et al. 2019, "Do better ImageNet models transfer better?", section 3: features and L-BFGS.
    """
    began = time.monotonic()
    fitted = copy.deepcopy(model).eval().to(device or next(model.parameters()).device)
    layer = fitted.get_submodule(head)
    told = _Told(len(data) + len(validation), began, on_step)
    held, wanted = _joined(_features(fitted, layer, validation, told))
    few, targets = _joined(_features(fitted, layer, data, told, until=None if seconds is None else began + seconds))
    sample_s = (time.monotonic() - began) / (len(held) + len(few))
    train_loss, held_loss = _solve(layer, few, targets, held, wanted, loss)
    with torch.no_grad():
        score = None if metric is None else metric.score(layer(held).cpu(), wanted.cpu())
    fitted = fitted.to(next(model.parameters()).device)
    return Fitted(fitted, CurvePoint(0, 0.0, time.monotonic() - began, train_loss, held_loss, score, 0.0), len(few), sample_s)


def read_fitted(model: nn.Module, head: str, path: Path) -> Fitted | None:
    """Return what an earlier call of `fit_head` on `model` came to, from the file of its `packed`; None where there is none."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            told = json.loads(file.metadata()["fitted"])
        fitted = copy.deepcopy(model).eval()
        fitted.get_submodule(head).load_state_dict(tensors)
        return Fitted(fitted, CurvePoint(**told["point"]), told["samples"], told["sample_s"])
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError):  # cut off: it is made again
        return None


@dataclass
class _Told:
    """Tells of each batch how much is done."""

    samples: int
    began: float
    on_step: Callable[[Progress], None] | None
    done: int = 0
    step: int = 0

    def __call__(self, more: int) -> None:
        self.done, self.step = self.done + more, self.step + 1
        if self.on_step is not None:
            seconds = time.monotonic() - self.began
            self.on_step(Progress(self.step, self.done / self.samples, math.nan, 0.0, seconds, stage=STAGE))


def _features(
    model: nn.Module, layer: nn.Module, data: Batches, told: _Told, *, until: float | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what `layer` is given for each batch, and the targets."""
    given: list[Tensor] = []
    watched = layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    device = next(model.parameters()).device
    try:
        for inputs, targets in data.batches(BATCH):
            with torch.no_grad():
                call(model, mapped(inputs, lambda value: value.to(device)))
            yield given.pop().detach(), targets.to(device)
            told(len(targets))
            if until is not None and time.monotonic() >= until:
                return
    finally:
        watched.remove()


def _joined(batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    inputs, targets = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def _solve(layer: nn.Module, inputs: Tensor, targets: Tensor, held: Tensor, wanted: Tensor, loss: Loss) -> tuple[float, float]:
    """Fit the layer in place; return its losses on the training and the validation samples."""
    weight: Any = layer.get_parameter("weight")
    scale = float(inputs.reshape(-1, inputs.shape[-1]).var(0, correction=0).mean()) or 1.0
    best: tuple[float, float] | None = None
    kept: dict[str, Tensor] = {}
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.requires_grad_(True).zero_()
    for penalty in PENALTIES:
        optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=ITERATIONS, line_search_fn="strong_wolfe")

        def closure(penalty: float = penalty, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            value: Tensor = loss(layer(inputs), targets) + penalty * scale / 2 * weight.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            found = float(loss(layer(inputs), targets)), float(loss(layer(held), wanted))
        if math.isfinite(found[1]) and (best is None or found[1] < best[1]):
            best, kept = found, {name: value.clone() for name, value in layer.state_dict().items()}
    if best is None:
        raise EquipoiseError("the loss of the last layer must be finite; got none that is. Look at the loss and the targets.")
    optimizer.zero_grad()
    layer.load_state_dict(kept)
    return best
