"""k-fold cross-validation against scikit-learn and by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import cross_val_score
from toys import Accuracy, classes, mlp, seeded

from equipoise.errors import InputError
from equipoise.training import Recipe, Samples, fit
from equipoise.training.crossval import cross_validate, folds
from equipoise.training.linear import solve


@pytest.mark.parametrize(("n", "k"), [(20, 5), (23, 5), (7, 7), (100, 3)])
def test_folds_share_out_every_sample_and_every_class(n: int, k: int) -> None:
    labels = torch.randint(3, (n,), generator=seeded(n))
    parts = folds(labels, k, generator=seeded())
    assert sorted(torch.cat(parts).tolist()) == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for label in range(3):
        counts = [int((labels[part] == label).sum()) for part in parts]
        assert max(counts) - min(counts) <= 1
    values = folds(labels.float(), k, generator=seeded())  # control: values are not shared out by value
    assert n < 100 or any(sorted(a.tolist()) != sorted(b.tolist()) for a, b in zip(parts, values, strict=True))


def test_sorted_data_are_shuffled() -> None:
    first = folds(torch.arange(100).float(), 2, generator=seeded())[0]
    assert abs(float(first.float().mean()) - 49.5) < 15
    assert sorted(first.tolist()) != list(range(0, 100, 2))


def test_scores_are_those_of_scikit_learn_on_the_same_folds() -> None:
    inputs = torch.randn(60, 3, generator=seeded()).double()
    targets = inputs @ torch.tensor([1.0, 2.0, 3.0]).double() + torch.randn(60, generator=seeded(1)).double()

    def learn(part: Samples, held: Samples, generator: torch.Generator) -> float:
        return float((solve(part.inputs, part.targets)(held.inputs) - held.targets).square().mean())

    found = cross_validate(learn, Samples(inputs, targets), k=5, generator=seeded(2))
    parts = folds(targets, 5, generator=seeded(2))
    splits = [(torch.cat([p for j, p in enumerate(parts) if j != i]).numpy(), part.numpy()) for i, part in enumerate(parts)]
    theirs = -cross_val_score(LinearRegression(), inputs.numpy(), targets.numpy(), cv=splits, scoring="neg_mean_squared_error")
    assert found.scores == pytest.approx(theirs.tolist())
    assert found.mean == pytest.approx(theirs.mean())
    assert found.spread == pytest.approx(theirs.std(ddof=1))
    assert "over 5 folds" in str(found)


def test_labels_that_say_nothing_score_at_chance() -> None:
    """Negative control: a fold that leaked its labels would score better than one in three."""
    noise = Samples(classes(90).inputs, torch.randint(3, (90,), generator=seeded(4)))

    def learn(part: Samples, held: Samples, generator: torch.Generator) -> float:
        done = fit(
            mlp(),
            part,
            loss=F.cross_entropy,
            steps=40,
            recipe=Recipe(batch=30, lr=0.02),
            validation=held,
            metric=Accuracy(),
            evaluate_steps=40,
            generator=generator,
        )
        return done.curve[-1].validation_metric or 0.0

    assert cross_validate(learn, noise, k=3, generator=seeded()).mean == pytest.approx(1 / 3, abs=0.17)
    assert cross_validate(learn, classes(90), k=3, generator=seeded()).mean > 0.6
    assert cross_validate(learn, noise, k=3, generator=seeded()) == cross_validate(learn, noise, k=3, generator=seeded())


@pytest.mark.parametrize("k", [0, 1, 5])
def test_number_of_folds_must_fit(k: int) -> None:
    with pytest.raises(InputError, match="k must be from 2 to the 4 samples"):
        folds(torch.zeros(4), k, generator=seeded())
