"""How well the law foretells the largest size from the others, beside rules that need no law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.errors import InputError
from equipoise.scaling.fit import WEAK, Beliefs, fit, predict
from equipoise.scaling.isoflop import groups, isoflop
from equipoise.scaling.runs import Run, Size
from equipoise.stats import Interval


@dataclass(frozen=True, slots=True)
class Foretold:
    """One run that the fit did not see.

    Attributes:
        said: Its loss as foretold, with interval; `seen` as it was.
        error: Relative error of the loss; `excess_error` of what lies above the law's E.
        rules: Rule -> relative error; None where a rule has no answer.
    """

    run: Run
    said: Interval
    seen: float
    error: float
    excess_error: float
    rules: dict[str, float | None]

    @property
    def covered(self) -> bool:
        """Whether the interval holds what was seen."""
        return self.said.low <= self.seen <= self.said.high


def hold_out(
    runs: Sequence[Run], *, seed: int, size: Size = "params", beliefs: Beliefs = WEAK, level: float = 0.9
) -> tuple[Foretold, ...]:
    """Fit without the runs of the largest size and foretell them; never a random split, which tests no extrapolation.

    Raises:
        InputError: The smaller sizes are too few to fit.
    """
    used = [run for run in runs if run.annealed]
    if not used:
        raise InputError("hold_out needs annealed runs; got none. Mark or make runs whose learning rate came down.")
    largest = max(run.size(size) for run in used)
    kept = [run for run in used if run.size(size) < 0.99 * largest]
    fitted = fit(kept, seed=seed, size=size, beliefs=beliefs, starts=25)
    out = []
    for run in used:
        if run.size(size) >= 0.99 * largest:
            said = predict(fitted, run.size(size), run.samples, run.unique, level=level)
            off = said.value / run.loss - 1.0
            excess = (said.value - run.loss) / max(run.loss - float(fitted.law.E), 1e-12)
            others = {name: None if v is None else v / run.loss - 1.0 for name, v in rules(kept, run, size=size).items()}
            out.append(Foretold(run, said, run.loss, off, excess, others))
    return tuple(out)


def rules(runs: Sequence[Run], target: Run, *, size: Size = "params") -> dict[str, float | None]:
    """Return the loss of `target` by four rules that fit no law of size and data.

    ``last value``: the least loss of the highest compute level. ``log-linear in compute``: a line in logarithms through the
    best run of each level. ``20 samples per parameter``: the same through the run of each level nearest to that ratio.
    ``parabolas``: the trend of the parabolas' minima, None where there are no two.
    """
    levels = [[runs[i] for i in group] for group in groups(np.log([run.flops for run in runs]))]
    best = [min(level, key=lambda r: r.loss) for level in levels]
    ratio = [min(level, key=lambda r: abs(math.log(r.samples / r.params / 20.0))) for level in levels]
    return {
        "last value": best[-1].loss,
        "log-linear in compute": _line(best, target.flops),
        "20 samples per parameter": _line(ratio, target.flops),
        "parabolas": isoflop(runs, size=size, seed=0, draws=20).loss(target.flops),
    }


def _line(runs: Sequence[Run], flops: float) -> float | None:
    if len(runs) < 2:
        return None
    slope, offset = np.polyfit(np.log([r.flops for r in runs]), np.log([r.loss for r in runs]), 1)
    return float(np.exp(offset + slope * math.log(flops)))
