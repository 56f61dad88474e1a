"""A space of one's own: named genes, and how candidates are drawn, crossed and mutated.

A genome is a row of floats, a column for each gene. Genes in which near values are alike (`Real`, a `range`, a menu of rising
numbers) are held from 0 to 1, so that what is between two parents, or a step beside one, is a value too; a menu of other
things is held by its index, and only its own values are drawn.

References:
    Deb and Agrawal 1995, "Simulated binary crossover for continuous search space"; Deb and Goyal 1996 (polynomial mutation).
    Storn and Price 1997, "Differential evolution".
    McKay, Beckman and Conover 1979: Latin hypercube sampling.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import must_be, shown, unknown
from equipoise.units import is_real

Floats = NDArray[np.float64]
Rows = NDArray[np.float64]
"""Genomes, `(n, genes)`."""

ETA_CROSS, ETA_MUTATE = 15.0, 20.0
"""Distribution indices of crossover and mutation: the larger, the nearer children are to their parents."""
DIFFERENTIAL = 0.5
"""Share of the children made by differences of other genomes; the rest is crossed."""
STEP = (0.2, 0.9)
"""Range of the factor by which a difference is added."""
COPIED = (0.1, 0.8)
"""Shares of the genes that a child made by differences takes unchanged from its parent; either as often."""


@dataclass(frozen=True)
class Real:
    """A gene that may take every value of a range.

    Attributes:
        low, high: Its ends, both included.
        log: Whether factors are alike rather than differences (a learning rate).
    Raises:
        InputError: Ends that are no numbers, not finite, in the wrong order, or so far apart that a float cannot hold it.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        ends, most = (self.low, self.high), sys.float_info.max
        if not all(is_real(end) and -most <= end <= most for end in ends) or not 0 < float(self.high) - float(self.low) <= most:
            raise must_be("Real", f"from a number to a larger one, {most:.2g} apart at most", ends, "Write Real(0.0, 1.0).")
        if self.log and self.low <= 0:
            raise must_be("Real low", "above 0 where factors count (log=True)", self.low, "Begin at 1e-6, or leave log out.")


Gene = Real | range | Sequence[Any]
"""`Real(0.0, 1.0)`; ``range(8, 65, 8)``; ``["relu", "gelu"]``, or ``[16, 32, 64]``, whose numbers rise and so have an order. A
range costs nothing by its length; of one with more than 10^12 values, near ones are not told apart."""


