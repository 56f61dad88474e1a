"""A workload, a task or a family by its name on the command line.

Workloads (`load`): a trained model with its data. `cifar10` builds our ResNet for small images, and so does `images`, unless it
is told of which family the model is.

    digits
    cifar10:DATA.zip?weights=W.safetensors
    images:FOLDER?weights=W.safetensors&depth=56&shortcut=B&holdout=1000
    images:FOLDER?weights=W.safetensors&model=timm:mobilenetv2_100&size=160
    sentiment:DATA?model=FOLDER&length=64
    recommend:FILE.csv?weights=W.safetensors&model=twotower
    driving:FOLDER?episodes=30
    driving:FOLDER?model=mlp:width=32&weights=W.safetensors
    path/to/mymodule.py:make_workload

Tasks (`load_task`): data alone.

    digits
    cifar10:DATA.zip
    images:FOLDER?shift=4&holdout=1000&size=160
    text:FILE?context=64
    sentiment:DATA?length=64&tokenizer=FOLDER
    recommend:FILE.csv?length=64&quality=ndcg
    driving:FOLDER?episodes=30
    path/to/mymodule.py:make_task

Families (`load_family`): models of every scale.

    resnet
    huggingface:FOLDER
    timm:NAME?weights=W.safetensors
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
from typing import Any, cast
from urllib.parse import parse_qsl

from torch import Tensor, nn

from equipoise.built_in import FAMILIES, TASKS, WORKLOADS, BuiltIn, Options, forms, place, scaled, trained_on_loading
from equipoise.errors import EquipoiseError, InputError, must_be, unknown
from equipoise.workloads.base import Workload
from equipoise.workloads.families import Family, Scale, family
from equipoise.workloads.families.pretrained import pretrained
from equipoise.workloads.task import Task, task_of
from equipoise.workloads.weights import BUILDER, read_weights

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
    if state is not None and not trained_on_loading(spec):
        raise must_be("state", "left out for a workload that is not trained here", spec, "It stands for that training.")
    made = _named("workload", spec, WORKLOADS, **({} if state is None else {"state": state}))
    if not isinstance(made, Workload):
        raise must_be(spec, "a function that returns a Workload", type(made).__name__, "Return eq.Workload(...).")
    return made


def load_task(spec: str, *, family: Family | None = None) -> Task:
    """Return the task that `spec` names.

    Args:
        spec: As in the head of this file; a function of the user's own may return a `Task` or a `Workload`.
        family: Whose models are to learn it: photographs are then read no larger than these were trained on, where the
            `spec` says no size.
    Raises:
        InputError: An unknown name, or anything that keeps the task from being made, with where and how to mend it.

    Example:
        >>> load_task("digits").shape
        Shape(sample=(1, 8, 8), outputs=10, vocabulary=None, dense=False)
    """
    sized = "size" in TASKS[kind].options if (kind := spec.partition(":")[0]) in TASKS else False
    made = _named("task", spec, TASKS, **({"most": family.side} if family is not None and sized else {}))
    if not isinstance(made, Task | Workload):
        raise must_be(spec, "a function that returns a Task or a Workload", type(made).__name__, "Return Task.of(...).")
    return made if isinstance(made, Task) else task_of(made)


def load_family(spec: str) -> Family:
    """Return the family that `spec` names: a built-in one, or the user's own.

    Args:
        spec: A name, or FILE.py:FUNCTION, a function that builds a model of a scale (see `Family.of`) or, called without
            arguments, returns a `Family`, or a trained model, of which others get a last layer of their own.
    Raises:
        InputError: An unknown name, or a function that is neither.

    Example:
        >>> load_family("resnet").scale()
        {'width': 16, 'depth': 20, 'resolution': 1.0}
    """
    found, kind = _file(spec, "family"), spec.partition(":")[0]
    if found is None and kind in FAMILIES and FAMILIES[kind].data:
        return cast(Family, _named("family", spec, FAMILIES))
    if found is None:
        return family(spec)
    builder = _own(*found, call=False)
    if not isinstance(builder, Family) and not inspect.signature(builder).parameters:
        builder = _own(*found, call=True)
        if isinstance(builder, nn.Module):
            return pretrained(builder, name=found[1])
        if not isinstance(builder, Family):
            remedy = "Give its scale as arguments: def net(width=64, depth=2)."
            wanted = "a function of a scale, or one that returns a Family or a trained model"
            raise must_be(spec, wanted, type(builder).__name__, remedy)
    return builder if isinstance(builder, Family) else Family.of(builder, name=found[1])


def load_sized(spec: str) -> tuple[Family, Scale | None]:
    """Return the family that `spec` names and the scale that it says; None where it leaves that open.

    Args:
        spec: ``FAMILY``, ``FAMILY:FACTOR`` (of the size of its default scale) or ``FAMILY:width=16,depth=8`` (the rest as by
            default).
    Raises:
        InputError: As `load_family`, or a scale that the family does not have.

    Example:
        >>> load_sized("cnn:width=16")[1]["depth"], load_sized("cnn:0.25")[1]["width"], load_sized("cnn")[1]
        (6, 16, None)
    """
    name, scale = scaled(spec)
    found = load_family(name)
    if not scale:
        return found, None
    if "=" not in scale:
        return found, found.grow(float(scale))
    pairs = [part.partition("=") for part in scale.split(",")]
    try:
        values = {key.strip(): float(value) for key, _, value in pairs}
    except ValueError as error:
        raise must_be(f"scale of {name}", "numbers by name", scale, f"Write {name}:width=16,depth=8.") from error
    return found, found.scale(**values)


def located(spec: str) -> str:
    """Return `spec` with its paths made absolute, so that it names the same files from any folder.

    Example:
        >>> located("digits"), located("/data/mine.py:make")
        ('digits', '/data/mine.py:make')
    """
    kind, _, rest = spec.partition(":")
    rows = [table[kind] for table in (WORKLOADS, TASKS) if kind in table]
    files = {name for row in rows for name, read in row.options.items() if read is Path}
    places = {name for row in rows for name, read in row.options.items() if read is place}
    if not rows:
        path, _, function = spec.rpartition(":")
        return f"{Path(path).resolve()}:{function}" if path.endswith(".py") else spec
    if not rest:
        return spec
    path, mark, query = rest.partition("?")
    options = [
        f"{name}={Path(value).resolve() if name in files or (name in places and Path(value).is_dir()) else located(value)}"
        for name, value in (part.partition("=")[::2] for part in query.split("&") if part)
    ]
    return f"{kind}:{Path(path).resolve()}{mark}{'&'.join(options)}"


def _named(what: str, spec: str, table: Mapping[str, BuiltIn], **kept: Any) -> Any:
    """Return what the function makes that `spec` names: that of a row of `table`, given `kept` as well, or the user's own."""
    kind, colon, rest = spec.partition(":")
    row = table.get(kind)
    if row and not row.data and not colon:
        return row.imported()(**kept)
    if row and row.data:
        if not rest:
            raise must_be(what, f"{kind}:PATH", spec, f"Write {kind}:{row.data}.")
        path, options = _options(kind, rest, row.options)
        make = row.imported()
        for name, parameter in inspect.signature(make).parameters.items():
            if name in row.options and name not in options and parameter.default is parameter.empty:
                raise must_be(f"{kind} {name}", "given", None, f"Write {kind}:{row.data}.")
        return make(path, **options, **kept)
    if found := _file(spec, what):
        return _own(*found, call=True)
    if what == "workload" and spec.lower().endswith(_PICKLES):
        read_weights(Path(spec))  # tells what is wrong with the file itself, if anything is
        raise must_be("workload", "a model with its data", f"{spec}, weights alone", BUILDER)
    raise unknown(what, spec, forms(table))


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
            if not names:
                raise must_be(str(path), f"a file that defines {function}()", "one that defines nothing", "Write it there.")
            raise unknown(f"function of {path}", function, names)
        if call and (needed := _needed(make)):
            raise must_be(f"{function} of {path}", "a function that needs no arguments", needed, "Give each a default.")
        return _guarded(path, f"calling {function}()", make) if call else make


def _needed(make: Callable[..., Any]) -> list[str]:
    """Return the names of the arguments that a function cannot be called without."""
    try:
        given = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):  # some of C's functions have none
        return []
    return [p.name for p in given if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


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
