"""Recovery of one plan: its model is distilled from the untouched one for some seconds, and can be killed at any of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from equipoise.batch import Inputs, mapped, parts, take
from equipoise.compress.fold import fold
from equipoise.compress.technique import Draft
from equipoise.compress.through import SETTLED, late, snapped, through
from equipoise.measure.counts import count
from equipoise.records import Plan, as_data, digest
from equipoise.road.bench import Workbench
from equipoise.runtimes.cpu import has_exact_int8
from equipoise.schemes import scheme
from equipoise.stats import median
from equipoise.training.hold import Kept
from equipoise.training.loop import Trained
from equipoise.training.normalize import Normed, refold, unfold
from equipoise.training.progress import Progress
from equipoise.training.recipe import Recipe
from equipoise.training.recover import distill
from equipoise.training.supervised import fingerprint
from equipoise.workloads.running import at_once

WITH_NORM = Recipe(optimizer="sgd", lr=0.05, schedule="cosine", weight_decay=5e-4, temperature=4.0, channels_last=True)
"""For models with BatchNorm. Chosen after one short single-seed pilot on ResNet-20; no benchmark stands behind it yet."""
LITTLE, RUINED = 0.01, 1.0
"""Nats from which on a model is trained at the whole rate of `WITH_NORM`: below the second at less by their square root, and
below the first at no less than there.

A ResNet-20 on CIFAR-10 in 8 bits, two cores, one seed, drops on 2,000 images. From 0.319 nats (10.2 points) in 60 seconds, some
180 steps of 125: 0.369 at 0.1, 0.264 at 0.05, 0.219 at 0.025, 0.205 at 0.01 (7.1, 4.5, 4.1, 4.3 points); 0.249 by Muon at 0.01;
0.203 in steps of 64 at 0.01. In 200 seconds 0.166 at 0.025, 0.165 at 0.01 (2.9, 3.4 points). From 0.067 nats in 60 seconds:
0.062 at 0.01, 0.061 at 0.003, where others that lost little had come out worse than they were at 0.05."""
SMALLEST = 32
"""Samples of a step where one is large: with many, steps are few, and each passes what the allocator keeps.

An EfficientNet-Lite0 on 160 pixels that was cut to a third of its time and repaired (86.2 % of 341 photographs right, untouched
88.0), then 110 seconds on two cores, one seed: 81.5 in steps of 125 at 0.05 (19 of them), 89.7 in steps of 32 at 0.025 (147),
87.4 at 0.0125 (168), 88.6 in steps of 16 at 0.01 (354)."""
FRESH = Recipe(optimizer="muon", lr=0.02, schedule="linear", weight_decay=0.1, clip=1.0, temperature=4.0, channels_last=True)
"""For new models. On digits, one seed, a `cnn` of 16 channels in 5 and 15 s on a busy machine: 0.047 and 0.020 nats from the
teacher, against 0.55 and 0.049 by `WITH_NORM` and 0.41 and 0.043 by AdamW at 3e-3."""
FOLDED = Recipe(optimizer="adamw", lr=1e-3, schedule="linear", temperature=2.0)
ATTENDING = Recipe(optimizer="adamw", lr=1e-3, schedule="linear", temperature=2.0, batch=32)
"""For models with attention, of layers that read no more than `NARROW` features; wider ones at less, as many times as they are
wider (Yang et al. 2022, "Tensor programs V", table 3). What has lost less than `RUINED_ATTENDING` is trained at less of the
rate, by the square of it, below `LITTLE_ATTENDING` at no less than there.

A MiniLM on SST-2 of which two layers' attention and half of each feed-forward layer were gone, repaired to 0.082 nats from the
untouched one (83.7 % right), then a minute of a busy core each in batches of 32: 0.080, 0.073 and 0.071 at 1e-4 (19, 25 and 49
steps), 0.077 and 0.066 at 5e-5 (38 and 76), 0.108 at 3e-4 (31), 0.206 at 1e-3 (22; 80.2 % right). A Transformer that
translates, half trained, with two of the four blocks of its decoder gone, at 0.607 nats (BLEU 10.0 of 33.5), then 110 CPU
seconds each: 0.252 at 1e-4 (268 steps; BLEU 26.3), 0.174 at 3e-4 (245; 29.2), 0.142 at 1e-3 (203; 31.5), 0.187 at 3e-3 in
batches of 64 (110; 31.3). With one of its twelve parts gone, at 0.037 nats, 0.016 at 1e-4 (125). Trained to the end, with five
of the parts gone, at 0.344 nats, then 300 steps: 0.128 at 2.7e-4, 0.101 at 1e-3, 0.109 at 3e-3, 0.116 by Muon at 5e-3."""
LITTLE_ATTENDING, RUINED_ATTENDING = 0.1, 0.3
"""Nats: those of the MiniLM above, about which 4e-5 to 1e-4 did it good, and those from which on all of the rate did."""
NARROW = 128
"""Features that most layers of that Transformer read; of the MiniLM 384."""

MANY_CLASSES = 500
"""Classes from which on answers are learned as they are, at a temperature of 1: softened, the few that count weigh little among
so many. Zhao et al. (2022) distill so on ImageNet, and at 4 on CIFAR-100.

