"""A workload, a task or a family by its name on the command line.

Workloads (`load`): a trained model with its data. `cifar10` and `images` build our ResNet for small images; any other model
comes with a Python file.

    digits
    cifar10:DATA.zip?weights=W.safetensors
    images:FOLDER?weights=W.safetensors&depth=56&shortcut=B&holdout=1000
    path/to/mymodule.py:make_workload

Tasks (`load_task`): data alone.

    digits
    cifar10:DATA.zip
    images:FOLDER?shift=4&holdout=1000
    text:FILE?context=64
    path/to/mymodule.py:make_task

Families (`load_family`): models of every scale.

    resnet
    path/to/mymodule.py:make_model
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl

from torch import Tensor

from equipoise.errors import EquipoiseError, InputError, must_be, unknown
from equipoise.workloads.base import Workload
from equipoise.workloads.digits import digits, digits_task
from equipoise.workloads.families import Family, family
from equipoise.workloads.images import cifar10, cifar10_task, image_task, image_workload
from equipoise.workloads.task import Task, task_of
from equipoise.workloads.text import text_task
from equipoise.workloads.weights import BUILDER, read_weights

NAMES = ("digits", "cifar10:PATH?weights=FILE", "images:PATH?weights=FILE", "FILE.py:FUNCTION")
Options = Mapping[str, Callable[[str], Any]]
IMAGE_OPTIONS: Options = {"weights": Path, "depth": int, "shortcut": str, "shift": int, "holdout": int}
_IMAGES: dict[str, Callable[..., Workload]] = {"cifar10": cifar10, "images": image_workload}
TASKS = ("digits", "cifar10:PATH", "images:PATH", "text:FILE?context=64", "FILE.py:FUNCTION")
_TASK_OPTIONS = {"shift": int, "holdout": int}
_TASKS: dict[str, tuple[Callable[..., Task], Options]] = {
    "cifar10": (cifar10_task, _TASK_OPTIONS),
    "images": (image_task, _TASK_OPTIONS),
    "text": (text_task, {"context": int}),
}
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt")


def load(spec: str, *, state: Mapping[str, Tensor] | None = None) -> Workload:
    """Return the workload that `spec` names.

    Args:
        spec: As in the head of this file; paths are relative to the current folder.
        state: Weights of an earlier load, in place of the training that ``digits`` would do now; only for it.
    Raises:
        InputError: An unknown name, or anything that keeps the workload from being made, with where and how to mend it.

    Example:
        >>> load("digits").name  # doctest: +SKIP
        'digits'
    """
    kind, _, rest = spec.partition(":")
    if spec == "digits":
        return digits(state=state)
    if state is not None:
        raise must_be(
            "state", "left out for a workload that is not trained here", spec, "It stands for the training of digits."
        )
    if kind in _IMAGES and rest:
        return _images(kind, rest)
    if found := _file(spec, "workload"):
        work = _own(*found, call=True)
        if not isinstance(work, Workload):
            raise must_be(spec, "a function that returns a Workload", type(work).__name__, "Return eq.Workload(...).")
        return work
    if spec.lower().endswith(_PICKLES):
        read_weights(Path(spec))  # tells what is wrong with the file itself, if anything is
        raise must_be("workload", "a model with its data", f"{spec}, weights alone", BUILDER)
    if kind in _IMAGES:
        raise must_be("workload", f"{kind}:PATH?weights=FILE", spec, f"Write {kind}:DATA.zip?weights=W.safetensors.")
    raise unknown("workload", spec, NAMES)


def load_task(spec: str) -> Task:
    """Return the task that `spec` names.

    Args:
        spec: As in the head of this file; a function of the user's own may return a `Task` or a `Workload`.
    Raises:
        InputError: An unknown name, or anything that keeps the task from being made, with where and how to mend it.

    Example:
        >>> load_task("digits").shape
        Shape(sample=(1, 8, 8), outputs=10, vocabulary=None, dense=False)
    """
    kind, _, rest = spec.partition(":")
    if spec == "digits":
        return digits_task()
    if kind in _TASKS and rest:
        make, allowed = _TASKS[kind]
        path, options = _options(kind, rest, allowed)
        return make(path, **options)
    if found := _file(spec, "task"):
        made = _own(*found, call=True)
        if not isinstance(made, Task | Workload):
            raise must_be(spec, "a function that returns a Task or a Workload", type(made).__name__, "Return Task.of(...).")
        return made if isinstance(made, Task) else task_of(made)
    raise unknown("task", spec, TASKS)


def load_family(spec: str) -> Family:
    """Return the family that `spec` names: one of `FAMILIES`, or the user's own.

    Args:
        spec: A name, or FILE.py:FUNCTION, a function that builds a model of a scale (see `Family.of`) or, called without
            arguments, returns a `Family`.
    Raises:
        InputError: An unknown name, or a function that is neither.

    Example:
        >>> load_family("resnet").scale()
        {'width': 16, 'depth': 20, 'resolution': 1.0}
    """
    found = _file(spec, "family")
    if found is None:
        return family(spec)
    builder = _own(*found, call=False)
    if not isinstance(builder, Family) and not inspect.signature(builder).parameters:
        builder = _own(*found, call=True)
        if not isinstance(builder, Family):
            remedy = "Give its scale as arguments: def net(width=64, depth=2)."
            raise must_be(spec, "a function of a scale, or one that returns a Family", type(builder).__name__, remedy)
    return builder if isinstance(builder, Family) else Family.of(builder, name=found[1])


def located(spec: str) -> str:
    """Return `spec` with its paths made absolute, so that it names the same files from any folder.

    Example:
        >>> located("digits"), located("/data/mine.py:make")
        ('digits', '/data/mine.py:make')
    """
    path, _, function = spec.rpartition(":")
    if path.endswith(".py"):
        return f"{Path(path).resolve()}:{function}"
    kind, _, rest = spec.partition(":")
    if not rest or kind not in (*_IMAGES, *_TASKS):
        return spec
    path, mark, query = rest.partition("?")
    options = [
        f"{name}={Path(value).resolve() if name == 'weights' else value}"
        for name, value in (part.partition("=")[::2] for part in query.split("&") if part)
    ]
    return f"{kind}:{Path(path).resolve()}{mark}{'&'.join(options)}"


def _images(kind: str, rest: str) -> Workload:
    path, options = _options(kind, rest, IMAGE_OPTIONS)
    if "weights" not in options:
        raise must_be(f"{kind} weights", "given", None, f"Write {kind}:{path}?weights=W.safetensors.")
    return _IMAGES[kind](path, **options)


def _options(kind: str, rest: str, allowed: Options) -> tuple[Path, dict[str, Any]]:
    """Read PATH?name=value&..."""
    path, _, query = rest.partition("?")
    options: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in allowed:
            raise unknown(f"option of {kind}", name, allowed)
        try:
            options[name] = allowed[name](text)
        except ValueError as error:
            raise must_be(f"{kind} {name}", "a whole number", text, f"Write for example {name}=20.") from error
    return Path(path), options


def _file(spec: str, what: str) -> tuple[Path, str] | None:
    """Read FILE.py:FUNCTION; None where `spec` is of another form."""
    path, _, function = spec.rpartition(":")
    if path.endswith(".py"):
        return Path(path), function
    if spec.endswith(".py"):
        raise must_be(what, "FILE.py:FUNCTION", spec, f"Add the function, for example {spec}:make_{what}.")
    return None


def _own(path: Path, function: str, *, call: bool) -> Any:
    """Import the user's file and return its function, or what that returns."""
    if not path.is_file():
        raise must_be("workload file", "an existing Python file", str(path), "Paths are relative to the current folder.")
    with _beside(path):
        module = _guarded(path, "importing it", lambda: _imported(path))
        make = getattr(module, function, None)
        if not callable(make) and not isinstance(make, Family):
            names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            raise unknown(f"function of {path}", function, names or ["make_workload"])
        return _guarded(path, f"calling {function}()", make) if call else make


def _imported(path: Path) -> ModuleType:
    """Import a file under a name of its own, so that it shadows nothing."""
    name = f"_equipoise_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and pickling look modules up by name
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Let the user's file import its neighbours, for as long as it runs here."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _guarded(path: Path, doing: str, call: Callable[[], Any]) -> Any:
    """Return ``call()``; what the user's code raises becomes an error that shows where."""
    try:
        return call()
    except EquipoiseError as error:
        raise type(error)(f"{path}: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's code may raise anything
        raise InputError(
            f"{path} must run; {doing} raised {type(error).__name__} at {_place(error, path)}: {error}. Mend it there."
        ) from error


def _place(error: BaseException, path: Path) -> str:
    """File and line of the last frame in the user's own file, and else of the last frame."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"
