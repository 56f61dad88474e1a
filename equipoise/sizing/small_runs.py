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
from equipoise.scaling import Available, PlannedRun, Run
from equipoise.sizing.costs import positions, sample_time
from equipoise.study.store import Store
from equipoise.training import Recipe, Trained, fit
from equipoise.training.progress import Progress
from equipoise.workloads import Task
from equipoise.workloads.families import Family, Scale
from equipoise.workloads.weights import packed

COOLDOWN = 0.2
"""Share of a run in which the rate comes down."""
FEWEST_STEPS = 200
"""Steps below which a run says little of longer ones: while the first features form the loss falls by no power of the data."""

SMALL = Recipe(
    optimizer="muon",
    lr=0.02,
    schedule="wsd",
    weight_decay=0.1,
    second_beta=0.99,
    clip=1.0,
    channels_last=True,
    decay_share=COOLDOWN,
)
"""Where the search for a learning rate starts. Muon learns more from a few hundred steps than SGD and AdamW do;
`benchmarks/small_runs.py` sets them side by side."""
WRITING = replace(
    SMALL,
    optimizer="adamw",
    lr=4e-3,
    rise_share=0.1,
    weight_decay=1e-4,
    second_beta=0.98,
    clip=1.0,
    label_smoothing=0.1,
    dropout=0.2,
    channels_last=False,
)
"""The same for models that write one sequence from another: Adam and smoothed labels (Vaswani et al. 2017, section 5), and
dropout, as a pair of languages often has tens of thousands of sentences at hand and no more."""
STEPS_AN_EPOCH = 40
"""Small data are seen in smaller batches, so that an epoch has this many steps."""
USUAL_BATCH = {"tokens": 8, "pairs": 128}
"""Kind of inputs -> samples in a step of a small run, else 50: many small steps learn more from few samples than few large."""
CLEARLY = 0.005
"""Share of the loss by which another learning rate must be better to be taken; two seeds of a short run differ by as much."""
WORST = 1e9
"""Loss of a run that diverged."""
WORTH = 1.2
"""Times quicker that bf16 must make a step to be taken; less is within the noise of a few steps."""


