"""Low rank against the exact layer at full rank and against Eckart and Young below it."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import fingerprint, made
from torch import nn

import equipoise as eq
from equipoise.compress.factorize import factorize, full_rank, shares, tucker, weights
from equipoise.compress.rank import Rank
from equipoise.compress.ranks import Ask, Form, damage, thinned
from equipoise.compress.statistics import collect
from equipoise.compress.subject import Subject
from equipoise.errors import InputError
from equipoise.testing import check_technique


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(7, 5), (9, 7)),
        (nn.Conv2d(4, 6, 1), (3, 4, 5, 5)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (3, 4, 9, 8)),
        (nn.Conv2d(4, 6, (5, 3), stride=(2, 1), padding=(2, 0), padding_mode="reflect"), (3, 4, 9, 8)),
    ],
    ids=str,
)
def test_full_rank_loses_nothing(layer: nn.Module, shape: tuple[int, ...]) -> None:
    model, inputs = nn.Sequential(layer), torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    before = fingerprint(model)
    thin = factorize(model, inputs, ranks={"0": full_rank(layer)})
    thinner = factorize(model, inputs, ranks={"0": 1})
    assert fingerprint(model) == before
    with torch.no_grad():
        torch.testing.assert_close(thin(inputs), model(inputs), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(thinner(inputs), model(inputs), atol=1e-2)


def test_the_error_is_the_least_that_the_rank_allows_on_this_data() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(8, 8, generator=generator) * torch.logspace(1, -1, 8)[:, None]
    inputs = torch.randn(2000, 8, generator=generator) @ mixing
    model = nn.Sequential(nn.Linear(8, 6, bias=False))
    model[0].weight.data = torch.randn(6, 8, generator=generator)
    with torch.no_grad():
        exact = model(inputs)
        least = torch.linalg.svdvals(exact)[3:].square().sum()
        ours = (factorize(model, inputs[:2], ranks={"0": 3}, data=inputs)(inputs) - exact).square().sum()
        left, values, right = torch.linalg.svd(model[0].weight, full_matrices=False)
        naive = (inputs @ ((left[:, :3] * values[:3]) @ right[:3]).T - exact).square().sum()
    assert float(ours) == pytest.approx(float(least), rel=1e-2)
    assert float(naive) > 1.2 * float(least)


CORES = [
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (3, 4, 9, 8)),
    (nn.Conv2d(4, 6, (5, 3), stride=(2, 1), padding=(2, 0), padding_mode="reflect"), (3, 4, 9, 8)),
]


@pytest.mark.parametrize(("layer", "shape"), CORES, ids=str)
def test_a_full_core_loses_nothing_and_a_thin_one_as_much_as_is_said(layer: nn.Conv2d, shape: tuple[int, ...]) -> None:
    model, inputs = nn.Sequential(layer), torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    thin = factorize(model, inputs, ranks={"0": (4, 6)})
    thinner = factorize(model, inputs, ranks={"0": (2, 3)})
    moments = collect(model, inputs, moments_of=frozenset("0"), targets=False).moments["0"]
    with torch.no_grad():
        torch.testing.assert_close(thin(inputs), model(inputs), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(thin[0].weight, layer.weight, atol=1e-4, rtol=1e-4)
        off = thinner(inputs) - model(inputs)
        bias = 0 if layer.bias is None else layer.bias.view(1, -1, 1, 1)
        measured = float(off.square().mean() / (model(inputs) - bias).square().mean())
    assert damage(layer, thinner[0], moments.gram) == pytest.approx(measured, rel=1e-3)
    assert 0.02 < measured < 0.9


def correlated(channels: int) -> tuple[nn.Sequential, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(channels, channels, generator=generator) * torch.logspace(0, -2, channels)
    inputs = torch.einsum("nchw,dc->ndhw", torch.randn(64, channels, 8, 8, generator=generator), mix)
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    with torch.no_grad():
        conv.weight.normal_(generator=generator)
    return nn.Sequential(conv), inputs


def test_a_core_is_weighed_by_what_it_reads_and_solved_between_its_sides() -> None:
    model, inputs = correlated(12)
    gram = collect(model, inputs, moments_of=frozenset("0"), targets=False).moments["0"].gram
    ours = tucker(model[0], (4, 6), gram)
    plain = tucker(model[0], (4, 6), torch.eye(108).double())  # the planted wrong answer: weighed by nothing
    assert damage(model[0], ours, gram) < 0.5 * damage(model[0], plain, gram)
    core = ours[1].weight
    for noise in (1e-2, -1e-2):  # no other core between these sides is better
        other = copy.deepcopy(ours)
        with torch.no_grad():
            other[1].weight.add_(noise * torch.randn(core.shape, generator=torch.Generator().manual_seed(1)))
        assert damage(model[0], other, gram) > damage(model[0], ours, gram)


@pytest.mark.parametrize("form", ["halves", "tucker"])
@pytest.mark.parametrize("energy", [0.6, 0.9, 0.99])
def test_the_energy_that_is_asked_for_is_kept(form: Form, energy: float) -> None:
    model, inputs = correlated(12)
    gram = collect(model, inputs, moments_of=frozenset("0"), targets=False).moments["0"].gram
    found = thinned("0", model[0], gram, Ask(energy=energy, form=form, round_to=1))
    if found is not None:
        assert damage(model[0], found, gram) <= 1 - energy + 0.02 * (form == "halves")  # columns of a kernel are taken alike
        least = min(sum(p.weight.numel() for p in made) for made in [found])
        more = thinned("0", model[0], gram, Ask(energy=energy / 3, form=form, round_to=1))
        assert more is not None
        assert sum(p.weight.numel() for p in more) < least


def test_of_a_share_the_form_of_less_damage_is_taken() -> None:
    model, inputs = correlated(16)
    gram = collect(model, inputs, moments_of=frozenset("0"), targets=False).moments["0"].gram
    found = {form: thinned("0", model[0], gram, Ask(ratio=0.8, form=form, round_to=1)) for form in (None, "halves", "tucker")}
    held = {form: sum(p.weight.numel() for p in made) / (9 * 256) for form, made in found.items()}
    assert held == pytest.approx(dict.fromkeys(found, 0.2), abs=0.04)
    lost = {form: damage(model[0], made, gram) for form, made in found.items()}
    assert lost[None] == min(lost["halves"], lost["tucker"])
    assert lost["halves"] != lost["tucker"]


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_weights_are_those_of_the_layers(share: float) -> None:
    assert weights((8,), 16, 24, (3, 3)) == 8 * 3 * (16 + 24)
    assert weights((4, 6), 16, 24, (3, 3)) == 4 * 16 + 9 * 4 * 6 + 6 * 24
    t = shares(share, 160, 240, (3, 3))
    held = 160 * t * 160 + 9 * 160 * t * 240 * t + 240 * t * 240
    assert held == pytest.approx(share * 9 * 160 * 240)


def test_a_net_with_thin_layers_still_answers() -> None:
    model, inputs = made("cnn")
    thin = factorize(model, inputs[:2], ranks={"4": 12, "9": 8}, data=inputs)
    assert sum(p.numel() for p in thin.parameters()) < sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        assert float((thin(inputs) - model(inputs)).std()) < 0.5 * float(model(inputs).std())


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({"1": 2}, "named by linear layers"),
        ({"nine": 2}, "named by linear layers"),
        ({"9": 0}, r"in \[1, 32\]"),
        ({"9": 33}, r"in \[1, 32\]"),
        ({"9": (2, 2)}, "one number where there is no"),
        ({"0": (4, 8)}, r"in \[1, 3\] and"),
    ],
)
def test_bad_ranks_are_told(ranks: dict[str, int], message: str) -> None:
    model, inputs = made("cnn")
    with pytest.raises(InputError, match=message):
        factorize(model, inputs[:2], ranks=ranks)


def test_what_code_reads_off_a_layer_is_still_there() -> None:
    class Peeks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.line = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.conv(x.to(self.conv.weight.dtype))).view(-1, self.conv.out_channels, 64).mean(2)
            return (
                torch.nn.functional.linear(x, self.line.weight, self.line.bias) + 0 * self.line(x)[:, : self.line.out_features]
            )

    inputs = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = Peeks().eval()
    thin = factorize(model, inputs[:2], ranks={"conv": 9, "line": 5}, data=inputs)  # the full ranks
    with torch.no_grad():
        torch.testing.assert_close(thin(inputs), model(inputs), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(thin.conv.weight, model.conv.weight, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_fewer_inputs_than_columns_are_enough(scale: float) -> None:
    """Rounding leaves such a second moment below zero where nothing was read; EfficientNet-Lite0's head failed on 96 inputs."""
    generator = torch.Generator().manual_seed(0)
    inputs = scale * (5 + torch.randn(40, 300, generator=generator))
    gram = collect(nn.Sequential(nn.Linear(300, 20)), inputs, moments_of=frozenset("0"), targets=False).moments["0"].gram
    gram -= 3e-6 * gram.diagonal().mean() * torch.eye(300).double()  # as much as rounding may take away
    assert float(torch.linalg.eigvalsh(gram)[0]) < 0
    layer = nn.Linear(300, 20)
    for ask in (Ask(ratio=0.4), Ask(energy=0.9)):
        thin = thinned("0", layer, gram, ask)
        assert thin is not None
        with torch.no_grad():
            off = (thin(inputs) - layer(inputs)).square().mean() / (layer(inputs) - layer.bias).square().mean()
        assert float(off) < 0.1
    conv = nn.Conv2d(30, 64, (5, 2))
    assert bool(tucker(conv, (8, 8), gram).weight.isfinite().all())


class Same(nn.Conv2d):
    """Pads by itself, as TensorFlow does; its `padding` says nothing of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_a_layer_with_a_forward_of_its_own_stays_whole() -> None:
    assert (full_rank(Same(4, 16, 3, stride=2)), full_rank(Doubled(8, 8))) == (0, 0)
    assert full_rank(type("Named", (nn.Linear,), {})(8, 8)) == 8
    model = nn.Sequential(Same(3, 32, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, 64))
    inputs = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    thin = eq.factorize(model, inputs[:2], ratio=0.5, data=inputs)
    assert isinstance(thin[0], Same)
    assert not isinstance(thin[3], nn.Linear)


def test_a_wide_convolution_is_offered_a_core() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, (5, 3), stride=(2, 1), padding=(2, 1)),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 5),
        )
    inputs = torch.randn(32, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    offers = {offer.place: offer for offer in Rank().offers(Subject.prepare(model, inputs[:2], inputs))}
    assert offers["2"].menu == (100, 50, 25, 12)
    assert all(12 not in offer.menu for name, offer in offers.items() if name != "2")
    check_technique(Rank(), model.eval(), inputs)
