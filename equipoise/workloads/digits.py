"""The embedded workload: 1,797 real handwritten digits and a net that learns them in seconds."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from equipoise.workloads.augment import shifted
from equipoise.workloads.base import Workload
from equipoise.workloads.data import Split
from equipoise.workloads.models import DigitsNet
from equipoise.workloads.task import Task

TRAIN, VALIDATION = 797, 400
"""Samples of the fixed split; the other 600 are the test split, where 1 % of changed answers is a drop known to ±0.8 points."""


def digits(*, state: Mapping[str, Tensor] | None = None, seed: int = 0) -> Workload:
    """Return the digits workload with a trained `DigitsNet`.

    Args:
        state: Weights made earlier by `train_digits`; None trains now, which takes seconds.
        seed: Of the training, when it is done here. The split does not depend on it.
    """
    train, validation, test = digits_splits()
    model = digits_net(seed)
    model.load_state_dict(train_digits(seed) if state is None else state)
    return Workload(
        name="digits", model=model, train=train, validation=validation, test=test, metric="accuracy", augment=shifted(1)
    )


def digits_task() -> Task:
    """Return the same splits, metric and augmentation as a task, without a model; nothing is trained."""
    train, validation, test = digits_splits()
    return Task.of(train=train, validation=validation, test=test, augment=shifted(1), outputs=10, name="digits")


def digits_net(seed: int) -> DigitsNet:
    """Return an untrained net whose weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):  # module constructors draw from the global generator; leave it as it was
        torch.manual_seed(seed)
        return DigitsNet()


def digits_splits() -> tuple[Split, Split, Split]:
    """Return the train, validation and test splits: fixed, disjoint, inputs (N, 1, 8, 8) in 0..1."""
    images, labels = _read()
    everything = Split.of((images.reshape(-1, 1, 8, 8) / 16, labels), name="digits")
    edge = TRAIN + VALIDATION
    return (
        everything.part(0, TRAIN, name="train"),
        everything.part(TRAIN, edge, name="validation"),
        everything.part(edge, name="test"),
    )


def _read() -> tuple[Tensor, Tensor]:
    """Read scikit-learn's own file where it lies; importing scikit-learn for it would cost seconds."""
    found = importlib.util.find_spec("sklearn")
    places = list(found.submodule_search_locations or ()) if found else []
    file = Path(places[0]) / "datasets" / "data" / "digits.csv.gz" if places else None
    if file is not None and file.is_file():
        rows = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
        return rows[:, :-1], rows[:, -1].long()
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images).float(), torch.from_numpy(labels).long()


def train_digits(seed: int = 0, *, epochs: int = 10, batch: int = 32, lr: float = 4e-3) -> dict[str, Tensor]:
    """Train `DigitsNet` and return its weights; the same seed on the same kind of machine gives the same weights.

    One cosine cycle of AdamW with random shifts by one pixel, on one thread: sums do not depend on how many there are, and such
    small layers gain little from more. The loop is written out here because a workload must not need the training package.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _trained(seed, epochs, batch, lr)
    finally:
        torch.set_num_threads(threads)


def _trained(seed: int, epochs: int, batch: int, lr: float) -> dict[str, Tensor]:
    train, augment = digits_splits()[0], shifted(1)
    model, generator = digits_net(seed).train(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)
    total, step = epochs * (len(train) // batch), 0
    for _ in range(epochs):
        for inputs, labels in train.batches(batch, shuffle_with=generator):
            optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 20) * (1 + math.cos(math.pi * step / total)) / 2
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(augment(inputs, generator)), labels, label_smoothing=0.05)
            torch.autograd.backward(loss)
            optimizer.step()
            step += 1
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
