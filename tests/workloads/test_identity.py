"""A workload's identity changes with all that it is made of, says which part did, and is the same in every process."""

from __future__ import annotations

import copy
import importlib.util
import linecache
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from equipoise.errors import InputError
from equipoise.study.store import Store
from equipoise.workloads import Split, Workload, shifted
from equipoise.workloads.identity import of_code, of_data, of_value
from equipoise.workloads.models import mlp

SOURCE = torch.Generator().manual_seed(0)
X = torch.randn(3000, 4, generator=SOURCE)
Y = (X[:, 0] > 0).long()
with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    NET = mlp(4, 8, 2)


def work(**changes: Any) -> Workload:
    given: dict[str, Any] = {"model": NET, "train": (X[:2000], Y[:2000]), "test": (X[2000:], Y[2000:])}
    return Workload(**{**given, **changes})


def with_one(values: Tensor, row: int, value: float) -> Tensor:
    out = values.clone()
    out.view(len(out), -1)[row, 0] = value
    return out


def changed(before: Workload, after: Workload) -> set[str]:
    return {part for part in before.identity if before.identity[part] != after.identity[part]}


def test_each_part_is_named() -> None:
    base = work()
    assert work().identity == base.identity
    last_train = int(base.train.order[-1])
    last_validation = int(base.validation.order[-1])
    bump = with_one(X[:2000], last_train, 9.0)
    assert changed(base, work(train=(bump, Y[:2000]))) == {"train"}
    assert changed(base, work(train=(with_one(X[:2000], last_validation, 9.0), Y[:2000]))) == {"validation"}
    labels = Y[:2000].clone()
    labels[last_train] = 1 - labels[last_train]
    assert changed(base, work(train=(X[:2000], labels))) == {"train"}
    assert changed(base, work(test=(with_one(X[2000:], -1, 9.0), Y[2000:]))) == {"test"}
    other = mlp(4, 8, 2)
    assert changed(base, work(model=other)) == {"model weights"}
    assert changed(base, work(metric="f1")) == {"metric"}
    assert changed(base, work(loss="cross_entropy")) == {"loss"}
    assert changed(base, work(augment=shifted(1))) == {"augment"}
    assert changed(work(augment=shifted(1)), work(augment=shifted(2))) == {"augment"}
    assert changed(base, work(transform=lambda x: x / 2)) == {"transform"}
    assert changed(base, work(name="other")) == {"name"}


def compiled(source: str, name: str = "f") -> Any:
    """A function as of a user's module, with its source at hand."""
    source = textwrap.dedent(source)
    file = f"/project/{hash(source)}.py"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    scope: dict[str, Any] = {"__name__": "project", "nn": nn, "torch": torch}
    exec(compile(source, file, "exec"), scope)
    return scope[name]


SAME = [
    ("def f(o, t):\n    return (o - t).mean()", "def f(o, t):\n    # a comment\n\n    return ((o - t).mean())"),
    ("def f(o, t):\n    return 1", 'def f(o, t):\n    """Says what it is."""\n    return 1'),
    ("f = lambda o, t: o + 1", "f = lambda o, t: (o + 1)"),
]

OTHER = [
    ("def f(o, t):\n    return (o - t).mean()", "def f(o, t):\n    return (o + t).mean()"),
    ("def f(o, t, k=1):\n    return k", "def f(o, t, k=2):\n    return k"),
    ("f = lambda o, t: o + 1", "f = lambda o, t: o + 2"),
    ("f = [lambda o: 1, lambda o: 2][0]", "f = [lambda o: 3, lambda o: 2][0]"),
    ("def g():\n    return 1\ndef f(o, t):\n    return g()", "def g():\n    return 2\ndef f(o, t):\n    return g()"),
    ("K = 1\ndef f(o, t):\n    return K", "K = 2\ndef f(o, t):\n    return K"),
    ("def make(k):\n    return lambda o: o * k\nf = make(1)", "def make(k):\n    return lambda o: o * k\nf = make(2)"),
    (
        "import functools\ndef g(o, k):\n    return k\nf = functools.partial(g, k=1)",
        "import functools\ndef g(o, k):\n    return k\nf = functools.partial(g, k=2)",
    ),
    (
        "class F:\n    def __init__(s, k): s.k = k\n    def __call__(s, o): return s.k\nf = F(1)",
        "class F:\n    def __init__(s, k): s.k = k\n    def __call__(s, o): return s.k\nf = F(2)",
    ),
    (
        "class F:\n    __slots__ = ('k',)\n    def __init__(s, k): s.k = k\n    def __call__(s, o): return s.k\nf = F(1)",
        "class F:\n    __slots__ = ('k',)\n    def __init__(s, k): s.k = k\n    def __call__(s, o): return s.k\nf = F(2)",
    ),
    ("class F:\n    def __call__(s, o): return 1\nf = F()", "class F:\n    def __call__(s, o): return 2\nf = F()"),
    (
        "class B:\n    def g(s): return 1\nclass F(B):\n    def h(s): return s.g()\nf = F().h",
        "class B:\n    def g(s): return 2\nclass F(B):\n    def h(s): return s.g()\nf = F().h",
    ),
    ("C = {'k': 1}\ndef f(o, t):\n    return C['k']", "C = {'k': 2}\ndef f(o, t):\n    return C['k']"),
    ("C = {1, 2}\ndef f(o, t):\n    return o in C", "C = {1, 3}\ndef f(o, t):\n    return o in C"),
    ("C = slice(0, 2)\ndef f(o, t):\n    return o[C]", "C = slice(0, 3)\ndef f(o, t):\n    return o[C]"),
    (
        "class G:\n    def __init__(s, k): s.k = k\n    def g(s): return s.k\nC = G(1)\ndef f(o, t):\n    return C.g()",
        "class G:\n    def __init__(s, k): s.k = k\n    def g(s): return s.k\nC = G(2)\ndef f(o, t):\n    return C.g()",
    ),
    ("f = nn.CrossEntropyLoss(label_smoothing=0.1)", "f = nn.CrossEntropyLoss(label_smoothing=0.2)"),
    ("f = nn.CrossEntropyLoss(weight=torch.ones(2))", "f = nn.CrossEntropyLoss(weight=torch.zeros(2))"),
]


