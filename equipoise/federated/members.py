"""The clients of a federation in one process, and the models of their scales."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import nn

from equipoise.federated.client import Client
from equipoise.federated.cuts import Cut, cuts_of
from equipoise.federated.memory import Memory
from equipoise.federated.partition import shared_out
from equipoise.federated.terms import Terms
from equipoise.training import Recipe
from equipoise.workloads import Task


def members(
    terms: Terms, task: Task, cuts: Mapping[float, Cut], recipe: Recipe, *, folder: Path | None, of: Iterable[int] | None = None
) -> dict[int, Client]:
    """Return the clients by number, each with its part of the training split.

    Args:
        folder: What a client keeps between rounds lies in ``folder/NUMBER``; None: in this process.
        of: Which of them; None: all that take part.
    Raises:
        InputError: Fewer samples than the clients need.
    """
    parts = shared_out(task.train, terms.clients, alpha=terms.alpha, seed=terms.seed)
    return {
        number: Client(
            number,
            terms,
            parts[number],
            cuts[terms.scale(number)].model,
            task.loss,
            recipe,
            task.augment,
            Memory(None if folder is None else folder / str(number)),
        )
        for number in (terms.able if of is None else of)
    }


def cuts_for(terms: Terms, task: Task, model: nn.Module) -> dict[float, Cut]:
    """Return what a client of each scale holds of `model`."""
    return cuts_of(model, task.example, terms.scales)
