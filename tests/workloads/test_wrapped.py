"""What `bare` takes off computes the same without it, and the caller's own model stays as it was."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from equipoise.errors import InputError
from equipoise.workloads.wrapped import bare, copied, hosted, single

INPUTS = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 5)).eval()


def normed(form: Callable[..., nn.Module], **options: object) -> nn.Sequential:
    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the hook form deprecated; people have models in it
        for place in (0, 2, 4):
            form(model[place], **options)
    with torch.no_grad():
        model.train()(INPUTS)
    return model.eval()


def masked_twice() -> nn.Sequential:
    model = normed(prune.random_unstructured, name="weight", amount=0.3)
    for place in (0, 2, 4):
        prune.l1_unstructured(model[place], name="weight", amount=0.3)
    return model


FORMS = {
    "weight_norm by hooks": lambda: normed(torch.nn.utils.weight_norm),
    "weight_norm of the whole": lambda: normed(torch.nn.utils.weight_norm, dim=None),
    "spectral_norm by hooks": lambda: normed(torch.nn.utils.spectral_norm),
    "weight_norm parametrized": lambda: normed(parametrizations.weight_norm),
    "spectral_norm parametrized": lambda: normed(parametrizations.spectral_norm),
    "orthogonal": lambda: normed(parametrizations.orthogonal),
    "masks of torch's pruning": lambda: normed(prune.l1_unstructured, name="weight", amount=0.5),
    "masks in several steps": masked_twice,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [False, True])
def test_a_normalization_is_written_down_exactly(form: str, training: bool) -> None:
    model = FORMS[form]().train(training)
    model[0].requires_grad_(False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    plain = bare(model)
    assert plain is not model
    assert all(part.training is training for part in plain.modules())
    assert sorted(dict(plain.named_parameters())) == sorted(dict(net().named_parameters()))
    assert not plain[0].weight.requires_grad
    assert plain[2].weight.requires_grad
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    plain.eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(INPUTS), model.eval()(INPUTS), atol=1e-6, rtol=1e-6)
    copy.deepcopy(plain).load_state_dict(plain.state_dict())


def test_a_parametrization_of_ones_own_stays() -> None:
    class Symmetric(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.abs()

    model = net()
    parametrize.register_parametrization(model[0], "weight", Symmetric())
    assert bare(model) is model


def ddp(model: nn.Module) -> nn.Module:
    """A wrapper without its process group, which only its constructor needs."""
    wrapper = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = model
    return wrapper


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": ddp,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled and parallel": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_is_taken_off(name: str) -> None:
    plain = bare(WRAPPERS[name](net()))
    assert type(plain) is nn.Sequential
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(INPUTS), net()(INPUTS))


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_inside_is_taken_off_on_a_copy(name: str) -> None:
    part = net()
    model = nn.Sequential(WRAPPERS[name](part), nn.Softmax(1)).eval()
    held = model[0]
    plain = bare(model)
    assert model[0] is held
    assert type(plain[0]) is nn.Sequential
    assert plain[0] is not part
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(INPUTS), net()(INPUTS).softmax(1))


def test_a_wrapper_with_a_forward_of_its_own_stays() -> None:
    class Doubled(nn.DataParallel):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.module(x)

    model = Doubled(net())
    assert bare(model) is model


def test_what_cannot_be_taken_apart_is_refused_with_a_remedy() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(net())
    for model in (scripted, nn.Sequential(scripted)):
        with pytest.raises(InputError, match=r"must be a Python torch\.nn\.Module.*Pass the Python module itself"):
            bare(model)
    with pytest.raises(InputError, match=r"model\.0 must be a layer whose weights exist.*Call model"):
        bare(nn.Sequential(nn.LazyLinear(3)))
    lazy = nn.Sequential(nn.LazyLinear(3))
    lazy(torch.zeros(1, 2))
    assert bare(lazy) is lazy


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted_on_a_copy(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    converted, said = single(model)
    assert said == f"converted from {str(dtype)[6:]} to float32"
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert {p.dtype for p in converted.parameters()} == {torch.float32}
    plain = net()
    assert single(plain) == (plain, "")


def test_a_copy_of_a_hooked_weight_computes_the_same() -> None:
    model = FORMS["weight_norm by hooks"]()
    with torch.no_grad():
        torch.testing.assert_close(copied(model)(INPUTS), model(INPUTS))


def test_a_tensor_kept_from_a_computation_is_copied_as_numbers() -> None:
    model = net()
    model[0].cache = model[0].weight * 2
    plain = bare(model)
    assert plain is not model
    copy.deepcopy(plain)
    assert torch.equal(plain[0].cache, model[0].cache.detach())


class Elsewhere(nn.Linear):
    """A layer on a device that has no numbers: brought back, it is given some."""

    def cpu(self) -> nn.Module:
        return self.to_empty(device="cpu")


def test_a_copy_is_brought_to_the_host_where_the_model_lies_elsewhere() -> None:
    here, there = nn.Linear(2, 3), Elsewhere(2, 3, device="meta")
    assert hosted(here) is here
    assert hosted(there).weight.device.type == "cpu"
    assert there.weight.device.type == "meta"
