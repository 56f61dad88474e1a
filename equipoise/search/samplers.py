"""Optuna's samplers in place of the guided search, to compare: they see what was measured, and no tables."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from equipoise.errors import missing_extra, unknown
from equipoise.records import Plan
from equipoise.search.propose import Evaluated
from equipoise.search.space import Space

SAMPLERS = ("tpe", "nsga2", "gp", "random")
POPULATION = 24
"""Of NSGA-II: of 24 and Optuna's 50 the better one on a ResNet-20 (benchmarks/search_quality.py)."""
TRIES = 10
"""Asked so many times for each plan wanted; a sampler names some twice."""


def sampled(space: Space, tried: Evaluated, *, name: str, count: int, seed: int, number: int) -> list[Plan]:
    """Return up to `count` new plans that a sampler of Optuna's asks for next, loss and costs minimized.

    Args:
        name: One of `SAMPLERS`.
        number: Of the round; each has random numbers of its own.
    Raises:
        InputError: No such sampler.
        MissingExtraError: Optuna, or what its sampler needs, is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise missing_extra("optuna", "optuna") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    drawn = int(np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1)[0])
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        made: dict[str, Any] = {
            "tpe": lambda: optuna.samplers.TPESampler(seed=drawn),
            "nsga2": lambda: optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=drawn),
            "gp": lambda: optuna.samplers.GPSampler(seed=drawn),
            "random": lambda: optuna.samplers.RandomSampler(seed=drawn),
        }
        if name not in made:
            raise unknown("sampler", name, SAMPLERS)
        study = optuna.create_study(directions=["minimize"] * (1 + tried.costs.shape[1]), sampler=made[name]())
        menus: dict[str, Any] = {k.name: optuna.distributions.CategoricalDistribution(k.menu) for k in space.knobs}
        for index, (plan, loss, costs) in enumerate(
            zip(space.decode_all(tried.genomes), tried.losses, tried.costs, strict=True)
        ):
            trial = optuna.trial.create_trial(
                values=[float(loss), *map(float, costs)],
                params=dict(plan.choices),
                distributions=menus,
                system_attrs={"NSGAIISampler:generation": index // POPULATION},
            )
            study.add_trial(trial)
        seen = {genome.tobytes() for genome in tried.genomes}
        plans: list[Plan] = []
        for _ in range(TRIES * count):
            asked = study.ask(menus)
            plan = space.decode(space.encode(Plan(dict(asked.params))))
            genome = space.encode(plan).tobytes()
            if genome not in seen:
                seen.add(genome)
                plans.append(plan)
            if len(plans) == count:
                break
    return plans
