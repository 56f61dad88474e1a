"""What each rank of the tests runs: cases named on the command line, one after the other, in one group of processes.

``python rank_program.py FOLDER CASE...``; rank 0 leaves in ``FOLDER/CASE.pt`` the losses, the looks and the weights.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.training import Recipe, Samples
from equipoise.training.distribution import Distribution, Objective
from equipoise.training.distribution.data_parallel import DataParallel
from equipoise.training.distribution.launch import connect
from equipoise.training.distribution.pipeline import Pipeline
from equipoise.training.distribution.ranks import Ranks
from equipoise.training.loop import Plan, Progress, Trained, run
from equipoise.training.transfer import unfreezing
from equipoise.training.validation import Validation
from equipoise.workloads.families import family
from equipoise.workloads.task import Shape

BATCH, STEPS = 33, 12


class Block(nn.Module):
    """A residual block: two layers and a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.wide, self.back = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(torch.tanh(self.wide(self.norm(x))))


class Net(nn.Module):
    """Four blocks between a first and a last layer, and a layer that nothing uses."""

    def __init__(self, *, dropout: float = 0.0, batch_norm: bool = False, tied: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.between = nn.Sequential(nn.Dropout(dropout), *([nn.BatchNorm1d(7)] if batch_norm else []))
        self.blocks = nn.ModuleList(Block(7) for _ in range(4))
        self.last = nn.Linear(7, 3)
        self.unused = nn.Linear(2, 2).requires_grad_(False)
        if tied:
            self.blocks[3].wide.weight = self.blocks[0].wide.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self.first(x))
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def net(**changes: Any) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(**changes)


def data(count: int = 150, seed: int = 1) -> Samples:
    inputs = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))
    return Samples(inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long())


def characters(count: int = 150, seed: int = 1) -> Samples:
    text = torch.randint(11, (count, 7), generator=torch.Generator().manual_seed(seed)).cumsum(1) % 11
    return Samples(text[:, :-1], text[:, 1:])


def speller() -> nn.Module:
    """A GPT whose embedding and head share their weight."""
    scale = {"width": 16, "depth": 3, "heads": 2}
    return family("gpt").model(scale, Shape((6,), 11, 11, dense=True), generator=torch.Generator().manual_seed(0))


def objective(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(inputs), targets)


TIED = partial(net, tied=True)


@dataclass(frozen=True)
class Case:
    """One run: where, how, and what breaks it off."""

    where: Callable[[], Distribution]
    recipe: Recipe = field(default_factory=lambda: Recipe(batch=BATCH, lr=1e-2))
    net: Callable[[], nn.Module] = net
    data: Callable[[int, int], Samples] = data
    unfrozen: bool = False
    path: str | None = None
    stop_after: int | None = None


def go(case: Case, folder: Path) -> Trained:
    """Make the run of a case."""

    def break_off(progress: Progress) -> None:
        if progress.step == case.stop_after:
            raise InterruptedError("stopped here")

    model = case.net()
    return run(
        model,
        case.data(150, 1),
        objective,
        case.recipe,
        torch.Generator().manual_seed(3),
        Plan(
            steps=STEPS,
            path=None if case.path is None else folder / case.path,
            every_s=0.0,
            on_step=break_off,
            validation=Validation(case.data(31, 2), F.cross_entropy, every=5, batch=11),
            distribution=case.where(),
            before_step=unfreezing(model, until=0.7) if case.unfrozen else None,
        ),
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"recipe": Recipe(batch=BATCH, lr=1e-2, accumulate=4)},
    "clipped": {"recipe": Recipe(batch=BATCH, lr=5e-2, optimizer="sgd", clip=0.1, schedule="cosine"), "net": TIED},
    "checkpointed": {"recipe": Recipe(batch=BATCH, lr=1e-2, accumulate=3, activation_checkpointing=True)},
    "averaged": {"recipe": Recipe(batch=BATCH, lr=1e-2, ema=0.9, l1=1e-4), "net": TIED},
    "few rows": {"recipe": Recipe(batch=1, lr=1e-3)},
    "muon": {"recipe": Recipe(batch=BATCH, lr=1e-2, optimizer="muon")},
    "unfrozen": {"unfrozen": True},
    "gpt": {"recipe": Recipe(batch=BATCH, lr=0.2, optimizer="sgd", clip=1.0), "net": speller, "data": characters},
}
"""Runs that are one process's wherever they are made. Under Adam the weights of the GPT would not be: the bias of its keys
has no gradient but rounding, which Adam makes as large as any other."""

