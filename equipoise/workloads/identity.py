"""What a workload is made of, as digests: data, weights, and the code of the user's own functions and modules.

Two processes, and two machines, find the same digests for the same things. Code enters by its source without comments and
layout, values by their bytes, and what an installed library brings by its name.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import inspect
import re
import sysconfig
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset

from equipoise.batch import Inputs, is_array, leaves, take
from equipoise.errors import InputError
from equipoise.workloads.data import Split
from equipoise.workloads.overlap import files_of
from equipoise.workloads.sources import Arrays, Items, Streaming

SAMPLED = 32
"""Samples of a dataset on disk that enter its digest; of one in memory all do."""

DEPTH = 8
"""How far references are followed from a function or an object."""

_ROWS = 1024
_PLAIN = (bool, int, float, complex, str, bytes, Enum, slice, range, torch.dtype, torch.device)
_CODE = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial, type)
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
_LIBRARY = tuple({sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")})
_OWN = str(Path(__file__).resolve().parent.parent)


def digest(*parts: str) -> str:
    """Return 16 hex digits of some texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def of_data(split: Split) -> str:
    """Return the digest of a split: its size, and all of it that lies in memory; of what does not, files and a sample."""
    found = hashlib.sha256(str(len(split)).encode())
    source = split.source
    if isinstance(source, Arrays):
        for start in range(0, len(split), _ROWS):
            rows = split.order[start : start + _ROWS]
            _add_inputs(found, take(source.inputs, rows))
            add_tensor(found, "", source.targets[rows])
        return found.hexdigest()[:16]
    found.update(split.order.numpy().tobytes())
    if isinstance(source, Streaming):
        found.update(of_value(source.about).encode())
    if isinstance(source, Items):
        found.update(of_value(source.collate).encode())
        found.update(_dataset(source.dataset, 0).encode())
    if split.name != "test":  # that one is not read before it is verified on
        found.update(_sample(split).encode())
    return found.hexdigest()[:16]


def _sample(split: Split) -> str:
    """Hash a few samples, where two reads of them agree: training data may be changed at random when they are read."""
    try:
        once, again = (split.take(SAMPLED).reread().source.fetch(split.order[:SAMPLED]) for _ in range(2))
    except InputError:  # told where the data are used
        return "unreadable"
    found = hashlib.sha256()
    for one, other in zip(once, again, strict=True):
        pairs = list(zip(leaves(one), leaves(other), strict=True))
        if all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs):
            _add_inputs(found, one)
    return found.hexdigest()[:16]


def _add_inputs(found: hashlib._Hash, inputs: Inputs) -> None:
    """Add inputs to a hash: several by name, with what belongs to no sample."""
    if not isinstance(inputs, Mapping):
        add_tensor(found, "", inputs)
        return
    for name, value in inputs.items():
        if is_array(value):
            add_tensor(found, name, value)
        else:
            found.update(f"{name} {value!r}".encode())


def _dataset(dataset: Any, depth: int) -> str:
    """Digest of a map-style dataset: its code, its files with their sizes, and the arrays that it holds."""
    if isinstance(dataset, Subset):
        rows = digest(*(str(int(i)) for i in dataset.indices))
        return digest("subset", rows, _dataset(dataset.dataset, depth + 1))
    if isinstance(dataset, ConcatDataset):
        return digest("concat", *(_dataset(part, depth + 1) for part in dataset.datasets))
    parts = [of_value(type(dataset)), *_files(dataset)]
    for name, value in sorted(getattr(dataset, "__dict__", {}).items()):
        held = isinstance(value, (Tensor, np.ndarray)) or hasattr(value, "to_numpy") or _plain_list(value)
        if held or (callable(value) and not isinstance(value, type)):
            parts += [name, of_value(value)]
        elif depth < DEPTH and hasattr(value, "__getitem__") and hasattr(value, "__len__") and hasattr(value, "__dict__"):
            parts += [name, _dataset(value, depth + 1)]
    return digest(*parts)


def _files(dataset: Any) -> list[str]:
    """Names below their folder and sizes of a folder dataset's files; their dates differ from copy to copy."""
    names = files_of(dataset)
    if not names:
        return []
    root = Path(str(getattr(dataset, "root", "") or Path(names[0]).parent))
    out = []
    for name in names:
        path = Path(name)
        inside = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        try:
            out.append(f"{inside} {path.stat().st_size}")
        except OSError:
            out.append(inside)
    return out


def _plain_list(value: Any) -> bool:
    """Whether a value is a list of numbers, arrays or texts; a list of files is known by the files."""
    if not isinstance(value, (list, tuple)) or not value:
        return False
    return all(_plain(v) or _plain_list(v) for v in (value[0], value[-1]))


def _plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) > 4000 or "\0" in value or not ("/" in value or "\\" in value or "." in value) or not _is_file(value)
    if isinstance(value, Mapping):
        return all(_plain(v) or _plain_list(v) for v in value.values())
    return isinstance(value, (int, float, bytes, Tensor, np.ndarray))


