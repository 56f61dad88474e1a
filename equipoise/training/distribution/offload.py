"""Offload to host memory what a device need not hold all the time."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu

from equipoise.batch import Inputs
from equipoise.training.distribution.base import Distribution, Objective, OneProcess, Tensors
from equipoise.training.recipe import Recipe


class Offloaded:
    """Run another distribution, and keep activations, or master weights and optimizer state, in host memory.

    The numbers are the same. Activations go to the host as the forward pass saves them and come back for the backward pass.
    With `optimizer`, the model that the loop sees and the optimizer's slots lie on the host, where the optimizer steps; the
    device holds a twin, refreshed before each pass, whose gradients are brought back: of Adam's 16 bytes per parameter in
    float32, the device keeps 8. Both cost transfers and time.

    Args:
        inner: One process or data parallel; for sharded models see `Sharded`'s own offload.
        activations, optimizer: What to keep on the host.
    """

    def __init__(self, inner: Distribution, *, activations: bool = False, optimizer: bool = False) -> None:
        self.inner, self.rank, self.world, self.device = inner, inner.rank, inner.world, inner.device
        self.activations, self.optimizer = activations, optimizer
        self._holder = OneProcess() if optimizer else inner  # of what the optimizer steps
        self._twin: list[nn.Module] = []

    def place(self, model: nn.Module) -> nn.Module:
        """Return the model that the optimizer is to be made of."""
        if not self.optimizer:
            return self.inner.place(model)
        model = model.to("cpu")
        twin = self.inner.place(copy.deepcopy(model))
        self._twin[:] = [twin]
        _copy(twin, model)  # a distribution may have chosen rank 0's weights
        return model

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
        """Let the inner distribution make the gradients, and bring them to where the optimizer is."""
        pinned = self.device.type == "cuda"
        with save_on_cpu(pin_memory=pinned) if self.activations else nullcontext():
            loss = self.inner.gradients(self._near(model), objective, inputs, targets, recipe=recipe, scaler=scaler)
        if self.optimizer:
            self._bring_back(model)
        return loss

    def outputs(self, model: nn.Module, inputs: Inputs, *, recipe: Recipe) -> Tensor:
        """Return the inner distribution's outputs."""
        return self.inner.outputs(self._near(model), inputs, recipe=recipe)

    def clip(self, model: nn.Module, most: float) -> Tensor:
        """Clip the gradients where they lie."""
        return self._holder.clip(model, most)

    def state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Tensors, Tensors]:
        """Return the tensors of both."""
        return self._holder.state(model, optimizer)

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        model_tensors: Mapping[str, Tensor],
        optimizer_tensors: Mapping[str, Tensor],
    ) -> None:
        """Copy the tensors into both."""
        self._holder.restore(model, optimizer, model_tensors, optimizer_tensors)

    def agree(self, value: float) -> float:
        """Return rank 0's `value`."""
        return self.inner.agree(value)

    def close(self) -> None:
        """Close the inner distribution."""
        self.inner.close()

    def _near(self, model: nn.Module) -> nn.Module:
        """Return the model that computes, brought up to date."""
        if not self.optimizer:
            return model
        twin = self._twin[0]
        _copy(model, twin)
        for module, its_module in zip(model.modules(), twin.modules(), strict=True):
            its_module.training = module.training
        for mine, its in zip(model.parameters(), twin.parameters(), strict=True):
            its.requires_grad_(mine.requires_grad)
        return twin

    @torch.no_grad()
    def _bring_back(self, model: nn.Module) -> None:
        """Add the twin's gradients to the model's, and take over its buffers."""
        for mine, its in zip(model.parameters(), self._twin[0].parameters(), strict=True):
            if its.grad is not None:
                found = its.grad.to(mine.device)
                mine.grad = found if mine.grad is None else mine.grad + found
                its.grad = None
        for buffer, its_buffer in zip(model.buffers(), self._twin[0].buffers(), strict=True):
            buffer.copy_(its_buffer)


@torch.no_grad()
def _copy(source: nn.Module, target: nn.Module) -> None:
    for kind in ("parameters", "buffers"):
        for value, place in zip(getattr(source, kind)(), getattr(target, kind)(), strict=True):
            place.copy_(value)
