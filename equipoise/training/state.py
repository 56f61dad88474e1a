"""All that changes from step to step in a run, and so all that a checkpoint holds."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from equipoise.errors import must_be
from equipoise.training import checkpoint as saved
from equipoise.training.distribution.base import Distribution
from equipoise.training.ema import Average
from equipoise.training.validation import CurvePoint

Stopped = Literal["steps", "seconds", "patience"]
"""Why a run ended."""


@dataclass
class State:
    """A run between two steps.

    Attributes:
        model: As placed.
        where: The distribution that placed it.
        step, epoch, in_epoch: Steps made; whole passes over the data, and steps in the one under way.
        seconds: Wall time of training, over all processes of a resumed run.
        losses, curve: Loss of each step; looks at validation data.
        best, best_tensors, waited: The best look, its weights when they will be wanted, and looks since.
        stopped: Why the run is over, or None.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    where: Distribution
    scaler: torch.amp.GradScaler | None = None
    average: Average | None = None
    step: int = 0
    epoch: int = 0
    in_epoch: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    curve: list[CurvePoint] = field(default_factory=list)
    best: CurvePoint | None = None
    best_tensors: dict[str, Tensor] = field(default_factory=dict)
    waited: int = 0
    stopped: Stopped | None = None

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the weights that the run would return now: the average where there is one."""
        with self.average.swapped() if self.average else nullcontext():
            return {key: value.detach().clone() for key, value in self.where.state(self.model, self.optimizer)[0].items()}

    def save(self, path: Path, identity: dict[str, Any]) -> None:
        """Write a checkpoint; `identity` is what `load` compares."""
        tensors = {f"average.{key}": value for key, value in self.weights().items()} if self.average else {}
        model, optimizer = self.where.state(self.model, self.optimizer)
        if self.where.rank:
            return
        for kind, part in (("model", model), ("optimizer", optimizer), ("best", self.best_tensors)):
            tensors |= {f"{kind}.{key}": value for key, value in part.items()}
        tensors["log"] = torch.tensor(self.losses, dtype=torch.float64)
        facts = {
            **identity,
            **{name: getattr(self, name) for name in ("step", "epoch", "in_epoch", "seconds", "waited", "stopped")},
            "curve": [asdict(point) for point in self.curve],
            "best": None if self.best is None else asdict(self.best),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }
        saved.write(path, tensors, facts)

    def load(self, path: Path, wanted: dict[str, Any]) -> bool:
        """Go on from the checkpoint at `path`, if there is one, and return whether.

        Args:
            path: A file that `save` wrote, with any number of processes.
            wanted: Facts that it must have.
        Raises:
            InputError: The checkpoint is of another run, or not every process sees it.
            StoreError: It cannot be read.
        """
        found = saved.read(path)
        if self.where.agree(float(found is not None)) != float(found is not None):
            raise must_be("checkpoint", "seen by every process", str(path), "Put it into a folder that all machines share.")
        if found is None:
            return False
        tensors, facts = found
        if any(facts.get(key) != value for key, value in wanted.items()):
            raise must_be("checkpoint", "one of this same run", str(path), "Delete it, or name another file.")
        parts: dict[str, dict[str, Tensor]] = {kind: {} for kind in ("model", "optimizer", "average", "best", "log")}
        for key, value in tensors.items():
            kind, _, name = key.partition(".")
            parts[kind][name] = value
        if self.average is not None:
            self.where.restore(self.model, self.optimizer, parts["average"], parts["optimizer"])
            self.average.restart()
        self.where.restore(self.model, self.optimizer, parts["model"], parts["optimizer"])
        if self.scaler is not None and facts["scaler"]:
            self.scaler.load_state_dict(facts["scaler"])
        for name in ("step", "epoch", "in_epoch", "seconds", "waited", "stopped"):
            setattr(self, name, facts[name])
        self.losses, self.best_tensors = tensors["log"].tolist(), parts["best"]
        self.curve = [CurvePoint(**point) for point in facts["curve"]]
        self.best = None if facts["best"] is None else CurvePoint(**facts["best"])
        return True
