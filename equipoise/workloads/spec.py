"""A workload by its name on the command line.

digits
cifar10:DATA.zip?weights=W.safetensors
images:FOLDER?weights=W.safetensors&depth=56&shortcut=B
path/to/mymodule.py:make_workload
"""

from __future__ import annotations

import hashlib
import importlib.util
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
from equipoise.workloads.digits import digits
from equipoise.workloads.images import cifar10, image_workload
from equipoise.workloads.weights import BUILDER, read_weights

NAMES = ("digits", "cifar10:PATH?weights=FILE", "images:PATH?weights=FILE", "FILE.py:FUNCTION")
IMAGE_OPTIONS: dict[str, Callable[[str], Any]] = {"weights": Path, "depth": int, "shortcut": str, "shift": int, "holdout": int}
_IMAGES: dict[str, Callable[..., Workload]] = {"cifar10": cifar10, "images": image_workload}
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
    path, _, function = spec.rpartition(":")
    if path.endswith(".py"):
        return _own(Path(path), function)
    if spec.endswith(".py"):
        raise must_be("workload", "FILE.py:FUNCTION", spec, f"Add the function, for example {spec}:make_workload.")
    if spec.lower().endswith(_PICKLES):
        read_weights(Path(spec))  # tells what is wrong with the file itself, if anything is
        raise must_be("workload", "a model with its data", f"{spec}, weights alone", BUILDER)
    if kind in _IMAGES:
        raise must_be("workload", f"{kind}:PATH?weights=FILE", spec, f"Write {kind}:DATA.zip?weights=W.safetensors.")
    raise unknown("workload", spec, NAMES)


def _images(kind: str, rest: str) -> Workload:
    path, _, query = rest.partition("?")
    options: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in IMAGE_OPTIONS:
            raise unknown(f"option of {kind}", name, IMAGE_OPTIONS)
        try:
            options[name] = IMAGE_OPTIONS[name](text)
        except ValueError as error:
            raise must_be(f"{kind} {name}", "a whole number", text, f"Write for example {name}=20.") from error
    if "weights" not in options:
        raise must_be(f"{kind} weights", "given", None, f"Write {kind}:{path}?weights=W.safetensors.")
    return _IMAGES[kind](Path(path), **options)


def _own(path: Path, function: str) -> Workload:
    """Import the user's file and call its function."""
    if not path.is_file():
        raise must_be("workload file", "an existing Python file", str(path), "Paths are relative to the current folder.")
    with _beside(path):
        module = _guarded(path, "importing it", lambda: _imported(path))
        make = getattr(module, function, None)
        if not callable(make):
            names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            raise unknown(f"function of {path}", function, names or ["make_workload"])
        work = _guarded(path, f"calling {function}()", make)
    if not isinstance(work, Workload):
        raise must_be(
            f"{path}:{function}", "a function that returns a Workload", type(work).__name__, "Return eq.Workload(...)."
        )
    return work


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
    except (Exception, SystemExit) as error:  # the user's code may raise anything
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