KINDS: dict[str, Callable[[], Distribution]] = {
    "ddp": lambda: connect("ddp"),
    "fsdp": lambda: connect("fsdp"),
    "pipeline": lambda: connect("pipeline"),
    "gpipe": lambda: Pipeline(_ranks(), schedule="gpipe"),
    "cut": lambda: connect("pipeline", cuts=["blocks.1"]),
    "ddp offloaded": lambda: connect("ddp", offload=["activations", "optimizer"]),
    "fsdp offloaded": lambda: connect("fsdp", offload=["parameters", "activations"]),
}
STAGED = ("pipeline", "gpipe", "cut")


def _ranks() -> Ranks:
    where = connect("ddp")
    return Ranks(where.rank, where.world, where.device)


class Alone(DataParallel):
    """Planted: ranks never average their gradients."""

    def gradients(self, model: nn.Module, objective: Objective, inputs: Tensor, targets: Tensor, **how: Any) -> Tensor:
        with self.wrapper(model).no_sync():
            return super().gradients(model, objective, inputs, targets, **how)


class Unweighted(DataParallel):
    """Planted: ranks count alike, whatever their number of rows."""

    def gradients(self, model: nn.Module, objective: Objective, inputs: Tensor, targets: Tensor, **how: Any) -> Tensor:
        mine = self.ranks.rows(len(inputs))
        loss = objective(self.wrapper(model), inputs[mine], targets[mine])
        torch.autograd.backward(loss)
        return self.ranks.sum(loss.detach()) / self.world


MATRIX = {
    f"{kind}: {variant}": Case(where, **how)
    for kind, where in KINDS.items()
    for variant, how in VARIANTS.items()
    if not (variant == "muon" and kind in STAGED) and (kind, variant) != ("cut", "gpt")
}
RELAY = {
    f"relay: {kind}": Case(KINDS[kind], **VARIANTS["averaged"], path="relay", stop_after=3 + 2 * i)
    for i, kind in enumerate(("ddp", "fsdp", "pipeline"), 1)
}
PLANTED = {"alone": Case(lambda: Alone(_ranks())), "unweighted": Case(lambda: Unweighted(_ranks()))}
DROPOUT = partial(net, dropout=0.2)
OTHERS = {
    "dropout": Case(KINDS["ddp"], net=DROPOUT),
    "dropout stopped": Case(KINDS["ddp"], net=DROPOUT, path="dropout", stop_after=6),
    "dropout resumed": Case(KINDS["ddp"], net=DROPOUT, path="dropout"),
    "norm in micro-batches": Case(KINDS["pipeline"], **VARIANTS["checkpointed"], net=partial(net, batch_norm=True)),
    "norm in shares": Case(KINDS["fsdp"], net=partial(net, batch_norm=True)),
}
CASES: dict[str, Case] = MATRIX | RELAY | PLANTED | OTHERS


def main(folder: Path, names: list[str]) -> None:
    """Run the cases, and leave what they gave."""
    where = connect("ddp")
    for name in names:
        try:
            done = go(CASES[name], folder)
        except InterruptedError:
            continue
        finally:
            where.agree(0.0)  # nobody goes on to the next case before all are done with this one
        if where.rank == 0:
            save(done, folder / f"{name}.pt")
    where.close()


def save(done: Trained, path: Path) -> None:
    looks = torch.tensor([point.validation_loss for point in done.curve], dtype=torch.float64)
    torch.save({"log": torch.tensor(done.log, dtype=torch.float64), "looks": looks, "weights": done.model.state_dict()}, path)


def endless(folder: Path, kind: str, kill_at: int | None) -> None:
    """Train on, saving each step; rank 1 is killed, as the machine might, after step `kill_at`."""
    where = connect(kind, timeout_s=float(os.environ.get("SILENCE_S", "30")))
    (folder / f"pid{where.rank}").write_text(str(os.getpid()))

    def told(progress: Progress) -> None:
        (folder / f"step{where.rank}").write_text(str(progress.step))
        if progress.step == kill_at and where.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    steps = STEPS if kill_at is not None or (folder / "finish").exists() else 10**6
    plan = Plan(steps=steps, path=folder / "kept", every_s=0.0, on_step=told, distribution=where)
    done = run(net(), data(), objective, Recipe(batch=BATCH, lr=1e-2), torch.Generator().manual_seed(3), plan)
    if where.rank == 0:
        save(done, folder / "done.pt")
    where.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[2] == "endless":
        endless(Path(sys.argv[1]), sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else None)
    else:
        main(Path(sys.argv[1]), sys.argv[2:])
