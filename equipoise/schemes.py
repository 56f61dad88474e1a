"""In which ways a layer can be computed, in one row each: what its weights are held in, and what its inputs are rounded to.

Words and numbers only, so that a plan, a report and a manifest are read without torch. A runtime names the rows that it knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from equipoise.records import Choice

GROUPS = (64, 32, 16)
"""Weights that share a scale, the first of these that divides a row."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """One of them.

    Attributes:
        bits: Of a weight in the file.
        inputs: What the layer's inputs are: floats, floats of half the bits, or integers in a range known beforehand or in that
            of the request.
        says: In a few words.
    """

    bits: int
    inputs: Literal["float", "half", "static", "dynamic"]
    says: str

    @property
    def encoded(self) -> bool:
        """Whether weights lie on a grid of their own while the graph around the layer stays in floats."""
        return self.bits < 32 and self.inputs != "static"


SCHEMES: Mapping[Choice, Scheme] = {
    32: Scheme(32, "float", "floats"),
    8: Scheme(8, "static", "8-bit weights and inputs, ranges known beforehand"),
    "8-dynamic": Scheme(8, "dynamic", "8-bit weights, inputs rounded in the range of each request"),
    "8-weights": Scheme(8, "float", "8-bit weights in groups"),
    "4-weights": Scheme(4, "float", "4-bit weights in groups"),
    "float16": Scheme(16, "float", "weights in half precision"),
    "bfloat16": Scheme(16, "float", "weights in bfloat16"),
    "fp16": Scheme(16, "half", "computed in half precision"),
    "bf16": Scheme(16, "half", "computed in bfloat16"),
}
"""How a plan writes it -> the scheme; floats first."""


MENUS: Mapping[str, tuple[Choice, ...]] = {
    "conv": (32, "fp16", 8, "4-weights"),
    "linear": (32, "fp16", "8-weights", "8-dynamic", 8, "4-weights"),
    "embedding": (32, "8-weights", "4-weights"),
}
"""Kind of operator -> what is worth choosing from; the most telling stands in the middle, where tables begin.

A convolution has no kernels for integers but those of static ranges: 4 bits save bytes alone. A table of rows is only read.
What is only held in half precision is left to hand use: 8-bit weights are half its size, as quick or quicker, and lose next
to nothing. What is computed in it is for GPUs; bfloat16, for what overflows in it, by hand.
"""


def forms(kind: str) -> tuple[Choice, ...]:
    """Return the schemes in which a layer of a kind has a form of its own, those that are not worth choosing too."""
    return (*MENUS.get(kind, ()), *(("8-weights",) if kind == "conv" else ()), "float16", "bfloat16", "bf16")


def menu(*kinds: str) -> tuple[Choice, ...]:
    """Return the schemes that an operator of a kind may be timed in; of several, those of weights that they share.

    These are of the kind with the most, but for int8 with static ranges: no quantizer takes weights that are turned.
    """
    ways = max((MENUS.get(kind, (32, 8)) for kind in kinds), key=len)
    return tuple(way for way in ways if len(kinds) == 1 or scheme(way).inputs != "static")


def scheme(choice: Choice) -> Scheme:
    """Return the scheme that a plan writes as `choice`; one that is unknown here is of floats."""
    return SCHEMES.get(choice, SCHEMES[32])


def shared(choices: Iterable[Choice]) -> Choice:
    """Return the scheme of weights that several layers share: of those asked for, that of the fewest levels.

    Example:
        >>> shared(["8-weights", "4-weights"]), shared(["8-weights", "8-dynamic"])
        ('4-weights', '8-dynamic')
    """
    return min(choices, key=lambda choice: (scheme(choice).bits, scheme(choice).inputs == "float"))


def top(choice: Choice, *, exact: bool) -> int:
    """Return the largest level of a weight; the least is its negative.

    Args:
        exact: Whether the CPU adds 8-bit products without overflow; else weights that meet 8-bit inputs keep to 7 bits.
    """
    found = scheme(choice)
    narrow = found.inputs == "dynamic" and not exact
    return int(2 ** (found.bits - 1 - narrow)) - 1


def group(choice: Choice, kind: str, width: int) -> int:
    """Return how many weights of a row share a scale: a whole row of `width`, or a part of it that divides it.

    A convolution has one scale for each filter, and so has what meets integers. An embedding of 8 bits has one for each row.

    Args:
        kind: ``conv``, ``linear`` or ``embedding``.
        width: Weights of a row (or filter).

    Example:
        >>> group("4-weights", "linear", 384), group("4-weights", "linear", 40), group("8-dynamic", "linear", 384)
        (64, 40, 384)
    """
    found = scheme(choice)
    if kind == "conv" or found.inputs != "float" or (kind == "embedding" and found.bits == 8):
        return width
    return next((size for size in GROUPS if width % size == 0), width)


def bytes_per_weight(choice: Choice, kind: str, width: int) -> float:
    """Return the bytes that a weight takes in a file, with its share of the scales."""
    bits = scheme(choice).bits
    return bits / 8 + (4.0 / group(choice, kind, width) if bits < 16 else 0.0)