def recipe_for(task: Task) -> Recipe:
    """Return the recipe that small runs on `task` start from: by its kind of inputs and its data."""
    usual = USUAL_BATCH.get(task.shape.kind, 50)
    base = WRITING if task.shape.kind == "pairs" else SMALL
    return replace(base, batch=max(8, min(usual, len(task.train) // STEPS_AN_EPOCH)))


def step_seconds(recipe: Recipe, family: Family, task: Task) -> dict[str, float | None]:
    """Return the training seconds of a sample of the usual size in each precision; None where it cannot be trained so."""
    model = family.model(family.scale(), task, generator=torch.Generator().manual_seed(0))
    return {name: _seconds(model, task, replace(recipe, precision=name)) for name in ("fp32", "bf16")}


def in_quick_precision(recipe: Recipe, seconds: Mapping[str, float | None]) -> Recipe:
    """Return `recipe` in bf16 where that makes a training step quicker on this machine, else as it is.

    Which it is depends on the processor and the model: with matrix instructions for bf16, convolutions take a third of the time
    and a small GPT twice as long; without them everything takes many times longer.

    Args:
        seconds: As from `step_seconds`.
    """
    fp32, bf16 = seconds["fp32"], seconds["bf16"]
    return replace(recipe, precision="bf16") if fp32 and bf16 and WORTH * bf16 < fp32 else recipe


def _seconds(model: torch.nn.Module, task: Task, recipe: Recipe) -> float | None:
    """Training seconds of a sample; None where the model cannot be trained so."""
    try:
        return sample_time(model, task, recipe).get()
    except EquipoiseError:
        return None


@dataclass(frozen=True)
class SmallRuns:
    """Makes runs of one family on one task.

    Attributes:
        recipe: A ``wsd`` recipe; its rate holds for a model of `tuned_at`.
        tuned_at: Scale at which the rate was tuned; None: the same rate for all. See `_rate` for how it moves.
    """

    family: Family
    task: Task
    recipe: Recipe
    seed: int
    store: Store
    tuned_at: Scale | None = None

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

    def short(self, planned: PlannedRun) -> dict[str, Any]:
        """Return the ``loss`` of a run that leaves no trunk behind; one that diverges has the worst there is."""
        try:
            return {"loss": self.run(replace(planned, unique=self.unique))["run"]["loss"]}
        except EquipoiseError as error:
            return {"loss": WORST, "error": str(error)}

    def trained(self, scale: Mapping[str, float], weights: str) -> torch.nn.Module:
        """Return the model of a recorded run, by its scale and the blob of its weights."""
        model = self.model(self.family.scale(**scale))
        model.load_state_dict(safetensors.torch.load(self.store.read_blob(weights)))
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
        recipe = replace(self.recipe, decay_share=decay, lr=self._rate(model, scale))
        return fit(
            model,
            data,
            loss=self.task.loss,
            steps=steps,
            recipe=recipe,
            augment=self.task.augment,
            validation=self.task.validation if look else None,
            metric=self.task.metric.of_outputs if look else None,
            evaluate_steps=steps,
            generator=torch.Generator().manual_seed(self.seed),
            start=start,
            checkpoint=self._path(scale, steps, decay, len(data)),
            on_step=on_step,
        )

    def _rate(self, model: torch.nn.Module, scale: Scale) -> float:
        """Learning rate of a scale.

        Adam's best rate falls as 1 / width (Yang et al. 2022, arXiv 2203.03466, table 3). That of Muon, whose updates grow with
        the root of the width, falls as its root, and along residual branches as the root of the depth (Yang et al. 2023, arXiv
        2310.17813 and 2310.02244). A net with BatchNorm does not see how large its weights are: there Muon's rate stays, as
        SGD's does.
        """
        optimizer = self.recipe.optimizer
        if self.tuned_at is None or optimizer not in ("adam", "adamw", "muon"):
            return self.recipe.lr
        if optimizer != "muon":
            return self.recipe.lr * _ratio(self.tuned_at, scale, "width")
        if any(isinstance(module, _BatchNorm) for module in model.modules()):
            return self.recipe.lr
        return self.recipe.lr * math.sqrt(_ratio(self.tuned_at, scale, "width") * _ratio(self.tuned_at, scale, "depth"))

    def _path(self, scale: Scale, steps: int, decay: float, size: int) -> Path:
        made = {"scale": dict(scale), "steps": steps, "decay": decay, "size": size, "lr": self.recipe.lr, "seed": self.seed}
        return self.store.scratch(digest(made))


def _ratio(one: Scale, other: Scale, name: str) -> float:
    return one[name] / other[name] if name in one and name in other else 1.0


def rates_to_try(start: float, losses: Mapping[float, float]) -> tuple[float, list[float]]:
    """Return the learning rate of least loss, and those to try before it can be told; none where it is found.

    Rates are a factor of 2 apart, and go on while another is clearly better.

    Args:
        start: The rate to begin with.
        losses: Rate -> loss, as far as they are known.
    """
    best = start
    for _ in range(4):
        around = (best / 2, best, best * 2)
        if unknown := [lr for lr in around if lr not in losses]:
            return best, unknown
        found = min(around, key=lambda lr: losses[lr])
        if losses[found] > (1 - CLEARLY) * losses[best]:
            break
        best = found
    return best, []


def quickest(planned: Iterable[PlannedRun], flops_per_s: Callable[[Available], float]) -> PlannedRun:
    """Return the run that takes the least seconds, on which rates are tried: tiny nets are slow for their FLOPs.

    Args:
        flops_per_s: Training FLOP/s of a size.
    """
    return min(planned, key=lambda r: r.samples * r.available.flops_per_sample / flops_per_s(r.available))


def planned_from(data: Mapping[str, Any]) -> PlannedRun:
    """Rebuild a `PlannedRun` from `as_data`."""
    return PlannedRun(**{**data, "available": Available(**data["available"])})
