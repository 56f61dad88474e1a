"""A family: one kind of model at every scale, its dimensions named."""

from __future__ import annotations

import inspect
import itertools
import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from equipoise.errors import must_be, unknown
from equipoise.workloads.data import Transform
from equipoise.workloads.sources import attempt
from equipoise.workloads.task import Kind, Shape, Task

Scale = Mapping[str, int | float]
"""Dimension -> value; all of a family's dimensions, in its order."""

KINDS: tuple[Kind, ...] = ("vectors", "images", "tokens", "arrays", "pairs")
REACH = 2.1
"""`Family.grow` refuses where its dimensions miss the factor by more than this; from 8 channels to 16 the cost quadruples."""


@dataclass(frozen=True)
class Dimension:
    """One number that a scale is made of.

    Attributes:
        name: ``width``, ``depth``, ``resolution``, ``expansion``, ``kernel``, ``heads`` or ``context`` in the built-in
            families.
        default: Value where none is given.
        menu: Sensible values, small to large, for tables and searches; others are allowed.
        multiple: Values are whole and lie at `offset` plus a multiple of this (channels: 8); None takes any positive number.
        offset: See `multiple` (the depth 6 n + 2 of a ResNet has 6 and 2).
        least, most: Bounds, both included; None: the first multiple, and no upper bound.
    """

    name: str
    default: int | float
    menu: tuple[int | float, ...] = ()
    multiple: int | None = 1
    offset: int = 0
    least: float | None = None
    most: float | None = None

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise must_be("dimension name", "a word", self.name, "Use letters, digits and underscores.")
        for value in (self.default, *self.menu):
            self.checked(value)
        if list(self.menu) != sorted(self.menu):
            raise must_be(f"menu of {self.name}", "ordered from small to large", self.menu, "Sort it.")

    def checked(self, value: float) -> int | float:
        """Return `value` as this dimension holds it (whole where it must be).

        Raises:
            InputError: Not a number, out of bounds, or not at a multiple.
        """
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):  # NumPy's are Real, too
            raise must_be(self.name, "a finite number", value, f"Write for example {self.name}={self.default}.")
        if value <= 0 or self.nearest(value) != value:
            raise must_be(self.name, self._allowed(), value, f"The nearest is {self.nearest(max(value, 0))}.")
        return float(value) if self.multiple is None else int(value)

    def nearest(self, value: float) -> int | float:
        """Return the allowed value nearest to `value` (halfway: the larger)."""
        if self.multiple is not None:
            value = self.offset + self.multiple * math.floor((value - self.offset) / self.multiple + 0.5)
        value = max(value, self._least)
        return value if self.most is None else min(value, self.most)

    def _allowed(self) -> str:
        most = "" if self.most is None else f", {self.most} at most"
        if self.multiple is None:
            return f"a number {f'of at least {self.least}' if self.least else 'above 0'}{most}"
        start = f"{self.offset} + " if self.offset else ""
        what = "a whole number" if self.multiple == 1 else f"{start}a multiple of {self.multiple}"
        return f"{what}, at least {self._least}{most}"

    @property
    def _least(self) -> int | float:
        if self.least is not None:
            return self.least
        return 0.0 if self.multiple is None else self.offset + self.multiple


