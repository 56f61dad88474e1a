"""Averaged predictions and what they gain."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toys import Accuracy, classes, mlp, seeded

from equipoise.errors import InputError
from equipoise.training import Recipe, Samples, fit
from equipoise.training.ensemble import Ensemble, gain

DATA = classes()


class Squared:
    maximize = False

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        return float((outputs[:, 0] - targets).square().mean())


def test_probabilities_are_averaged() -> None:
    members = [mlp(seed) for seed in range(3)]
    with torch.no_grad():
        expected = torch.stack([m(DATA.inputs).softmax(1) for m in members]).mean(0)
        found = Ensemble(members)(DATA.inputs)
        assert torch.allclose(found.softmax(1), expected, atol=1e-6)
        logits = torch.stack([m(DATA.inputs) for m in members]).mean(0)
        assert not torch.allclose(logits.softmax(1), expected, atol=1e-4)  # control: logits averaged
        single = [mlp(seed, outputs=1) for seed in range(3)]
        yes = torch.stack([m(DATA.inputs).sigmoid() for m in single]).mean(0)
        assert torch.allclose(Ensemble(single)(DATA.inputs).sigmoid(), yes, atol=1e-6)
        values = torch.stack([m(DATA.inputs) for m in single]).mean(0)
        assert torch.allclose(Ensemble(single, kind="values")(DATA.inputs), values, atol=1e-6)


def test_gain_is_that_of_the_ensemble_over_its_members() -> None:
    train, held = classes(120, seed=2), classes(500, seed=3)
    recipe = Recipe(batch=40, lr=0.02)
    members = [fit(mlp(seed), train, loss=F.cross_entropy, steps=30, recipe=recipe).model for seed in range(4)]
    found = gain(Ensemble(members), held, Accuracy())
    assert found.each == pytest.approx([Accuracy().score(m(held.inputs), held.targets) for m in members])
    with torch.no_grad():
        whole = Accuracy().score(Ensemble(members).eval()(held.inputs), held.targets)
    assert found.together == pytest.approx(whole)
    assert found.gain == pytest.approx(whole - sum(found.each) / 4)
    assert found.over_best == pytest.approx(whole - max(found.each))


def test_squared_error_never_loses() -> None:
    """Closed form: by convexity the average's squared error is at most the members' mean, less by their variance."""
    members = [mlp(seed, outputs=1) for seed in range(4)]
    data = Samples(DATA.inputs, DATA.targets.float())
    found = gain(Ensemble(members, kind="values"), data, Squared())
    with torch.no_grad():
        spread = torch.stack([m(data.inputs) for m in members]).var(0, unbiased=False).mean()
    assert found.gain == pytest.approx(float(spread), rel=1e-4)
    alike = gain(Ensemble([members[0]] * 3, kind="values"), data, Squared())  # control: copies gain nothing
    assert alike.gain == pytest.approx(0, abs=1e-6)


def test_bad_ensembles_are_told() -> None:
    with pytest.raises(InputError, match="members must be"):
        Ensemble([])
    with pytest.raises(InputError, match="kind must be one of"):
        Ensemble([nn.ReLU()], kind="votes")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least one sample"):
        gain(Ensemble([mlp()]), Samples(torch.empty(0, 4), torch.empty(0)), Accuracy())
    assert seeded().initial_seed() == 0
