"""How to train: every hyperparameter of one run, as pure data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from equipoise.errors import InputError, must_be, unknown
from equipoise.units import is_real

OPTIMIZERS = ("adamw", "adam", "sgd", "rmsprop", "muon")
SCHEDULES = ("linear", "cosine", "constant", "onecycle", "wsd")
PRECISIONS = ("fp32", "bf16", "fp16")
SOFT = ("auto", "kl", "dkd")

ONECYCLE_START, ONECYCLE_END = 1 / 25, 1 / 25e4
"""First and last rate of ``onecycle``, as shares of the peak: those of torch's OneCycleLR."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyperparameters of a training run; `distill` and `fit` share them.

    Attributes:
        optimizer: ``adamw`` (for models whose BatchNorm is folded), ``adam``, ``sgd`` (with BatchNorm), ``rmsprop``, or
            ``muon``: orthogonalized momentum for hidden weights, AdamW for the rest, at one common rate.
        lr: Peak learning rate.
        schedule: After the warm-up from the peak down over the run: ``linear``, ``cosine``, ``constant``; ``onecycle`` up over
            `rise_share` of the run and down; ``wsd`` (warm-up, stable, decay) constant until the last `decay_share`.
        warmup: Steps in which the rate rises from zero to the peak; ``onecycle`` has a rise of its own.
        rise_share, decay_share: Shares of the run, for ``onecycle`` and ``wsd``. A ``wsd`` run with a `decay_share` of 0 is a
            trunk, from which cool-downs of several lengths can branch off.
        weight_decay: On tensors of two or more dimensions; biases and norms have none. An L2 penalty for ``sgd``, ``adam`` and
            ``rmsprop``, decoupled from the gradient for ``adamw`` and ``muon``.
        l1: Weight of the sum of absolute values of the same tensors in the loss; the reported loss is without it.
        momentum: Of ``sgd``, ``rmsprop`` and ``muon``; first beta of ``adam`` and ``adamw``.
        nesterov: Whether ``sgd`` and ``muon`` look ahead.
        second_beta: Decay of the squared gradients of ``adam``, ``adamw``, ``muon``'s AdamW and ``rmsprop``.
        clip: Largest gradient norm, or None.
        label_smoothing: Share of each label that is spread evenly over the classes.
        dropout: Share of the features that each step zeroes, in the model's dropout layers, or in front of its linear layers if
            it has none; None leaves the model's own as they are.
        ema: Decay of a running average of the weights, which is then what is evaluated and returned; or None.
        batch: Samples in a step.
        accumulate: Micro-batches in which a step's samples are run one after another, to save memory; the gradients are the
            same but for what BatchNorm sees.
        precision: ``fp32``; ``bf16`` and ``fp16`` run the forward pass in autocast, ``fp16`` with a scaled loss. Faster on GPUs
            and on CPUs with such instructions alone; on others it is many times slower.
        activation_checkpointing: Recompute the activations of blocks in the backward pass, to save memory: True finds the
            blocks, or their names.
        patience: Stop after this many evaluations without a better one; the best weights are then returned. None runs to the
            end and returns the last.
        deterministic: Ask torch for algorithms that give the same bits twice.
        frozen_norm: Keep BatchNorm layers on their running statistics while training.
        channels_last: Hold 4-dimensional data in channels-last memory, often faster for convolutions, where the model bears it.
        temperature: Softens both sides of the distillation loss.
        soft_weight, hard_weight, feature_weight: Weights of the teacher's outputs, of the labels and of the features.
        soft: How the teacher's class scores are learned: ``kl``, the divergence; ``dkd``, decoupled, see `decoupled`; ``auto``
            takes ``dkd`` from 50 classes on.
        others_weight: Of ``dkd``: weight of how the teacher spreads what is left over the other classes (beta).
        mix: Of `distill`: each sample becomes up to this share another one of its batch, and the teacher answers for the blend;
            at most 0.5, as labels stay those of the larger part.
    """

    optimizer: Literal["adamw", "adam", "sgd", "rmsprop", "muon"] = "adamw"
    lr: float = 1e-3
    schedule: Literal["linear", "cosine", "constant", "onecycle", "wsd"] = "linear"
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
    nesterov: bool = True
    second_beta: float = 0.999
    rise_share: float = 0.3
    decay_share: float = 0.2
    label_smoothing: float = 0.0
    dropout: float | None = None
    l1: float = 0.0
    ema: float | None = None
    accumulate: int = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    activation_checkpointing: bool | tuple[str, ...] = False
    patience: int | None = None
    deterministic: bool = False
    soft: Literal["auto", "kl", "dkd"] = "auto"
    others_weight: float = 4.0
    mix: float = 0.0

    def __post_init__(self) -> None:
        """Report every value out of range together."""
        mistakes: list[InputError] = []
        names = (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("precision", PRECISIONS), ("soft", SOFT))
        for name, valid in names:
            if getattr(self, name) not in valid:
                mistakes.append(unknown(f"recipe.{name}", str(getattr(self, name)), valid))
        for constraint, allowed, fields in _RANGES:
            for name in fields:
                value = getattr(self, name)
                if value is not None and not (is_real(value) and math.isfinite(value) and allowed(value)):
                    mistakes.append(must_be(f"recipe.{name}", constraint, value, "Leave it out for the default."))
        if mistakes:
            raise InputError("\n".join(str(mistake) for mistake in mistakes))

    def lr_at(self, step: int, progress: float) -> float:
        """Return the learning rate of `step` (from 0) when the fraction `progress` of the run is done.

        References:
            ``wsd`` decays as one minus a square root: Hägele et al. 2024, "Scaling laws and compute-optimal training beyond
            fixed training durations". ``onecycle``: Smith & Topin 2017, in the form of torch's OneCycleLR.
        """
        left = max(0.0, 1.0 - progress)
        if self.schedule == "onecycle":
            return self.lr * _onecycle(min(1.0, progress), self.rise_share)
        if self.schedule == "linear":
            factor = left
        elif self.schedule == "cosine":
            factor = (1 - math.cos(math.pi * left)) / 2
        elif self.schedule == "wsd" and left < self.decay_share:
            factor = 1 - math.sqrt(1 - left / self.decay_share)
        else:
            factor = 1.0
        return self.lr * factor * min(1.0, (step + 1) / (self.warmup + 1))


_RANGES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    ("positive", lambda v: v > 0, ("lr", "temperature", "clip")),
    ("a whole number of 1 or more", lambda v: v >= 1 and v == int(v), ("batch", "accumulate", "patience")),
    (
        "0 or more",
        lambda v: v >= 0,
        ("warmup", "weight_decay", "soft_weight", "hard_weight", "feature_weight", "others_weight", "l1"),
    ),
    ("0 or more and less than 1", lambda v: 0 <= v < 1, ("momentum", "second_beta", "label_smoothing", "dropout", "ema")),
    ("from 0 to 0.5", lambda v: 0 <= v <= 0.5, ("mix",)),
    ("from 0 to 1", lambda v: 0 <= v <= 1, ("rise_share", "decay_share")),
)
"""(constraint in words, test, fields)."""


def _onecycle(progress: float, rise: float) -> float:
    """Half a cosine up to 1 and another down, as a share of the peak."""
    if progress < rise:
        low, way = ONECYCLE_START, 1 - progress / rise
    else:
        low, way = ONECYCLE_END, (progress - rise) / (1 - rise) if rise < 1 else 0.0
    return low + (1 - low) * (1 + math.cos(math.pi * way)) / 2
