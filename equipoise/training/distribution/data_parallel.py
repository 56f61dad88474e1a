"""Data parallel: every rank holds the whole model and takes its rows of each batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from equipoise.batch import Inputs, call, size, take
from equipoise.training.distribution.base import Objective, OneProcess, Tensors, autocast, micro_batches, placed
from equipoise.training.distribution.ranks import Ranks, in_touch
from equipoise.training.recipe import Recipe


class DataParallel:
    """Replicate the model on every rank and average the gradients (torch's DistributedDataParallel).

    The curve is that of one process for any number of ranks, also where the batch does not divide by it, with two exceptions.
    BatchNorm normalizes each rank's rows by their own statistics, and keeps the running ones of rank 0; on GPUs it is replaced
    by SyncBatchNorm, which takes them over all ranks, on CPUs there is none: use `frozen_norm`, another norm, or batches large
    enough for the difference not to matter. Dropout draws other masks than one process would (the same at every resume).

    Limits:
        Each rank reads and augments the whole batch. Every trainable parameter must take part in the loss. The objective is a
        mean over the samples, and calls the model as a whole.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.rank, self.world, self.device = ranks, ranks.rank, ranks.world, ranks.device
        self._replica = OneProcess(ranks.device)  # every rank holds all of it
        self._wrapped: tuple[tuple[bool, ...], DistributedDataParallel] | None = None

    @in_touch()
    def place(self, model: nn.Module) -> nn.Module:
        """Move `model` to the device, in place; rank 0's weights are the ones that count."""
        model = model.to(self.device)
        if self.device.type == "cuda" and any(isinstance(module, _BatchNorm) for module in model.modules()):
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        self.wrapper(model)
        return model  # not the wrapper, which would rename every parameter

    def gradients(
        self,
        model: nn.Module,
        objective: Objective,
        inputs: Inputs,
        targets: Tensor,
        *,
        recipe: Recipe,
        scaler: torch.amp.GradScaler | None = None,
    ) -> Tensor:
        """Run this rank's rows, and average the gradients during the last micro-batch's backward pass."""
        wrapped = self.wrapper(model)
        return backward_rows(
            self.ranks, wrapped, objective, inputs, targets, recipe, scaler, scale=self.world, quiet=wrapped.no_sync
        )

    def wrapper(self, model: nn.Module) -> DistributedDataParallel:
        """Return what averages the gradients of `model`, made anew when other parameters have come to be trained."""
        trained = tuple(parameter.requires_grad for parameter in model.parameters())
        if self._wrapped is None or self._wrapped[0] != trained:
            if self._wrapped is not None:
                self._wrapped[1]._remove_autograd_hooks()  # type: ignore[no-untyped-call]
            self._wrapped = trained, DistributedDataParallel(model, gradient_as_bucket_view=True)
        return self._wrapped[1]

    def outputs(self, model: nn.Module, inputs: Inputs, *, recipe: Recipe) -> Tensor:
        """Return the outputs for the whole batch, each rank computing its rows."""
        self.ranks.same_buffers(model)
        return forward_rows(self.ranks, model, inputs, recipe)

    def clip(self, model: nn.Module, most: float) -> Tensor:
        """Clip the norm of the gradients, which every rank has."""
        return self._replica.clip(model, most)

    def state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Tensors, Tensors]:
        """Return the live tensors, with rank 0's buffers."""
        self.ranks.same_buffers(model)
        return self._replica.state(model, optimizer)

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        model_tensors: Mapping[str, Tensor],
        optimizer_tensors: Mapping[str, Tensor],
    ) -> None:
        """Copy the tensors into both."""
        self._replica.restore(model, optimizer, model_tensors, optimizer_tensors)

    def agree(self, value: float) -> float:
        """Return rank 0's `value`."""
        return self.ranks.agree(value)

    def close(self) -> None:
        """Leave the run."""
        self.ranks.close()


def backward_rows(
    ranks: Ranks,
    model: nn.Module,
    objective: Objective,
    inputs: Inputs,
    targets: Tensor,
    recipe: Recipe,
    scaler: torch.amp.GradScaler | None,
    *,
    scale: float = 1.0,
    quiet: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Tensor:
    """Run forward and backward on this rank's rows and return the mean loss of all rows.

    Each part's loss weighs its share of the batch, so that gradients sum to those of the mean; `scale` undoes a division by the
    wrapper. `quiet` makes the context in which a backward pass sends nothing, for all but the last micro-batch.
    """
    mine = ranks.rows(size(inputs))
    few = mine.start == mine.stop  # fewer rows than ranks: take part with a row of no weight
    chosen = slice(0, 1) if few else mine
    weight = 0.0 if few else (mine.stop - mine.start) / size(inputs)
    rows, wanted = (placed(take(data, chosen), ranks.device) for data in (inputs, targets))
    parts = list(micro_batches(rows, wanted, recipe.accumulate))
    losses: list[Tensor] = []
    with in_touch():
        for number, (some, labels, share) in enumerate(parts, 1):
            with nullcontext() if number == len(parts) else quiet():
                with autocast(recipe, ranks.device):
                    loss = objective(model, some, labels) * (share * weight)
                scaled = loss if scaler is None else scaler.scale(loss)
                torch.autograd.backward(scaled * scale)
            losses.append(loss.detach())
    return ranks.sum(torch.stack(losses).sum())


def forward_rows(ranks: Ranks, model: nn.Module, inputs: Inputs, recipe: Recipe) -> Tensor:
    """Return the outputs for all rows on every rank, each computing its own."""
    mine = ranks.rows(size(inputs))
    chosen = take(inputs, mine if mine.start < mine.stop else slice(1))
    with in_touch(), torch.no_grad(), autocast(recipe, ranks.device):
        found: Tensor = call(model, placed(chosen, ranks.device))
    return ranks.gather(found.float() if found.is_floating_point() else found, size(inputs))
