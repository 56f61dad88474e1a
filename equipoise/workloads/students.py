"""Students: new models of a family for what another model has learned, named by family and scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs
from equipoise.built_in import FAMILIES, scaled
from equipoise.errors import InputError, must_be
from equipoise.records import digest
from equipoise.workloads.families import Family, Scale, family
from equipoise.workloads.spec import load_sized
from equipoise.workloads.task import Shape


def read_student(text: str) -> tuple[Family, Scale | None]:
    """Return the family that `text` names, and its scale; None where the text leaves it open.

    Args:
        text: ``FAMILY``, ``FAMILY:FACTOR`` (of the size of its default scale) or ``FAMILY:width=16,depth=8`` (the rest as by
            default).
    Raises:
        InputError: Another form, an unknown family, or a scale that it does not have; told with every family and its range.

    Example:
        >>> read_student("cnn:width=16")[1]["depth"], read_student("cnn:0.25")[1]["width"]
        (6, 16)
    """
    try:
        return load_sized(text)
    except InputError as error:
        wanted = "FAMILY, FAMILY:FACTOR or FAMILY:width=16,depth=8"
        told = str(error) + ("" if str(error).endswith((".", "?")) else ".")
        raise must_be("student", wanted, text, f"{told} Families: {'; '.join(_ranges())}.") from error


def named(text: str, scale: Scale) -> str:
    """Return the full name of a student of the family in `text`: each dimension is in it, so that it is always the same net."""
    return f"{scaled(text)[0]}:{','.join(f'{key}={value:g}' for key, value in scale.items())}"


def drawn(name: str, shape: Shape) -> nn.Module:
    """Return a new student, its weights drawn by a generator that `name` seeds; of the default scale where it names none.

    Raises:
        InputError: As `read_student`, or a family whose models cannot take `shape`.
    """
    found, scale = read_student(name)
    full = found.scale() if scale is None else scale
    seed = int(digest(named(name, full)), 16) % 2**62
    try:
        return found.model(full, shape, generator=torch.Generator().manual_seed(seed)).eval()
    except InputError as error:
        raise InputError(f"student must suit the data and the answers of the model; for {name}, {error}") from error


def shape_of(inputs: Inputs, answers: Tensor, model: nn.Module) -> Shape:
    """Read off a batch of inputs (N, ...) and the answers of `model` what a student of it must take and give.

    Raises:
        InputError: Several inputs, or tokens in a model without a table of them.
    """
    if not isinstance(inputs, Tensor):
        raise must_be("student", "a module for a model of several inputs", "a family", "A family's models take one tensor.")
    outputs = answers.shape[1] if answers.ndim > 1 else 1
    if inputs.is_floating_point():
        return Shape(tuple(inputs.shape[1:]), outputs, dense=answers.ndim > 2)
    tables = [part for part in model.modules() if isinstance(part, nn.Embedding)]
    if not tables:
        raise must_be("student", "a module for a model without a table of its tokens", "a family", "Pass a module.")
    words = max(tables, key=lambda table: table.num_embeddings)
    shape = tuple(inputs.shape[1:])
    return Shape(shape, outputs, words.num_embeddings, dense=answers.ndim > 2, padding=words.padding_idx or 0)


def _ranges() -> list[str]:
    """Each built-in family with the range of its dimensions."""
    out = []
    for name in (name for name, row in FAMILIES.items() if not row.data):
        ends = [(d.name, d.menu[0], d.menu[-1]) for d in family(name).dimensions if d.menu]
        out.append(f"{name} ({', '.join(f'{key} {low:g} to {high:g}' for key, low, high in ends)})")
    return out


def ladder(found: Family) -> list[Scale]:
    """Return scales of a family from small to large: its default one, halved and doubled in size as far as it goes."""
    scales: dict[str, Scale] = {}
    for power in range(-6, 4):
        try:
            scale = found.grow(math.pow(2, power))
        except InputError:
            continue  # it does not go so far
        scales[str(scale)] = scale
    return list(scales.values())
