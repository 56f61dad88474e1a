"""How to train: every hyperparameter of one run, as pure data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from equipoise.errors import InputError, must_be, unknown

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyperparameters of a training run; `distill` and `fit` share them.

    Attributes:
        optimizer: ``adamw`` (for models whose BatchNorm is folded) or ``sgd`` with Nesterov momentum (with BatchNorm).
        lr: Peak learning rate.
        schedule: From the peak down over the run: ``linear``, ``cosine``, or ``constant``.
        warmup: Steps in which the rate rises from zero to the peak.
        weight_decay: On tensors of two or more dimensions; biases and norms have none.
        momentum: Of ``sgd``.
        clip: Largest gradient norm, or None.
        batch: Samples in a step.
        frozen_norm: Keep BatchNorm layers on their running statistics while training.
        channels_last: Hold 4-dimensional data in channels-last memory, often faster for convolutions.
        temperature: Softens both sides of the distillation loss.
        soft_weight, hard_weight, feature_weight: Weights of the teacher's outputs, of the labels and of the features.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: int = 10
    weight_decay: float = 1e-4
    momentum: float = 0.9
    clip: float | None = 5.0
    batch: int = 125
    frozen_norm: bool = False
    channels_last: bool = False
    temperature: float = 2.0
    soft_weight: float = 1.0
    hard_weight: float = 0.0
    feature_weight: float = 1.0

    def __post_init__(self) -> None:
        """Report every value out of range together."""
        mistakes: list[InputError] = []
        for name, valid in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in valid:
                mistakes.append(unknown(f"recipe.{name}", str(getattr(self, name)), valid))
        for name in ("lr", "batch", "temperature"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                mistakes.append(must_be(f"recipe.{name}", "positive", getattr(self, name), "Leave it out for the default."))
        for name in ("warmup", "weight_decay", "momentum", "soft_weight", "hard_weight", "feature_weight"):
            if not getattr(self, name) >= 0:
                mistakes.append(must_be(f"recipe.{name}", "0 or more", getattr(self, name), "Leave it out for the default."))
        if self.clip is not None and not self.clip > 0:
            mistakes.append(must_be("recipe.clip", "positive or None", self.clip, "None does not clip."))
        if mistakes:
            raise InputError("\n".join(str(mistake) for mistake in mistakes))

    def lr_at(self, step: int, progress: float) -> float:
        """Return the learning rate of `step` (from 0) when the fraction `progress` of the run is done."""
        left = max(0.0, 1.0 - progress)
        factor = {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "constant": 1.0}[self.schedule]
        return self.lr * factor * min(1.0, (step + 1) / (self.warmup + 1))

    def optimizer_of(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return a fresh optimizer of the parameters of `model` that require gradients."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if not groups:
            raise must_be("model", "trainable", "no parameter that requires a gradient", "Call requires_grad_() on it.")
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.momentum > 0)
        return torch.optim.AdamW(groups, lr=self.lr)
