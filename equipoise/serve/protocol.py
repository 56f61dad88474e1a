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
    """A request.

    Attributes:
        inputs: Name -> array (N, ...), all of one N.
        id: The client's own, given back.
        binary: Whether the answer's tensors go behind its JSON.
        parameters: What else was asked, such as ``timeout`` in microseconds.
    """

    inputs: Mapping[str, Array]
    id: str = ""
    binary: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many samples are asked about."""
        return len(next(iter(self.inputs.values())))


def read(body: bytes, header_length: str | None, takes: Mapping[str, Taken], *, most_rows: int) -> Asked:
    """Read a request.

    Args:
        header_length: The value of `HEADER`, if it was sent.
        takes: What the model takes, by name.
        most_rows: Samples of a request at most.
    Raises:
        InputError: Whatever is wrong with it, in one sentence for the client.
    """
    head, rest = _split(body, header_length)
    data = _json(head)
    given = data.get("inputs")
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise must_be("inputs", "a list of tensors", _kind(given), "See /v2/models.")
    arrays: dict[str, Array] = {}
    for each in given:
        name = each.get("name")
        if not isinstance(name, str) or name not in takes or name in arrays:
            raise must_be("inputs", f"each of {', '.join(takes)} once", str(name)[:LONGEST], "See the model's metadata.")
        arrays[name], rest = _array(name, each, takes[name], rest, most_rows)
    if missing := [name for name in takes if name not in arrays]:
        raise must_be("inputs", f"all of {', '.join(takes)}", f"none named {missing[0]}", "See the model's metadata.")
    if len({len(array) for array in arrays.values()}) != 1:
        raise must_be("inputs", "of one batch", {n: len(a) for n, a in arrays.items()}, "Give each as many rows.")
    if rest:
        raise must_be("body", "as long as its tensors", f"{len(rest)} bytes more", "Send what binary_data_size says.")
    known, parameters = data.get("id", ""), data.get("parameters", {})
    if not isinstance(known, str) or len(known) > LONGEST:
        raise must_be("id", f"text of at most {LONGEST} characters", type(known).__name__, "Leave it out.")
    if not isinstance(parameters, dict):
        raise must_be("parameters", "an object", type(parameters).__name__, "Leave it out.")
    return Asked(arrays, known, _binary(data, parameters), parameters)


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


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    if header_length is None:
        return body, b""
    length = int(header_length) if header_length.isdecimal() and len(header_length) < 20 else -1
    if not 0 < length <= len(body):
        raise must_be(HEADER, f"a number up to the body's {len(body)} bytes", header_length[:LONGEST], "Leave it out for JSON.")
    return body[:length], body[length:]


def _json(head: bytes) -> Mapping[str, Any]:
    try:
        data = json.loads(head)
    except RecursionError as error:
        raise InputError("body must be JSON; this one is nested too deep.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"body must be JSON; got bytes that are no text. Say with {HEADER} where it ends.") from error
    except ValueError as error:
        raise InputError(f"body must be JSON; {str(error)[:LONGEST]}.") from error
    if not isinstance(data, dict):
        raise must_be("body", "a JSON object", _kind(data), "See the protocol.")
    return data


def _kind(value: Any) -> str:
    """Return what a value is in JSON's words."""
    words = {dict: "object", list: "list", str: "text", bool: "true or false", int: "number", float: "number"}
    return words.get(type(value), "nothing")


def _array(name: str, given: Mapping[str, Any], takes: Taken, rest: bytes, most_rows: int) -> tuple[Array, bytes]:
    """Return a tensor, and the bytes that are left for those after it."""
    what, word, shape = f"tensor {name}", given.get("datatype"), given.get("shape")
    if word != WORDS[takes.type]:
        raise must_be(f"{what} datatype", WORDS[takes.type], str(word)[:LONGEST], "See the model's metadata.")
    if not isinstance(shape, list) or len(shape) > DEEPEST or not all(type(axis) is int and axis >= 0 for axis in shape):
        raise must_be(f"{what} shape", "a list of whole numbers", str(shape)[:LONGEST], "See the model's metadata.")
    wanted, there = takes.described["shape"], len(shape) == len(takes.shape) + 1
    if not there or any(w not in (-1, axis) for w, axis in zip(wanted, shape, strict=True)):
        raise must_be(f"{what} shape", f"{wanted}, -1 for any", shape, "See the model's metadata.")
    if not 1 <= shape[0] <= most_rows or 0 in shape:
        raise must_be(f"{what} shape", f"of 1 to {most_rows} rows, none of them empty", shape, "Send several requests.")
    count, type_ = math.prod(shape), np.dtype(takes.type)
    size = (given.get("parameters") or {}).get("binary_data_size") if isinstance(given.get("parameters") or {}, dict) else None
    if size is not None:
        whole = count * type_.itemsize
        if type(size) is not int or size != whole or size > len(rest):
            raise must_be(f"{what} binary_data_size", f"the {whole} bytes of its shape", size, "Send them all.")
        return _finite(what, np.frombuffer(rest[:size], type_)).reshape(shape), rest[size:]
    return _finite(what, _from_list(what, given.get("data"), type_, count)).reshape(shape), rest


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


def _finite(what: str, array: Array) -> Array:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise must_be(f"{what} data", "finite", "NaN or infinity", "Check what makes it.")
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