def _is_file(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:  # a text that is no possible name
        return False


def of_weights(model: nn.Module) -> str:
    """Return the digest of everything that a model holds as tensors, buffers that it does not save included."""
    found = hashlib.sha256()
    for key, value in sorted({**dict(model.named_buffers()), **model.state_dict()}.items()):
        if isinstance(value, Tensor):
            add_tensor(found, key, value)
        else:
            found.update(f"{key} {of_value(value)}".encode())
    return found.hexdigest()[:16]


def of_code(model: nn.Module, seen: Iterable[int] = ()) -> str:
    """Return the digest of a model's structure, of its modules' own code and of their plain settings.

    Args:
        seen: What was met on the way here, by its id: code may use a model of its own kind.
    """
    parts, kinds = [_ADDRESS.sub("", repr(model))], dict[type, str]()
    for name, module in model.named_modules():
        kind = type(module)
        if kind not in kinds:
            kinds[kind] = of_value(kind, seen)
        parts += [name, kinds[kind]]
        for key, value in sorted(vars(module).items()):
            if key not in _MODULE and _telling(key, value):
                parts += [key, of_value(value, seen)]
    return digest(*parts)


_MODULE = frozenset({*vars(nn.Module()), "training"})


def _telling(name: str, value: Any) -> bool:
    """Whether what a module, a class or a file holds under a name says what it does; private collections are caches."""
    cached = name.startswith("_") and isinstance(value, (Mapping, list, set, Tensor, np.ndarray))
    return not cached and _setting(value)


def _setting(value: Any, depth: int = 0) -> bool:
    """Whether a value is plain: a number, a text, a function, an array, or a collection or record of such."""
    if value is None or isinstance(value, (*_PLAIN, *_CODE, Tensor, np.ndarray)):
        return True
    if depth > DEPTH:
        return False
    if isinstance(value, Mapping):
        return all(_setting(part, depth + 1) for pair in value.items() for part in pair)
    if isinstance(value, (tuple, list, set, frozenset)):
        return all(_setting(part, depth + 1) for part in value)
    if isinstance(value, types.SimpleNamespace) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return all(_setting(part, depth + 1) for _, part in _state(value))
    return False


def of_value(value: Any, seen: Iterable[int] = ()) -> str:
    """Return the digest of a function, an object or a plain value, with what it refers to; arguments as `of_code`'s."""
    return digest(*_words(value, 0, set(seen)))


def add_tensor(found: hashlib._Hash, key: str, value: Tensor) -> None:
    """Add a tensor's name, type, shape and bytes to a hash."""
    found.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
    if value.is_meta:
        return
    if value.layout != torch.strided:
        value = value.to_dense()
    found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def _words(value: Any, depth: int, seen: set[int]) -> list[str]:
    """What a value is, as words; what was met before, or lies too deep, enters by its type alone."""
    kind = type(value).__qualname__
    if value is None or isinstance(value, _PLAIN):
        return [kind, repr(value)]
    if isinstance(value, PurePath):
        return [kind, value.as_posix()]
    if isinstance(value, (Tensor, np.ndarray)):
        return [kind, _bytes(value)]
    if isinstance(value, types.ModuleType):
        return ["module", value.__name__]
    if id(value) in seen or depth > DEPTH:
        return [kind]
    seen.add(id(value))
    follow = functools.partial(_words, depth=depth + 1, seen=seen)
    if isinstance(value, (tuple, list)):
        return [kind, str(len(value)), *(word for item in value for word in follow(item))]
    if isinstance(value, (set, frozenset)):
        return [kind, *sorted(digest(*follow(item)) for item in value)]
    if isinstance(value, Mapping):
        return [kind, *(word for k, v in value.items() for word in (*follow(k), *follow(v)))]
    if isinstance(value, functools.partial):
        return ["partial", *follow(value.func), *follow(value.args), *follow(value.keywords)]
    if isinstance(value, types.MethodType):
        return ["method", *follow(value.__func__), *follow(value.__self__)]
    if isinstance(value, types.FunctionType):
        return _function(value, follow)
    if isinstance(value, type):
        return _class(value, follow)
    if isinstance(value, nn.Module):
        return ["model", of_code(value, seen), of_weights(value)]
    if hasattr(value, "to_numpy"):
        return [kind, *follow(value.to_numpy())]
    if callable(value) and not hasattr(value, "__dict__") and _library_class(type(value)):
        return [kind, str(getattr(value, "__module__", "")), str(getattr(value, "__qualname__", kind))]
    return [kind, *follow(type(value)), *(word for k, v in _state(value) for word in (k, *follow(v)))]


def _state(value: Any) -> list[tuple[str, Any]]:
    """Attributes of an object that say what it does; counters and caches, by custom private, are left out."""
    slots = (name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if isinstance(name, str))
    held = {**{name: getattr(value, name) for name in slots if hasattr(value, name)}, **getattr(value, "__dict__", {})}
    return sorted((str(k), v) for k, v in held.items() if not (str(k).startswith("_") and isinstance(v, dict)))


def _bytes(value: Tensor | np.ndarray[Any, Any]) -> str:
    if isinstance(value, np.memmap):  # on disk: not read for this
        ends = (np.ascontiguousarray(part).tobytes() for part in (value[:SAMPLED], value[-SAMPLED:]))
        return digest(f"{value.dtype.str} {value.shape}", *(hashlib.sha256(end).hexdigest() for end in ends))
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return digest(*(_ADDRESS.sub("", repr(item)) for item in value.flatten().tolist()))
        return f"{value.dtype.str} {value.shape} " + hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    found = hashlib.sha256()
    add_tensor(found, "", value)
    return found.hexdigest()


def _function(value: types.FunctionType, follow: Callable[[Any], list[str]]) -> list[str]:
    """Name, code, defaults and closure of a function; of the user's own also what it uses of its module."""
    code = value.__code__
    words = [value.__qualname__, *follow(value.__defaults__), *follow(value.__kwdefaults__)]
    for name, cell in zip(code.co_freevars, value.__closure__ or (), strict=True):
        try:
            words += [name, *follow(cell.cell_contents)]
        except ValueError:  # a cell that is not filled yet
            words.append(name)
    if _from_library(code.co_filename):
        return [str(value.__module__), *words]
    words += _source(value)
    names = _names(code)
    for name in sorted(names):
        words += _used(name, value.__globals__.get(name), names, follow)
    return words


def _used(name: str, value: Any, names: set[str], follow: Callable[[Any], list[str]]) -> list[str]:
    """What a function uses of its module: plain values, the user's own objects, and of the user's own modules what is named."""
    if isinstance(value, types.ModuleType):
        if _from_library(getattr(value, "__file__", None) or "<frozen"):
            return []
        inside = sorted(
            inner for inner in names if inner in vars(value) and not isinstance(vars(value)[inner], types.ModuleType)
        )
        return [word for inner in inside for word in _used(f"{name}.{inner}", vars(value)[inner], names, follow)]
    own = not isinstance(value, type) and not _library_class(type(value))
    return [name, *follow(value)] if own or _telling(name.rpartition(".")[2], value) else []


def _class(kind: type, follow: Callable[[Any], list[str]]) -> list[str]:
    """Name of a class; of the user's own also its methods, its plain settings and its bases."""
    words = [kind.__module__.removeprefix("__main__"), kind.__qualname__] if _library_class(kind) else [kind.__qualname__]
    if _library_class(kind):
        return words
    for name, value in sorted(vars(kind).items()):
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        found = [value.fget] if isinstance(value, property) else [value]
        if isinstance(value, functools.cached_property):
            found = [value.func]
        if isinstance(found[0], types.FunctionType):
            words += [name, *follow(found[0])]
        elif not name.startswith("__") and _telling(name, value):
            words += [name, *follow(value)]
    return [*words, *(word for base in kind.__bases__ for word in follow(base))]


def _library_class(kind: type) -> bool:
    methods: Iterable[Any] = (v for v in vars(kind).values() if isinstance(v, types.FunctionType))
    own = [v.__code__.co_filename for v in methods if not v.__code__.co_filename.startswith("<")]
    if own:
        return _from_library(own[0])
    if kind.__module__ == "__main__":
        return False
    try:
        return _from_library(inspect.getfile(kind))
    except (TypeError, OSError):
        return kind.__module__ == "builtins"


def _from_library(file: str) -> bool:
    """Whether a file belongs to Python, an installed package or Equipoise."""
    return file.startswith((*_LIBRARY, _OWN, "<frozen")) or "site-packages" in file or "dist-packages" in file


def _names(code: types.CodeType) -> set[str]:
    """Global names that code uses, in the functions inside it too."""
    return {*code.co_names, *(n for c in code.co_consts if isinstance(c, types.CodeType) for n in _names(c))}


def _source(value: types.FunctionType) -> list[str]:
    """Source of a function without comments, layout and docstring; where there is none its byte code."""
    try:
        tree = _tree(value)
    except (OSError, TypeError, SyntaxError, ValueError, IndexError):
        tree = None
    if tree is None:
        return _byte_code(value.__code__)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        documented = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and ast.get_docstring(node)
        if documented and isinstance(body, list):
            node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
    return [ast.unparse(tree)]


def _tree(value: types.FunctionType) -> ast.AST | None:
    """Syntax tree of a function; of a lambda only where it is the one on its line."""
    if value.__name__ != "<lambda>":
        return ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    lines, _ = inspect.findsource(value)
    line = value.__code__.co_firstlineno
    whole = ast.parse("".join(lines))
    here = [node for node in ast.walk(whole) if isinstance(node, ast.Lambda) and node.lineno == line]
    return here[0] if len(here) == 1 else None


def _byte_code(code: types.CodeType) -> list[str]:
    words = [code.co_code.hex(), *code.co_names, *code.co_varnames]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            words += _byte_code(constant)
        elif isinstance(constant, frozenset):
            words += sorted(map(repr, constant))
        else:
            words.append(repr(constant))
    return words
