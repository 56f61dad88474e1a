"""Recovery of one plan: its model is distilled from the untouched one for some seconds, and can be killed at any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from equipoise.batch import Inputs, mapped, parts
from equipoise.compress.technique import Draft
from equipoise.records import Plan
from equipoise.road.bench import Workbench
from equipoise.training.hold import Kept
from equipoise.training.loop import Trained
from equipoise.training.normalize import refold, unfold
from equipoise.training.progress import Progress
from equipoise.training.recipe import Recipe
from equipoise.training.recover import distill

WITH_NORM = Recipe(optimizer="sgd", lr=0.05, schedule="cosine", weight_decay=5e-4, temperature=4.0, channels_last=True)
"""For models with BatchNorm. Chosen after one short single-seed pilot on ResNet-20; no benchmark stands behind it yet."""
FRESH = Recipe(optimizer="muon", lr=0.02, schedule="linear", weight_decay=0.1, clip=1.0, temperature=4.0, channels_last=True)
"""For new models. On digits, one seed, a `cnn` of 16 channels in 5 and 15 s on a busy machine: 0.028 and 0.015 nats from the
teacher, against 0.32 and 0.035 by `WITH_NORM` and 0.12 and 0.027 by AdamW at 3e-3."""
FOLDED = Recipe(optimizer="adamw", lr=1e-3, schedule="linear", temperature=2.0)


def train(
    bench: Workbench,
    plan: Plan,
    draft: Draft,
    *,
    seconds: float,
    checkpoint: Path,
    leg: int,
    seed: int,
    hold: Kept | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Trained:
    """Distil a draft's model from the untouched one for `seconds`, with a checkpoint that a killed run goes on from.

    Where the model had BatchNorm before it was folded it is put back for the training: a folded net only bears small learning
    rates.
    """
    generator = torch.Generator().manual_seed(int(plan.digest[:8], 16) ^ (seed * 1000 + leg))
    own, student = draft.drawn or bench.work.model, draft.model
    normed = any(isinstance(m, _BatchNorm) for m in own.modules())
    done = distill(
        unfold(student, parts(mapped(bench.calibration, torch.from_numpy), 64)) if normed else student,
        teacher(bench),
        bench.work.train,
        seconds=seconds,
        recipe=recipe_for(own, new=draft.drawn is not None),
        divergence=bench.work.divergence,
        augment=bench.work.augment,
        generator=generator,
        hold=hold,
        checkpoint=checkpoint,
        every_s=min(20.0, seconds / 5),
        on_step=on_step,
    )
    return replace(done, model=refold(done.model).eval())


def recipe_for(model: nn.Module, *, new: bool) -> Recipe:
    """Return how a model of this kind is distilled.

    Args:
        model: Before anything was folded or cut.
        new: Whether its weights were drawn, rather than trained before.
    """
    if new:
        return FRESH
    return WITH_NORM if any(isinstance(m, _BatchNorm) for m in model.modules()) else FOLDED


def teacher(bench: Workbench) -> Callable[[Inputs], Tensor]:
    """Return the untouched model as its own compiled program on all cores: faster than torch for the same answers."""
    session = bench.reference_on_all_cores

    def answer(inputs: Inputs) -> Tensor:
        given = mapped(inputs, lambda value: value.contiguous().numpy())
        return torch.from_numpy(np.asarray(session.run(given), dtype=np.float32))

    return answer
