"""The Open Inference Protocol, version 2, over REST: requests read into arrays, arrays written as answers.

Tensors come as JSON, or as raw bytes behind the JSON (the binary extension that Triton's clients use without being asked): the
header ``Inference-Header-Content-Length`` then says where the JSON ends.

References:
    KServe, "Open Inference Protocol", REST, https://github.com/kserve/open-inference-protocol
    Triton, "Binary data extension".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import InputError, must_be

OUTPUT = "output"
"""Name of the only tensor of an answer."""
HEADER = "Inference-Header-Content-Length"
TYPES: dict[str, str] = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
"""The protocol's word for a type -> numpy's."""
WORDS = {numpy: word for word, numpy in TYPES.items()}
DEEPEST = 8
"""Axes of a tensor, its batch included."""
LONGEST = 200
"""Characters of an id or a name."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Taken:
    """What a model takes under one name.

    Attributes:
        type: numpy's name of the type.
        shape: Axes behind the batch; None where one is free.
    """

    type: str
    shape: tuple[int | None, ...]

    @property
    def described(self) -> dict[str, Any]:
        """As the protocol tells it: -1 where an axis is free."""
        return {"datatype": WORDS[self.type], "shape": [-1, *(-1 if axis is None else axis for axis in self.shape)]}


@dataclass(frozen=True)
class Asked:
    """A request as its JSON tells it; tensors that come as bytes may still be on their way.

    Attributes:
        rows: How many samples are asked about.
        id: The client's own, given back.
        binary: Whether the answer's tensors go behind its JSON.
        parameters: What else was asked, such as ``timeout`` in microseconds.
    """

    rows: int
    tensors: tuple[_Tensor, ...]
    id: str = ""
    binary: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def inputs(self, raw: bytes = b"") -> dict[str, Array]:
        """Return the tensors, name -> (rows, ...).

        Args:
            raw: What came behind the JSON.
        Raises:
            InputError: Too few or too many bytes or numbers, or such as are not finite.
        """
        arrays, place = {}, 0
        for each in self.tensors:
            arrays[each.name] = each.array(raw[place : place + each.size])
            place += each.size
        if place < len(raw):
            raise must_be(
                "body", "as long as its tensors", f"{len(raw) - place} bytes more", "Send what binary_data_size says."
            )
        return arrays


@dataclass(frozen=True)
class _Tensor:
    """One of a request's tensors: its numbers as a list, or so many bytes (`size`) behind the JSON."""

    name: str
    type: np.dtype[Any]
    shape: tuple[int, ...]
    data: Any
    size: int

    def array(self, raw: bytes) -> Array:
        what, count = f"tensor {self.name}", math.prod(self.shape)
        if not self.size:
            array = _from_list(what, self.data, self.type, count)
        elif len(raw) == self.size:
            array = np.frombuffer(raw, self.type)
        else:
            raise _not_all(what, self.size, len(raw))
        if not finite(array):
            raise must_be(f"{what} data", "finite", "NaN or infinity", "Check what makes it.")
        return array.reshape(self.shape)


def finite(array: Array) -> bool:
    """Whether all of an array is finite, as whole numbers always are."""
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def head_length(header: str | None) -> int | None:
    """Return how many bytes of JSON a body begins with, by the value of `HEADER`; None where it was not sent: all of it.

    Raises:
        InputError: It is no number above 0.
    """
    if header is None:
        return None
    length = int(header) if header.isdecimal() and len(header) < 20 else 0
    if length < 1:
        raise must_be(HEADER, "a number of bytes, 1 at least", header[:LONGEST], "Leave it out for JSON.")
    return length


def read(head: bytes, length: int | None, takes: Mapping[str, Taken], *, most_rows: int) -> Asked:
    """Read the JSON of a request.

    Args:
        head: The first `length` bytes of the body, fewer where it has no more; all of it where `length` is None.
        takes: What the model takes, by name.
        most_rows: Samples of a request at most.
    Raises:
        InputError: Whatever is wrong with it, in one sentence for the client.
    """
    if length is not None and len(head) < length:
        raise must_be(HEADER, f"a number up to the body's {len(head)} bytes", length, "Leave it out for JSON.")
    data = _json(head)
    given = data.get("inputs")
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise must_be("inputs", "a list of tensors", _kind(given), "See /v2/models.")
    tensors: dict[str, _Tensor] = {}
    for each in given:
        name = each.get("name")
        if not isinstance(name, str) or name not in takes or name in tensors:
            raise must_be("inputs", f"each of {', '.join(takes)} once", str(name)[:LONGEST], "See the model's metadata.")
        tensors[name] = _tensor(name, each, takes[name], most_rows, behind=length is not None)
    if missing := [name for name in takes if name not in tensors]:
        raise must_be("inputs", f"all of {', '.join(takes)}", f"none named {missing[0]}", "See the model's metadata.")
    rows = {name: tensor.shape[0] for name, tensor in tensors.items()}
    if len(set(rows.values())) != 1:
        raise must_be("inputs", "of one batch", rows, "Give each as many rows.")
    known, parameters = data.get("id", ""), data.get("parameters", {})
    if not isinstance(known, str) or len(known) > LONGEST:
        raise must_be("id", f"text of at most {LONGEST} characters", type(known).__name__, "Leave it out.")
    if not isinstance(parameters, dict):
        raise must_be("parameters", "an object", type(parameters).__name__, "Leave it out.")
    return Asked(min(rows.values()), tuple(tensors.values()), known, _binary(data, parameters), parameters)


