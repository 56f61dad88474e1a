"""BatchNorm put back changes nothing but how the model trains."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from equipoise.errors import InputError
from equipoise.training import refold, unfold
from equipoise.training.normalize import Normed, _normed


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, groups=2, stride=2)
        self.raw = nn.Conv2d(8, 4, 1, bias=False)
        self.line = nn.Conv1d(4, 5, 2)
        self.linear = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.raw(torch.relu(self.conv2(torch.relu(self.conv1(x)))))
        return self.linear(self.line(x.flatten(2)).mean(2))


@pytest.fixture
def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().eval()


def batches(n: int = 3) -> list[Tensor]:
    source = torch.Generator().manual_seed(0)
    return [torch.randn(16, 2, 8, 8, generator=source) * 3 + 1 for _ in range(n)]


def test_same_function_there_and_back(net: Net) -> None:
    before = copy.deepcopy(net.state_dict())
    x = batches()[0]
    normed = unfold(net, batches())
    assert [n for n, m in normed.named_modules() if isinstance(m, Normed)] == ["conv1", "conv2", "line"]
    assert torch.allclose(normed(x), net(x), atol=1e-5)
    back = refold(normed)
    assert torch.allclose(back(x), net(x), atol=1e-5)
    assert list(back.state_dict()) == list(before)
    assert all(torch.equal(net.state_dict()[k], v) for k, v in before.items())


def test_weights_have_the_scale_of_a_fresh_network_whatever_folding_made_of_them(net: Net) -> None:
    with torch.no_grad():
        net.conv1.weight.mul_(20)
    normed = unfold(net, batches())
    for name in ("conv1", "conv2", "line"):
        weight = normed.get_submodule(name).conv.weight
        assert weight.square().mean().sqrt().item() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=1e-4)
    x = batches()[0]
    assert torch.allclose(normed(x), net(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_norms_lie_where_the_convolution_lies(bias: bool) -> None:
    conv, moments = nn.Conv2d(2, 8, 3, bias=bias), torch.ones(2, 8)
    found = _normed(conv.to("meta"), *moments.to("meta"))
    assert {value.device.type for value in found.state_dict().values()} == {"meta"}


def test_statistics_are_those_of_the_outputs(net: Net) -> None:
    """Second oracle: a BatchNorm in training mode on the same batch must give nearly the same answer."""
    x = batches(1)
    normed = unfold(net, x)
    live = copy.deepcopy(normed).train()
    assert torch.allclose(live(x[0]), net(x[0]), atol=1e-2)
    wrong = unfold(net, [torch.zeros(4, 2, 8, 8)]).train()  # control: statistics of other inputs
    assert not torch.allclose(wrong(x[0]), net(x[0]), atol=1e-2)


def test_training_moves_what_refold_keeps(net: Net) -> None:
    normed = unfold(net, batches()).train()
    optimizer = torch.optim.SGD(normed.parameters(), lr=0.1)
    for x in batches():
        optimizer.zero_grad()
        normed(x).square().mean().backward()
        optimizer.step()
    normed.eval()
    x = batches()[0]
    assert torch.allclose(refold(normed)(x), normed(x), atol=1e-5)
    assert not torch.allclose(normed(x), net(x), atol=1e-2)


def test_bad_names_and_no_inputs(net: Net) -> None:
    with pytest.raises(InputError, match="convolutions of the model"):
        unfold(net, batches(), names=["linear"])
    with pytest.raises(InputError, match="batches that reach"):
        unfold(net, [])


class Peeks(nn.Module):
    """Reads attributes of one convolution, uses the weight of another, shares a third."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.used, self.hooked = (nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))
        self.first, self.second = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.second.weight = self.first.weight
        self.hooked.register_forward_hook(lambda _m, _x, y: y.clamp_min(0))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.read(x.to(self.read.weight.dtype)))
        x = x[:, : self.read.out_channels]
        x = torch.nn.functional.conv2d(x, self.used.weight, padding=1) + self.used(x)
        return self.second(torch.relu(self.first(self.hooked(x)))).mean((2, 3))


def test_what_would_change_an_answer_keeps_its_form() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Peeks().eval()
    normed = unfold(net, batches())
    assert [n for n, m in normed.named_modules() if isinstance(m, Normed)] == ["read"]
    x = batches()[0]
    assert torch.allclose(normed(x), net(x), atol=1e-5)
    assert torch.allclose(refold(normed)(x), net(x), atol=1e-5)
    assert list(refold(normed).state_dict()) == list(net.state_dict())
