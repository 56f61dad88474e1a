"""Dropout by recipe: the layers a model has, or the inputs of its linear layers; nothing is left behind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import classes, mlp, same_weights

from equipoise.errors import InputError
from equipoise.training import Recipe, fit
from equipoise.training.dropout import dropping
from equipoise.workloads import load_task
from equipoise.workloads.families import family

ONES = torch.ones(400, 8)


def shares(model: nn.Module) -> list[float]:
    """Share of zeros that each linear layer reads from inputs that have none."""
    found: list[float] = []
    handles = [
        m.register_forward_hook(lambda _, inputs, __: found.append(float((inputs[0] == 0).float().mean())))
        for m in model.modules()
        if isinstance(m, nn.Linear)
    ]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model(ONES)
    for handle in handles:
        handle.remove()
    return found


def test_layers_of_the_model_take_the_share_and_give_it_back() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    with dropping(model, 0.25):
        assert shares(model) == [0.0, pytest.approx(0.25, abs=0.05)]
    assert model[2].p == 0.5
    with dropping(model, 0.0):
        assert shares(model) == [0.0, 0.0]
    with dropping(model, None):
        assert shares(model) == [0.0, pytest.approx(0.5, abs=0.05)]


def test_without_layers_for_it_all_linear_layers_but_the_first_read_dropped_features() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 2)).train()
    names = list(model.state_dict())
    with dropping(model, 0.25):
        assert shares(model) == [0.0, pytest.approx(0.25, abs=0.05), pytest.approx(0.25, abs=0.05)]
        assert list(model.state_dict()) == names
        assert shares(model.eval()) == [0.0, 0.0, 0.0]
    assert shares(model.train()) == [0.0, 0.0, 0.0]


def test_expected_features_stay() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.Flatten(), nn.Linear(4, 1, bias=False)).train()
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    inputs = torch.ones(40_000, 1, 1, 1)
    with torch.no_grad(), torch.random.fork_rng(), dropping(model, 0.3):
        torch.manual_seed(0)
        assert float(model(inputs).mean()) == pytest.approx(float(model.eval()(inputs).mean()), rel=0.02)


def test_what_cannot_drop_is_refused() -> None:
    with pytest.raises(InputError, match=r"recipe\.dropout"), dropping(nn.Sequential(nn.Linear(8, 2)), 0.5):
        pass
    with pytest.raises(InputError, match=r"recipe\.dropout"):
        Recipe(dropout=1.0)


def test_a_run_drops_and_resumes_to_the_same_bits(tmp_path) -> None:
    def train(share: float | None, steps: int = 12, **more: object):
        recipe = Recipe(batch=32, schedule="constant", dropout=share)
        return fit(mlp(), classes(), loss=F.cross_entropy, steps=steps, recipe=recipe, **more)  # type: ignore[arg-type]

    whole, plain = train(0.5), train(None)
    assert whole.log != plain.log
    assert train(0.0).log == plain.log
    assert not any(m._forward_pre_hooks for m in whole.model.modules())
    trunk = tmp_path / "trunk.safetensors"
    train(0.5, steps=6, checkpoint=trunk)
    resumed = train(0.5, start=trunk)
    assert resumed.log == whole.log
    assert same_weights(resumed.model, whole.model)


@pytest.mark.parametrize("name", ["mlp", "cnn", "speed", "encoder"])
def test_families_can_drop(name: str) -> None:
    task = load_task("digits")
    model = family(name).model({}, task, generator=torch.Generator().manual_seed(0)).train()
    inputs = task.train.take(16).tensors()[0]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        plain = model(inputs)
        model.load_state_dict(state)
        with dropping(model, 0.5):
            dropped = model(inputs)
        model.load_state_dict(state)
        assert not torch.equal(dropped, plain)
        assert torch.equal(model(inputs), plain)