def write(asked: Asked, outputs: Mapping[str, Array], about: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    """Return the body of an answer, and its headers.

    Args:
        about: What stands beside the tensors: ``model_name``, ``model_version``, ``parameters``.
    """
    rows, raw = [], []
    for name, array in outputs.items():
        row: dict[str, Any] = {"name": name, "datatype": WORDS[array.dtype.name], "shape": list(array.shape)}
        if asked.binary:
            raw.append(np.ascontiguousarray(array).tobytes())
            row["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            row["data"] = array.ravel().tolist()
        rows.append(row)
    answer = {**about, **({"id": asked.id} if asked.id else {}), "outputs": rows}
    head = json.dumps(answer, separators=(",", ":")).encode()
    if not asked.binary:
        return head, {"Content-Type": "application/json"}
    return b"".join([head, *raw]), {"Content-Type": "application/octet-stream", HEADER: str(len(head))}


def _json(head: bytes) -> Mapping[str, Any]:
    try:
        data = json.loads(head)
    except RecursionError as error:
        raise InputError("body must be JSON; this one is nested too deep.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"body must be JSON; got bytes that are no text. Say with {HEADER} where it ends.") from error
    except json.JSONDecodeError as error:
        raise InputError(f"body must be JSON; {str(error)[:LONGEST]}.") from error
    except ValueError as error:
        raise InputError("body must be JSON; a whole number in it has thousands of digits.") from error
    if not isinstance(data, dict):
        raise must_be("body", "a JSON object", _kind(data), "See the protocol.")
    return data


def _kind(value: Any) -> str:
    """Return what a value is in JSON's words."""
    words = {dict: "object", list: "list", str: "text", bool: "true or false", int: "number", float: "number"}
    return words.get(type(value), "nothing")


def _tensor(name: str, given: Mapping[str, Any], takes: Taken, most_rows: int, *, behind: bool) -> _Tensor:
    what, word, shape = f"tensor {name}", given.get("datatype"), given.get("shape")
    if word != WORDS[takes.type]:
        raise must_be(f"{what} datatype", WORDS[takes.type], str(word)[:LONGEST], "See the model's metadata.")
    if not isinstance(shape, list) or len(shape) > DEEPEST or not all(type(axis) is int and axis >= 0 for axis in shape):
        wanted = "a list of whole numbers, none negative"
        raise must_be(f"{what} shape", wanted, str(shape)[:LONGEST], "See the model's metadata.")
    axes, there = takes.described["shape"], len(shape) == len(takes.shape) + 1
    if not there or any(w not in (-1, axis) for w, axis in zip(axes, shape, strict=True)):
        raise must_be(f"{what} shape", f"{axes}, -1 for any", shape, "See the model's metadata.")
    if not 1 <= shape[0] <= most_rows or 0 in shape:
        raise must_be(f"{what} shape", f"of 1 to {most_rows} rows, none of them empty", shape, "Send several requests.")
    told, type_ = given.get("parameters") or {}, np.dtype(takes.type)
    size = told.get("binary_data_size") if isinstance(told, dict) else None
    whole = math.prod(shape) * type_.itemsize
    if size is not None and (type(size) is not int or size != whole or not behind):
        raise _not_all(what, whole, size if behind else f"no {HEADER}")
    return _Tensor(name, type_, tuple(shape), given.get("data"), size or 0)


def _not_all(what: str, whole: int, found: Any) -> InputError:
    return must_be(f"{what} binary_data_size", f"the {whole} bytes of its shape", found, "Send them all.")


def _from_list(what: str, data: Any, type_: np.dtype[Any], count: int) -> Array:
    try:
        with np.errstate(over="ignore"):  # what is too large is infinite, and told as that
            array = np.array(data, dtype=type_) if isinstance(data, list) else None
    except (ValueError, TypeError, OverflowError):
        array = None
    if array is None or array.size != count:
        found = "no list of numbers" if array is None else f"{array.size} numbers"
        raise must_be(f"{what} data", f"{count} numbers of its type, flat or nested", found, "Give as many as the shape says.")
    return array


def _binary(data: Mapping[str, Any], parameters: Mapping[str, Any]) -> bool:
    """Whether the answer is wanted with its tensors as bytes."""
    outputs: Sequence[Any] = data.get("outputs", [])
    if not isinstance(outputs, list) or not all(isinstance(each, dict) for each in outputs):
        raise InputError("outputs must be a list of objects. Leave it out for all of them.")
    for output in outputs:
        if output.get("name") != OUTPUT:
            raise must_be("outputs", f"{OUTPUT} alone", str(output.get("name"))[:LONGEST], "Leave it out.")
    each = [o.get("parameters", {}).get("binary_data") for o in outputs if isinstance(o.get("parameters", {}), dict)]
    return any(each) if each else bool(parameters.get("binary_data_output"))