@pytest.mark.parametrize("pair", SAME)
def test_layout_changes_nothing(pair: tuple[str, str]) -> None:
    assert of_value(compiled(pair[0])) == of_value(compiled(pair[1]))


@pytest.mark.parametrize("pair", OTHER)
def test_another_body_is_another_function(pair: tuple[str, str]) -> None:
    assert of_value(compiled(pair[0])) == of_value(compiled(pair[0]))
    assert of_value(compiled(pair[0])) != of_value(compiled(pair[1]))


MODEL = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.scale = nn.Linear(4, 2), 1.0
    def forward(self, x):
        return torch.relu(self.a(x)) * self.scale
def f():
    torch.manual_seed(0)
    return Net()
"""


@pytest.mark.parametrize("edit", [("relu", "tanh"), ("scale = nn.Linear(4, 2), 1.0", "scale = nn.Linear(4, 2), 2.0")])
def test_the_same_weights_in_other_code_are_another_model(edit: tuple[str, str]) -> None:
    with torch.random.fork_rng(devices=[]):
        one, again, other = compiled(MODEL)(), compiled(MODEL)(), compiled(MODEL.replace(*edit))()
    assert of_code(one) == of_code(again)
    assert changed(work(model=one), work(model=other)) == {"model code"}


@dataclass
class Settings:
    """What a user keeps beside a model."""

    gain: float = 1.0


class Holder(nn.Module):
    """A model that computes with what it was given."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held, self._cache, self.layer = held, {"calls": held}, nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"gain": 1.0}, {"gain": 2.0}),
        ({"act": torch.relu}, {"act": torch.tanh}),
        (torch.relu, torch.tanh),
        ([torch.relu], [torch.tanh]),
        ({1, 2}, {1, 3}),
        (slice(0, 2), slice(0, 3)),
        (range(3), range(4)),
        (torch.ones(3), torch.zeros(3)),
        (np.ones(3), np.zeros(3)),
        (Settings(1.0), Settings(2.0)),
        ([Settings(1.0)], [Settings(2.0)]),
        (SimpleNamespace(gain=1.0), SimpleNamespace(gain=2.0)),
    ],
)
def test_what_a_model_is_set_to_is_part_of_it_in_any_form(one: Any, other: Any) -> None:
    assert of_code(Holder(one)) == of_code(Holder(copy.deepcopy(one)))
    assert of_code(Holder(one)) != of_code(Holder(other))


def test_caches_by_custom_private_say_nothing() -> None:
    one, other = Holder(1.0), Holder(1.0)
    other._cache["calls"] = 5.0
    assert of_code(one) == of_code(other)


@pytest.mark.parametrize(("edit", "counts"), [("argmin", True), ("argmax  # the largest", False)])
def test_a_neighbouring_module_of_the_users_counts_as_far_as_it_is_used(edit: str, counts: bool, tmp_path: Path) -> None:
    found = []
    for number, word in enumerate(("argmax", edit)):
        name = f"neighbour{counts}{number}"
        (tmp_path / f"{name}.py").write_text(f"def unused(o):\n    return {number}\ndef best(o):\n    return o.{word}\n")
        spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function = compiled("def f(o, t):\n    return scores.best(o)")
        function.__globals__["scores"] = module
        found.append(of_value(function))
    assert (found[0] != found[1]) == counts


