"""Resolution: the model sees its images smaller; they are resized inside it, so what ships takes the user's own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch.nn.functional as functional
from torch import Tensor, nn

from equipoise.compress.front import answers_alike, behind
from equipoise.compress.subject import Subject
from equipoise.compress.technique import Draft, Offer
from equipoise.errors import must_be, unknown
from equipoise.ops import Op
from equipoise.records import Choice

LEVELS = (0.8, 0.6)
"""Shares of the height that are offered, rounded to multiples of `STEP`, which most strides divide."""
STEP = 8
LEAST = 16
"""Images of fewer rows are left as they are."""


class Resized(nn.Module):
    """Put before a model's own class: its images are resized first, and all names in it stay what they were."""

    _resized_to: tuple[int, int]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return what the model answers to `x` (N, C, H, W) at the size `_resized_to`."""
        small = functional.interpolate(x, size=self._resized_to, mode="bilinear", align_corners=False)
        return super().forward(small, *args, **kwargs)


class Resolution:
    """Height at which the model computes; its width in proportion."""

    def offers(self, subject: Subject) -> Iterable[Offer]:
        """Yield smaller sizes at which a model of images still answers in the same shape."""
        images, layers = subject.example, tuple(subject.ops)
        if (
            not isinstance(images, Tensor)
            or images.dim() != 4
            or not images.is_floating_point()
            or min(images.shape[2:]) < LEAST
            or not layers
            or isinstance(subject.model, Resized)
        ):
            return
        channels, height, width = map(int, images.shape[1:])
        menu = dict.fromkeys(round(level * height / STEP) * STEP for level in LEVELS)
        useful = tuple(
            rows for rows in menu if 0 < rows < height and answers_alike(subject, _resized(subject, subject.model, rows))
        )
        refused = "" if useful else "the model does not run on smaller images, or answers in another shape"
        whole = Op("resize", channels, channels, height=height, width=width)
        adds: dict[Choice, tuple[Op, ...]] = {rows: (replace(whole, kernel=_size(subject, rows)),) for rows in useful}
        yield Offer("", (height, *useful), layers, adds=adds, refused=refused)

    def apply(self, draft: Draft, subject: Subject, chosen: Mapping[str, Choice]) -> Draft:
        """Let a copy of the model resize what it is given."""
        for place in chosen:
            if place:
                raise unknown("place", place, [""])
        rows = int(chosen[""])
        if not 0 < rows <= subject.example.shape[2]:
            raise must_be("resolution", f"in [1, {subject.example.shape[2]}]", rows, "It is a number of rows.")
        return replace(draft, model=_resized(subject, draft.model, rows), damaged=True)

    def ops(self, subject: Subject, offer: Offer, layer: str, choice: Choice) -> tuple[Op, ...]:
        """Return the layer on a map that is smaller in proportion."""
        op, share = subject.ops[layer], int(choice) / int(offer.menu[0])
        if op.kind == "linear":
            return (op,)
        return (replace(op, height=max(1, math.ceil(op.height * share)), width=max(1, math.ceil(op.width * share))),)


def _size(subject: Subject, rows: int) -> tuple[int, int]:
    height, width = subject.example.shape[2:]
    return rows, max(1, round(width * rows / height))


def _resized(subject: Subject, model: nn.Module, rows: int) -> nn.Module:
    return behind(model, Resized, _resized_to=_size(subject, rows))
