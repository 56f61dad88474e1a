"""Length: the model reads the first tokens of each text alone, cut inside it, so what ships takes the user's own rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from equipoise.batch import leaves
from equipoise.compress.front import answers_alike, behind
from equipoise.compress.subject import Subject
from equipoise.compress.technique import Draft, Offer
from equipoise.errors import must_be, unknown
from equipoise.ops import Op
from equipoise.records import Choice

LEVELS = (0.75, 0.5, 0.25)
"""Shares of the length that are offered, rounded to multiples of `STEP`."""
STEP = 8
LEAST = 16
"""Rows of fewer tokens are left as they are."""


class First(nn.Module):
    """Put before a model's own class: it reads the first tokens of each row, `_cut_to` of them, and of what goes with them."""

    _cut_to: int

    def forward(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return what the model answers to rows (N, L) cut to (N, `_cut_to`); several may be given by name alone."""
        given = [_cut(value, self._cut_to) for value in (() if x is None else (x, *args))]
        return super().forward(*given, **{name: _cut(value, self._cut_to) for name, value in kwargs.items()})


class Length:
    """How many tokens of a text are read; what stands behind them is lost, where it is no padding."""

    def offers(self, subject: Subject) -> Iterable[Offer]:
        """Yield shorter lengths at which a model of rows of tokens still answers in the same shape."""
        length, layers = _length(subject), tuple(subject.ops)
        if length < LEAST or not layers or isinstance(subject.model, First):
            return
        menu = dict.fromkeys(round(level * length / STEP) * STEP for level in LEVELS)
        useful = tuple(n for n in menu if 0 < n < length and answers_alike(subject, behind(subject.model, First, _cut_to=n)))
        refused = "" if useful else "the model does not run on shorter rows, or answers each token"
        yield Offer("", (length, *useful), layers, refused=refused)

    def apply(self, draft: Draft, subject: Subject, chosen: Mapping[str, Choice]) -> Draft:
        """Let a copy of the model cut what it is given."""
        for place in chosen:
            if place:
                raise unknown("place", place, [""])
        length = int(chosen[""])
        if not 0 < length <= _length(subject):
            raise must_be("length", f"in [1, {_length(subject)}]", length, "It is a number of tokens.")
        return replace(draft, model=behind(draft.model, First, _cut_to=length), damaged=True)

    def ops(self, subject: Subject, offer: Offer, layer: str, choice: Choice) -> tuple[Op, ...]:
        """Return the layer on fewer rows; one that sees a text as a whole, behind the mean, stays."""
        op, share = subject.ops[layer], int(choice) / int(offer.menu[0])
        return (replace(op, height=math.ceil(op.height * share)),)


def _length(subject: Subject) -> int:
    """Tokens in a row, where all inputs are rows of whole numbers of one length; else 0."""
    rows = leaves(subject.example)
    tokens = all(isinstance(r, Tensor) and r.dim() == 2 and not r.is_floating_point() for r in rows)
    lengths = {int(r.shape[1]) for r in rows} if tokens else set()
    return lengths.pop() if len(lengths) == 1 else 0


def _cut(value: Any, length: int) -> Any:
    return value[:, :length] if isinstance(value, Tensor) and value.dim() == 2 else value
