"""Inputs between the samples that there are: a teacher answers for them too, so few samples teach as many would."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.batch import Inputs, leaves, mapped, size
from equipoise.errors import must_be
from equipoise.training.loop import Augment


def blended(augment: Augment | None, share: float) -> Augment:
    """Return a change of a batch that makes each sample, after `augment`, in part another of the batch.

    The share of the other is drawn evenly from 0 to `share` for each sample; of several inputs it is the same in all.

    Raises:
        InputError: When it meets inputs that are no real numbers, such as tokens: there is nothing between two of them.

    References:
        Zhang et al. 2018, "mixup: Beyond empirical risk minimization"; Beyer et al. 2022, "Knowledge distillation: a good
        teacher is patient and consistent", on blends that the teacher answers for in place of blended labels.
    """

    def change(inputs: Inputs, generator: torch.Generator) -> Inputs:
        if not all(value.is_floating_point() for value in leaves(inputs)):
            kinds = ", ".join(sorted({str(value.dtype).removeprefix("torch.") for value in leaves(inputs)}))
            raise must_be("recipe.mix", f"0 where inputs are {kinds}: only real numbers blend", share, "Leave it out.")
        changed = inputs if augment is None else augment(inputs, generator)
        other = torch.randperm(size(changed), generator=generator)
        shares = share * torch.rand(size(changed), generator=generator)

        def blend(value: Tensor) -> Tensor:
            weight = shares.to(value).view(-1, *[1] * (value.ndim - 1))
            return torch.lerp(value, value[other.to(value.device)], weight)

        return mapped(changed, blend)

    return change
