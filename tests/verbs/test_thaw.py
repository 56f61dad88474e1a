"""The scale of layers before BatchNorm: one function, one form, whatever scale its weights came in."""

from __future__ import annotations

import copy

import torch
from torch import nn

from equipoise.verbs.thaw import rescaled


class Net(nn.Module):
    """Convolutions before norms, one of them grouped, one whose product is read past the norm, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.n1 = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.n2 = nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)
        self.read_twice, self.n3 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.linear, self.n4 = nn.Linear(8, 6), nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.n2(self.depthwise(self.n1(self.first(x)).relu())).relu()
        y = self.read_twice(x)
        out: torch.Tensor = self.n4(self.linear((self.n3(y) + y).mean((2, 3))))
        return out


def made() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net()
        for part in net.modules():
            if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
                nn.init.uniform_(part.running_var, 1e-3, 4.0)
                nn.init.normal_(part.running_mean)
                nn.init.normal_(part.weight)
                nn.init.normal_(part.bias)
    return net.eval()


def test_one_function_in_whatever_scale_becomes_one_model() -> None:
    net, x = made(), torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.first.weight.mul_(0.1)
        other.n1.running_mean.mul_(0.1)
        other.n1.running_var.add_(other.n1.eps).mul_(0.01).sub_(other.n1.eps).clamp_(min=0)
    assert torch.allclose(net(x), other(x), atol=1e-4)
    assert not torch.allclose(net.first.weight, other.first.weight, atol=1e-2)  # control: they came in two scales
    one, two = rescaled(net, x), rescaled(other, x)
    for name, value in one.state_dict().items():
        assert torch.allclose(value, two.state_dict()[name], rtol=1e-2, atol=1e-4), name
    assert torch.allclose(one(x), net(x), rtol=1e-4, atol=1e-4)
    for norm in (one.n1, one.n2, one.n4):  # type: ignore[union-attr]
        assert torch.allclose(norm.running_var + norm.eps, torch.ones(()))  # type: ignore[operator, arg-type]
    assert torch.equal(one.n3.running_var, net.n3.running_var)  # type: ignore[union-attr, arg-type]
    assert torch.equal(one.read_twice.weight, net.read_twice.weight)  # type: ignore[union-attr, arg-type]


def test_a_model_that_would_answer_otherwise_is_left_as_it_is() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(4, 5), nn.BatchNorm1d(5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.norm(self.layer(x)) * self.norm.running_var  # reads what would change
            return out

    net = Odd().eval()
    net.norm.running_var.fill_(9.0)  # type: ignore[union-attr, operator]
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert rescaled(net, x) is net
    assert float(net.norm.running_var[0]) == 9.0  # type: ignore[index, arg-type]
