"""Workloads by name: the user's own file, digits, and what is refused."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from equipoise import cli
from equipoise.built_in import TASKS, WORKLOADS, BuiltIn, trained_on_loading
from equipoise.cli.arguments import check_named
from equipoise.errors import InputError
from equipoise.workloads import Shape, check, load, load_task
from equipoise.workloads.digits import digits, digits_net, digits_splits, train_digits
from equipoise.workloads.models import DigitsNet, ResNet, mlp
from equipoise.workloads.spec import located
from equipoise.workloads.weights import load_weights, read_weights

OWN = """
import torch
from neighbor import width
from equipoise.workloads import Workload

def make_workload():
    import neighbor  # late imports work as well
    x = torch.randn(60, 4); y = torch.arange(60) % 3
    return Workload(model=torch.nn.Linear(4, width), train=(x[:40], y[:40]), test=(x[40:], y[40:]), name="own")

def fails():
    return {}["missing"]

def leaves():
    raise SystemExit(3)

def no_workload():
    return 7

def no_data():
    return Workload(model=torch.nn.Linear(4, 3), train=None, test=None)

def no_device():
    torch.nn.Linear(4, 3).to("cuda:77")

number = 3
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "neighbor.py").write_text("width = 3\n")
    file = tmp_path / "json.py"  # a name that must not shadow the real one
    file.write_text(OWN)
    return file


