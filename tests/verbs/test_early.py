"""An exit that answers where it is sure: fitted as a slow reference fits it, chosen as it says, and shipped in one file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import equipoise as eq
from equipoise.compress.exits import fitted, pooled, sure, with_inside
from equipoise.errors import InputError
from equipoise.runtimes import get
from equipoise.runtimes.branch import branched
from equipoise.runtimes.export import Exporter
from equipoise.runtimes.structure import faults
from equipoise.verbs.early import Early, paced


class Net(nn.Module):
    """Two blocks of maps and a head; the first block already tells the easy half of the classes apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.second(torch.relu(self.first(x))).mean((2, 3))))
        return out


@pytest.fixture(scope="module")
def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net().eval()
    with torch.no_grad():
        net.head.weight.normal_(std=60.0, generator=torch.Generator().manual_seed(0))
        net.head.bias -= net(images(300, 0)).mean(0)  # so that no class is the usual one
    return net


def images(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 1, 1, generator=generator) + torch.randn(count, 3, 8, 8, generator=generator)


@pytest.fixture(scope="module")
def early(net: Net) -> Early:
    x = images(200, 1)
    with torch.no_grad():
        return eq.early_exit(net, images(300, 0), dev=(x, net(x).argmax(1)), after="first", drop=0.5)


