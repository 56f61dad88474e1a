"""Pipeline: every rank holds a run of the model's layers, and micro-batches flow through them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from equipoise.errors import EquipoiseError, must_be, unknown
from equipoise.training import checkpoint as saved
from equipoise.training.distribution.base import Objective, Tensors, autocast
from equipoise.training.distribution.ranks import Ranks, in_touch
from equipoise.training.distribution.stages import split
from equipoise.training.outputs import switched
from equipoise.training.recipe import Recipe

SCHEDULES: dict[str, type[ScheduleGPipe] | type[Schedule1F1B]] = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
_Schedule = ScheduleGPipe | Schedule1F1B


class Pipeline:
    """Cut the model into stages, one per rank, and stream micro-batches through them (torch.distributed.pipelining).

    torch.fx reads the model down to its blocks, and it is cut where a single tensor is handed on, so that the stages hold about
    equally many parameters. A step runs in `recipe.accumulate` micro-batches (two per rank where it says 1) of one size: their
    number is changed to the nearest below, else above, that divides the batch. The curve is that of one process; BatchNorm sees
    micro-batches, as it does under gradient accumulation, and dropout draws other masks. A weight that two stages use (tied
    embeddings) is held by both.

    Args:
        ranks: This process's place.
        cuts: Names of the modules at which a new stage begins, in order, one fewer than ranks; empty balances by itself.
        schedule: ``1f1b`` (one forward, one backward in turn: activations of as many micro-batches as there are stages) or
            ``gpipe`` (all forward, then all backward).
    Limits:
        Objectives that call the model once, on the inputs as they are given, and use nothing else of it: a loss of outputs and
        targets, or of the outputs of another model on the same inputs. Neither fp16 nor muon. Every rank reads the whole batch,
        and every rank builds the whole model once in host memory, to cut it.
    References:
        Huang et al. 2019, "GPipe"; Narayanan et al. 2021, "Memory-efficient pipeline-parallel DNN training", for 1F1B.
    """

    def __init__(self, ranks: Ranks, *, cuts: Sequence[str] = (), schedule: str = "1f1b") -> None:
        if schedule not in SCHEDULES:
            raise unknown("pipeline schedule", schedule, SCHEDULES)
        self.ranks, self.rank, self.world, self.device = ranks, ranks.rank, ranks.world, ranks.device
        self.cuts, self.schedule = tuple(cuts), schedule
        self._names: dict[str, str] = {}  # parameter of this stage -> its name in the model
        self._ours: set[str] = set()  # parameters that no earlier stage holds, too
        self._tied: dict[str, torch.Size] = {}  # parameters that several stages hold
        self._unused: Tensors = {}
        self._schedules: dict[tuple[object, ...], _Schedule] = {}
        self._step: tuple[Objective, Iterator[Tensor], int] | None = None

    def place(self, model: nn.Module) -> nn.Module:
        """Return this rank's stage, on the device; its parameters keep their names."""
        stages = split(model, self.world, cuts=self.cuts)
        names = {parameter: name for name, parameter in model.named_parameters()}
        owners: dict[nn.Parameter, list[int]] = {}
        for number, stage in enumerate(stages):
            for parameter in stage.parameters():
                owners.setdefault(parameter, []).append(number)
        self._names = {name: names[parameter] for name, parameter in stages[self.rank].named_parameters()}
        self._ours = {names[parameter] for parameter, numbers in owners.items() if numbers[0] == self.rank}
        self._tied = {names[p]: p.shape for p, numbers in owners.items() if len(numbers) > 1 and p.requires_grad}
        held = {name for stage in stages for name in stage.state_dict()}
        self._unused = {name: tensor for name, tensor in model.state_dict().items() if name not in held}
        return stages[self.rank].to(self.device)

    def gradients(
        self,
        model: nn.Module,
        objective: Objective,
        inputs: Tensor,
        targets: Tensor,
        *,
        recipe: Recipe,
        scaler: torch.amp.GradScaler | None = None,
    ) -> Tensor:
        """Run the micro-batches through the stages; each rank ends with the gradients of its own."""
        if scaler is not None:
            raise must_be("recipe.precision", "fp32 or bf16 in a pipeline", "fp16", "Use bf16: it needs no scaling.")
        if recipe.optimizer == "muon":
            raise must_be("recipe.optimizer", "another than muon in a pipeline", "muon", "Use adamw, or ddp or fsdp.")
        if not isinstance(inputs, Tensor):
            raise must_be("inputs", "one tensor in a pipeline", ", ".join(inputs), "Use ddp or fsdp.")
        first, last = self.rank == 0, self.rank == self.world - 1
        inputs, targets = inputs.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)
        count = _divisor(len(inputs), recipe.accumulate if recipe.accumulate > 1 else 2 * self.world)
        losses: list[Tensor] = []
        with in_touch():
            schedule = self._schedule(model, inputs[: len(inputs) // count], count, recipe)
            self._step = objective, iter(inputs.tensor_split(count)), count
            schedule.step(*([inputs] if first else []), target=targets if last else None, losses=losses, return_outputs=False)
            self._step = None
        self._sum_tied(model)
        return self.ranks.sum(torch.stack(losses).sum().detach() if last else torch.zeros((), device=self.device))

    def outputs(self, model: nn.Module, inputs: Tensor, *, recipe: Recipe) -> Tensor:
        """Return the outputs for the whole batch, run through one stage after the other."""
        _, _, found = self._walk(_Cast(model, recipe, self.device), inputs.to(self.device, non_blocking=True))
        return found.float() if found.is_floating_point() else found

    @in_touch()
    def clip(self, model: nn.Module, most: float) -> Tensor:
        """Clip the norm of the gradients over all stages."""
        ours = (parameter for name, parameter in model.named_parameters() if self._names[name] in self._ours)
        gradients = [parameter.grad for parameter in ours if parameter.grad is not None]
        norm = self.ranks.sum(nn.utils.get_total_norm(gradients).to(self.device) ** 2).sqrt()
        nn.utils.clip_grads_with_norm_(model.parameters(), most, norm)
        return norm

    @in_touch()
    def state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Tensors, Tensors]:
        """Gather the tensors of all stages on every rank, in host memory."""
        slots: Tensors = {}
        for key, tensor in saved.pack_optimizer(model, optimizer).items():
            name, _, slot = key.rpartition(".")
            if self._names[name] in self._ours:
                slots[f"{self._names[name]}.{slot}"] = tensor
        return self._collect(model.state_dict()) | self._unused, self._collect(slots)

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        model_tensors: Mapping[str, Tensor],
        optimizer_tensors: Mapping[str, Tensor],
    ) -> None:
        """Take this stage's tensors."""
        model.load_state_dict({name: model_tensors[name] for name in model.state_dict()})
        own = {whole: name for name, whole in self._names.items()}
        slots: Tensors = {}
        for key, tensor in optimizer_tensors.items():
            name, _, slot = key.rpartition(".")
            if name in own:
                slots[f"{own[name]}.{slot}"] = tensor
        saved.unpack_optimizer(model, optimizer, slots)

    def agree(self, value: float) -> float:
        """Return rank 0's `value`."""
        return self.ranks.agree(value)

    def close(self) -> None:
        """Leave the run."""
        self.ranks.close()

    @torch.no_grad()
    def _sum_tied(self, model: nn.Module) -> None:
        """Give each stage that holds a tied weight the sum of all its gradients, so that its copies stay the same."""
        own = {self._names[name]: parameter for name, parameter in model.named_parameters()}
        for name, shape in self._tied.items():
            parameter = own.get(name)
            known = None if parameter is None else parameter.grad
            total = self.ranks.sum(torch.zeros(shape, device=self.device) if known is None else known)
            trained = parameter is not None and name in self._ours and parameter.requires_grad  # the first holder decides
            wanted = self.ranks.sum(torch.tensor(float(trained), device=self.device))
            if parameter is not None:
                parameter.grad = total if wanted else None

    def _schedule(self, model: nn.Module, part: Tensor, count: int, recipe: Recipe) -> _Schedule:
        """Return the schedule for `count` micro-batches like `part`, made when that form is first met."""
        key = (part.shape, part.dtype, count, recipe.precision)
        if key not in self._schedules:
            stage = _Cast(model, recipe, self.device)
            before, after, _ = self._walk(stage, torch.zeros_like(part))
            forms = [torch.empty_like(form, device="meta").requires_grad_(form.is_floating_point()) for form in (before, after)]
            if self.rank == 0:
                forms[0].requires_grad_(False)
            placed = PipelineStage(stage, self.rank, self.world, self.device, input_args=forms[0], output_args=forms[1])
            kind = SCHEDULES[self.schedule if count >= self.world else "gpipe"]
            self._schedules[key] = kind(placed, count, loss_fn=self._loss(recipe), scale_grads=False)
        return self._schedules[key]

    def _loss(self, recipe: Recipe) -> Any:
        """Return (outputs, targets) -> this micro-batch's part of the mean loss, by the objective of the step under way."""

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            if self._step is None:
                raise RuntimeError("a loss is asked for outside a step")
            objective, parts, count = self._step
            inputs = next(parts)
            with autocast(recipe, self.device):
                return objective(_Answered(inputs, outputs), inputs, targets) / count

        return loss

    @in_touch()
    def _walk(self, stage: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run forward through all stages without gradients; return what enters and leaves this stage and leaves the last."""
        before = after = flow = inputs
        with torch.no_grad(), switched(stage, "eval"):  # a look at the forms must not move BatchNorm's statistics
            for turn in range(self.world):
                if turn == self.rank:
                    before, after = flow, stage(flow)
                flow = self.ranks.tell(after if turn == self.rank else None, turn)
        return before, after, flow

    def _collect(self, own: Mapping[str, Tensor]) -> Tensors:
        """Return the named tensors of all ranks on every rank."""
        whole: Tensors = {}
        for owner in range(self.world):
            names: list[list[str]] = [list(own)]
            dist.broadcast_object_list(names, owner)
            for name in names[0]:
                whole[name] = self.ranks.tell(own[name].to(self.device) if owner == self.rank else None, owner).cpu()
        return whole


class _Cast(nn.Module):
    """A stage under the recipe's precision, handing on what a neighbor can receive."""

    def __init__(self, stage: nn.Module, recipe: Recipe, device: torch.device) -> None:
        super().__init__()
        self.stage, self.recipe, self.device = stage, recipe, device

    def forward(self, flow: Tensor) -> Tensor:
        with autocast(self.recipe, self.device):
            found: Tensor = self.stage(flow).contiguous()
        if torch.is_grad_enabled() and found.is_floating_point() and not found.requires_grad:
            found = found.detach().requires_grad_()  # a frozen stage, whose neighbor still sends gradients
        return found


class _Answered(nn.Module):
    """The model as an objective sees it on the last stage: its outputs are there already."""

    def __init__(self, inputs: Tensor, outputs: Tensor) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs is not self.inputs:
            raise EquipoiseError(
                "the objective of a pipeline must call the model on its inputs as they are; got other inputs. Change inputs in "
                "`augment`, or use ddp or fsdp."
            )
        return self.outputs


def _divisor(rows: int, wanted: int) -> int:
    """Return the divisor of `rows` next to `wanted`: at or below it, but for 1, or else above."""
    divisors = [count for count in range(1, rows + 1) if rows % count == 0]
    below = [count for count in divisors if 1 < count <= wanted]
    return below[-1] if below else next(count for count in divisors if count >= min(wanted, rows))
