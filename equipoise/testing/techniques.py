"""The contract of a `Technique`, as a function: run it over your own before you give it a row in the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from equipoise.compress.subject import Subject
from equipoise.compress.technique import Draft, Offer, Technique
from equipoise.errors import InputError
from equipoise.ops import Op
from equipoise.records import Choice, Knob

SIDE = 24
"""Height and width of the probe's images."""


class Block(nn.Module):
    """Adds to its input what a depthwise separable convolution makes of it."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Conv2d(width, hidden, 1)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.down = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of the shape of `x`."""
        mixed: Tensor = torch.relu(self.mix(torch.relu(self.up(x))))
        added: Tensor = x + self.down(mixed)
        return added


class Probe(nn.Module):
    """A small network of images with what techniques act on: plain, strided, depthwise and linear layers, and two blocks."""

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.first, self.second = Block(16, 32), Block(16, 24)
        self.conv = nn.Conv2d(16, 32, 3, padding=1)
        self.hidden, self.head = nn.Linear(32, 24), nn.Linear(24, 5)
        generator = generator or torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                fan = parameter[0].numel()
                parameter.uniform_(-(fan**-0.5), fan**-0.5, generator=generator).mul_(1.7)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 5) scores of images (N, 3, H, W)."""
        x = torch.relu(self.conv(self.second(self.first(torch.relu(self.stem(x))))))
        scores: Tensor = self.head(torch.relu(self.hidden(x.mean((2, 3)))))
        return scores


def probe_inputs() -> Tensor:
    """Return images (64, 3, 24, 24)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(64, 3, 1, 1, generator=generator) + torch.randn(64, 3, SIDE, SIDE, generator=generator)


def check_technique(
    technique: Technique,
    model: nn.Module | None = None,
    inputs: Tensor | None = None,
    *,
    students: Mapping[str, Callable[[], nn.Module]] | None = None,
) -> None:
    """Check that `technique` keeps the contract of `compress.technique.Technique`.

    Something is offered; menus, places and layers are sound; applying a choice changes neither the subject nor the draft, gives
    the same model each time, one that still answers in the same shape, and the same shapes where no statistics were collected;
    what it says of a layer's operators is what the built layer holds; later choices of a nested menu hold no more than earlier
    ones; what is not offered is refused.

    Args:
        model, inputs: Something that the technique applies to, and inputs (N, ...); None takes a small network of images.
        students: Makers of new models for the same inputs, for a technique that offers them.
    Raises:
        AssertionError: It does not, with the place and the choice.
    """
    inputs = probe_inputs() if inputs is None else inputs
    model = Probe().eval() if model is None else model
    subject, shapes = (
        replace(made, students=students or {})
        for made in (Subject.prepare(model, inputs[:2], inputs), Subject.of_shapes(model, inputs[:2], inputs))
    )
    offers = list(technique.offers(subject))
    assert any(len(offer.menu) > 1 for offer in offers), "it offers nothing on a model that it should apply to"
    assert len({offer.place for offer in offers}) == len(offers), "two offers have the same place"
    for offer in offers:
        _sound(offer, subject)
        held = [_built(technique, offer, choice, subject, shapes, inputs) for choice in offer.menu[1:]]
        if Knob("kind.place", offer.menu).nested:
            sizes = [_weights(subject.model), *held]
            assert sizes == sorted(sizes, reverse=True), f"{offer.place}: later choices hold more: {sizes}"
    try:
        technique.apply(Draft(subject.model), subject, {"no such place": offers[0].menu[-1]})
    except InputError:
        return
    raise AssertionError("a place that is not offered was not refused with an InputError")


def _sound(offer: Offer, subject: Subject) -> None:
    names = dict(subject.model.named_modules())
    assert offer.menu, f"{offer.place}: an empty menu"
    assert len(set(offer.menu)) == len(offer.menu), f"{offer.place}: copies on the menu {offer.menu}"
    assert offer.layers, f"{offer.place}: it acts on nothing"
    assert set(offer.layers) <= set(names), f"{offer.place}: it acts on layers that are none: {offer.layers}"
    for table in (offer.removes, offer.needs, offer.untrained):
        assert set(table) <= set(offer.menu), f"{offer.place}: {set(table)} is not on the menu {offer.menu}"
    assert bool(offer.refused) <= (len(offer.menu) == 1), f"{offer.place}: refused, and offered all the same"


def _built(technique: Technique, offer: Offer, choice: Choice, subject: Subject, shapes: Subject, inputs: Tensor) -> int:
    """Check one choice; return the weights that its model holds."""
    where = f"{offer.place}={choice}"
    before, draft = _state(subject.model), Draft(subject.model)
    made, again, bare = (technique.apply(draft, s, {offer.place: choice}) for s in (subject, subject, shapes))
    assert _same(_state(subject.model), before), f"{where}: the subject's model was changed"
    assert draft == Draft(subject.model), f"{where}: the draft was changed"
    assert _same(_state(made.model), _state(again.model)), f"{where}: applied twice it gives two models"
    assert _sizes(made.model) == _sizes(bare.model), f"{where}: other shapes where no statistics were collected"
    with torch.no_grad():
        wanted, found = subject.model(inputs[:3]), made.model(inputs[:3])
    assert found.shape == wanted.shape, f"{where}: it answers {tuple(found.shape)} in place of {tuple(wanted.shape)}"
    assert bool(found.isfinite().all()), f"{where}: its answers are not finite"
    asked = made.request != draft.request
    assert asked or not torch.equal(found, wanted), f"{where}: nothing changed"
    assert asked or made.damaged or made.drawn, f"{where}: the draft does not say that it was damaged"
    assert (made.drawn is not None) == (choice in offer.untrained), f"{where}: it is a new model, or not, as one says"
    for layer in offer.layers:
        if layer in subject.ops:
            whole, ops = (technique.ops(subject, offer, layer, c) for c in (offer.menu[0], choice))
            assert whole == (subject.ops[layer],), f"{where}: {layer} is not itself under the untouched choice"
            told, real = sum(op.weights for op in ops), 0 if made.drawn else _weights_of(made.model, layer)
            assert told == real, f"{where}: {layer} is said to hold {told} weights and holds {real}"
            assert _plain(ops), f"{where}: {layer} becomes what is no operator"
            assert bool(ops) != (layer in offer.removes.get(choice, ())), f"{where}: {layer} is gone or not, as one says"
    return _weights(made.model)


def _plain(ops: tuple[Op, ...]) -> bool:
    return all(isinstance(op, Op) for op in ops)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _sizes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _weights_of(model: nn.Module, layer: str) -> int:
    """Weights, without biases, of a layer or of the parts that it was put into."""
    return sum(
        p.numel()
        for name, p in model.named_parameters()
        if name.endswith("weight") and (name == f"{layer}.weight" or name.startswith(layer + "."))
    )
