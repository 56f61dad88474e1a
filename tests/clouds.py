"""A federation that trains in milliseconds: points in three clouds, a net of one hidden layer."""

from __future__ import annotations

from typing import Any

import torch

from equipoise.federated.federate import usual
from equipoise.federated.members import cuts_for, members
from equipoise.federated.rounds import Hall
from equipoise.federated.state import Server, travelling
from equipoise.federated.strategies import strategy_of
from equipoise.federated.terms import Terms
from equipoise.training import Recipe
from equipoise.workloads import Task, load_family

SGD = Recipe(optimizer="sgd", lr=0.1, schedule="constant", warmup=0, momentum=0.0, nesterov=False, clip=None, weight_decay=0.0)


def clouds(samples: int = 240, seed: int = 0) -> Task:
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 3
    centres = torch.tensor([[2.0, 0, 0, 0, 0, 0], [0, 2, 0, 0, 0, 0], [0, 0, 2, 0, 0, 0]])
    inputs = centres[labels] + 0.7 * torch.randn(samples, 6, generator=draws)
    edge = 2 * samples // 3
    return Task.of(train=(inputs[:edge], labels[:edge]), test=(inputs[edge:], labels[edge:]), outputs=3, name="clouds")


def federation(task: Task | None = None, recipe: Recipe | None = None, family: str = "mlp", **given: Any) -> Any:
    """(hall, server, clients, task) before the first round."""
    terms = Terms(**{"clients": 4, "rounds": 3, "epochs": 1.0, "limit_s": 60.0, **given})
    task, made = task or clouds(), load_family(family)
    scale = {"width": 16, "depth": 2} if family == "mlp" else {}
    model = made.model(scale, task, generator=torch.Generator().manual_seed(0))
    cuts = cuts_for(terms, task, model)
    clients = members(terms, task, cuts, recipe or usual(task, made, terms), folder=None)
    hall = Hall(terms, strategy_of(terms.strategy), cuts)
    largest = cuts[max(cuts)].model
    server: Server = hall.strategy.begin(travelling(largest), [name for name, _ in largest.named_parameters()])
    return hall, server, clients, task
