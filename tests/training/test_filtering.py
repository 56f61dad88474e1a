"""Proxy filtering: the large net learns the samples on which the small one fails."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from equipoise.errors import InputError
from equipoise.training.filtering import Filtered, filtered, hardest


def nets(seed: int = 0) -> Filtered:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Filtered(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), nn.Linear(6, 3))


def entropy(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(inputs), targets)


def batch(n: int = 20) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    return torch.randn((n, 6), generator=source), torch.randint(0, 3, (n,), generator=source)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40, unique=True), st.floats(0.01, 1))
def test_the_highest_losses_are_kept(losses: list[float], share: float) -> None:
    kept = hardest(torch.tensor(losses), share).tolist()
    ranked = sorted(range(len(losses)), key=lambda i: losses[i], reverse=True)
    assert sorted(ranked[: len(kept)]) == kept
    assert share * len(losses) <= len(kept) < share * len(losses) + 1


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(InputError, match="share"):
        filtered(entropy, F.cross_entropy, share=share)


def test_the_net_gets_the_gradients_of_the_hard_samples_and_the_proxy_those_of_all() -> None:
    both, (x, y) = nets(), batch()
    filtered(entropy, F.cross_entropy, share=0.25)(both, x, y).backward()
    alone = nets()
    kept = F.cross_entropy(alone.proxy(x), y, reduction="none").argsort(descending=True)[:5]
    (entropy(alone.net, x[kept], y[kept])).backward()
    entropy(alone.proxy, x, y).backward()
    for name, parameter in alone.named_parameters():
        assert torch.allclose(both.get_parameter(name).grad, parameter.grad, atol=1e-6), name  # type: ignore[arg-type]
    easy = nets()  # control: the easy samples give others
    entropy(easy.net, x[-kept], y[-kept]).backward()
    assert not torch.allclose(easy.net[0].weight.grad, alone.net[0].weight.grad, atol=1e-4)  # type: ignore[index,arg-type]


def test_a_share_of_one_is_no_filter() -> None:
    both, (x, y) = nets(), batch()
    wanted = entropy(both.net, x, y) + entropy(both.proxy, x, y)
    assert filtered(entropy, F.cross_entropy, share=1.0)(both, x, y).item() == pytest.approx(wanted.item(), rel=1e-6)


def test_to_others_it_is_the_net() -> None:
    both, (x, _) = nets(), batch()
    assert torch.equal(both(x), both.net(x))
    with pytest.raises(InputError, match="Filtered"):
        filtered(entropy, F.cross_entropy)(both.net, *batch())
