"""What holds a training run back, on what evidence, and what would help most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from equipoise.scaling.curves import extrapolate, grow
from equipoise.scaling.reading import FEWEST, Curves, Evidence, Finding, Reading, fitting, metric_lost, read, trouble
from equipoise.stats import Interval

Basis = Literal["measured", "extrapolated", "rule of thumb", "unknown"]


@dataclass(frozen=True, slots=True)
class Remedy:
    """Something to do, with what it should bring.

    Attributes:
        gain: Validation loss that it should take off, with interval; None where nothing is known of it.
        basis: Where the gain comes from. A rule of thumb is a share of the gap or of the excess, not a measurement.
    """

    name: str
    why: str
    gain: Interval | None
    basis: Basis


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A verdict with its evidence; remedies in order of expected gain, those without a known gain last.

    For optimization trouble the order is the surest first: no gain can be foretold from a curve that did not train.
    """

    verdict: Finding
    evidence: tuple[Evidence, ...]
    remedies: tuple[Remedy, ...]


GAP_RULES: Mapping[str, tuple[float, str]] = {
    "more data": (0.25, "the gap shrinks as data grow: twice as much closes a quarter to a half of it"),
    "stronger augmentation": (0.20, "it stands in for data that are not there"),
    "weight decay (L2)": (0.08, "it keeps weights small, so that the model memorizes less"),
    "ensemble of a few runs": (0.08, "averaging takes off the part of the error that differs between runs"),
    "dropout": (0.06, "it keeps units from memorizing together"),
    "a smaller model": (0.05, "it can memorize less, and costs less"),
    "L1 penalty": (0.03, "it drives useless weights to zero"),
}
"""Remedy -> (share of the gap between validation and training loss that it may close, why).

Rules of thumb; the interval of each is from nothing to twice the share."""

EXCESS_RULES: Mapping[str, tuple[float, str]] = {
    "a larger model": (0.20, "too small a model keeps a loss that no data or time takes off"),
    "a higher or better tuned learning rate": (0.08, "too low a rate leaves the training loss high at the end"),
    "less regularization": (0.05, "weight decay, dropout and augmentation hold the training loss up"),
}
"""Remedy -> (share of the training loss above the floor that it may take off, why). Rules of thumb, likewise."""