def test_the_exit_is_the_ridge_regression_of_least_error_on_samples_left_out(net: Net) -> None:
    x = images(60, 0)
    found = fitted(net, "first", x).requires_grad_(False)
    with torch.no_grad():
        scores, inside = with_inside(lambda: net(x), net, "first")
        read, wanted = pooled(inside).double(), (scores - scores.mean(1, keepdim=True)).double()
        assert torch.allclose(pooled(inside)[:, :8], inside.mean((2, 3)))
        assert torch.equal(pooled(inside)[:, 8:], inside.flatten(2).amax(2))

    def solved(rows: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        some, aim = read[rows], wanted[rows]
        centred = some - some.mean(0)
        power = torch.linalg.svdvals(read - read.mean(0)).square().mean()
        weight = torch.linalg.solve(
            centred.T @ centred + penalty * power * torch.eye(16).double(), centred.T @ (aim - aim.mean(0))
        )
        return weight, aim.mean(0) - some.mean(0) @ weight

    def left_out(penalty: float) -> float:
        errors = []
        for one in range(60):
            rows = torch.tensor([row for row in range(60) if row != one])
            weight, bias = solved(rows, penalty)
            errors.append(float((read[one] @ weight + bias - wanted[one]).square().mean()))
        return float(np.mean(errors))

    errors = {penalty: left_out(penalty) for penalty in (1e-6, 1e-3, 1e-2, 1e-1, 1.0)}
    best = min(errors, key=lambda penalty: errors[penalty])
    chosen = {p: float((solved(torch.arange(60), p)[0].T - found.head.weight.double()).abs().max()) for p in errors}
    assert min(chosen, key=lambda penalty: chosen[penalty]) == best
    assert chosen[best] < 1e-3 * float(found.head.weight.abs().max())
    assert max(chosen.values()) > 0.1 * float(found.head.weight.abs().max()), "other penalties are told apart"


def test_as_many_leave_as_the_drop_allows() -> None:
    generator = torch.Generator().manual_seed(3)
    both, targets = torch.randn(400, 8, generator=generator) * 2, torch.randint(0, 4, (400,), generator=generator)
    both[torch.arange(400), targets] += 3.0
    both[torch.arange(400), 4 + targets] += 2.0
    whole, own = both.chunk(2, 1)
    certain = own.softmax(1).amax(1)

    def drop(threshold: float) -> float:
        mixed = torch.where(certain >= threshold, own.argmax(1), whole.argmax(1))
        return 100 * float(((whole.argmax(1) == targets).float() - (mixed == targets).float()).mean())

    shares = []
    for most in (0.0, 1.0, 3.0, 100.0):
        found = sure(both, targets, drop=most)
        assert drop(found.threshold) == pytest.approx(found.drop, abs=1e-4)
        assert found.drop <= most
        assert float((certain >= found.threshold).float().mean()) == pytest.approx(found.leaves)
        larger = [float((certain >= edge).float().mean()) for edge in certain.tolist() if drop(edge) <= most]
        assert found.leaves >= max(larger, default=0.0) - 1e-6, "brute force over every threshold"
        shares.append(found.leaves)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_file_answers_each_sample_its_own_way(net: Net, early: Early) -> None:
    x = images(150, 2)
    with torch.no_grad():
        whole, own = early.model(x).chunk(2, 1)
        assert torch.allclose(whole, net(x), atol=1e-3)
    leave = own.softmax(1).amax(1) >= early.threshold
    assert 0.1 < float(leave.float().mean()) < 0.9
    found = early(x)
    assert torch.allclose(found, torch.where(leave[:, None], own, whole), atol=1e-3)
    assert not torch.allclose(found, whole, atol=1e-1), "it is not the whole model"
    dev = images(200, 1)
    with torch.no_grad():
        whole_dev, own_dev = early.model(dev).chunk(2, 1)
    left = own_dev.softmax(1).amax(1) >= early.threshold
    lost = 100 * float((own_dev.argmax(1) != whole_dev.argmax(1))[left].sum()) / 200
    assert (early.leaves, early.drop) == pytest.approx((float(left.float().mean()), lost)), "labels are the whole model's"
    mixed = get("onnxruntime").load(early.program).run(x.numpy())
    assert np.allclose(mixed, whole.numpy(), atol=1e-3), "of several, all must be sure"
    sure_ones = get("onnxruntime").load(early.program).run(x[leave].numpy())
    assert np.allclose(sure_ones, own[leave].numpy(), atol=1e-3)
    assert not faults(early.program.file("model.onnx"))


def test_what_leaves_does_not_run_the_rest(early: Early) -> None:
    graph = onnx.load_from_string(early.program.file("model.onnx")).graph
    (choice,) = [node for node in graph.node if node.op_type == "If"]
    inside = {a.name: [node.op_type for node in a.g.node] for a in choice.attribute}
    assert inside["then_branch"] == ["Identity"]
    assert inside["else_branch"].count("Conv") == 2
    assert [node.op_type for node in graph.node].count("Conv") == 1


def test_a_pace_tells_the_mean_over_inputs_and_the_slowest_of_them() -> None:
    now = [0.0]

    def program(slow: int, disturbed: int) -> Callable[[], Callable[[int], None]]:
        calls = [0]

        def answer(row: int) -> None:
            calls[0] += 1
            now[0] += (2e-4 if row < slow else 5e-5) + (1.0 if calls[0] % disturbed == 0 else 0.0)

        return lambda: answer

    whole, early, faster = paced(program(100, 999), program(10, 401), 100, clock=lambda: now[0])
    assert whole.mean.get() == pytest.approx(2e-4)
    assert early.mean.get() == pytest.approx(0.1 * 2e-4 + 0.9 * 5e-5), "what disturbs the machine is no input's"
    assert early.p99.get() == pytest.approx(2e-4)
    assert faster.value == pytest.approx(2e-4 / 6.5e-5)


def test_where_nothing_can_leave_it_says_so(net: Net) -> None:
    x = images(100, 1)
    blind = torch.zeros(64, 3, 8, 8) + torch.arange(64.0)[:, None, None, None] / 1e6
    with torch.no_grad():
        early = eq.early_exit(net, blind, dev=(x, net(x).argmax(1)), after="first", drop=0.0)
        found = early(x)
        assert torch.allclose(found, net(x), atol=1e-3 * float(found.abs().max()))
    assert early.leaves == 0.0
    assert "no sample of 100 can leave after first at a drop of 0 points: take a later part" in early.notes[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"after": "nowhere"}, "after must be one of .*first"),
        ({"drop": -1.0}, "drop must be at least 0"),
        ({"dev": (images(4, 0), torch.tensor([0, 1, 2, 9]))}, r"dev\[1\] must be class indices \(N,\) below 4"),
        ({"dev": (images(4, 0), torch.zeros(3).long())}, r"dev\[1\] must be class indices"),
    ],
)
def test_bad_asks_are_told(net: Net, change: dict[str, object], message: str) -> None:
    given = {"after": "first", "dev": (images(8, 1), torch.zeros(8).long()), **change}
    with pytest.raises(InputError, match=message):
        eq.early_exit(net, images(64, 0), **given)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="whose output joins two tensors"):
        branched(Exporter().onnx(net, images(2, 0), topology="plain"), threshold=0.5)
