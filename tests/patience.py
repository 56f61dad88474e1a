"""Searches that tests walk for real: a busy machine gets more time, never another answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from equipoise.road.walk import optimize
from equipoise.study.record import Evaluation, Study
from equipoise.workloads import Workload


def searched(work: Workload, store: Path, *, seconds: float, **options: Any) -> tuple[Study, list[Evaluation]]:
    """Search until something besides the untouched model was measured; the study, and all of that.

    The same study goes on where ``seconds`` were not enough.
    """
    for more in (1, 2, 6):
        study = optimize(work, time=more * seconds, store=store, **options)
        changed = [e for e in study.evaluations if e.ok and e.fidelity != "untouched"]
        if changed:
            break
    return study, changed
