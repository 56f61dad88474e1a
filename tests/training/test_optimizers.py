"""Muon against the singular value decomposition and against torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from toys import seeded

from equipoise.errors import InputError
from equipoise.training import Recipe
from equipoise.training.optimizers import Muon, hidden_weights, optimizer_of, orthogonalize


def in_its_own_frame(matrix: Tensor, found: Tensor) -> Tensor:
    """U^T found V for matrix = U S V^T."""
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u.mT @ found @ vt.mT


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 40), (1, 9)])
def test_orthogonalized_matrix_keeps_its_singular_vectors(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=seeded())
    framed = in_its_own_frame(matrix, orthogonalize(matrix))
    values = framed.diagonal()
    assert torch.allclose(framed, torch.diag(values), atol=1e-4)
    assert values.min() > 0.5
    assert values.max() < 1.3
    wrong = in_its_own_frame(matrix, matrix.sign())  # control: another way to make entries alike
    assert min(shape) == 1 or not torch.allclose(wrong, torch.diag(wrong.diagonal()), atol=1e-1)


def test_more_steps_do_not_need_scale_and_batches_are_single_matrices() -> None:
    batch = torch.randn(3, 6, 10, generator=seeded())
    found = orthogonalize(batch)
    for matrix, one in zip(batch, found, strict=True):
        assert torch.allclose(orthogonalize(matrix), one, atol=1e-5)
        assert torch.allclose(orthogonalize(1e-4 * matrix), one, atol=1e-4)
    assert torch.isfinite(orthogonalize(torch.zeros(4, 4))).all()


@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_are_those_of_torchs_muon(nesterov: bool) -> None:
    """Theirs iterates in bfloat16, so the two agree to its precision; conv kernels count as flattened matrices."""
    weight, kernel = torch.randn(12, 20, generator=seeded()), torch.randn(6, 3, 3, 3, generator=seeded(1))
    mine = [nn.Parameter(weight.clone()), nn.Parameter(kernel.clone())]
    theirs = [nn.Parameter(weight.clone()), nn.Parameter(kernel.clone().flatten(1))]
    settings = {"lr": 0.1, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.1}
    one = Muon([{"params": mine, "hidden": True}], **settings)
    other = torch.optim.Muon(theirs, **settings, adjust_lr_fn="match_rms_adamw")
    source = seeded(2)
    for _ in range(4):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=source)
            b.grad = a.grad.reshape(b.shape).clone()
        one.step()
        other.step()
    for a, b, start in zip(mine, theirs, (weight, kernel), strict=True):
        moved = (b.detach() - start.reshape(b.shape)).norm()
        assert (a.detach().reshape(b.shape) - b.detach()).norm() < 0.02 * moved


def test_the_rest_is_adamw() -> None:
    values = torch.randn(7, generator=seeded())
    mine, theirs = nn.Parameter(values.clone()), nn.Parameter(values.clone())
    one = Muon([{"params": [mine], "hidden": False}], lr=0.1, second_beta=0.95, weight_decay=0.1)
    other = torch.optim.AdamW([theirs], lr=0.1, betas=(0.9, 0.95), weight_decay=0.1)
    source = seeded(1)
    for _ in range(5):
        mine.grad = torch.randn(7, generator=source)
        theirs.grad = mine.grad.clone()
        one.step()
        other.step()
    assert torch.allclose(mine, theirs, atol=1e-6)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.place = nn.Parameter(torch.zeros(1, 4, 8))
        self.mix = nn.MultiheadAttention(8, 2)
        self.depthwise = nn.Conv1d(8, 8, 3, groups=8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.words.weight


def test_hidden_weights_leave_out_embeddings_heads_and_grouped_kernels() -> None:
    tied = Tied()
    names = {name for name, p in tied.named_parameters() if p in hidden_weights(tied)}
    assert names == {"mix.in_proj_weight", "mix.out_proj.weight"}
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    assert {name for name, p in net.named_parameters() if p in hidden_weights(net)} == {"0.weight", "2.weight"}


def test_parameters_without_gradient_stay() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    before = copy.deepcopy(net)
    optimizer = optimizer_of(net, Recipe(optimizer="muon", weight_decay=0.1))
    net[1].weight.grad = torch.ones(3, 3)
    optimizer.step()
    assert torch.equal(net[0].weight, before[0].weight)
    assert not torch.equal(net[1].weight, before[1].weight)
    assert len(optimizer.state) == 1


def test_nothing_to_train_is_told() -> None:
    with pytest.raises(InputError, match="trainable"):
        optimizer_of(nn.Linear(2, 2).requires_grad_(False), Recipe())