@dataclass(frozen=True)
class Genes:
    """All candidates that named genes span.

    Args:
        genes: Name -> gene.
    Raises:
        InputError: No genes, an empty menu, or one that holds a value twice.
    """

    genes: Mapping[str, Gene]

    def __post_init__(self) -> None:
        if not self.genes:
            raise must_be("space", "one gene or more", dict(self.genes), "Write for example {'width': range(8, 65, 8)}.")
        for name, gene in self.genes.items():
            if isinstance(gene, Real):
                continue
            if isinstance(gene, str) or not isinstance(gene, Sequence):
                raise must_be(f"space {name!r}", "Real(low, high), a range or a list of values", gene, "Name its values.")
            if isinstance(gene, range):
                if not gene or gene[sys.maxsize :]:
                    raise must_be(f"space {name!r}", f"one value or more, {sys.maxsize:.2g} at most", gene, "Use a wider step.")
            elif not len(gene) or any(value in gene[:place] for place, value in enumerate(gene)):
                raise must_be(f"space {name!r}", "one value or more, each of them once", gene, "Name its values.")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The genes' names, a column each."""
        return tuple(self.genes)

    @cached_property
    def levels(self) -> NDArray[np.int64]:
        """How many values each gene has, `(genes,)`; 0 where it has every value of a range."""
        return np.array([0 if isinstance(gene, Real) else len(gene) for gene in self.genes.values()], dtype=np.int64)

    @cached_property
    def ordered(self) -> NDArray[np.bool_]:
        """Which genes are held from 0 to 1, `(genes,)`."""
        return np.array([_in_order(gene) for gene in self.genes.values()])

    @property
    def size(self) -> float:
        """How many candidates there are; infinite where a gene is `Real`."""
        return math.prod(self.levels.tolist()) if self.levels.all() else math.inf

    def canonical(self, rows: Rows) -> Rows:
        """Return genomes with every column within its gene and on one of its values."""
        most = np.maximum(self.levels - 1, 1)
        within = np.clip(rows, 0.0, np.where(self.ordered, 1.0, most))
        on = np.where(self.ordered, np.round(within * most) / most, np.round(within))
        return np.asarray(np.where(self.levels > 0, np.where(self.levels == 1, 0.0, on), within))

    def columns(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return the values of genomes, name -> `(n,)`."""
        out: dict[str, NDArray[Any]] = {}
        for column, ordered, (name, gene) in zip(rows.T, self.ordered, self.genes.items(), strict=True):
            if isinstance(gene, Real):
                low, high = (math.log(end) if gene.log else float(end) for end in (gene.low, gene.high))
                spread = low + (high - low) * column
                out[name] = np.clip(np.exp(spread) if gene.log else spread, gene.low, gene.high)
            else:
                last = len(gene) - 1
                places = np.round(column * last if ordered else column).tolist()
                values = (gene[min(int(place), last)] for place in places)  # a float may round the last of very many up
                out[name] = np.fromiter(values, dtype=object, count=len(places))
        return out

    def decode(self, rows: Rows) -> list[dict[str, Any]]:
        """Return genomes as candidates, name -> value."""
        columns = [values.tolist() for values in self.columns(rows).values()]
        return [dict(zip(self.names, values, strict=True)) for values in zip(*columns, strict=True)]

    def encode(self, candidate: Mapping[str, Any]) -> Rows:
        """Return the genome `(genes,)` of a candidate.

        Raises:
            InputError: A gene that is missing or unknown, or a value that it has not.
        """
        for name in candidate:
            if name not in self.genes:
                raise unknown("gene", name, self.genes)
        row = []
        for name, gene in self.genes.items():
            if name not in candidate:
                raise must_be("candidate", f"given a value of {name!r}", dict(candidate), "Name all genes.")
            row.append(_place(name, gene, candidate[name]))
        return np.asarray(self.canonical(np.array([row]))[0])

    def sample(self, rng: np.random.Generator, n: int) -> Rows:
        """Draw `n` genomes, each gene's values spread evenly over them."""
        strata = rng.permuted(np.tile(np.arange(n), (len(self.genes), 1)), axis=1).T
        even = (strata + rng.random(strata.shape)) / n
        menus = np.floor(even * np.maximum(self.levels, 1))
        among = np.where(self.ordered, np.where(self.levels > 0, menus / np.maximum(self.levels - 1, 1), even), menus)
        return self.canonical(among)

    def children(self, parents: Rows, front: int, n: int, rng: np.random.Generator) -> Rows:
        """Return `n` new genomes, made of parents that are in order, the best first.

        Half of them are crossed; half take steps along differences of other genomes, towards one of the front or not, which
        follow what the population has learned of directions and scale. All are mutated in one gene on average.

        Args:
            front: How many of the first parents are on the front.
        """
        mother, father, base = (parents[rng.integers(0, len(parents), (n, 2)).min(axis=1)] for _ in range(3))
        one, other = (parents[rng.integers(0, len(parents), n)] for _ in range(2))
        best = parents[rng.integers(0, max(front, 1), n)]
        crossed = self._crossed(mother, father, rng)
        factor = rng.uniform(*STEP, (n, 1))
        towards = (best - base) * (rng.random((n, 1)) < 0.5)
        moved = np.where(self.ordered, base + factor * (towards + one - other), best)
        copied = rng.random(base.shape) < rng.choice(COPIED, (n, 1))
        different = np.where(copied, base, moved)
        return self.mutated(np.where(rng.random((n, 1)) < DIFFERENTIAL, different, crossed), rng)

    def _crossed(self, mother: Rows, father: Rows, rng: np.random.Generator) -> Rows:
        u = rng.random(mother.shape)
        beta = np.where(u < 0.5, 2 * u, 0.5 / np.maximum(1 - u, 1e-12)) ** (1 / (ETA_CROSS + 1))
        side = np.where(rng.random(mother.shape) < 0.5, 0.5, -0.5)
        between = 0.5 * (mother + father) + side * beta * (mother - father)
        menu = np.where(side > 0, mother, father)
        return np.asarray(np.where(rng.random(mother.shape) < 0.5, mother, np.where(self.ordered, between, menu)))

    def mutated(self, rows: Rows, rng: np.random.Generator, *, always: bool = False) -> Rows:
        """Return genomes changed in one gene on average; with `always` in one at least."""
        n, genes = rows.shape
        chosen = rng.random(rows.shape) < 1 / genes
        if always:
            chosen[np.arange(n), rng.integers(0, genes, n)] = True
        u = rng.random(rows.shape)
        step = np.where(u < 0.5, (2 * u) ** (1 / (ETA_MUTATE + 1)) - 1, 1 - (2 * (1 - u)) ** (1 / (ETA_MUTATE + 1)))
        gap = 1.0 / np.maximum(self.levels - 1, 1)  # a step that is too small to reach the next value is no step
        stepped = np.where(self.levels > 0, np.copysign(np.maximum(np.abs(step), gap), step), step)
        drawn = np.floor(rng.random(rows.shape) * np.maximum(self.levels, 1))
        return self.canonical(np.where(chosen, np.where(self.ordered, rows + stepped, drawn), rows))


def _in_order(gene: Gene) -> bool:
    """Whether near values of a gene are alike: every range, and a menu of numbers that rise."""
    if isinstance(gene, Real | range):
        return True
    return all(type(value) in (int, float) for value in gene) and all(a < b for a, b in pairwise(gene))


def _place(name: str, gene: Gene, value: Any) -> float:
    """Return where a gene's value stands in a genome."""
    if isinstance(gene, Real):
        if not is_real(value) or not gene.low <= value <= gene.high:
            raise must_be(f"candidate {name!r}", f"from {gene.low:g} to {gene.high:g}", value, "Choose from the range.")
        low, high, at = (math.log(v) if gene.log else v for v in (gene.low, gene.high, value))
        return (at - low) / (high - low)
    if isinstance(gene, range):  # of whole numbers it knows at once whether it holds them; anything else it would look for
        value = int(value) if is_real(value) and value % 1 == 0 else value
        held = type(value) is int and value in gene
    else:
        held = value in gene
    if not held:
        raise must_be(f"candidate {name!r}", f"one of {shown(gene)}", value, "Choose from the menu.")
    index = gene.index(value)
    return index / max(len(gene) - 1, 1) if _in_order(gene) else float(index)
