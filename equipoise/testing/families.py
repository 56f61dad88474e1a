"""The contract of a `Family`, as a function: run it over your own before you give it a row in the table."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from equipoise.batch import SOURCE, WRITTEN, Inputs, call, parts, size
from equipoise.errors import InputError
from equipoise.measure.counts import count
from equipoise.workloads.families import Family, Scale
from equipoise.workloads.task import Kind, Shape

SHAPES: dict[Kind, Shape] = {
    "vectors": Shape((10,), 3),
    "images": Shape((3, 16, 16), 5),
    "tokens": Shape((12,), 7, 30),
    "arrays": Shape((4, 6), 3),
    "pairs": Shape((9,), 20, 20, dense=True, written=7),
}
"""Kind of input -> a small sample of it."""
TEXT = Shape((12,), 20, 20, dense=True)
"""Tokens with an answer for each position."""
SOUND = Shape((2000,), 3, dense=True, aligned=False)
"""Numbers with a row of answers, as many as the model gives."""
FACTORS = (1, 2, 4)
"""How much a family is grown."""
LEAST, MOST = 0.4, 1.3
"""What is counted on the models grows by a power of the cost between these; ends that hold most of it, by about half."""


def shape_of(family: Family) -> Shape:
    """Return a small sample of what models of `family` take first, with the answer that they give."""
    return _small(family, family.kinds[0])


def _small(family: Family, kind: Kind) -> Shape:
    return {"tokens": TEXT, "vectors": SOUND}.get(kind, SHAPES[kind]) if family.dense else SHAPES[kind]


def smallest(family: Family) -> dict[str, int | float]:
    """Return the scale of the first value on each menu."""
    return family.scale(**{dimension.name: dimension.menu[0] for dimension in family.dimensions if dimension.menu})


def samples(shape: Shape, n: int = 3) -> Inputs:
    """Return a batch (n, ...) of that shape, always the same: a tensor, or the two of a pair by name."""
    generator = torch.Generator().manual_seed(1)
    if shape.written is not None:
        lengths = {SOURCE: shape.sample[0], WRITTEN: shape.written}
        return {name: torch.randint(0, shape.vocabulary or 1, (n, most), generator=generator) for name, most in lengths.items()}
    if shape.vocabulary is not None:
        return torch.randint(0, shape.vocabulary, (n, *shape.sample), generator=generator)
    return torch.randn(n, *shape.sample, generator=generator)


def check_family(family: Family, shape: Shape | None = None) -> None:
    """Check that `family` keeps the contract of `workloads.Family`.

    At the smallest scale, and at one larger in each dimension, a model answers each sample of a batch in the shape of
    the task, the same alone as among others, and every weight that is to be trained is reached by the gradient. Weights depend
    on the generator alone, and no two models share them. Along `grow` the cost, the params and the MACs rise, and what `grows`
    names does as the cost says; what the family cannot take is refused.

    Args:
        shape: Of the task; None takes a small one of each kind that the family says it takes.
    Raises:
        AssertionError: It does not, with the scale.
        InputError: It cannot make a model of one of these scales, or not grow.
    """
    assert family.dimensions, "it has no dimension"
    assert family.growth, "it does not say how it grows"
    assert set(family.growth) <= set(family.scale()), f"it grows by what is no dimension: {sorted(family.growth)}"
    shapes = [_small(family, kind) for kind in family.kinds] if shape is None else [shape]
    for task in shapes:
        for scale in _scales(family):
            _answers(family, scale, task)
        _repeats(family, task)
    _grows(family, shapes[0])
    _refuses(family)


def _scales(family: Family) -> list[dict[str, int | float]]:
    least = smallest(family)
    found = [least]
    for dimension in family.dimensions:
        larger = [value for value in dimension.menu if value > least[dimension.name]]
        if larger:
            found.append({**least, dimension.name: larger[0]})
    return found


def _model(family: Family, scale: Scale, shape: Shape, seed: int = 0) -> nn.Module:
    return family.model(scale, shape, generator=torch.Generator().manual_seed(seed))


def _answers(family: Family, scale: Scale, shape: Shape) -> None:
    where = f"{family.name} at {dict(scale)} on {shape}"
    model, inputs = _model(family, scale, shape), samples(shape)
    wanted = (size(inputs), shape.outputs, *shape.places)
    trained = call(model.train(), inputs)
    assert isinstance(trained, Tensor), f"{where}: it answers with a {type(trained).__name__}, not a tensor"
    answers = tuple(trained.shape) if shape.aligned else tuple(trained.shape)[:2]
    assert answers == wanted, f"{where}: it answers in the shape {tuple(trained.shape)}, not {wanted}"
    assert bool(trained.isfinite().all()), f"{where}: its answers are not finite"
    trained.square().mean().backward()  # type: ignore[no-untyped-call]
    lost = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not lost, f"{where}: no gradient reaches {lost[:3]}"
    with torch.no_grad():
        together = call(model.eval(), inputs)
        alone = torch.cat([call(model, few) for few in parts(inputs, 1)])
    near = torch.allclose(together, alone, rtol=1e-3, atol=1e-4 * float(together.abs().max()) + 1e-7)
    assert near, f"{where}: a sample is answered otherwise alone than in a batch"


def _repeats(family: Family, shape: Shape) -> None:
    where, scale, before = f"{family.name} on {shape}", smallest(family), torch.get_rng_state()
    one = _model(family, scale, shape)
    assert torch.equal(torch.get_rng_state(), before), f"{where}: the global generator has moved"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        same, other = _model(family, scale, shape), _model(family, scale, shape, seed=1)
    states = [model.state_dict() for model in (one, same, other)]
    held = [{tensor.data_ptr() for tensor in state.values() if tensor.numel()} for state in states]
    assert not held[0] & (held[1] | held[2]), f"{where}: two models share their weights"
    assert states[0].keys() == states[1].keys(), f"{where}: the same seed gives other layers"
    equal = all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert equal, f"{where}: the same seed gives other weights"
    differs = any(not torch.equal(value, states[2][name]) for name, value in states[0].items())
    assert differs, f"{where}: another seed gives the same weights"


def _grows(family: Family, shape: Shape) -> None:
    scales = [family.grow(factor) for factor in FACTORS]
    models = [_model(family, scale, shape) for scale in scales]
    counts = [count(model.eval(), samples(shape, 1)) for model in models]
    costs = [float(family.cost(scale)) for scale in scales]
    rows = {"cost": costs, "params": [float(c.params) for c in counts], "macs": [float(c.macs) for c in counts]}
    for name, row in rows.items():
        rises = all(small < large for small, large in itertools.pairwise(row))
        assert rises, f"{family.name}: grown by {FACTORS}, its {name} do not rise: {row}"
    real = rows["params" if family.grows == "params" else "macs"]
    power = math.log(real[-1] / real[0]) / math.log(costs[-1] / costs[0])
    told = f"{family.name}: from {scales[0]} to {scales[-1]} its cost rises {costs[-1] / costs[0]:.1f} times"
    assert LEAST <= power <= MOST, f"{told}, its {family.grows} {real[-1] / real[0]:.1f} times"


def _refuses(family: Family) -> None:
    first = family.dimensions[0]
    for what, scale in (("an unknown dimension", {"no_such_dimension": 1}), ("a negative value", {first.name: -1})):
        try:
            family.scale(**scale)
        except InputError:
            continue
        raise AssertionError(f"{family.name}: {what} was not refused with an InputError")
    for kind, shape in SHAPES.items():
        if kind in family.kinds:
            continue
        try:
            _model(family, smallest(family), shape)
        except InputError:
            continue
        raise AssertionError(f"{family.name}: {kind}, which it does not say that it takes, were not refused with an InputError")
