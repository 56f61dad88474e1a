"""Who holds what: the training split of a task shared out over clients, as unevenly as is asked for."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from equipoise.errors import must_be
from equipoise.units import check_seed, is_real, is_whole
from equipoise.workloads import Split

LEAST = 4
"""Samples that every client has: a batch that BatchNorm can normalise."""
DRAWS = 200
"""Shares that are drawn until every client has the least; then samples move from the largest clients to the smallest."""


def shared_out(split: Split, clients: int, *, alpha: float, seed: int = 0, least: int = LEAST) -> tuple[Split, ...]:
    """Share the samples of `split` out over clients; every sample goes to exactly one.

    Labels are skewed: of each class every client has a share that is drawn from a Dirichlet distribution (Hsu et al. 2019,
    arXiv 1909.06335). Where samples have no class (values, a label for each position) the sizes of the clients are drawn so.

    Args:
        split: Training data; the targets are read, the inputs are not.
        clients: How many.
        alpha: Concentration: at 0.1 most clients hold few classes, at 100 all hold about the same; ``inf`` shares out evenly.
        seed: Of the drawing.
        least: Samples that every client gets. Where no drawing gives them, the clients with the most samples give some away.
    Raises:
        InputError: Fewer samples than the clients need, or numbers out of range.

    References:
        Hsu, Qi & Brown 2019, "Measuring the effects of non-identical data distribution for federated visual classification".
    """
    check_seed(seed)
    if not is_whole(clients) or clients < 1:
        raise must_be("clients", "a whole number of at least 1", clients, "Write for example clients=10.")
    if not is_real(alpha) or not alpha > 0:
        raise must_be("alpha", "a number above 0", alpha, "0.1 is very uneven, 100 nearly even.")
    if len(split) < clients * least:
        most = len(split) // least
        raise must_be("clients", f"at most {most} for {len(split)} training samples", clients, f"Each needs {least}.")
    targets, draws = split.targets(), np.random.default_rng(seed)
    kinds = _kinds(targets)
    for _ in range(DRAWS):
        owner = np.empty(len(split), dtype=np.int64)
        for kind in np.unique(kinds):
            rows = draws.permutation(np.flatnonzero(kinds == kind))
            owner[rows] = np.repeat(np.arange(clients), _counts(len(rows), clients, alpha, draws))
        if np.bincount(owner, minlength=clients).min() >= least:
            break
    else:
        owner = _evened(owner, clients, least)
    return tuple(replace(split, order=split.order[torch.from_numpy(np.flatnonzero(owner == one))]) for one in range(clients))


def _kinds(targets: Tensor) -> np.ndarray:
    """The class of each sample; 0 for all where they have none."""
    if targets.ndim == 1 and not targets.is_floating_point():
        return np.asarray(targets.numpy())
    return np.zeros(len(targets), dtype=np.int64)


def _counts(samples: int, clients: int, alpha: float, draws: np.random.Generator) -> np.ndarray:
    """How many of `samples` each client gets; they add up."""
    if math.isinf(alpha):
        extra = draws.permutation(clients) < samples % clients
        return np.full(clients, samples // clients) + extra
    shares = draws.dirichlet(np.full(clients, alpha))
    if not np.isfinite(shares).all():  # of a tiny alpha every number underflows: one client has all
        shares = np.eye(clients)[draws.integers(clients)]
    edges = np.rint(np.cumsum(shares) * samples).astype(np.int64)
    edges[-1] = samples
    return np.diff(edges, prepend=0)


def _evened(owner: np.ndarray, clients: int, least: int) -> np.ndarray:
    """Move samples, one at a time, from the client with the most to one with too few."""
    owner, counts = owner.copy(), np.bincount(owner, minlength=clients)
    while counts.min() < least:
        giver, taker = int(counts.argmax()), int(counts.argmin())
        owner[np.flatnonzero(owner == giver)[0]] = taker
        counts[giver], counts[taker] = counts[giver] - 1, counts[taker] + 1
    return owner
