"""A genetic algorithm over ten genes: which small net, trained how, is worth its cost on handwritten digits?

    python examples/evolve.py

Half a minute on one core. A candidate is trained from scratch; it is worth its accuracy on validation and what its training
costs (multiply-adds of all steps). The last line compares the front with the random population that it began with.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import equipoise as eq
from equipoise.pareto import hypervolume

GENES = {
    "width": [8, 16, 24, 32, 48, 64, 96, 128],
    "narrowing": [0.5, 0.75, 1.0],
    "depth": range(1, 4),
    "activation": ["relu", "gelu", "tanh"],
    "norm": [False, True],
    "dropout": eq.Real(0.0, 0.5),
    "rate": eq.Real(1e-4, 1e-1, log=True),
    "decay": eq.Real(1e-5, 1e-1, log=True),
    "batch": [16, 32, 64, 128],
    "epochs": range(2, 13),
}
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}

pixels, labels = load_digits(return_X_y=True)
X, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
train, validation = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))[:1500].split((1000, 500))


def worth(width, narrowing, depth, activation, norm, dropout, rate, decay, batch, epochs):
    """Return the accuracy in points and the millions of multiply-adds of its training."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers, inputs = [], 64
        for place in range(depth):
            outputs = max(4, round(width * narrowing**place))
            layers += [nn.Linear(inputs, outputs), *([nn.BatchNorm1d(outputs)] if norm else []), ACTIVATIONS[activation]()]
            inputs = outputs
        net = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(inputs, 10))
        optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=decay)
        for _ in range(epochs):
            for rows in train[torch.randperm(len(train), generator=generator)].split(batch):
                optimizer.zero_grad()
                F.cross_entropy(net(X[rows]), y[rows]).backward()
                optimizer.step()
        with torch.inference_mode():
            right = (net.eval()(X[validation]).argmax(1) == y[validation]).float().mean()
    weights = sum(layer.weight.numel() for layer in net if isinstance(layer, nn.Linear))
    return 100 * float(right), 3 * weights * epochs * len(train) / 1e6


def main(evaluations=150, seed=0):
    torch.set_num_threads(1)
    return eq.evolve(GENES, worth, evaluations=evaluations, maximize=[True, False], seed=seed)


def volume(objectives):
    """Return the hypervolume above 80 points and below 1,000 million multiply-adds."""
    return hypervolume([(-points, cost) for points, cost in objectives if points > 80 and cost < 1000], (-80, 1000))


if __name__ == "__main__":
    found = main()
    for place in found.front:
        points, cost = found.objectives[place]
        print(f"{points:5.1f} points, {cost:6.0f} M multiply-adds: {found.candidates[place]}")
    print("knee:", found.best)
    started = found.history[0][0]
    print(f"hypervolume: {volume(found.objectives) / volume(found.objectives[:started]):.2f} times that of the random start")