A two-tower model of X-Wines' 1,007 items that takes half of the time, one thread, one seed, HR@10 on 10,254 users (untouched
24.00): at 2 23.50 after 5,293 steps, 23.45 to 23.53 in three other ways; at 1 23.66 after 3,943, with labels too 23.71, in
batches of 1,024 23.62. A Transformer that translates, 5,000 pieces, 200 s: 0.158 nats at 2, 0.156 at 1."""


def train(
    bench: Workbench,
    plan: Plan,
    draft: Draft,
    *,
    seconds: float,
    lost: float | None = None,
    checkpoint: Path,
    leg: int,
    seed: int,
    hold: Kept | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Trained:
    """Distil a draft's model from the untouched one for `seconds`, with a checkpoint that a killed run goes on from.

    What it has `lost` so far, in nats from the untouched one, sets the rate of its training, see `recipe_for`.

    The file is named `checkpoint` and by recipe and weights: what another release left half trained is not gone on from.

    Where the model had BatchNorm before it was folded it is put back for the training: a folded net only bears small learning
    rates. Layers that the plan holds in fewer bits are rounded as they will be from `through.LATE` of the time on, where that
    costs by then; their weights then lie on the grid of their scheme in the end. Where a target is a graphics card, it trains
    there, and half precision is left to the end.
    """
    generator = torch.Generator().manual_seed(int(plan.digest[:8], 16) ^ (seed * 1000 + leg))
    own, student = draft.drawn or bench.work.model, draft.model
    as_drawn = draft.drawn is not None and _alike(student, bench.build(plan, repair=False).model)
    if as_drawn:
        student = own  # with its own norms: put back, they would begin at what the drawn net gives without them
    elif any(isinstance(m, _BatchNorm) for m in own.modules()):
        student = unfold(student, parts(mapped(bench.calibration, torch.from_numpy), 64))
    exact, few = has_exact_int8(), take(mapped(bench.calibration, torch.from_numpy), slice(SETTLED))
    places = dict(student.named_modules())
    schemes = {f"{n}.conv" if isinstance(places[n], Normed) else n: way for n, way in draft.request.items() if n in places}
    schemes = {name: way for name, way in schemes.items() if scheme(way).inputs != "half"}  # which needs no learning
    card = bench.device.type != "cpu"
    recipe = recipe_for(own, bench.work.example, new=draft.drawn is not None, lost=lost)
    if bench.classes >= MANY_CLASSES:
        recipe = replace(recipe, temperature=1.0)
    done = distill(
        through(student, schemes, exact=exact).to(bench.device),
        bench.teacher if card else bench.answers if bench.work.augment or recipe.mix else bench.remembered,
        bench.work.train,
        seconds=seconds,
        recipe=recipe,
        divergence=bench.work.divergence,
        augment=bench.work.augment,
        generator=generator,
        hold=hold,
        checkpoint=checkpoint.with_name(f"{checkpoint.name}-{digest([as_data(recipe), fingerprint(student)])}"),
        every_s=min(20.0, seconds / 5),
        before_step=None if card else late(few, exact=exact, judge=(bench.answers, bench.work.divergence.between)),
        on_step=on_step,
    )
    found = snapped(done.model.cpu())
    return replace(done, model=fold(found, bench.work.example) if as_drawn else refold(found).eval())


def _alike(model: nn.Module, other: nn.Module) -> bool:
    """Whether two models hold the same weights."""
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())


def recipe_for(model: nn.Module, example: Inputs, *, new: bool, lost: float | None = None) -> Recipe:
    """Return how a model of this kind is distilled, by what it is seen to compute and how large its inputs are.

    Args:
        model: Before anything was folded or cut.
        example: A small batch (N, ...) that it accepts.
        new: Whether its weights were drawn, rather than trained before.
        lost: Nats from the model that it learns from; None: it is taken for ruined.
    """
    if new:
        return FRESH
    if any(isinstance(m, _BatchNorm) for m in model.modules()):
        batch = max(SMALLEST, min(WITH_NORM.batch, 4 * at_once(example, WITH_NORM.batch)))
        ruined = _share(lost, LITTLE, RUINED)
        return replace(WITH_NORM, batch=batch, lr=WITH_NORM.lr * math.sqrt(ruined * batch / WITH_NORM.batch))
    if _attends(model, example):
        read = median([m.in_features for m in model.modules() if isinstance(m, nn.Linear)] or [NARROW])
        share = _share(lost, LITTLE_ATTENDING, RUINED_ATTENDING) ** 2
        return replace(ATTENDING, lr=ATTENDING.lr * share * min(1.0, NARROW / read))
    return FOLDED


def _share(lost: float | None, least: float, ruined: float) -> float:
    """Return the share of `ruined` nats that a model has lost, at least that of `least`; 1 where it is not known."""
    return 1.0 if lost is None else min(1.0, max(lost, least) / ruined)


def _attends(model: nn.Module, example: Inputs) -> bool:
    """Whether a model is seen to weigh values by a softmax of products: attention, in one operator or in its parts."""
    counts = count(model, example)
    ran = {**counts.counted, **counts.ignored, **counts.unsupported}
    return any("scaled_dot_product" in op for op in ran) or {"aten.bmm", "aten._softmax"} <= ran.keys()
