"""Small training runs for the scale advisor: one trunk for each size, and a cool-down off it for each amount of data.

Every run that a law is fitted to has annealed. Trunks are kept as checkpoints of the loop, so that a killed run goes on where
it stood, and a run that was made is never made again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from equipoise.errors import EquipoiseError
from equipoise.measure.counts import count
from equipoise.records import as_data, digest
from equipoise.scales import positions, sample_time
from equipoise.scaling import Available, PlannedRun, Run
from equipoise.store import Store
from equipoise.training import Recipe, Trained, fit
from equipoise.training.loop import Progress
from equipoise.workloads import Task
from equipoise.workloads.families import Family, Scale
from equipoise.workloads.weights import packed

Step = Callable[[str, Callable[[], Mapping[str, Any]]], Mapping[str, Any]]
"""(key, compute) -> recorded result."""

COOLDOWN = 0.2
"""Share of a run in which the rate comes down."""
FEWEST_STEPS = 40
"""Steps below which a run says nothing of longer ones."""

NORMED = Recipe(optimizer="sgd", lr=0.1, schedule="wsd", weight_decay=5e-4, channels_last=True, decay_share=COOLDOWN)
"""For models with BatchNorm."""
BARE = Recipe(optimizer="adamw", lr=2e-3, schedule="wsd", second_beta=0.99, clip=1.0, decay_share=COOLDOWN)
"""For those without; both are where the search for a learning rate starts."""
STEPS_AN_EPOCH = 40
"""Small data are seen in smaller batches, so that an epoch has this many steps."""
USUAL_BATCH = {"tokens": 8}
"""Kind of inputs -> samples in a step of a small run, else 50: many small steps learn more from few samples than few large."""
WORTH = 1.2
"""Times quicker that bf16 must make a step to be taken; less is within the noise of a few steps."""


def recipe_for(family: Family, task: Task) -> Recipe:
    """Return the recipe that the models of `family` start from on `task`: by their normalisation, kind of inputs and data."""
    model = family.model(family.scale(), task, generator=torch.Generator().manual_seed(0))
    normed = any(isinstance(m, _BatchNorm) for m in model.modules())
    usual = USUAL_BATCH.get(task.shape.kind, 50)
    return replace(NORMED if normed else BARE, batch=max(8, min(usual, len(task.train) // STEPS_AN_EPOCH)))


def in_quick_precision(recipe: Recipe, family: Family, task: Task, step: Step) -> Recipe:
    """Return `recipe` in bf16 where that makes a training step quicker on this machine, else as it is.

    Which it is depends on the processor and the model: with matrix instructions for bf16, convolutions take a third of the time
    and a small GPT twice as long; without them everything takes many times longer.

    Args:
        step: (key, compute) -> recorded result.
    """
    model = family.model(family.scale(), task, generator=torch.Generator().manual_seed(0))

    def seconds() -> dict[str, float | None]:
        return {name: _seconds(model, task, replace(recipe, precision=name)) for name in ("fp32", "bf16")}

    found = step("precision", seconds)
    quick = found["fp32"] and found["bf16"] and WORTH * found["bf16"] < found["fp32"]
    return replace(recipe, precision="bf16") if quick else recipe


def _seconds(model: torch.nn.Module, task: Task, recipe: Recipe) -> float | None:
    """Training seconds of a sample; None where the model cannot be trained so."""
    try:
        return sample_time(model, task, recipe).get()
    except EquipoiseError:
        return None


@dataclass(frozen=True)
class Proxies:
    """Makes runs of one family on one task.

    Attributes:
        recipe: A ``wsd`` recipe; its rate holds for a model of `tuned_at`.
        tuned_at: Width at which the rate was tuned. Adam's best rate falls as 1 / width, that of SGD with BatchNorm does not
            move (Yang et al. 2022, arXiv 2203.03466, table 3). None: the rate is not moved.
    """

    family: Family
    task: Task
    recipe: Recipe
    seed: int
    store: Store
    tuned_at: float | None = None

    @property
    def positions(self) -> int:
        """Answers in a sample: samples are counted in these (tokens of a text, images)."""
        return positions(self.task)

    @property
    def unique(self) -> float:
        """Distinct samples that there are."""
        return float(len(self.task.train) * self.positions)

    def model(self, scale: Scale) -> torch.nn.Module:
        """Return the model of `scale` as every run of it starts."""
        return self.family.model(scale, self.task, generator=torch.Generator().manual_seed(self.seed))

    def available(self, scale: Scale) -> Available:
        """Count a scale: params without embeddings, forward FLOPs of a sample."""
        model = self.model(scale)
        counts = count(model, self.task.example)
        embedded = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
        params = sum(p.numel() for p in model.parameters() if id(p) not in embedded)
        return Available(float(params), 2.0 * counts.macs / self.positions, dict(scale))

    def steps(self, samples: float) -> int:
        """Return the steps in which `samples` are seen."""
        return max(1, round(samples / (self.recipe.batch * self.positions)))

    def run(
        self, planned: PlannedRun, before: Sequence[PlannedRun] = (), *, on_step: Callable[[Progress], None] | None = None
    ) -> dict[str, Any]:
        """Make one run and return ``run`` (a `Run` as data), ``curve`` and the blob of its ``weights``.

        Args:
            before: Runs of the same size that the trunk passes on its way, in any order.
        """
        scale = planned.available.scale
        steps = self.steps(planned.samples)
        model = self.model(scale)
        data = self.task.train
        start: Path | None = None
        if planned.unique is not None:
            data = data.take(max(1, round(planned.unique / self.positions)))
        else:
            start = self._trunk(scale, sorted({self._stem(p) for p in (*before, planned)}), on_step)
        trained = self._fit(model, scale, steps, self.recipe.decay_share, start, on_step, data=data, look=True)
        last = trained.curve[-1]
        seen = float(steps * self.recipe.batch * self.positions)
        distinct = float(len(data) * self.positions)
        run = Run(
            params=planned.available.params,
            samples=seen,
            flops_per_sample=planned.available.flops_per_sample,
            loss=last.validation_loss,
            unique=distinct if distinct < seen else None,
            quality=last.validation_metric,
            seconds=trained.seconds,
            seed=self.seed,
            scale={name: float(value) for name, value in scale.items()},
        )
        weights = self.store.blob(packed(trained.model))
        self._path(scale, steps, self.recipe.decay_share, len(data)).unlink(missing_ok=True)
        return {"run": as_data(run), "curve": [as_data(p) for p in trained.curve], "weights": weights}

    def trained(self, found: Mapping[str, Any]) -> torch.nn.Module:
        """Return the model of a recorded run."""
        scale = self.family.scale(**found["run"]["scale"])
        model = self.model(scale)
        model.load_state_dict(safetensors.torch.load(self.store.read_blob(found["weights"])))
        return model.eval()

    def _stem(self, planned: PlannedRun) -> int:
        """Steps of the trunk that a run branches off."""
        return max(1, math.floor(self.steps(planned.samples) * (1.0 - self.recipe.decay_share)))

    def _trunk(self, scale: Scale, stems: Sequence[int], on_step: Callable[[Progress], None] | None) -> Path:
        """Train the trunk up to the last of `stems`, by way of the others, and return its checkpoint."""
        model = self.model(scale)
        start: Path | None = None
        for steps in stems:
            self._fit(model, scale, steps, 0.0, start, on_step, data=self.task.train)
            start = self._path(scale, steps, 0.0, len(self.task.train))
        assert start is not None
        return start

    def _fit(
        self,
        model: torch.nn.Module,
        scale: Scale,
        steps: int,
        decay: float,
        start: Path | None,
        on_step: Callable[[Progress], None] | None,
        *,
        data: Any,
        look: bool = False,
    ) -> Trained:
        recipe = replace(self.recipe, decay_share=decay, lr=self._rate(scale))
        return fit(
            model, data, loss=self.task.loss, steps=steps, recipe=recipe, augment=self.task.augment,
            validation=self.task.validation if look else None, metric=self.task.metric if look else None, evaluate_steps=steps,
            generator=torch.Generator().manual_seed(self.seed), start=start,
            checkpoint=self._path(scale, steps, decay, len(data)), on_step=on_step,
        )  # fmt: skip

    def _rate(self, scale: Scale) -> float:
        moves = self.recipe.optimizer in ("adam", "adamw") and self.tuned_at is not None and "width" in scale
        return self.recipe.lr * self.tuned_at / scale["width"] if moves and self.tuned_at else self.recipe.lr

    def _path(self, scale: Scale, steps: int, decay: float, size: int) -> Path:
        return self.store.scratch(
            digest({"scale": dict(scale), "steps": steps, "decay": decay, "size": size, "lr": self.recipe.lr})
        )


def tune(
    proxies: Proxies,
    planned: Iterable[PlannedRun],
    flops_per_s: Callable[[Available], float],
    step: Step,
) -> Proxies:
    """Return `proxies` with the learning rate of least loss, a factor of 2 apart, going on while the best is at an end.

    Args:
        planned: The one that is quickest in seconds is made at each rate: tiny nets are slow for their FLOPs.
        flops_per_s: Training FLOP/s of a size.
        step: (key, compute) -> recorded result.
    """
    quickest = min(planned, key=lambda r: r.samples * r.available.flops_per_sample / flops_per_s(r.available))
    losses: dict[float, float] = {}

    def loss(lr: float) -> float:
        if lr not in losses:
            at = replace(proxies, recipe=replace(proxies.recipe, lr=lr), tuned_at=None)
            losses[lr] = float(step(f"lr={lr:.3g}", lambda: _short(at, quickest))["loss"])
        return losses[lr]

    best = proxies.recipe.lr
    for _ in range(4):
        around = {lr: loss(lr) for lr in (best / 2, best, best * 2)}
        found = min(around, key=lambda lr: around[lr])
        if found == best:
            break
        best = found
    return replace(proxies, recipe=replace(proxies.recipe, lr=best), tuned_at=quickest.available.scale.get("width"))


def _short(proxies: Proxies, planned: PlannedRun) -> dict[str, Any]:
    """Loss of a short run; one that diverges has the worst there is."""
    try:
        return {"loss": proxies.run(replace(planned, unique=proxies.unique))["run"]["loss"]}
    except EquipoiseError as error:
        return {"loss": 1e9, "error": str(error)}
