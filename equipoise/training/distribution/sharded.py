"""Fully sharded data parallel: every rank takes its rows and holds its share of each weight, gradient and optimizer slot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.nn.modules.batchnorm import _BatchNorm

from equipoise.batch import Inputs
from equipoise.errors import must_be
from equipoise.training import checkpoint as saved
from equipoise.training.blocks import blocks
from equipoise.training.distribution.base import PRECISIONS, Objective, Tensors
from equipoise.training.distribution.data_parallel import backward_rows, forward_rows
from equipoise.training.distribution.ranks import Ranks, in_touch
from equipoise.training.recipe import Recipe
from equipoise.training.shards import shared_as, whole


class Sharded:
    """Shard weights, gradients and optimizer state over the ranks, block by block (torch's FSDP2).

    A rank holds one block whole at a time, so a model larger than a device trains when its largest block and the activations
    fit. The curve is that of one process, with the exceptions of `DataParallel` (BatchNorm, which stays per rank here, and
    dropout).

    Attributes:
        precision: ``bf16`` or ``fp16`` gather weights and compute blocks in it, but for BatchNorm; gradients are summed in
            float32.
        offload: Keep the shares in host memory, and bring a block to the device when it is needed. With one rank this runs a
            model larger than the device, layer by layer.
    Limits:
        `DataParallel`'s. Micro-batches each send their gradients, so that these stay sharded.
    """

    def __init__(self, ranks: Ranks, *, precision: str = "fp32", offload: bool = False) -> None:
        self.ranks, self.rank, self.world, self.device = ranks, ranks.rank, ranks.world, ranks.device
        self.precision, self.offload = precision, offload

    @in_touch()
    def place(self, model: nn.Module) -> nn.Module:
        """Shard the parts of `model` and then the rest, in place; rank 0's weights are the ones that count."""
        model = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # FSDP2 shards no other
        mesh = init_device_mesh(self.device.type, (self.world,))
        travels = MixedPrecisionPolicy(param_dtype=PRECISIONS.get(self.precision), reduce_dtype=torch.float32)
        lies = CPUOffloadPolicy(pin_memory=self.device.type == "cuda") if self.offload else OffloadPolicy()
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), 0)
        if self.precision != "fp32":  # running statistics are float32, and want weights of their kind beside them
            for norm in (module for module in model.modules() if isinstance(module, _BatchNorm)):
                fully_shard(norm, mesh=mesh, mp_policy=MixedPrecisionPolicy(), offload_policy=lies)
        for part in parts(model):
            if not isinstance(part, FSDPModule):
                fully_shard(part, mesh=mesh, mp_policy=travels, offload_policy=lies)
        fully_shard(model, mesh=mesh, mp_policy=travels, offload_policy=lies)
        for module in _sharded(model):  # sum, as losses are weighted; averaging is wrong on gloo in some versions of torch
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
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
        """Run this rank's rows; each gradient is summed on the rank that holds its share."""
        if scaler is not None and self.offload:
            raise must_be("recipe.precision", "fp32 or bf16 with parameters offloaded", "fp16", "Use bf16.")
        return backward_rows(self.ranks, model, objective, inputs, targets, recipe, scaler)

    def outputs(self, model: nn.Module, inputs: Inputs, *, recipe: Recipe) -> Tensor:
        """Return the outputs for the whole batch, each rank computing its rows."""
        self.ranks.same_buffers(model)
        found = forward_rows(self.ranks, model, inputs, recipe)
        for module in _sharded(model):  # a root keeps its weights whole after a forward pass, for a backward pass to come
            module.reshard()
        return found

    @in_touch()
    def clip(self, model: nn.Module, most: float) -> Tensor:
        """Clip the norm of the gradients over all ranks."""
        return whole(nn.utils.clip_grad_norm_(model.parameters(), most))

    @in_touch()
    def state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Tensors, Tensors]:
        """Gather every tensor on every rank, in host memory."""
        self.ranks.same_buffers(model)
        model_tensors, slots = model.state_dict(), saved.pack_optimizer(model, optimizer)
        gathered = [{name: whole(tensor).cpu() for name, tensor in some.items()} for some in (model_tensors, slots)]
        return gathered[0], gathered[1]

    @in_touch()
    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        model_tensors: Mapping[str, Tensor],
        optimizer_tensors: Mapping[str, Tensor],
    ) -> None:
        """Keep this rank's share of each tensor."""
        live = model.state_dict()
        model.load_state_dict({name: shared_as(tensor, live[name]) for name, tensor in model_tensors.items()})
        owners = dict(model.named_parameters())
        slots = {key: shared_as(tensor, owners[key.rpartition(".")[0]]) for key, tensor in optimizer_tensors.items()}
        saved.unpack_optimizer(model, optimizer, slots)

    def agree(self, value: float) -> float:
        """Return rank 0's `value`."""
        return self.ranks.agree(value)

    def close(self) -> None:
        """Leave the run."""
        self.ranks.close()


def parts(model: nn.Module) -> list[nn.Module]:
    """Return the parts to shard each on its own: the model's blocks, or its lone layers where it has none.

    What shares a weight with another part (tied embeddings) is left to the root.
    """
    modules = dict(model.named_modules())
    lone = [name for name, module in modules.items() if name and any(True for _ in module.parameters(recurse=False))]
    uses = Counter(parameter for module in modules.values() for parameter in module.parameters(recurse=False))
    chosen = [modules[name] for name in blocks(model) or lone]
    return [part for part in chosen if all(uses[parameter] == 1 for parameter in part.parameters())]


def _sharded(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
