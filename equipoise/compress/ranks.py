"""From what is asked of a layer (a rank, a share of its weights, an energy) to the ranks and the form that meet it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from equipoise.compress.factorize import Factorized, Ranks, checked, shares, spectra, thin, tuckers, weights
from equipoise.compress.statistics import as_matrix
from equipoise.errors import must_be

Form = Literal["halves", "tucker"]
FORMS: tuple[Form, ...] = ("halves", "tucker")


@dataclass(frozen=True)
class Ask:
    """What is asked of each layer: one of rank, energy and ratio, in one form or the better of both, in steps of `round_to`."""

    rank: int | Mapping[str, Ranks] | None = None
    energy: float | None = None
    ratio: float | None = None
    form: Form | None = None
    round_to: int = 8


def thinned(name: str, layer: Any, second_moment: Tensor | None, ask: Ask) -> Factorized | None:
    """Return the thin layers for one that `full_rank` knows; None where they would hold as many weights as it does.

    Args:
        second_moment: `(d, d)` of what the layer reads; None where nobody knows.
    Raises:
        InputError: A rank that the layer does not have.
    """
    sizes = _sizes(layer)
    forms = [form for form in FORMS if ask.form in (None, form) and (form == "halves" or tuckers(layer))]
    if ask.rank is not None:
        asked = [_asked(name, layer, ask)] if forms else []
    else:
        asked = [_fitting(layer, form, second_moment, ask) for form in forms]
    useful = [ranks for ranks in asked if weights(ranks, *sizes) < math.prod(layer.weight.shape)]
    if len(useful) > 1 and ask.energy is not None:
        useful = [min(useful, key=lambda ranks: weights(ranks, *sizes))]
    made = [thin(layer, ranks, second_moment) for ranks in useful]
    return min(made, key=lambda part: damage(layer, part, second_moment)) if made else None


def damage(layer: Any, part: nn.Module, second_moment: Tensor | None) -> float:
    """Return the power of the outputs that `part` misses, as a share of that of the layer it stands for."""
    whole, rest = (as_matrix(weight.detach()).double() for weight in (layer.weight, layer.weight - _weight(part)))
    missed, power = (float((m.square() if second_moment is None else (m @ second_moment) * m).sum()) for m in (rest, whole))
    return missed / max(power, 1e-30)


def _weight(part: Any) -> Tensor:
    weight: Tensor = part.weight
    return weight


def _sizes(layer: Any) -> tuple[int, int, tuple[int, int]]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features, (1, 1)
    return layer.in_channels, layer.out_channels, layer.kernel_size


def _asked(name: str, layer: Any, ask: Ask) -> tuple[int, ...]:
    if isinstance(ask.rank, Mapping):
        rank = ask.rank[name]
        if ask.form is not None and isinstance(rank, tuple) != (ask.form == "tucker"):
            raise must_be(f"rank[{name!r}]", f"for form {ask.form!r}", rank, "Two numbers ask for Tucker, one for halves.")
        checked(name, layer, rank)
        return rank if isinstance(rank, tuple) else (rank,)
    assert isinstance(ask.rank, int)
    if ask.form != "tucker":
        return (ask.rank,)
    cin, cout, _ = _sizes(layer)
    return min(ask.rank, cin), min(ask.rank, cout)


def _fitting(layer: Any, form: Form, second_moment: Tensor | None, ask: Ask) -> tuple[int, ...]:
    """Return the ranks, in whole steps, that hold the weights left by the ratio or keep the energy."""
    (cin, cout, kernel), step = _sizes(layer), ask.round_to
    if ask.energy is not None:
        return tuple(
            min(len(spectrum), math.ceil(_needed(spectrum, lost) / step) * step)
            for spectrum, lost in spectra(layer, second_moment, tucker=form == "tucker", lost=1 - ask.energy)
        )
    assert ask.ratio is not None
    if form == "tucker":
        share = shares(1 - ask.ratio, cin, cout, kernel)
        return tuple(min(width, _stepped(share * width, step)) for width in (cin, cout))
    reading, giving = cin * kernel[0], cout * kernel[1]
    rank = (1 - ask.ratio) * reading * giving / (reading + giving)
    return (min(reading, giving, _stepped(rank, step)),)


def _needed(spectrum: Tensor, lost: float) -> int:
    """Return how many of the powers, largest first, leave at most the share `lost` of their sum."""
    rest = 1 - spectrum.cumsum(0) / spectrum.sum().clamp_min(1e-30)
    return int((rest > lost + 1e-12).sum()) + 1


def _stepped(rank: float, step: int) -> int:
    return max(1, int(rank / step + 0.5)) * step