def diagnose(
    curves: Curves,
    *,
    chance: float | None = None,
    floor: float | None = None,
    noise: float | None = None,
    data: Mapping[float, float] | None = None,
    sizes: Mapping[float, float] | None = None,
    lengths: Mapping[float, float] | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Say what holds a training run back.

    Args:
        chance: Loss of guessing (log of the number of classes for cross entropy). None: the first training loss.
        floor: Loss that nothing can beat (label noise, the law's E). None: unknown, and then a flat curve with no gap cannot
            be told from a finished one.
        noise: Standard deviation of validation loss between points. None: read off the curve.
        data: Distinct samples -> final validation loss of runs otherwise alike, 3 or more, for what more data would bring.
        sizes: Parameters -> final validation loss, likewise, for what a larger model would bring.
        lengths: Steps -> final validation loss of annealed runs, likewise, for what longer training would bring.
        seed: Of the extrapolations.
    Raises:
        InputError: No points, lists of different lengths, or steps that do not ascend.
    """
    found = read(curves, chance=chance, floor=floor, noise=noise)
    if found is None:
        return _unread(curves)
    signs = trouble(curves, found)
    if signs:
        return Diagnosis("optimization trouble", signs, _calm(found, signs))
    verdict, evidence = fitting(found)
    if verdict == "over-fit" and curves.metric is not None:
        evidence = (*evidence, metric_lost(curves.metric))
    remedies = [*_for_gap(found, verdict, data, seed), *_for_excess(found, curves, sizes, lengths, seed)]
    larger = next((r.gain for r in remedies if r.name == "a larger model" and r.basis == "extrapolated"), None)
    if verdict == "cannot tell" and larger is not None and larger.low > 2.0 * found.noise:
        text = f"runs of several sizes foretell {larger.value:.3g} [{larger.low:.3g}, {larger.high:.3g}] from twice the size"
        verdict, evidence = "under-fit", (*evidence, Evidence("gain of twice the size", larger.value, None, text))
    if verdict == "fine":
        remedies = [r for r in remedies if r.basis in ("measured", "extrapolated")]
    ordered = sorted(remedies, key=lambda r: -1.0 if r.gain is None else r.gain.value, reverse=True)
    return Diagnosis(verdict, evidence, tuple(ordered))


def _unread(curves: Curves) -> Diagnosis:
    """The verdict on too few usable points: divergence where losses were not finite, else none."""
    bad = ~(np.isfinite(np.asarray(curves.train, dtype=float)) & np.isfinite(np.asarray(curves.validation, dtype=float)))
    if bad.any():
        first = float(np.asarray(curves.step, dtype=float)[bad][0])
        signs = (Evidence("first loss not finite", first, None, f"the loss is not finite at step {first:g}"),)
        return Diagnosis("optimization trouble", signs, (*_LOWER, *_OVERFLOW))
    text = f"{len(curves.step)} points are too few; {FEWEST} or more are needed"
    return Diagnosis("cannot tell", (Evidence("points", float(len(curves.step)), float(FEWEST), text),), ())


_LOWER = (
    Remedy("a learning rate 3–10× lower, with warm-up", "losses rise or jump where steps are too long", None, "unknown"),
    Remedy("clip the gradient norm at 1", "single batches throw the weights far", None, "unknown"),
)
_OVERFLOW = (Remedy("bf16 or fp32 instead of fp16", "fp16 overflows above 65,504", None, "unknown"),)
_FEED = Remedy(
    "check the labels, the input scale and the initialization", "a net that learns nothing is mostly fed wrong", None, "unknown"
)
_HIGHER = Remedy("a learning rate 3–10× higher", "steps too short look the same as no learning", None, "unknown")
_REACH = Remedy("normalization or residual connections", "gradients do not reach the early layers", None, "unknown")


def _calm(r: Reading, signs: tuple[Evidence, ...]) -> tuple[Remedy, ...]:
    """What to do about the optimizer, the surest first."""
    names = {sign.name for sign in signs}
    if "late over early gradient norm" in names:
        return (_FEED, _REACH, _HIGHER)
    if names == {"way from guessing"}:
        return (_FEED, *_LOWER[:1], _HIGHER)
    back = r.train_end - r.lowest
    first = _LOWER[0]
    if "rise of training loss" in names:
        first = Remedy(first.name, first.why, Interval(back, 0.0, 2.0 * back, len(r.step), 0.9), "rule of thumb")
    return (first, *_LOWER[1:], *(_OVERFLOW if r.diverged is not None else ()))


def _for_gap(r: Reading, verdict: Finding, data: Mapping[float, float] | None, seed: int) -> list[Remedy]:
    """What closes the gap between validation and training loss."""
    out = []
    if verdict == "over-fit":
        rise, spread = r.validation_end - r.best, 2.0 * r.noise
        gain = Interval(rise, max(rise - spread, 0.0), rise + spread, len(r.step))
        why = f"validation loss was least at step {r.best_step:g}"
        out.append(Remedy("keep the weights of the best step (early stopping)", why, gain, "measured"))
    out += _grown("more data", data, "amounts of data", r, seed)
    if r.gap > max(2.0 * r.noise, 0.1 * r.excess):
        out += _by_rule(GAP_RULES, r.gap, out, len(r.step))
    return out


def _for_excess(
    r: Reading, curves: Curves, sizes: Mapping[float, float] | None, lengths: Mapping[float, float] | None, seed: int
) -> list[Remedy]:
    """What brings the training loss itself down."""
    out = _grown("a larger model", sizes, "sizes", r, seed)
    longer = _grown("longer training", lengths, "lengths", r, seed)
    out += longer or _longer(r, curves, seed)
    if r.floor is not None and r.train_end - r.floor > 0.1 * r.room:
        out += _by_rule(EXCESS_RULES, r.train_end - r.floor, out, len(r.step))
    return out


def _by_rule(rules: Mapping[str, tuple[float, str]], whole: float, known: list[Remedy], n: int) -> list[Remedy]:
    """Shares of `whole`, for remedies about which nothing better is known."""
    names = {remedy.name for remedy in known}
    return [
        Remedy(name, why, Interval(share * whole, 0.0, 2.0 * share * whole, n, 0.9), "rule of thumb")
        for name, (share, why) in rules.items()
        if name not in names
    ]


def _grown(name: str, runs: Mapping[float, float] | None, what: str, r: Reading, seed: int) -> list[Remedy]:
    """What twice the largest amount would bring, from runs at three amounts or more."""
    if runs is None or len(runs) < 3:
        return []
    bottom = r.bottom if min(runs.values()) > r.bottom else 0.0
    found = grow(list(runs), list(runs.values()), 2.0, best=bottom, seed=seed)
    return [Remedy(name, f"runs at {len(runs)} {what}, continued to twice the largest", found.gain, "extrapolated")]


def _longer(r: Reading, curves: Curves, seed: int) -> list[Remedy]:
    """Twice the steps by continuing the validation curve; not foretold where the rate came down at the end."""
    if r.falling <= r.still or r.validation_end > r.best + 2.0 * r.noise:
        return []
    if curves.rate is not None and curves.rate[-1] < 0.3 * max(curves.rate):
        why = (
            "validation loss still falls, but with the learning rate: a run of another length would tell what more steps bring"
        )
        return [Remedy("longer training", why, None, "unknown")]
    bottom = r.bottom if float(r.validation.min()) > r.bottom else 0.0
    found = extrapolate(r.step.tolist(), r.validation.tolist(), 2.0 * float(r.step[-1]), best=bottom, seed=seed)
    return [Remedy("longer training", "the validation curve, continued to twice the steps", found.gain, "extrapolated")]
