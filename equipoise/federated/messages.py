"""What server and clients tell one another: a kind, plain facts and tensors, as bytes that are checked before they are used.

A message is ``EQF1``, the length of the header (4 bytes, big-endian), the header (JSON) and a safetensors file: nothing in it
is ever executed. Every transport carries these bytes, also the one inside a process, so what is counted is what would travel.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from equipoise.errors import InputError, must_be

MAGIC = b"EQF1"
MOST_HEADER = 1 << 20
"""Bytes of a header: lists of keys of some thousand clients fit."""

Expected = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Tensor -> its type and shape."""


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        kind: What is asked or answered, such as ``train`` and ``update``.
        facts: Plain JSON data.
        tensors: On the CPU.
    """

    kind: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def packed(message: Message) -> bytes:
    """Return the bytes of a message.

    Example:
        >>> unpacked(packed(Message("hello", {"samples": 3}))).facts
        {'samples': 3}
    """
    header = json.dumps({"kind": message.kind, "facts": dict(message.facts)}, separators=(",", ":")).encode()
    body = save({name: value.detach().contiguous().clone() for name, value in message.tensors.items()})
    return MAGIC + struct.pack(">I", len(header)) + header + bytes(body)


def unpacked(data: bytes, *, most: int | None = None) -> Message:
    """Return the message of `data`.

    Args:
        most: Bytes that it may have; None: any number.
    Raises:
        InputError: Too large, cut off, or no such message.
    """
    if most is not None and len(data) > most:
        raise must_be("message", f"at most {most} bytes", len(data), "It is not read.")
    if len(data) < 8 or data[:4] != MAGIC:
        raise must_be("message", "one that begins with EQF1", data[:8], "It is not read.")
    (length,) = struct.unpack(">I", data[4:8])
    if length > min(MOST_HEADER, len(data) - 8):
        raise must_be("message header", f"at most {min(MOST_HEADER, len(data) - 8)} bytes", length, "It is not read.")
    try:
        header = json.loads(data[8 : 8 + length])
        kind, facts = header["kind"], header["facts"]
        tensors = dict(sorted(load(data[8 + length :]).items()))  # the order of a file is nobody's: what is drawn follows it
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        raise must_be("message", "a JSON header and a safetensors file", said, "It is not read.") from error
    if not isinstance(kind, str) or not isinstance(facts, dict):
        raise must_be("message header", "a kind and its facts", header, "It is not read.")
    return Message(kind, facts, tensors)


def check_tensors(found: Mapping[str, Tensor], expected: Expected) -> None:
    """Raise one error for tensors that are missing, too many, of another type or shape, or not finite.

    Raises:
        InputError: All that is wrong, a line each.
    """
    wrong: list[InputError] = []
    for name in sorted(expected.keys() | found.keys()):
        if name not in found or name not in expected:
            what = "among those that were asked for" if name in found else "there"
            wrong.append(must_be(f"tensor {name}", what, sorted(found), "The update is left out."))
            continue
        value, (dtype, shape) = found[name], expected[name]
        if value.dtype != dtype or tuple(value.shape) != tuple(shape):
            got = (str(value.dtype), tuple(value.shape))
            wrong.append(must_be(f"tensor {name}", f"{dtype} of shape {tuple(shape)}", got, "The update is left out."))
        elif value.is_floating_point() and not bool(value.isfinite().all()):
            wrong.append(must_be(f"tensor {name}", "finite", "NaN or infinity", "The update is left out."))
    if wrong:
        raise InputError("\n".join(map(str, wrong)))
