"""Least squares where some weights must stay zero: every row of a weight has its own set of them."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 40
"""Steps of conjugate gradients: the error falls with each, and what is left after these is under a hundredth of it."""


def masked_solution(matrix: Tensor, right: Tensor, mask: Tensor, *, rounds: int = ROUNDS) -> Tensor:
    """Return x `(O, d)`, zero where `mask` is false, that makes xᵢ M xᵢᵀ / 2 - bᵢ xᵢᵀ least in every row i.

    Conjugate gradients in all rows at once: a factorization would be needed for each row, O of d³ in place of O of d² a step.

    Args:
        matrix: `(d, d)`, symmetric and positive, best with ones on its diagonal.
        right: `(O, d)`.
        mask: `(O, d)`, where x may be other than zero.

    References:
        Hestenes & Stiefel 1952, "Methods of conjugate gradients for solving linear systems".
    """
    tiny = torch.finfo(right.dtype).tiny
    x, left = torch.zeros_like(right), right * mask
    along, size = left, left.square().sum(1)
    enough = 1e-12 * float(size.max()) if size.numel() else 0.0
    for _ in range(rounds):
        if float(size.max()) <= enough:
            break
        ahead = (along @ matrix) * mask
        reach = (size / (along * ahead).sum(1).clamp_min(tiny))[:, None]
        x, left = x + reach * along, left - reach * ahead
        before, size = size, left.square().sum(1)
        along = left + (size / before.clamp_min(tiny))[:, None] * along
    return x
