"""Clients of different scale: their tensors are the first channels of the server's, and go back where they came from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from equipoise.errors import InputError
from equipoise.federated.combine import combined, mean
from equipoise.federated.cuts import cuts_of
from equipoise.federated.state import Update, loaded, travelling
from equipoise.workloads import load_family
from equipoise.workloads.task import Shape

RATIOS = (1.0, 0.5, 0.25)


@pytest.fixture(scope="module")
def whole() -> nn.Module:
    model = load_family("cnn").model(
        {"width": 16, "depth": 3}, Shape((1, 8, 8), 10), generator=torch.Generator().manual_seed(0)
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)  # type: ignore[union-attr,operator]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr,operator]
    return model.eval()


@pytest.fixture(scope="module")
def cuts(whole: nn.Module):  # type: ignore[no-untyped-def]
    return cuts_of(whole, torch.randn(2, 1, 8, 8), RATIOS)


def test_a_client_holds_the_first_channels_and_its_plan_says_how_many(whole: nn.Module, cuts) -> None:  # type: ignore[no-untyped-def]
    weights = travelling(whole)
    for ratio, cut in cuts.items():
        own = cut.of(weights)
        model = loaded(cut.model, own).eval()
        assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)
        assert all(torch.equal(travelling(model)[name], value) for name, value in own.items())
        assert {int(width) for width in cut.plan.choices.values()} == {int(w * ratio) for w in (16, 32, 64)}
    stem = next(name for name, value in weights.items() if value.ndim == 4)
    assert torch.equal(cuts[0.5].of(weights)[stem], weights[stem][:8])


def test_widths_are_nested(cuts) -> None:  # type: ignore[no-untyped-def]
    for name, places in cuts[0.25].places.items():
        assert set(places.flatten().tolist()) <= set(cuts[0.5].places[name].flatten().tolist())


def test_the_cut_model_is_the_whole_one_whose_other_channels_are_silent(whole: nn.Module, cuts) -> None:  # type: ignore[no-untyped-def]
    """A second way to the same answers: in the whole model all that the client does not hold is zero."""
    weights, cut = travelling(whole), cuts[0.5]
    masked = {name: torch.zeros_like(value).flatten() for name, value in weights.items()}
    for name, places in cut.places.items():
        masked[name][places.flatten()] = weights[name].flatten()[places.flatten()]
    import copy

    silent = loaded(copy.deepcopy(whole), {name: value.view(weights[name].shape) for name, value in masked.items()}).eval()
    small = loaded(cut.model, cut.of(weights)).eval()
    inputs = torch.randn(8, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(small(inputs), silent(inputs), atol=1e-4)
        assert not torch.allclose(small(inputs), whole(inputs), atol=1e-2)


def test_what_goes_out_comes_back_to_its_place(whole: nn.Module, cuts) -> None:  # type: ignore[no-untyped-def]
    weights = travelling(whole)
    shapes = {name: value.shape for name, value in weights.items()}
    cut = cuts[0.25]
    back = combined([Update(0, 5, cut.of(weights), places=cut.places)], shapes, mean, even=False)
    for name, value in weights.items():
        held = torch.zeros(value.numel(), dtype=torch.bool)
        held[cut.places[name].flatten()] = True
        assert torch.equal(back[name].flatten()[held].float(), value.flatten()[held])
        assert float(back[name].flatten()[~held].abs().sum()) == 0


def test_the_server_is_as_large_as_its_largest_client(whole: nn.Module) -> None:
    found = cuts_of(whole, torch.randn(2, 1, 8, 8), (0.5, 0.25, 0.0))
    assert set(found) == {0.5, 0.25}
    assert not found[0.5].places
    weights = travelling(found[0.5].model)
    small = loaded(found[0.25].model, found[0.25].of(weights)).eval()
    straight = cuts_of(whole, torch.randn(2, 1, 8, 8), (1.0, 0.25))[0.25]
    inputs = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(small(inputs), loaded(straight.model, straight.of(travelling(whole))).eval()(inputs), atol=1e-5)


def test_a_model_that_cannot_be_cut_is_told() -> None:
    with pytest.raises(InputError, match="scales must be 1 for a model without channels"):
        cuts_of(nn.Linear(3, 2), torch.randn(2, 3), (1.0, 0.5))
