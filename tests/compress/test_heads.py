"""A pruned net still trains: heads that only run in training mode lose the inputs that were cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.compress.prune import prune


class Vectors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o, self.aux = nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 4), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Any:
        h = F.relu(self.a(x))
        y = self.o(F.relu(self.b(h)))
        return (y, self.aux(h)) if self.training else y


class Images(nn.Module):
    """GoogLeNet's habit: a head of pooling, convolution and two linear layers beside the body."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Linear(32, 5)
        self.norm, self.aux, self.aux_norm = nn.BatchNorm2d(32), nn.Conv2d(32, 16, 1), nn.BatchNorm2d(16)
        self.aux_head, self.flat = nn.Linear(16, 5), nn.Linear(32 * 4, 5)

    def forward(self, x: Tensor) -> Any:
        h = self.one(x)
        y = self.head(self.two(h).mean((2, 3)))
        if not self.training:
            return y
        aux = F.relu(self.aux_norm(self.aux(self.norm(F.avg_pool2d(h, 2)))))
        return {"out": y, "aux": self.aux_head(aux.mean((2, 3))), "flat": self.flat(F.adaptive_avg_pool2d(h, 2).flatten(1))}


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """All outputs of training mode, in the numbers of evaluation mode."""
    for module in model.modules():
        module.training = next(module.children(), None) is not None
    with torch.no_grad():
        found = model(x)
    return list(found.values()) if isinstance(found, dict) else list(found)


@pytest.mark.parametrize(("net", "x"), [(Vectors, torch.randn(8, 16)), (Images, torch.randn(8, 3, 8, 8))])
@pytest.mark.parametrize("data", [False, True])
def test_training_mode_runs_after_the_cut(net: type[nn.Module], x: Tensor, data: bool) -> None:
    torch.manual_seed(0)
    model = net()
    more = {"data": x.repeat(32, *[1] * (x.ndim - 1)) + 0.1 * torch.randn(256, *x.shape[1:])} if data else {}
    small = prune(model, x[:2], ratio=0.5, **more)
    found = outputs(small, x)
    assert [tuple(f.shape) for f in found] == [tuple(f.shape) for f in outputs(model, x)]
    sum(f.square().mean() for f in outputs_with_gradients(small, x)).backward()
    assert all(p.grad is not None for name, p in small.named_parameters() if "aux" in name)


def outputs_with_gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    found = model.train()(x)
    return list(found.values()) if isinstance(found, dict) else list(found)


def test_what_a_head_read_of_the_rest_it_still_reads() -> None:
    torch.manual_seed(0)
    model, x = Vectors(), torch.randn(8, 16)
    with torch.no_grad():  # half of the channels do nothing: they are the ones to go
        model.a.weight[::2] = 0
        model.a.bias[::2] = 0
    small = prune(model, x[:2], widths={"a": 32})
    for whole, cut in zip(outputs(model, x), outputs(small, x), strict=True):
        assert torch.allclose(whole, cut, atol=1e-5)


def test_a_net_without_heads_is_cut_as_before() -> None:
    net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    assert prune(net, torch.randn(2, 4), ratio=0.5)[2].in_features == 16
