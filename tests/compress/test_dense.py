"""A linear layer is known by what it computes, whichever way its weight lies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from equipoise.compress.dense import linear_form
from equipoise.compress.graph import groups
from equipoise.compress.prune import prune


class Turned(nn.Module):
    """Multiplies by its weight as it lies; `twist` makes it something else, seen or unseen on small inputs."""

    def __init__(self, inputs: int, outputs: int, twist: str = "") -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5), nn.Parameter(torch.randn(outputs))
        self.twist = twist

    def forward(self, x: Tensor) -> Tensor:
        out = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)
        if self.twist == "rectified":
            return out.relu()
        return out.where(x.abs().amax(-1, keepdim=True) < 1.0, 0.0) if self.twist == "only where small" else out


def net(twist: str = "") -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Turned(6, 16, twist), nn.ReLU(), Turned(16, 4)).eval()


@pytest.mark.parametrize(("twist", "plain"), [("", True), ("rectified", False), ("only where small", False)])
def test_only_what_computes_a_linear_layer_becomes_one(twist: str, plain: bool) -> None:
    model, x = net(twist), torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1)) / 10
    with torch.no_grad():
        wanted = model(x)
        found = linear_form(net(twist), x)
        torch.testing.assert_close(found(x), wanted)
    assert [type(layer) is nn.Linear for layer in found] == [plain, False, True]  # type: ignore[attr-defined]


def test_it_can_then_be_cut() -> None:
    model, x = net(), torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    assert [group.size for group in groups(linear_form(net(), x), x) if group.prunable] == [16]
    small = prune(model, x, ratio=0.5)
    assert [tuple(p.shape) for p in small.parameters()] == [(8, 6), (8,), (4, 8), (4,)]
    assert type(model[0]) is Turned  # type: ignore[index]
