"""One line for each technique, on models as training leaves them: any precision, any wrapper, hooks, normalised weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conv_net import conv_net
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import equipoise as eq
from equipoise.errors import InputError

INPUTS = torch.randn(128, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    return conv_net(INPUTS)


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def apart(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).abs().max() / wanted.abs().max())


PRECISIONS = [torch.float64, torch.float16, torch.bfloat16]
EXPORTED = [torch.bfloat16, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in PRECISIONS[:2])]
"""An export costs seconds."""


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_prune_gives_back_the_precision_it_was_given(dtype: torch.dtype) -> None:
    model, inputs = net().to(dtype), INPUTS.to(dtype)
    for data in (None, inputs):
        small = eq.prune(model, inputs[:2], ratio=0.5, data=data)
        assert {p.dtype for p in small.parameters()} == {dtype}
        assert size(small) < 0.5 * size(model)
        assert small(inputs).dtype == dtype
    whole = eq.prune(model, inputs[:2], ratio=0.0, data=inputs)
    assert apart(whole(inputs), model(inputs)) < (1e-6 if dtype == torch.float64 else 0.05)
    assert {p.dtype for p in model.parameters()} == {dtype}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", EXPORTED)
def test_quantize_takes_any_precision_and_says_what_it_converted(dtype: torch.dtype) -> None:
    model, inputs = net().to(dtype), INPUTS.to(dtype)
    small = eq.quantize(model, inputs)
    assert small.notes == (f"converted from {str(dtype)[6:]} to float32",)
    assert small(inputs).dtype == dtype
    assert small(INPUTS).dtype == torch.float32
    assert apart(small(INPUTS), net()(INPUTS)) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("dtype", EXPORTED)
def test_distil_and_profile_take_any_precision(dtype: torch.dtype) -> None:
    model, inputs = net().to(dtype), INPUTS.to(dtype)
    taught = eq.distill(eq.prune(model, inputs[:2], ratio=0.5), model, inputs, seconds=0.3)
    assert {p.dtype for p in taught.parameters()} == {dtype}
    found = eq.profile(model, inputs[:2], targets=["torch"], seconds=0.1)
    assert found.name == f"Sequential (converted from {str(dtype)[6:]} to float32)"
    assert not found.targets[0].reason


def test_a_model_of_two_precisions_keeps_both() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.head = nn.Linear(8, 32).half(), nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.wide(x.to(self.wide.weight.dtype))).to(self.head.weight.dtype))

    small = eq.prune(Mixed(), torch.randn(2, 8), ratio=0.5, data=torch.randn(64, 8))
    assert [str(p.dtype) for p in small.parameters()] == ["torch.float16", "torch.float16", "torch.float32", "torch.float32"]
    assert small.wide.out_features == 16


def hooked(form: Callable[..., nn.Module]) -> nn.Module:
    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place in (0, 3):
            form(model[place])
    model.train()(INPUTS)
    return model.eval()


LEFT_BY_TRAINING: dict[str, Callable[[], nn.Module]] = {
    "data parallel": lambda: nn.DataParallel(net()),
    "compiled": lambda: torch.compile(net(), backend="eager"),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(net()),
    "weight_norm by hooks": lambda: hooked(torch.nn.utils.weight_norm),
    "weight_norm": lambda: hooked(parametrizations.weight_norm),
    "spectral_norm by hooks": lambda: hooked(torch.nn.utils.spectral_norm),
    "spectral_norm": lambda: hooked(parametrizations.spectral_norm),
    "channels last": lambda: net().to(memory_format=torch.channels_last),
    "training mode": lambda: net().train(),
}


@pytest.mark.parametrize("name", LEFT_BY_TRAINING)
def test_every_verb_takes_a_model_as_training_leaves_it(name: str) -> None:
    model = LEFT_BY_TRAINING[name]()
    mode = model.training
    state = {key: value.clone() for key, value in model.state_dict().items()}
    small = eq.prune(model, INPUTS[:2], ratio=0.5, data=INPUTS)
    whole = eq.prune(model, INPUTS[:2], ratio=0.0, data=INPUTS)
    taught = eq.distill(small, model, INPUTS, seconds=0.3)
    assert model.training is mode
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        wanted = model.eval()(INPUTS)
    assert size(small) < 0.5 * size(whole)
    assert apart(whole(INPUTS), wanted) < 1e-5
    assert taught(INPUTS).shape == wanted.shape


@pytest.mark.parametrize(
    "name", [n if n == "weight_norm by hooks" else pytest.param(n, marks=pytest.mark.slow) for n in LEFT_BY_TRAINING]
)
def test_quantize_takes_a_model_as_training_leaves_it(name: str) -> None:
    model = LEFT_BY_TRAINING[name]()
    quantized = eq.quantize(model, INPUTS)
    with torch.no_grad():
        assert apart(quantized(INPUTS), model.eval()(INPUTS)) < 0.05


class Tupled(nn.Module):
    def __init__(self, kind: type) -> None:
        super().__init__()
        self.net, self.kind = net(), kind

    def forward(self, x: Tensor) -> Any:
        y = self.net(x)
        return {"logits": y} if self.kind is dict else (y, y)


def test_of_two_tensors_none_is_taken_without_being_told_which() -> None:
    model = Tupled(tuple)
    for call in (lambda: eq.quantize(model, INPUTS), lambda: eq.distill(net(), model, INPUTS, seconds=0.1)):
        with pytest.raises(InputError, match=r"output must be one tensor; got a tuple of 2"):
            call()


def test_the_logits_among_several_outputs_are_what_is_meant() -> None:
    model = Tupled(dict).eval()
    small = eq.prune(model, INPUTS[:2], ratio=0.5, data=INPUTS)
    assert set(small(INPUTS[:2])) == {"logits"}
    assert apart(eq.quantize(model, INPUTS)(INPUTS), model(INPUTS)["logits"]) < 0.05
    taught = eq.distill(small, model, INPUTS, seconds=0.3)
    assert isinstance(taught, Tupled)


def test_what_cannot_be_used_is_one_clear_error() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(net())
    with pytest.raises(InputError, match="not TorchScript"):
        eq.prune(scripted, INPUTS[:2], ratio=0.5)
    with pytest.raises(InputError, match=r"model must be a torch\.nn\.Module; got 'OrderedDict'"):
        eq.prune(net().state_dict(), INPUTS[:2], ratio=0.5)
    with pytest.raises(InputError, match=r"model must be a model that takes inputs \(2, 5\)"):
        eq.quantize(net(), torch.zeros(2, 5))
    with pytest.raises(InputError, match=r"calibration must be a tensor of inputs"):
        eq.quantize(net(), torch.zeros(0, 3, 8, 8))
    with pytest.raises(InputError, match=r"answers in the teacher's shape \(2, 4\); got \(2, 16\)"):
        eq.distill(net()[:7], net(), INPUTS, seconds=0.1)


def test_data_that_are_no_numbers_are_told_with_their_row_before_any_work() -> None:
    torn = INPUTS.clone()
    torn[17, 0, 0, 0] = float("nan")
    for call in (
        lambda: eq.prune(net(), INPUTS[:2], ratio=0.5, data=torn),
        lambda: eq.quantize(net(), torn),
        lambda: eq.distill(net(), net(), torn, seconds=0.1),
        lambda: eq.distill(net(), net(), (torn, torch.zeros(len(torn)).long()), seconds=0.1),
    ):
        with pytest.raises(InputError, match="must be finite; got 'NaN or infinity in row 17'"):
            call()


class NormAct(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp_min(0)


@pytest.mark.slow
def test_a_norm_with_its_own_activation_comes_out_right_and_is_named() -> None:
    model = net()
    norm = NormAct(16)
    norm.load_state_dict(model[1].state_dict())
    model[1], model[2] = norm.eval(), nn.Tanh()
    wanted = model(INPUTS)
    assert apart(eq.prune(model, INPUTS[:2], ratio=0.0, data=INPUTS)(INPUTS), wanted) < 1e-5
    small = eq.quantize(model, INPUTS)
    assert apart(small(INPUTS), wanted) < 0.05
    assert small.left == {"1": "a NormAct that does more than normalise"}
