"""The public names, and the module that holds each: words only, so that naming one imports nothing.

The one way by which a lower room reaches a verb of a higher one: a `Study` knows the word ``export``, not the room behind it.
"""

from __future__ import annotations

import importlib
from typing import Any

PUBLIC = {
    "Event": "equipoise.events",
    "Evolution": "equipoise.search.evolution",
    "Evolver": "equipoise.search.evolution",
    "Metric": "equipoise.workloads",
    "Real": "equipoise.search.genes",
    "Stop": "equipoise.listeners",
    "Study": "equipoise.study.record",
    "Task": "equipoise.workloads",
    "Workload": "equipoise.workloads",
    "advise": "equipoise.verbs.advise",
    "ask": "equipoise.road.asking",
    "distill": "equipoise.verbs.compress",
    "early_exit": "equipoise.verbs.early",
    "evolve": "equipoise.search.evolution",
    "explain": "equipoise.road.explain",
    "export": "equipoise.ship.export",
    "factorize": "equipoise.verbs.weights",
    "family": "equipoise.workloads",
    "federate": "equipoise.federated.federate",
    "optimize": "equipoise.road.walk",
    "profile": "equipoise.verbs.profile",
    "prune": "equipoise.verbs.compress",
    "quantize": "equipoise.verbs.compress",
    "report": "equipoise.ship.report",
    "scale": "equipoise.sizing.walk",
    "share": "equipoise.verbs.weights",
    "sparsify": "equipoise.verbs.weights",
    "split": "equipoise.halves.split",
    "tell": "equipoise.road.asking",
    "train": "equipoise.verbs.train",
    "verify": "equipoise.ship.verify",
}
"""Public name -> the module that holds it."""


def public(name: str) -> Any:
    """Return what `name` of `PUBLIC` stands for, importing its module now."""
    return getattr(importlib.import_module(PUBLIC[name]), name)