@dataclass(frozen=True)
class Family:
    """Models of one kind: from a scale and the shape of a task to a module.

    Attributes:
        name: A row of `built_in.FAMILIES`, or the user's own.
        dimensions: What a scale is made of.
        build: (scale, shape) -> module; called with a full, checked scale.
        kinds: Inputs that the models take.
        dense: Whether they give one answer for each position; None: the task decides.
        cost: Scale -> what `grow` multiplies, in any unit; the closed form of the leading term.
        grows: What that is: ``params`` (those of the body, without embeddings and logits) or ``flops`` of one sample.
        growth: Dimension -> exponent: `grow` multiplies it by t to this power, the same t for all.
        initialize: (module, generator): draws the weights; None leaves what `build` drew.
        pretrained: Whether `build` loads weights that were trained elsewhere, so that training is fine-tuning.
        frozen_first: Whether that begins with the last layer alone, on the answers of all before it; see `training.frozen`.
        normalize: How the images were normalised that those weights were trained on; it takes the place of a task's own
            transform of the same kind. None: as the task has them.
        side: Rows and columns of those images; None: any.

    Example:
        >>> from equipoise.workloads.families import family
        >>> net = family("mlp").model({"width": 50, "depth": 1}, Shape((10,), 3), generator=torch.Generator())
        >>> sum(p.numel() for p in net.parameters())
        703
    """

    name: str
    dimensions: tuple[Dimension, ...]
    build: Callable[[Scale, Shape], nn.Module]
    kinds: tuple[Kind, ...]
    cost: Callable[[Scale], float]
    growth: Mapping[str, float]
    grows: Literal["params", "flops"] = "params"
    dense: bool | None = False
    initialize: Callable[[nn.Module, torch.Generator], None] | None = None
    pretrained: bool = False
    frozen_first: bool = False
    normalize: Transform | None = None
    side: int | None = None

    @classmethod
    def of(
        cls,
        builder: Callable[..., nn.Module],
        *,
        dimensions: Sequence[Dimension] = (),
        name: str = "",
        cost: Callable[[Scale], float] | None = None,
        growth: Mapping[str, float] | None = None,
    ) -> Family:
        """Make a family of the user's own function from a scale to a model.

        Args:
            builder: Either takes dimensions by name, ``def net(width=64, depth=2)``, and may take ``shape`` (a `Shape`) first;
                or takes the whole scale, ``def net(scale)`` or ``def net(scale, shape)``, and `dimensions` are given.
            dimensions: None given: read off the numbers that are the builder's defaults, with menus from a quarter to four
                times each.
            name: For tables; empty takes the builder's.
            cost: Scale -> what `grow` multiplies; None takes width² x depth x expansion, as far as they are dimensions.
            growth: Dimension -> exponent; None grows the width, or the first dimension where there is no width.
        Raises:
            InputError: A builder that is neither of these, or no dimension.
        """
        if not callable(builder):
            raise must_be("builder", "a function of a scale", builder, "Write def net(width=64, depth=2): return ...")
        every = inspect.signature(builder).parameters.values()
        parameters = [p for p in every if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        found = tuple(dimensions) or tuple(_dimension(p.name, p.default) for p in parameters if _is_number(p.default))
        title = name or getattr(builder, "__name__", "own")
        if not found:
            raise must_be(f"builder {title}", "one with a dimension", list(map(str, parameters)), "Write def net(width=64).")
        names = {dimension.name for dimension in found}
        wanted = _wanted(title, [p.name for p in parameters if p.default is p.empty and p.name not in names])
        by_name = [p.name for p in parameters if p.name in names]

        def build(scale: Scale, shape: Shape) -> nn.Module:
            given = [shape if role == "shape" else dict(scale) for role in wanted]
            return attempt(
                f"builder {title}",
                lambda: builder(*given, **{key: scale[key] for key in by_name}),
                f"It was called with the scale {dict(scale)}.",
            )

        lead = "width" if "width" in names else found[0].name
        return cls(title, found, build, KINDS, cost or partial(_leading, lead=lead), growth or {lead: 1.0}, dense=None)

    def scale(self, **values: float) -> dict[str, int | float]:
        """Return a full scale: `values`, and the defaults for the rest.

        Raises:
            InputError: An unknown dimension, or a value that it does not allow.
        """
        for name in values:
            if name not in (names := [dimension.name for dimension in self.dimensions]):
                raise unknown(f"dimension of {self.name}", name, names)
        scale = {d.name: d.checked(values.get(d.name, d.default)) for d in self.dimensions}
        if "heads" in scale and "width" in scale and scale["width"] % scale["heads"]:
            raise must_be("heads", f"a divisor of the width {scale['width']}", scale["heads"], "Use 1, 2, 4 or 8.")
        return scale

    def model(self, scale: Scale, task: Task | Shape, *, generator: torch.Generator) -> nn.Module:
        """Return a new model of `scale` for `task`; its weights depend on `generator` alone.

        Args:
            scale: Dimension -> value; the defaults stand for what is left out.
            task: What must be learned, or its `Shape` where there is no data yet.
            generator: Draws the weights, on the CPU. The global generator is left as it was.
        Raises:
            InputError: A scale or a task that the family cannot take.
        """
        shape = task.shape if isinstance(task, Task) else task
        full = self.scale(**scale)
        self._suits(shape)
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):  # module constructors draw from the global generator
            torch.default_generator.manual_seed(seed)
            made = self.build(full, shape)
        if not isinstance(made, nn.Module):
            raise must_be(f"builder {self.name}", "one that returns a torch.nn.Module", type(made).__name__, "Return a model.")
        if self.initialize is not None:
            with torch.no_grad():
                self.initialize(made, generator)
        return made

    def prepared(self, task: Task) -> Task:
        """Return `task` with its images normalised as the models of this family take them; any other task as it is."""
        wanted = self.normalize
        if wanted is None or not all(type(part.transform) is type(wanted) for part in (task.train, task.validation, task.test)):
            return task
        train, validation, test = (replace(part, transform=wanted) for part in (task.train, task.validation, task.test))
        return replace(task, train=train, validation=validation, test=test)

    def grow(self, factor: float, **base: float) -> dict[str, int | float]:
        """Return the scale whose cost is about `factor` times that of `base`, by the family's own rule.

        What is multiplied is in `grows`, the rule in `growth`. Rounding the width w to a multiple of 8 misses the factor by up
        to (w + 8) / w: 1.5 at 16 channels, 1.13 at 64; compute with the cost of the scale that is returned.

        Args:
            factor: Below 1 shrinks.
            base: Where to start; the defaults stand for what is left out.
        Raises:
            InputError: A factor that the dimensions cannot come near, or a bad `base`.

        Example:
            >>> from equipoise.workloads.families import family
            >>> family("gpt").grow(4)["width"]
            224
        """
        if not (isinstance(factor, (int, float)) and 1e-9 <= factor <= 1e9):
            raise must_be("factor", "a number from 1e-9 to 1e9", factor, "Write grow(4) for four times the size.")
        start = self.scale(**base)
        goal = factor * self.cost(start)

        def miss(scale: Scale) -> float:
            return math.log(self.cost(scale) / goal)

        low, high = (self._along(start, step) for step in _crossing(lambda step: miss(self._along(start, step))))
        corners = itertools.product(*({low[name], high[name]} for name in low))
        best = min((dict(zip(low, corner, strict=True)) for corner in corners), key=lambda scale: abs(miss(scale)))
        if abs(miss(best)) > math.log(REACH):
            nearest = f"{self.name} comes no nearer than {factor * math.exp(miss(best)):.3g}"
            raise must_be("factor", "one that the dimensions can reach", factor, f"{nearest}; change another dimension.")
        return self.scale(**best)

    def _along(self, start: Scale, step: float) -> dict[str, int | float]:
        """The allowed scale at e^step along the family's ray."""
        moved = dict(start)
        for dimension in self.dimensions:
            exponent = self.growth.get(dimension.name, 0.0)
            if exponent:
                moved[dimension.name] = dimension.nearest(round(start[dimension.name] * math.exp(step * exponent), 4))
        return moved

    def _suits(self, shape: Shape) -> None:
        """Raise unless models of this family can take `shape`."""
        which = (
            "Use mlp for vectors; gpt for the next token; bag, textcnn, gru or encoder for texts; transformer or seq2seq for "
            "translation; any of the others for images."
        )
        if shape.kind not in self.kinds:
            raise must_be("task", f"one of {' or '.join(self.kinds)} for the family {self.name}", shape.kind, which)
        if self.dense is not None and self.dense != shape.dense:
            answers = "one label for each position" if self.dense else "one answer for each sample"
            raise must_be("task", f"one with {answers} for the family {self.name}", shape, which)


