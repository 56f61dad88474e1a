"""A model that is not a picture: benign or malignant, from 30 measurements (569 real samples that scikit-learn ships).

    equipoise optimize examples/tabular.py:make_workload --target onnxruntime:cpu --budget "drop<=1"

Training takes about two seconds; the accuracy is near 96 %.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import equipoise as eq
from equipoise.training import Recipe, fit
from equipoise.workloads import Split


def make_workload(hidden: int = 128, epochs: float = 30) -> eq.Workload:
    features, labels = load_breast_cancer(return_X_y=True)
    inputs, targets = torch.tensor(features, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    train, validation, test = order[:300], order[300:400], order[400:]
    mean, std = inputs[train].mean(0), inputs[train].std(0)
    data = TensorDataset((inputs - mean) / std, targets)

    def loader(rows: torch.Tensor) -> DataLoader:
        return DataLoader(torch.utils.data.Subset(data, rows.tolist()), batch_size=32)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(30, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2))
    recipe = Recipe(batch=32, lr=3e-3, weight_decay=1e-2)
    model = fit(model, Split.of(loader(train)), loss=F.cross_entropy, epochs=epochs, recipe=recipe).model
    return eq.Workload(
        model=model, train=loader(train), validation=loader(validation), test=loader(test), metric="accuracy", name="tabular"
    )
