"""Low rank against the exact layer at full rank and against Eckart and Young below it."""

from __future__ import annotations

import pytest
import torch
from nets import fingerprint, made
from torch import nn

from equipoise.compress.factorize import factorize, full_rank
from equipoise.errors import InputError


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