def _crossing(gap: Callable[[float], float]) -> tuple[float, float]:
    """Return two steps hardly apart, one on each side of where `gap`, which never falls, crosses 0."""
    low, high = -1.0, 1.0
    while gap(low) > 0 and low > -64:
        low *= 2
    while gap(high) < 0 and high < 64:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gap(middle) < 0 else (low, middle)
    return low, high


def _leading(scale: Scale, *, lead: str = "width") -> float:
    """Params of most networks, up to a constant; `lead` is what its layers' widths go with."""
    others = ("depth", "expansion")
    return float(math.prod(scale.get(name, 1) for name in others) * (1 if lead in others else scale.get(lead, 1) ** 2))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _dimension(name: str, default: int | float) -> Dimension:
    """A dimension with a menu from a quarter to four times its default."""
    whole = isinstance(default, int)
    menu = sorted({max(1, round(default * f)) if whole else default * f for f in (0.25, 0.5, 1, 2, 4)})
    return Dimension(name, default, tuple(menu), multiple=1 if whole else None)


def _wanted(title: str, required: list[str]) -> list[str]:
    """What each required argument is given: the scale first, then the shape; one called ``shape`` is given the shape."""
    roles: Iterator[str] = iter(("scale", "shape"))
    wanted = ["shape" if name == "shape" else next(roles, "") for name in required]
    if "" in wanted or len(set(wanted)) < len(wanted):
        raise must_be(f"builder {title}", "a function of dimensions, a scale and a shape", required, "See Family.of.")
    return wanted
