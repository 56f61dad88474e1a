"""What a walk tells whoever listens: the terminal, a notebook, a callback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from equipoise.records import Evaluation


@dataclass(frozen=True)
class Event:
    """What a run says of itself while it goes on: the stage, how far, and an evaluation when one has just been recorded."""

    stage: str
    text: str
    spent_s: float
    limit_s: float
    evaluation: Evaluation | None = None


Listener = Callable[[Event], None]
