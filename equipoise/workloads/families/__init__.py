"""Families: models of every scale, from a scale with named dimensions and the shape of a task."""

from typing import cast

from equipoise.built_in import FAMILIES
from equipoise.errors import unknown
from equipoise.workloads.families.base import Dimension, Family, Scale

__all__ = ["Dimension", "Family", "Scale", "family"]


def family(name: str) -> Family:
    """Return the built-in family of that name, importing it now.

    Raises:
        InputError: There is none.
    """
    named = [key for key, row in FAMILIES.items() if not row.data]
    if name not in named:
        raise unknown("family", name, named)
    return cast(Family, FAMILIES[name].imported())
