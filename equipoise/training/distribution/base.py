"""How one step's gradients are made: here on one device, in the other files of this room on many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, call, mapped, take
from equipoise.training import checkpoint as saved
from equipoise.training.recipe import Recipe

Objective = Callable[[nn.Module, Inputs, Tensor], Tensor]
"""(model, inputs, targets) -> scalar loss, a mean over the samples."""

Tensors = dict[str, Tensor]

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions under which the forward pass runs in autocast; ``fp32`` has none."""


class Distribution(Protocol):
    """Where a run's model, optimizer and batches lie; all processes of a run make the same calls in the same order.

    Each process is given the whole batch, drawn and augmented alike everywhere, and takes its own rows. The run's losses and
    weights are those of one process, up to the order in which floating-point numbers are added.

    Attributes:
        rank, world: This process's number, from 0, and how many there are.
        device: Where this process computes.
    """

    @property
    def rank(self) -> int:
        """Return the number of this process, from 0; files are written by 0 alone."""
        ...

    @property
    def world(self) -> int:
        """Return the number of processes."""
        ...

    @property
    def device(self) -> torch.device:
        """Return where this process computes."""
        ...

    def place(self, model: nn.Module) -> nn.Module:
        """Move `model` to the device and wrap it; called once, before the optimizer is made of what it returns."""
        ...

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
        """Add the gradients of the mean loss over the whole batch to the parameters' (cleared before) and return that loss.

        Args:
            model: What `place` returned.
            objective: Called on micro-batches, under `autocast`; a mean over the samples it is given.
            inputs, targets: The whole batch (N, ...), the same on every process.
            recipe: Gives the number of micro-batches (`accumulate`) and the precision.
            scaler: Scales the loss before the backward pass (fp16); the loop undoes it afterwards.
        Returns:
            The mean loss over the whole batch: detached, unscaled, zero-dimensional, the same on every process. It stays on
            the device, so that the host need not wait for it.
        """
        ...

    def outputs(self, model: nn.Module, inputs: Inputs, *, recipe: Recipe) -> Tensor:
        """Return the outputs (N, ...) for the whole batch as float32 or integers, without gradients, on every process.

        `model` is what `place` returned, already in evaluation mode.
        """
        ...

    def clip(self, model: nn.Module, most: float) -> Tensor:
        """Scale the gradients so that their norm over all parameters is at most `most`; return the norm before."""
        ...

    def state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Tensors, Tensors]:
        """Return the whole model and optimizer on every process, under the names that one process gives them.

        Returns:
            The `state_dict` of the model as it was before `place`, and the optimizer's tensors as ``<parameter>.<slot>``; they
            may share memory with the live ones.
        """
        ...

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        model_tensors: Mapping[str, Tensor],
        optimizer_tensors: Mapping[str, Tensor],
    ) -> None:
        """Give model and optimizer what `state` took, in a run of this or another number of processes."""
        ...

    def agree(self, value: float) -> float:
        """Return the `value` of process 0, so that all decide alike by the clock."""
        ...

    def close(self) -> None:
        """Release what `place` or the connection holds; the caller that made the distribution calls it."""
        ...


@dataclass(frozen=True)
class OneProcess:
    """The whole run in this process, on one device."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world: int = 1

    def place(self, model: nn.Module) -> nn.Module:
        """Move `model` to the device, in place."""
        return model.to(self.device)

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
        """Run forward and backward on each micro-batch; return the mean loss."""
        inputs, targets = placed(inputs, self.device), targets.to(self.device, non_blocking=True)
        losses: list[Tensor] = []
        for rows, wanted, share in micro_batches(inputs, targets, recipe.accumulate):
            with autocast(recipe, self.device):
                loss = objective(model, rows, wanted)
            loss = loss if share == 1 else loss * share
            torch.autograd.backward(loss if scaler is None else scaler.scale(loss))
            losses.append(loss.detach())
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def outputs(self, model: nn.Module, inputs: Inputs, *, recipe: Recipe) -> Tensor:
        """Return the outputs of one forward pass."""
        with torch.no_grad(), autocast(recipe, self.device):
            found: Tensor = call(model, placed(inputs, self.device))
        return found.float() if found.is_floating_point() else found

    def clip(self, model: nn.Module, most: float) -> Tensor:
        """Clip the norm of all gradients."""
        return nn.utils.clip_grad_norm_(model.parameters(), most)

    def state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Tensors, Tensors]:
        """Return the live tensors of both."""
        return dict(model.state_dict()), saved.pack_optimizer(model, optimizer)

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        model_tensors: Mapping[str, Tensor],
        optimizer_tensors: Mapping[str, Tensor],
    ) -> None:
        """Copy the tensors into both."""
        model.load_state_dict(dict(model_tensors))
        saved.unpack_optimizer(model, optimizer, optimizer_tensors)

    def agree(self, value: float) -> float:
        """Return `value`: there is nobody else."""
        return value

    def close(self) -> None:
        """Do nothing: nothing is held."""


def beside(model: nn.Module) -> OneProcess:
    """Return this process, computing where `model` lies."""
    return OneProcess(next((parameter.device for parameter in model.parameters()), torch.device("cpu")))


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a forward pass has the recipe's precision on `device`."""
    if recipe.precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, PRECISIONS[recipe.precision])


def placed(inputs: Inputs, device: torch.device) -> Inputs:
    """Return inputs on `device`."""
    return mapped(inputs, lambda value: value.to(device, non_blocking=True))


def micro_batches(inputs: Inputs, targets: Tensor, count: int) -> Iterator[tuple[Inputs, Tensor, float]]:
    """Yield (inputs, targets, share of the rows) of up to `count` nearly equal parts of a batch, none of them empty."""
    if count == 1:
        yield inputs, targets, 1.0
        return
    start = 0
    for wanted in targets.tensor_split(count):
        stop = start + len(wanted)
        if start < stop:
            yield take(inputs, slice(start, stop)), wanted, len(wanted) / len(targets)
        start = stop
