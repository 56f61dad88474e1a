"""Every technique of the table keeps the contract, and the contract catches those that lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from equipoise.compress.bits import Bits
from equipoise.compress.technique import Draft, technique
from equipoise.compress.width import Width
from equipoise.techniques import TECHNIQUES
from equipoise.testing.techniques import check_technique
from equipoise.workloads.families import family
from equipoise.workloads.task import Shape


def of_texts() -> tuple[nn.Module, torch.Tensor]:
    """An encoder of texts, and rows of tokens for it."""
    net = family("encoder").model({"width": 32, "depth": 1}, Shape((24,), 3, 40), generator=torch.Generator().manual_seed(0))
    return net.eval(), torch.randint(1, 40, (64, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", TECHNIQUES)
def test_a_technique_keeps_the_contract(kind: str) -> None:
    check_technique(technique(kind), *(of_texts() if kind == "length" else ()))


class Boasts(Width):
    """Says of each layer that it becomes smaller than it does."""

    def ops(self, subject, offer, layer, choice):
        (op,) = super().ops(subject, offer, layer, choice)
        return (replace(op, cin=max(op.groups, op.cin // 2 // op.groups * op.groups)),) if choice != offer.menu[0] else (op,)


class Mutates(Width):
    """Changes the model that it was given."""

    def apply(self, draft, subject, chosen):
        done = super().apply(draft, subject, chosen)
        with torch.no_grad():
            next(subject.model.parameters()).add_(1.0)
        return done


class Forgets(Width):
    """Does not say that the model needs repair."""

    def apply(self, draft, subject, chosen):
        return replace(super().apply(draft, subject, chosen), damaged=False)


class Idles(Width):
    """Does nothing."""

    def apply(self, draft, subject, chosen):
        super().apply(draft, subject, chosen)
        return replace(draft, damaged=True)


class Draws(Width):
    """Adds noise that is another one each time."""

    def apply(self, draft, subject, chosen):
        done = super().apply(draft, subject, chosen)
        with torch.no_grad():
            next(done.model.parameters()).add_(torch.rand(1))
        return done


class NeedsStatistics(Width):
    """Builds other shapes where there are no statistics."""

    def apply(self, draft, subject, chosen):
        return super().apply(draft, subject, chosen) if subject.statistics else Draft(draft.model, damaged=True)


class TakesAnything(Bits):
    """Does not look at what it is asked for."""

    def apply(self, draft, subject, chosen):
        return replace(draft, request=dict.fromkeys(chosen, 8))


@pytest.mark.parametrize(
    ("liar", "caught"),
    [
        (Boasts, "is said to hold"),
        (Mutates, "subject's model was changed"),
        (Forgets, "does not say that it was damaged"),
        (Idles, "nothing changed"),
        (Draws, "applied twice"),
        (NeedsStatistics, "no statistics"),
        (TakesAnything, "not refused"),
    ],
)
def test_the_contract_catches_a_liar(liar: Callable[[], Width | Bits], caught: str) -> None:
    with pytest.raises(AssertionError, match=caught):
        check_technique(liar())
