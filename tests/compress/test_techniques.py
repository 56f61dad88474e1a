"""Every technique of the table keeps the contract, and the contract catches those that lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from equipoise.compress.bits import Bits
from equipoise.compress.student import Student
from equipoise.compress.subject import Subject
from equipoise.compress.technique import Draft, technique
from equipoise.compress.width import Width
from equipoise.errors import InputError
from equipoise.techniques import TECHNIQUES
from equipoise.testing.techniques import SIDE, Probe, check_technique, probe_inputs
from equipoise.workloads.families import family
from equipoise.workloads.task import Shape


def of_texts() -> tuple[nn.Module, torch.Tensor]:
    """An encoder of texts, and rows of tokens for it."""
    net = family("encoder").model({"width": 32, "depth": 1}, Shape((24,), 3, 40), generator=torch.Generator().manual_seed(0))
    return net.eval(), torch.randint(1, 40, (64, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", TECHNIQUES)
def test_a_technique_keeps_the_contract(kind: str) -> None:
    students = {"cnn:width=8,depth=3": new_net} if kind == "student" else {}
    check_technique(technique(kind), *(of_texts() if kind == "length" else ()), students=students)


def new_net() -> nn.Module:
    """A student of the contract's own network, the same one each time."""
    shape = Shape((3, SIDE, SIDE), 5)
    return family("cnn").model({"width": 8, "depth": 3}, shape, generator=torch.Generator().manual_seed(3)).eval()


class Trained(Student):
    """Does not say that its weights were drawn."""

    def apply(self, draft, subject, chosen):
        return replace(super().apply(draft, subject, chosen), drawn=None, damaged=True)


def test_a_new_model_says_so_and_folds_its_own_norms() -> None:
    with pytest.raises(AssertionError, match="new model, or not"):
        check_technique(Trained(), students={"net": new_net})
    subject = replace(Subject.prepare(Probe().eval(), probe_inputs()[:2], probe_inputs()), students={"net": new_net})
    made = Student().apply(Draft(subject.model), subject, {"": "net@8"})
    with torch.no_grad():
        assert torch.allclose(made.model(probe_inputs()), new_net()(probe_inputs()), atol=1e-5)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in made.model.modules())
    assert set(made.request.values()) == {8}
    assert not Student().apply(Draft(subject.model), subject, {"": "net"}).request
    with pytest.raises(InputError, match="student must be one of"):
        Student().apply(Draft(subject.model), subject, {"": "another"})


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