class InMemory(Dataset[tuple[Tensor, int]]):
    """A dataset of one's own over arrays, with a counter that says nothing."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y, self.reads = x, y, 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads += 1
        return self.x[index], int(self.y[index])


class Texts(Dataset[tuple[Tensor, int]]):
    """Sentences in memory, turned into numbers when they are read."""

    def __init__(self, sentences: list[str]) -> None:
        self.sentences = sentences

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([float(word) for word in self.sentences[index].split()]), 0


class Noisy(InMemory):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index] + torch.randn(4), int(self.y[index])


def of(make: Callable[[Tensor], Any]) -> tuple[str, str, str]:
    """Digests of a dataset of X, of the same again, and of one that differs in the last sample in the fixed shuffle."""
    split = Split.of(make(X), name="train", keep=False)
    last = with_one(X, int(split.order[-1]), 9.0)
    return of_data(split), of_data(Split.of(make(X), name="train", keep=False)), of_data(Split.of(make(last), name="train"))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: TensorDataset(x, Y),
        lambda x: InMemory(x, Y),
        lambda x: Noisy(x, Y),
        lambda x: torch.utils.data.Subset(InMemory(x, Y), range(len(x))),
        lambda x: torch.utils.data.ConcatDataset([InMemory(x, Y)]),
        lambda x: Texts([" ".join(map(str, row)) for row in x.tolist()]),
        lambda x: [(row, int(y)) for row, y in zip(x, Y, strict=True)],
        lambda x: torch.utils.data.DataLoader(InMemory(x, Y), batch_size=9, shuffle=True),
    ],
)
def test_all_that_is_in_memory_counts(make: Callable[[Tensor], Any]) -> None:
    first, again, other = of(make)
    assert first == again
    assert first != other


class Folder(InMemory):
    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.samples = [(str(root / f"{i}.bin"), 0) for i in range(50)]

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor(list(Path(self.samples[index][0]).read_bytes()[:4])).float(), 0


def test_files_count_by_name_and_size_wherever_they_lie(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for i in range(50):
            (tmp_path / folder / f"{i}.bin").write_bytes(bytes([i] * 8))
    one, moved = (of_data(Split.of(Folder(tmp_path / folder), name="train")) for folder in ("a", "b"))
    assert one == moved
    last = int(Split.of(Folder(tmp_path / "b")).order[-1])
    (tmp_path / "b" / f"{last}.bin").write_bytes(bytes(9))
    assert of_data(Split.of(Folder(tmp_path / "b"), name="train")) != one


PROCESS = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import mine
print(mine.make().fingerprint)
"""

MINE = """
import torch
import torch.nn as nn
import equipoise as eq
KINDS = {"b", "a", "c"}
def score(outputs, targets):
    return float((outputs.argmax(1) == targets).float().mean()) if KINDS & {"a", "z"} else 0.0
class Net(nn.Module):
    kinds = ("x", "y")
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("table", torch.ones(2), persistent=False)
        self.hook = lambda x: {"q", "w"}
    def forward(self, x):
        return self.layer(x) * self.table if "x" in {"x", "k"} else x
def make():
    torch.manual_seed(0)
    x = torch.randn(90, 4)
    return eq.Workload(model=Net(), train=(x[:60], (x[:60, 0] > 0).long()), test=(x[60:], (x[60:, 0] > 0).long()), metric=score,
        augment=lambda x, g: x + 1)
"""


@pytest.mark.slow
def test_every_process_finds_the_same(tmp_path: Path) -> None:
    found = set()
    for seed in ("1", "2"):
        folder = tmp_path / seed  # another folder too
        folder.mkdir()
        (folder / "mine.py").write_text(MINE)
        command = [sys.executable, "-c", PROCESS, str(folder)]
        env = {**__import__("os").environ, "PYTHONHASHSEED": seed}
        found.add(subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout.strip())
    assert len(found) == 1
    assert len(found.pop()) == 16


def test_a_study_says_which_parts_changed(tmp_path: Path) -> None:
    def about(made: Workload) -> dict[str, Any]:
        return {"workload": made.fingerprint, "parts": made.identity}

    last = int(work().train.order[-1])
    with Store.open(tmp_path / "s") as store:
        store.identity(about(work()))
        store.identity(about(work()))
        with pytest.raises(InputError, match=r"\(parts: another metric, train; workload: recorded \"\w{16}\", now"):
            store.identity(about(work(metric="f1", train=(with_one(X[:2000], last, 9.0), Y[:2000]))))
    with Store.open(tmp_path / "old") as store:
        store.identity({"workload": "0123456789abcdef"})
        with pytest.raises(InputError, match="parts: not recorded in full by the earlier version"):
            store.identity(about(work()))


class Selfish(nn.Module):
    """Code that uses a model of its own kind, as libraries do with their activations."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self is ONE else ONE(x)


ONE = Selfish()


def test_code_that_uses_a_model_of_its_own_kind_ends() -> None:
    assert of_code(Selfish()) == of_code(Selfish())
    assert of_value(ONE) == of_value(ONE)
