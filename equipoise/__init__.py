"""Equipoise: the best balance between a model's scale and its efficiency, found by search, proven by measurement.

The verbs below are loaded when first used; importing the package costs nothing and imports no torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise.advisor import scale as scale
    from equipoise.profiler import profile as profile
    from equipoise.road import optimize as optimize
    from equipoise.study import Study as Study
    from equipoise.trainer import train as train
    from equipoise.verbs import distill as distill
    from equipoise.verbs import prune as prune
    from equipoise.verbs import quantize as quantize
    from equipoise.workloads import Metric as Metric
    from equipoise.workloads import Task as Task
    from equipoise.workloads import Workload as Workload
    from equipoise.workloads import family as family

__version__ = "0.1.0"

_VERBS = {
    "Metric": "equipoise.workloads",
    "Study": "equipoise.study",
    "Task": "equipoise.workloads",
    "Workload": "equipoise.workloads",
    "distill": "equipoise.verbs",
    "family": "equipoise.workloads",
    "optimize": "equipoise.road",
    "profile": "equipoise.profiler",
    "prune": "equipoise.verbs",
    "quantize": "equipoise.verbs",
    "scale": "equipoise.advisor",
    "train": "equipoise.trainer",
}
"""Public name -> the module that holds it."""

__all__ = [
    "Metric", "Study", "Task", "Workload", "__version__", "distill", "family", "optimize", "profile", "prune",
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
