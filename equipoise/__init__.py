"""Equipoise: the best balance between a model's scale and its efficiency, found by search, proven by measurement.

The verbs below are loaded when first used; importing the package costs nothing and imports no torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise.advise.road import scale as scale
    from equipoise.road.walk import optimize as optimize
    from equipoise.study.record import Study as Study
    from equipoise.verbs.compress import distill as distill
    from equipoise.verbs.compress import prune as prune
    from equipoise.verbs.compress import quantize as quantize
    from equipoise.verbs.profile import profile as profile
    from equipoise.verbs.train import train as train
    from equipoise.workloads import Metric as Metric
    from equipoise.workloads import Scores as Scores
    from equipoise.workloads import Task as Task
    from equipoise.workloads import Workload as Workload
    from equipoise.workloads import family as family

__version__ = "0.1.0"

_VERBS = {
    "Metric": "equipoise.workloads",
    "Scores": "equipoise.workloads",
    "Study": "equipoise.study.record",
    "Task": "equipoise.workloads",
    "Workload": "equipoise.workloads",
    "distill": "equipoise.verbs.compress",
    "family": "equipoise.workloads",
    "optimize": "equipoise.road.walk",
    "profile": "equipoise.verbs.profile",
    "prune": "equipoise.verbs.compress",
    "quantize": "equipoise.verbs.compress",
    "scale": "equipoise.advise.road",
    "train": "equipoise.verbs.train",
}
"""Public name -> the module that holds it."""

__all__ = [
    "Metric", "Scores", "Study", "Task", "Workload", "__version__", "distill", "family", "optimize", "profile", "prune",
    "quantize", "scale", "train",
]  # fmt: skip


class _Moved(ModuleType):
    """The module of `optimize` under its former name, for code that still imports it; the verb keeps the name here."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(_VERBS["optimize"]), name)


sys.modules[f"{__name__}.optimize"] = _Moved(f"{__name__}.optimize")


def __getattr__(name: str) -> Any:
    if name not in _VERBS:
        raise AttributeError(f"module 'equipoise' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(_VERBS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