def test_own_file_is_imported_without_a_trace(own: Path) -> None:
    before = list(sys.path)
    check(load(f"{own}:make_workload"))
    assert sys.path == before
    import json

    assert json.dumps(1) == "1"
    sys.modules.pop("neighbor")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("make_worklod", "Did you mean 'make_workload'"),
        ("number", "function of .* must be one of"),
        ("fails", r"calling fails\(\) raised KeyError at json.py:12: 'missing'"),
        ("leaves", r"raised SystemExit at json.py:15: 3"),
        ("no_workload", "a function that returns a Workload; got 'int'"),
        ("no_data", "train must be"),
        ("no_device", r"at json.py:24"),
    ],
)
def test_faults_of_the_own_file_are_shown_with_their_place(own: Path, function: str, message: str) -> None:
    before = list(sys.path)
    with pytest.raises(InputError, match=message):
        load(f"{own}:{function}")
    assert sys.path == before
    sys.modules.pop("neighbor", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def make_workload(:\n", r"raised SyntaxError at broken.py:1"),
        ("import os\nimport no_such_package\n", r"raised ModuleNotFoundError at broken.py:2"),
    ],
)
def test_file_that_does_not_import(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(InputError, match=message):
        load(f"{tmp_path / 'broken.py'}:make_workload")
    assert not [name for name in sys.modules if "broken" in name and "equipoise" in name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a file that defines make_workload\(\); got .one that defines nothing"),
        ("def make_workload(size, kind=3): ...", r"a function that needs no arguments; got \['size'\]. Give each a default"),
    ],
)
def test_file_without_what_can_be_called(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bare.py").write_text(text)
    with pytest.raises(InputError, match=message):
        load(f"{tmp_path / 'bare.py'}:make_workload")


def test_names_that_are_none(tmp_path: Path) -> None:
    for spec, message in (
        ("digit", "Did you mean 'digits'"),
        ("cifar10", r"Write cifar10:DATA\?weights=FILE"),
        ("cifar10:", r"Write cifar10:DATA\?weights=FILE"),
        ("mine.py", "for example mine.py:make_workload"),
        ("mine.py:make_workload", "an existing Python file"),
        ("model.pt", "weights must be an existing file"),
        ("images:a.zip?weights=missing.safetensors", "weights must be an existing file"),
    ):
        with pytest.raises(InputError, match=message):
            load(spec)
    with pytest.raises(InputError, match="stands for that training"):
        load("cifar10:a.zip", state={})


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('pwned').touch()",)


def test_pickles_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(mlp(4, 3), tmp_path / "whole.pt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    for name in ("whole.pt", "evil.pkl", "evil.pt"):
        with pytest.raises(InputError, match=r"a pickle that would run code.*make_workload"):
            load(str(tmp_path / name))
    assert not (tmp_path / "pwned").exists()
    pickle.loads((tmp_path / "evil.pkl").read_bytes())  # control: this file does run code
    assert (tmp_path / "pwned").exists()
    torch.save(mlp(4, 3).state_dict(), tmp_path / "state.pt")
    with pytest.raises(InputError, match="weights alone"):
        load(str(tmp_path / "state.pt"))


def test_weights_are_read_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    torch.save({"state_dict": mlp(4, 3).state_dict()}, file)
    assert set(read_weights(file)) == {"0.weight", "0.bias"}
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"readable file of tensors|would run code"):
        read_weights(file)
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    with pytest.raises(InputError, match="it may be cut off"):
        read_weights(tmp_path / "cut.safetensors")
    torch.save([1, 2], file)
    with pytest.raises(InputError, match="a state dict"):
        read_weights(file)
    with pytest.raises(InputError) as caught:
        load_weights(mlp(4, 5, 3), {"0.weight": torch.zeros(1, 1), "9.bias": torch.zeros(1)}, name="weights")
    assert all(part in str(caught.value) for part in ("every tensor", "only tensors", "model's shapes"))


def test_sizes_of_the_models() -> None:
    def params(model: nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    assert params(mlp(10, 50, 3)) == 703
    assert params(ResNet(20)) == 269_722
    assert params(ResNet(56)) == 853_018  # He et al. 2015, table 6: 0.85 M
    assert params(ResNet(20, shortcut="B")) == 269_722 + 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert params(DigitsNet()) == 112_106
    assert ResNet(32)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(InputError, match="6 n"):
        ResNet(18)
    with pytest.raises(InputError, match="A or B"):
        ResNet(20, shortcut="C")  # type: ignore[arg-type]


def test_zero_padded_shortcut_by_hand() -> None:
    block = ResNet(8).layer2[0].eval()
    with torch.no_grad():
        block.bn2.weight.zero_()  # the residual branch gives nothing: what is left is the shortcut
        x = torch.rand(1, 16, 8, 8)
        out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_digits_split_is_scikit_learns_data_and_disjoint() -> None:
    from sklearn.datasets import load_digits

    parts = digits_splits()
    assert [len(part) for part in parts] == [797, 400, 600]
    rows = [tuple(row) for part in parts for row in (part.tensors()[0].flatten(1) * 16).tolist()]
    assert sorted(rows) == sorted(map(tuple, load_digits().data.tolist()))
    assert len({tuple(part.order.tolist()) for part in parts}) == 3
    assert sorted(torch.cat([part.order for part in parts]).tolist()) == list(range(1797))


def test_digits_training_repeats_and_starts_to_learn() -> None:
    state = torch.get_rng_state()
    first, second = (train_digits(0, epochs=2) for _ in range(2))
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert not torch.equal(digits_net(0).conv1.weight, digits_net(1).conv1.weight)
    assert torch.equal(torch.get_rng_state(), state)
    work = digits(state=first)
    check(work)
    assert work.quality() > 60


@pytest.mark.slow
def test_digits_reach_their_accuracy() -> None:
    work = load("digits")
    check(work)
    assert work.quality() >= 97
    assert work.quality(split=work.test) >= 97


def test_a_located_spec_names_the_same_files_from_any_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert located("digits") == "digits"
    assert located("sub/mine.py:make") == f"{tmp_path}/sub/mine.py:make"
    assert located("cifar10:a.zip?weights=w.safetensors&depth=56") == (
        f"cifar10:{tmp_path}/a.zip?weights={tmp_path}/w.safetensors&depth=56"
    )
    assert located("images:a") == f"images:{tmp_path}/a"
    assert located("images:a?model=m.py:net&weights=w") == f"images:{tmp_path}/a?model={tmp_path}/m.py:net&weights={tmp_path}/w"
    assert located("images:a?model=timm:resnet18&size=64") == f"images:{tmp_path}/a?model=timm:resnet18&size=64"
    once = located("images:a?holdout=100&weights=../w")
    assert located(once) == once
    assert located("a name that was given in Python") == "a name that was given in Python"
    assert located("") == ""


OWN_SET = """
from pathlib import Path
import torch
from equipoise.workloads import Workload

def ramps(path: Path, *, weights: Path, rows: int = 40, state=None):
    assert path.exists()
    x = torch.linspace(0, 1, 4 * rows).reshape(rows, 4); y = torch.arange(rows) // 2 % 2
    return Workload(model=torch.nn.Linear(4, 2), train=(x[::2], y[::2]), test=(x[1::2], y[1::2]), name="ramps")
"""


def test_a_workload_is_a_file_and_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ramps.py").write_text(OWN_SET)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    row = BuiltIn("ramps:ramps", "DATA?weights=FILE", {"weights": Path, "rows": int}, trained=True)
    for table in (WORKLOADS, TASKS):  # what stands in the first stands in the second
        monkeypatch.setitem(table, "ramps", row)
    spec = f"ramps:{tmp_path}?weights={tmp_path / 'w'}&rows=60"
    assert located("ramps:.?weights=w&rows=60") == spec
    assert trained_on_loading(spec)
    assert len(load(spec, state={}).train) == 24
    assert load_task(spec).shape == Shape((4,), 2)
    check_named("workload", spec, WORKLOADS)
    for wrong, message in (
        ("ramps", r"Write ramps:DATA\?weights=FILE"),
        ("ramps:.", "ramps weights must be given"),
        ("ramp", "one of .*ramps:DATA"),
    ):
        with pytest.raises(InputError, match=message):
            load(wrong)
    with pytest.raises(InputError, match="an existing file"):
        check_named("workload", "ramps:nowhere", WORKLOADS)
    assert cli._parser("optimize")[1].format_help().replace("\n", "").count("ramps:DATA?weights=FILE") == 1


def test_every_workload_is_a_task() -> None:
    assert TASKS.keys() >= WORKLOADS.keys()
