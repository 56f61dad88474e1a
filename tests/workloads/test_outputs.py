"""Models as training scripts leave them: several outputs, wrappers, another precision."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from equipoise.errors import InputError
from equipoise.workloads import Workload, cautions, check
from equipoise.workloads.models import mlp

SOURCE = torch.Generator().manual_seed(0)
X = torch.randn(300, 4, generator=SOURCE)
Y = (X[:, 0] > 0).long()


class Answer(OrderedDict[str, Tensor]):
    """As of a language model: a mapping whose entries are attributes too."""

    def __getattr__(self, name: str) -> Tensor:
        return self[name]


class Pair(NamedTuple):
    scores: Tensor
    hidden: Tensor


class Net(nn.Module):
    def __init__(self, shape: Any) -> None:
        super().__init__()
        self.net, self.shape = mlp(4, 8, 2), shape

    def forward(self, x: Tensor) -> Any:
        return self.shape(self.net(x), x)


def work(model: nn.Module, **more: Any) -> Workload:
    given: dict[str, Any] = {"train": (X[:200], Y[:200]), "test": (X[200:], Y[200:])}
    return Workload(model=model, **{**given, **more})


TAKEN: dict[str, tuple[Any, Any, str]] = {
    "the only entry": (lambda y, x: {"scores": y}, None, "'scores' is judged"),
    "logits": (lambda y, x: {"hidden": x, "logits": y}, None, "'logits' is judged"),
    "out": (lambda y, x: OrderedDict(out=y, aux=x), None, "'out' is judged"),
    "language model": (lambda y, x: Answer(loss=None, logits=y), None, "'logits' is judged"),
    "a tuple of one": (lambda y, x: (y,), None, "0 is judged"),
    "a tuple": (lambda y, x: (x, y), 1, ""),
    "from the end": (lambda y, x: [x, y], -1, ""),
    "a key": (lambda y, x: {"a": x, "b": y}, "b", ""),
    "a name": (lambda y, x: Pair(y, x), "scores", ""),
    "a position of a named tuple": (lambda y, x: Pair(y, x), 0, ""),
}


@pytest.mark.parametrize("case", TAKEN)
def test_the_output_that_is_meant_is_taken(case: str) -> None:
    shape, output, note = TAKEN[case]
    net = Net(shape)
    made = work(net, output=output)
    check(made)
    assert torch.equal(made.model(X), net.net(X))
    assert made.name == "Net"
    assert made.quality() == pytest.approx(work(net.net).quality())
    assert note in " ".join(made.notes)
    assert bool(made.notes) == bool(note)


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "which?": (lambda y, x: (y, x), None, r"got a tuple of 2: \(1, 2\), \(1, 4\)\. Choose one: Workload\(\.\.\., output=0\)"),
    "which of these?": (lambda y, x: {"a": y, "b": x}, None, r"a dict of 'a' \(1, 2\), 'b' \(1, 4\).*output='a'"),
    "no such key": (lambda y, x: {"a": y}, "logits", r"one of the model's outputs \(a dict of 'a' \(2, 2\)\); got 'logits'"),
    "no such position": (lambda y, x: (y, x), 2, "one of the model's outputs.*got 2"),
    "one tensor": (lambda y, x: y, 0, "left out for a model that gives one tensor"),
    "no tensor": (lambda y, x: "yes", None, "model output must be one tensor; got a str"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_doubt_is_refused(case: str) -> None:
    shape, output, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        check(work(Net(shape), output=output))


def test_a_choice_of_output_is_part_of_the_identity() -> None:
    net = Net(lambda y, x: (y, y + 1))
    assert work(net, output=0).fingerprint == work(net, output=0).fingerprint
    assert work(net, output=0).identity["output"] != work(net, output=1).identity["output"]


class Attention(nn.Module):
    """Its function is told by attention weights too, as in torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, weights = self.net(x[:, None], x[:, None], x[:, None])
        return self.head(y[:, 0]), weights


def test_wrappers_are_taken_off() -> None:
    net = mlp(4, 8, 2)
    for wrapped in (nn.DataParallel(net), torch.compile(net, backend="eager")):
        made = work(wrapped)  # type: ignore[arg-type]
        check(made)
        assert type(made.model) is nn.Sequential
        assert set(made.model.state_dict()) == set(net.state_dict())
        assert made.fingerprint == work(net).fingerprint
    with pytest.raises(InputError, match="TorchScript"):
        work(torch.jit.script(net))
    check(work(Attention(), output=0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_is_converted_and_said(dtype: torch.dtype) -> None:
    net = mlp(4, 8, 2).to(dtype)
    made = work(net, train=(X[:200].to(dtype), Y[:200]), validation=(X[200:250], Y[200:250]), test=(X[250:], Y[250:]))
    check(made)
    kind = str(dtype).removeprefix("torch.")
    assert made.example.dtype == torch.float32
    assert next(made.model.parameters()).dtype == torch.float32
    assert next(net.parameters()).dtype == dtype
    assert f"converted from {kind} to float32" in made.notes[0]
    found = cautions(made)[1]
    assert found.startswith("model: quality on 50 validation samples ")
    before, after = (float(word) for word in found.replace(",", "").split() if word.replace(".", "").isdigit() and "." in word)
    assert before == pytest.approx(after, abs=4.1)  # two samples on the edge
    assert work(net.float()).original is None


def test_weights_without_their_model_are_told_shortly() -> None:
    with pytest.raises(InputError) as caught:
        work(nn.Sequential(*[nn.Linear(64, 64) for _ in range(50)]).state_dict())  # type: ignore[arg-type]
    assert "got 'OrderedDict of 100 entries'" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_builder_that_fails_is_told() -> None:
    with pytest.raises(InputError, match="the model builder must run; it raised ZeroDivisionError"):
        work(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
