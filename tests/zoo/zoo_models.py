"""The zoo: every model in one table, a name and how it is made; nothing is built or imported before it is asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol

from hugging_zoo import HUGGING_FACE
from own_zoo import OWN
from torch import nn
from vision_names import declare
from vision_zoo import TIMM, VISION
from zoo_walk import Record, walk

from equipoise.batch import Inputs, positional


class Row(Protocol):
    """What a row of the table must give: `vision_zoo.Architecture`, `hugging_zoo.Pretrained` and `own_zoo.Own` do."""

    kind: str
    output: Any
    """Which output is judged, as `Workload` is told."""
    refused: str
    """Words of the sentence with which the model must be refused; empty where it must not."""

    def inputs(self, count: int) -> Any: ...

    def built(self) -> nn.Module: ...


ZOO: Mapping[str, Row] = {str(row): row for row in (*TIMM, *VISION, *HUGGING_FACE, *OWN)}


@cache
def missing(name: str) -> str:
    """Return why a model of the table cannot be built here, or ""."""
    source, _, model = name.partition(":")
    needed = {"timm": ["timm", "torchvision"], "torchvision": ["torchvision"], "transformers": ["transformers"]}.get(source, [])
    absent = [package for package in needed if importlib.util.find_spec(package) is None]
    if absent:
        return f"{' and '.join(absent)} not installed: `make test` does it"
    if "torchvision" in needed:
        declare()
    if source == "timm":
        import timm

        return "" if timm.is_model(model) else f"timm {timm.__version__} does not know {model}"
    return ""


def record_of(name: str) -> Record:
    """Walk one model of the table; refused as it must be is right."""
    row = ZOO[name]
    found = walk(lambda: (row.built(), lambda count: _batch(row.inputs(count))), output=row.output)
    found |= {"name": name, "kind": row.kind}
    if row.refused and found["verdict"] == "right":
        return found | {"verdict": "wrong", "why": f"it is not refused, with the words {row.refused!r}"}
    expected = found["verdict"] == "refused" and row.refused and row.refused in found["why"]
    return found | {"kept": found["verdict"] == "right" or bool(expected)}


def _batch(inputs: Any) -> Inputs:
    return positional(inputs) if isinstance(inputs, tuple) else inputs
