"""What passes between the halves, as bytes: the tensors of a cut, each with its shape, without loss.

Features rounded to few levels use some far more than others: a Huffman code takes 5.2 of the 8 KB that 4 bits each would
(EfficientNet-Lite0, 16,000 values), at 0.1 ms. Photographs change little from one pixel to the next: there the differences
are coded, where that was found to be shorter. Nothing is unpacked here but numbers of the types below, and of what is
announced only as much as was agreed.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import must_be

TYPES = {"uint8": "<u1", "bool": "|b1", "int32": "<i4", "int64": "<i8", "float32": "<f4"}
"""Types of numbers that pass -> how they lie in the bytes."""
MOST_AXES = 6
MOST_BYTES = 2**26
"""Of one tensor, unpacked."""
_SIZE = struct.Struct("!I")


@dataclass(frozen=True)
class Field:
    """How one tensor passes.

    Attributes:
        name: Of the tensor in the files of both halves.
        type: A key of `TYPES`.
        levels: Values that it takes, from 0 on; 0 for any.
        differences: Whether each number of the last axis but the first passes as its difference from the one before.
    """

    name: str
    type: str
    levels: int = 0
    differences: bool = False

    def __post_init__(self) -> None:
        if self.type not in TYPES:
            raise must_be(f"the type of {self.name}", f"one of {', '.join(TYPES)}", self.type, "Cut the model elsewhere.")
        if not 0 <= self.levels <= 256 or (self.differences and not self.levels):
            raise must_be(
                f"the levels of {self.name}", "from 0 to 256, above 0 for differences", self.levels, "Export it again."
            )


OUTPUT = (Field("output", "float32"),)
"""How an answer passes."""


def packed(fields: tuple[Field, ...], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the arrays (N, ...) of the fields as bytes."""
    return b"".join(_packed(field, np.asarray(arrays[field.name])) for field in fields)


def _packed(field: Field, array: NDArray[Any]) -> bytes:
    values = array
    if field.differences:
        steps = np.diff(array, axis=-1, prepend=np.uint8(0))  # modulo 256
        values = np.where(steps >= field.levels, steps + np.uint8(field.levels % 256), steps)
    body = np.ascontiguousarray(values, TYPES[field.type]).tobytes()
    if field.type != "float32":
        press = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_RLE)
        body = press.compress(body) + press.flush()
    return bytes([array.ndim]) + b"".join(map(_SIZE.pack, (*array.shape, len(body)))) + body


def unpacked(fields: tuple[Field, ...], content: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays that `packed` was given.

    Raises:
        InputError: Anything else than such bytes: too short or long, too many axes or numbers, levels that there are not.
    """
    arrays: dict[str, NDArray[Any]] = {}
    place = 0
    for field in fields:
        arrays[field.name], place = _unpacked(field, content, place)
    if place != len(content):
        raise _damaged(f"{len(content) - place} bytes too many")
    if len({len(array) for array in arrays.values()}) > 1:
        raise _damaged("tensors of different numbers of samples")
    return arrays


def _unpacked(field: Field, content: bytes, place: int) -> tuple[NDArray[Any], int]:
    axes = content[place] if place < len(content) else 0
    begin = place + 1 + _SIZE.size * (axes + 1)
    if not 1 <= axes <= MOST_AXES or begin > len(content):
        raise _damaged(f"{axes} axes in {len(content) - place} bytes")
    *shape, length = (_SIZE.unpack_from(content, place + 1 + _SIZE.size * axis)[0] for axis in range(axes + 1))
    dtype = np.dtype(TYPES[field.type])
    size, body = math.prod(shape) * dtype.itemsize, content[begin : begin + length]
    if not 0 < size <= MOST_BYTES or len(body) != length:
        raise _damaged(f"a tensor of {shape} in {len(body)} bytes")
    if field.type != "float32":
        body = _inflated(body, size)
    if len(body) != size:
        raise _damaged(f"{len(body)} bytes for a tensor of {shape}")
    array = np.frombuffer(body, dtype).reshape(shape)
    if field.levels and int(array.max()) >= field.levels:
        raise _damaged(f"a value beyond the {field.levels} levels of {field.name}")
    if field.differences:
        array = (np.cumsum(array, axis=-1, dtype=np.uint32) % field.levels).astype(np.uint8)
    return array, begin + length


def _inflated(body: bytes, size: int) -> bytes:
    """Return what was pressed into `body`, `size` bytes and no more."""
    press = zlib.decompressobj(-15)
    try:
        found = press.decompress(body, size + 1)
    except zlib.error as error:
        raise _damaged(str(error)) from error
    if not press.eof or press.unused_data:
        raise _damaged("a stream that does not end where it should")
    return found


def _damaged(reason: str) -> Exception:
    return must_be("a message", "what the other half packs", reason, "Run both halves of one export.")


def shortest(field: Field, arrays: list[NDArray[Any]]) -> Field:
    """Return the field with differences where these arrays are shorter so."""
    if not field.levels or arrays[0].ndim < 2:
        return field
    other = Field(field.name, field.type, field.levels, differences=True)
    plain, steps = (sum(len(_packed(each, array)) for array in arrays) for each in (field, other))
    return other if steps < plain else field
