"""Equipoise: the best balance between a model's scale and its efficiency, found by search, proven by measurement.

The verbs below are loaded when first used; importing the package costs nothing and imports no torch.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from equipoise.public import PUBLIC, public

if TYPE_CHECKING:
    from equipoise.events import Event as Event
    from equipoise.federated.federate import federate as federate
    from equipoise.halves.split import split as split
    from equipoise.listeners import Stop as Stop
    from equipoise.road.asking import ask as ask
    from equipoise.road.asking import tell as tell
    from equipoise.road.explain import explain as explain
    from equipoise.road.walk import optimize as optimize
    from equipoise.search.evolution import Evolution as Evolution
    from equipoise.search.evolution import Evolver as Evolver
    from equipoise.search.evolution import evolve as evolve
    from equipoise.search.genes import Real as Real
    from equipoise.ship.export import export as export
    from equipoise.ship.report import report as report
    from equipoise.ship.verify import verify as verify
    from equipoise.sizing.walk import scale as scale
    from equipoise.study.record import Study as Study
    from equipoise.verbs.advise import advise as advise
    from equipoise.verbs.compress import distill as distill
    from equipoise.verbs.compress import prune as prune
    from equipoise.verbs.compress import quantize as quantize
    from equipoise.verbs.early import early_exit as early_exit
    from equipoise.verbs.profile import profile as profile
    from equipoise.verbs.train import train as train
    from equipoise.verbs.weights import factorize as factorize
    from equipoise.verbs.weights import share as share
    from equipoise.verbs.weights import sparsify as sparsify
    from equipoise.workloads import Metric as Metric
    from equipoise.workloads import Scores as Scores
    from equipoise.workloads import Task as Task
    from equipoise.workloads import Workload as Workload
    from equipoise.workloads import family as family

__version__ = "0.1.0"

__all__ = [
    "Event",
    "Evolution",
    "Evolver",
    "Metric",
    "Real",
    "Stop",
    "Study",
    "Task",
    "Workload",
    "__version__",
    "advise",
    "ask",
    "distill",
    "early_exit",
    "evolve",
    "explain",
    "export",
    "factorize",
    "family",
    "federate",
    "optimize",
    "profile",
    "prune",
    "quantize",
    "report",
    "scale",
    "share",
    "sparsify",
    "split",
    "tell",
    "train",
    "verify",
]


class _Moved(ModuleType):
    """The module of `optimize` under its former name, for code that still imports it; the verb keeps the name here."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(sys.modules[public("optimize").__module__], name)


sys.modules[f"{__name__}.optimize"] = _Moved(f"{__name__}.optimize")


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'equipoise' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return public(name)


def __dir__() -> list[str]:
    return sorted(__all__)
