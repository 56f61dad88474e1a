"""Weights on the grid of a scheme: nearer than rounding alone, on a second oracle, and the input left as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from equipoise.compress.builder import Builder
from equipoise.compress.rounding import on_grid, rounded_matrix, scales
from equipoise.compress.subject import Subject
from equipoise.errors import InputError
from equipoise.records import Plan
from equipoise.road.survey import survey
from equipoise.schemes import SCHEMES, group, top

ENCODED = [choice for choice, scheme in SCHEMES.items() if scheme.encoded and scheme.bits < 16]


def correlated(columns: int = 64, rows: int = 400) -> Tensor:
    """Inputs (rows, columns) whose columns say much about one another."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(columns, columns, generator=generator, dtype=torch.float64) + 3.0
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) @ mixed


def weights(outputs: int = 12, columns: int = 64) -> Tensor:
    return torch.randn(outputs, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def one_by_one(weight: Tensor, second: Tensor, steps: Tensor, most: int) -> Tensor:
    """Optimal brain quantization as it is written down: the inverse is downdated after every column, no blocks, no factor."""
    damped = second + 0.01 * second.diagonal().mean() * torch.eye(len(second), dtype=second.dtype)
    inverse, left, done = torch.linalg.inv(damped), weight.clone(), weight.clone()
    for column in second.diagonal().argsort(descending=True).tolist():
        done[:, column] = (left[:, column] / steps[:, column]).round().clamp(-most, most) * steps[:, column]
        lost = (left[:, column] - done[:, column]) / inverse[column, column]
        left -= torch.outer(lost, inverse[column])
        inverse = inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
        inverse[column], inverse[:, column] = 0.0, 0.0
        inverse[column, column] = 1.0  # never read again
    return done


@pytest.mark.parametrize("choice", ENCODED)
def test_it_is_the_published_algorithm_and_loses_less_than_rounding_alone(choice: str) -> None:
    x, weight = correlated(), weights()
    second = x.T @ x / len(x)
    most, size = top(choice, exact=False), group(choice, "linear", 64)
    steps = scales(weight, second.diagonal(), most, size).repeat_interleave(size, 1)
    slow = one_by_one(weight, second, steps, most)
    nearest = (weight / steps).round().clamp(-most, most) * steps

    def lost(found: Tensor) -> Tensor:
        return ((found - weight) @ x.T).square().sum(1)

    found = rounded_matrix(weight, choice, "linear", second, exact=False)
    better = lost(slow) < lost(nearest)
    assert better.any()
    assert torch.allclose(found[better], slow[better])
    assert (lost(found) <= lost(nearest) * (1 + 1e-9)).all()
    assert lost(found).sum() < 0.7 * lost(nearest).sum()
    assert not torch.allclose(nearest[better], slow[better]), "the oracle tells the two apart"


@pytest.mark.parametrize("choice", ENCODED)
@pytest.mark.parametrize("known", [True, False])
def test_every_group_lies_on_its_grid(choice: str, known: bool) -> None:
    x, weight = correlated(), weights()
    found = rounded_matrix(weight, choice, "linear", x.T @ x / len(x) if known else None, exact=True)
    most, size = top(choice, exact=True), group(choice, "linear", 64)
    for row in found.reshape(-1, size):
        level = next((k for k in range(1, most + 1) if _whole(row / (row.abs().max() / k))), None)
        assert level is not None
    off = found + 1e-2 * torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    row = off.reshape(-1, size)[0]
    assert not any(_whole(row / (row.abs().max() / k)) for k in range(1, 8)), "what lies off the grid is seen"


def _whole(values: Tensor) -> bool:
    return bool((values - values.round()).abs().max() < 1e-4)


class Net(nn.Module):
    """Every kind of layer that can be held on a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.a, self.b = nn.Embedding(20, 64), nn.Linear(64, 32), nn.Linear(32, 16, bias=False)
        self.filters = nn.Conv1d(16, 8, 3, padding=1, groups=2)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for value in self.parameters():
                value.normal_(std=0.3, generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.b(torch.relu(self.a(self.table(ids))))
        out: Tensor = self.filters(x.transpose(1, 2)).mean(2)
        return out


def test_a_model_is_rounded_on_a_copy_and_its_biases_take_the_mean() -> None:
    net, ids = Net().eval(), torch.randint(0, 20, (64, 12), generator=torch.Generator().manual_seed(4))
    before, schemes = copy.deepcopy(net.state_dict()), dict.fromkeys(("table", "a", "b", "filters"), "4-weights")
    rounded = on_grid(net, schemes, exact=False, calibration=ids)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    with torch.no_grad():
        table = net.table(ids)
        off = rounded.a(table) - net.a(table)
        plain = on_grid(net, schemes, exact=False).a(table) - net.a(table)
    assert off.mean((0, 1)).abs().max() < 1e-5  # of every output, over what it was calibrated on
    assert plain.mean((0, 1)).abs().max() > 1e-3, "rounding alone moves the mean"
    assert on_grid(net, {"a": 8, "b": 32}, exact=False) is net  # a runtime's own quantizer rounds these


def test_what_cannot_be_rounded_is_told() -> None:
    with pytest.raises(InputError, match=r"layers to round must be .* got 'nowhere'"):
        on_grid(Net(), {"nowhere": "4-weights"}, exact=False)
    with pytest.raises(InputError, match="4-weights"):
        rounded_matrix(weights(), 8, "linear", None, exact=False)


def test_moments_that_say_nothing_leave_rounding_alone() -> None:
    weight = weights()
    plain = rounded_matrix(weight, "4-weights", "linear", None, exact=False)
    assert torch.equal(rounded_matrix(weight, "4-weights", "linear", torch.eye(64, dtype=torch.float64), exact=False), plain)
    broken = torch.full((64, 64), torch.nan, dtype=torch.float64)
    found = rounded_matrix(weight, "4-weights", "linear", broken, exact=False)
    assert bool(found.isfinite().all())


class Tied(nn.Module):
    """A table whose rows are the weights of a product too."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.head = nn.Embedding(200, 64), nn.Linear(64, 64), nn.Linear(64, 200, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.mix(self.table(tokens)))
        return out


@pytest.mark.parametrize("choices", [("4-weights", "4-weights"), ("8-weights", "4-weights"), ("8-weights", "8-dynamic")])
def test_weights_that_layers_share_are_rounded_once(choices: tuple[str, str]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, pair = Tied().eval(), nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).eval()
    pair[1].weight = pair[0].weight
    tokens, x = torch.randint(0, 200, (64, 8), generator=torch.Generator().manual_seed(1)), correlated().float()
    both = on_grid(net, dict(zip(("table", "head"), choices, strict=True)), exact=True, calibration=tokens)
    assert both.table.weight is both.head.weight
    assert torch.equal(both.head.weight, on_grid(net, {"head": choices[1]}, exact=True).head.weight), "to the nearest"
    assert torch.equal(both.head.weight, on_grid(net, {"head": choices[1]}, exact=True, calibration=tokens).head.weight)
    own = copy.deepcopy(net)
    own.head.weight = nn.Parameter(own.head.weight.detach().clone())
    assert not torch.equal(both.head.weight, on_grid(own, {"head": choices[1]}, exact=True, calibration=tokens).head.weight)
    both = on_grid(pair, dict(zip("01", choices, strict=True)), exact=True, calibration=x)
    assert torch.equal(both[1].weight, on_grid(pair, {"0": choices[1]}, exact=True, calibration=x)[0].weight), "made good"
    assert not torch.equal(both[1].weight, on_grid(pair, {"0": choices[1]}, exact=True)[0].weight)


def test_layers_that_share_their_weights_are_one_place_to_the_search() -> None:
    tokens = torch.randint(0, 200, (64, 8), generator=torch.Generator().manual_seed(1))
    builder = Builder(Subject.prepare(Tied().eval(), tokens[:2], tokens))
    offers = {name: offer for name, offer in builder.offers.items() if name.startswith("bits.")}
    assert {name: offer.layers for name, offer in offers.items()} == {"bits.table": ("table", "head"), "bits.mix": ("mix",)}
    assert offers["bits.table"].menu == (
        32,
        "fp16",
        "8-weights",
        "8-dynamic",
        "4-weights",
    )  # no static ranges: see schemes.menu
    draft = builder.build(Plan({"bits.table": "4-weights"}))
    assert draft.request == {"table": "4-weights", "head": "4-weights"}
    with pytest.raises(InputError, match=r"bits\.head"):
        builder.build(Plan({"bits.head": "4-weights"}))
    facts = survey(builder, {"onnxruntime:cpu": tuple(SCHEMES)})
    assert sum(layer.params for layer in facts.layers) == sum(p.numel() for p in builder.subject.model.parameters())
    assert {layer.name: layer.bits for layer in facts.layers} == {
        "table": "bits.table",
        "mix": "bits.mix",
        "head": "bits.table",
    }
