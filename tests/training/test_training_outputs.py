"""What a model returns in training mode is brought back to what it answers in evaluation mode."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.errors import InputError
from equipoise.training import Recipe, Samples, distill, fit
from equipoise.training.outputs import Answer, answer_of
from equipoise.workloads.divergence import Divergence


class Heads(NamedTuple):
    aux: Tensor
    logits: Tensor


@dataclass
class Record:
    loss: Tensor | None
    logits: Tensor


class Net(nn.Module):
    """Two layers and a second head; `returns` makes the output of (self, logits, second head, targets)."""

    def __init__(self, returns: Callable[..., Any]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))
        self.head, self.second = nn.Linear(16, 3), nn.Linear(16, 3)
        self.returns = returns

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Any:
        h = self.body(x)
        return self.returns(self, self.head(h), self.second(h), targets)


def needs_targets(net: Net, main: Tensor, second: Tensor, targets: Tensor | None) -> Tensor:
    if net.training and targets is None:
        raise ValueError("targets should not be none when in training mode")
    return main


def noisy(net: Net, main: Tensor, second: Tensor, targets: Tensor | None) -> Any:
    main = F.dropout(main, 0.1, net.training)
    return (main, F.dropout(second, 0.1, net.training)) if net.training else main


ONE = ((),)
RETURNS: dict[str, tuple[Callable[..., Any], str, tuple[tuple[Any, ...], ...]]] = {
    "a tensor": (lambda n, a, b, t: a, "train", ONE),
    "functional dropout": (lambda n, a, b, t: F.dropout(a, 0.5, n.training), "train", ONE),
    "(logits, auxiliary)": (lambda n, a, b, t: (a, b) if n.training else a, "train", ((0,),)),
    "(auxiliary, logits)": (lambda n, a, b, t: (b, a) if n.training else a, "train", ((1,),)),
    "deep supervision": (lambda n, a, b, t: [b, 2 * b, a] if n.training else a, "train", ((2,),)),
    "both are the answer": (lambda n, a, b, t: (a, b) if n.training else (a + b) / 2, "train", ((0,), (1,))),
    "a dict in training": (lambda n, a, b, t: {"aux": b, "out": a} if n.training else a, "train", (("out",),)),
    "a dict always": (lambda n, a, b, t: OrderedDict(out=a, aux=b), "train", (("out",),)),
    "a tuple always": (lambda n, a, b, t: (a, b), "train", ((0,),)),
    "a nested list": (lambda n, a, b, t: ((b,), [a]) if n.training else a, "train", ((1, 0),)),
    "a named tuple": (lambda n, a, b, t: Heads(b, a) if n.training else a, "train", ((1,),)),
    "a record": (lambda n, a, b, t: Record(None, a), "train", (("logits",),)),
    "with noise": (noisy, "train", ((0,),)),
    "needs targets": (needs_targets, "layers", ONE),
    "a loss in training": (lambda n, a, b, t: a.sum() if n.training else a, "layers", ONE),
    "logits in training, probabilities else": (lambda n, a, b, t: a if n.training else a.softmax(1), "layers", ONE),
}


def net(case: str, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net(RETURNS[case][0])


def data(n: int = 256) -> Samples:
    source = torch.Generator().manual_seed(2)
    inputs = torch.randn(n, 6, generator=source)
    return Samples(inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long())


def answers(model: nn.Module, inputs: Tensor) -> Tensor:
    """What the model says in evaluation mode."""
    with torch.no_grad():
        returned = model.eval()(inputs)
    found: Tensor = returned if isinstance(returned, Tensor) else getattr(returned, "logits", None)
    if found is None:
        found = returned["out"] if isinstance(returned, dict) else returned[0]
    return found


@pytest.mark.parametrize("case", RETURNS)
def test_the_answer_is_found(case: str) -> None:
    _, mode, paths = RETURNS[case]
    model, inputs = net(case).train(), data().inputs[:4]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found = answer_of(model, inputs)
    assert (found.mode, found.paths) == (mode, paths)
    assert bool(found.note) is not found.plain
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    modes = [module.training for module in model.modules()]
    assert found.of(model, inputs).shape == (4, 3)
    assert [module.training for module in model.modules()] == modes


def test_layers_that_want_targets_themselves_are_trained_as_in_evaluation() -> None:
    class Strict(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise ValueError("targets!")
            return super().forward(x)

    found = answer_of(nn.Sequential(nn.Linear(6, 4), Strict(4, 3)), data().inputs[:4])
    assert found.mode == "eval"
    assert "dropout off" in found.note
    assert "targets!" in found.note


def test_no_tensor_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="model output"):
        answer_of(Net(lambda n, a, b, t: "nothing"), data().inputs[:4])


@pytest.mark.parametrize("case", RETURNS)
def test_every_form_is_distilled(case: str) -> None:
    student, teacher, part = net(case, 1), net(case, 2), data()
    probabilities = case.startswith("logits in")
    meaning = Divergence("softmax", probabilities=probabilities)

    def apart(model: nn.Module) -> float:
        ours, theirs = answers(model, part.inputs), answers(teacher, part.inputs)
        return meaning.between(theirs, ours)

    done = distill(student, teacher, part, steps=150, recipe=Recipe(batch=64, lr=1e-2), divergence=meaning)
    assert apart(done.model) < 0.3 * apart(student)
    assert len(done.notes) == (0 if case in ("a tensor", "functional dropout") else 1)


@pytest.mark.parametrize("case", [case for case in RETURNS if not case.startswith("logits in")])
def test_every_form_is_fitted(case: str) -> None:
    part = data()
    done = fit(net(case), part, loss=F.cross_entropy, steps=150, recipe=Recipe(batch=64, lr=1e-2))
    assert float((answers(done.model, part.inputs).argmax(1) == part.targets).float().mean()) > 0.85


def test_a_loss_that_takes_all_outputs_gets_them() -> None:
    seen = []

    def both(outputs: Any, targets: Tensor) -> Tensor:
        if isinstance(outputs, tuple):
            seen.append(len(outputs))
            return F.cross_entropy(outputs[0], targets) + 0.3 * F.cross_entropy(outputs[1], targets)
        return F.cross_entropy(outputs, targets)

    fit(net("(logits, auxiliary)"), data(), loss=both, steps=3, recipe=Recipe(batch=32))
    assert seen == [2] * 3


def test_a_plain_model_is_simply_called() -> None:
    assert Answer().plain
    assert answer_of(nn.Linear(6, 3), data().inputs[:4]) == Answer()
