"""Where a run stands, as it is told after each step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from equipoise.training.validation import CurvePoint


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands after a step.

    Attributes:
        step, epoch: Steps made; passes over the data.
        fraction: Share of the run that is done.
        loss, lr: Of the step.
        seconds: Of training so far, over all processes of a resumed run.
        point: What validation data said after this step, or None where they were not looked at.
        stage: What is done in place of steps of training; empty for those.
    """

    step: int
    fraction: float
    loss: float
    lr: float
    seconds: float
    epoch: float = 0.0
    point: CurvePoint | None = None
    stage: str = ""

    @property
    def left_s(self) -> float:
        """Seconds that the rest will take at the pace so far."""
        return self.seconds * (1 - self.fraction) / self.fraction if self.fraction else math.inf

    def __str__(self) -> str:
        if self.stage:
            return f"{100 * self.fraction:.0f} % of {self.stage}"
        return f"step {self.step}, {100 * self.fraction:.0f} % of training, loss {self.loss:.4g}"
