"""What has a name of its own on the command line: families, workloads and tasks, a row each.

Words only, so that a wrong name is told before torch is loaded. A new one is a row here and the file that the row names.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Options = Mapping[str, Callable[[str], Any]]
"""Name of an option -> what reads its text; those that name a file are read by `Path`."""


def place(text: str) -> str:
    """Return what is a folder where there is one of that name, and else the name of something."""
    return text


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """One of them.

    Attributes:
        maker: ``module:name`` of the `Family`, or of the function that returns the workload or the task; imported when it is
            first used.
        data: What is written after ``NAME:``, as in ``DATA?weights=FILE``; empty where the name says all.
        options: Those that may follow the ``?``; the function takes them by name, after the path.
        file: Whether what comes after ``NAME:`` is a file or a folder; else it is the name of something.
        trained: Whether loading trains its model; the function then takes the weights of an earlier load as ``state``.
    """

    maker: str
    data: str = ""
    options: Options = field(default_factory=dict)
    trained: bool = False
    file: bool = True

    def imported(self) -> Any:
        """Return what `maker` names."""
        return pkgutil.resolve_name(self.maker)


_TASK: Options = {"shift": int, "holdout": int}
_TEXTS: Options = {"length": int, "text": str, "label": str}
_WORDS: Options = {"words": int, "tokenizer": Path}
_NET: Options = {"weights": Path, "depth": int, "shortcut": str, **_TASK}
_SIZED: Options = {"size": int, "stream": int, "crop": float}
_PAIRS: Options = {"source": str, "target": str, "vocabulary": int, "length": int, "quality": str, "beams": int}
_RANKING: Options = {
    **dict.fromkeys(("length", "first", "repeats", "least", "refit"), int),
    **dict.fromkeys(("quality", "hold", "since", "until", "user", "item", "time"), str),
    **dict.fromkeys(("days", "replay"), float),
}
_SOUND: Options = {"speaker": str, "length": float, "joined": int}
_DRIVEN: Options = {"episodes": int}

FAMILIES: dict[str, BuiltIn] = {
    "mlp": BuiltIn("equipoise.workloads.families.plain:MLP"),
    "cnn": BuiltIn("equipoise.workloads.families.plain:CNN"),
    "resnet": BuiltIn("equipoise.workloads.families.plain:RESNET"),
    "mobilenet": BuiltIn("equipoise.workloads.families.mobile:MOBILENET"),
    "shufflenet": BuiltIn("equipoise.workloads.families.shuffle:SHUFFLENET"),
    "convnext": BuiltIn("equipoise.workloads.families.convnext:CONVNEXT"),
    "efficientnet": BuiltIn("equipoise.workloads.families.mobile:EFFICIENTNET"),
    "speed": BuiltIn("equipoise.workloads.families.speed:SPEED"),
    "gpt": BuiltIn("equipoise.workloads.families.transformer:GPT"),
    "encoder": BuiltIn("equipoise.workloads.families.transformer:ENCODER"),
    "bag": BuiltIn("equipoise.workloads.families.texts:BAG"),
    "textcnn": BuiltIn("equipoise.workloads.families.texts:TEXTCNN"),
    "gru": BuiltIn("equipoise.workloads.families.texts:GRU"),
    "transformer": BuiltIn("equipoise.workloads.families.encoder_decoder:TRANSFORMER"),
    "seq2seq": BuiltIn("equipoise.workloads.families.seq2seq:SEQ2SEQ"),
    "sasrec": BuiltIn("equipoise.workloads.families.recommend:SASREC"),
    "twotower": BuiltIn("equipoise.workloads.families.recommend:TWOTOWER"),
    "conformer": BuiltIn("equipoise.workloads.families.conformer:CONFORMER"),
    "streaming": BuiltIn("equipoise.workloads.families.streaming:STREAMING"),
    "huggingface": BuiltIn("equipoise.workloads.huggingface:huggingface", "FOLDER"),
    "timm": BuiltIn("equipoise.workloads.timm:timm_family", "NAME?weights=FILE", {"weights": Path}, file=False),
}
"""Families of models by name; one with `data` is read from there."""

WORKLOADS: dict[str, BuiltIn] = {
    "digits": BuiltIn("equipoise.workloads.digits:digits", trained=True),
    "cifar10": BuiltIn("equipoise.workloads.images:cifar10", "DATA?weights=FILE", _NET),
    "images": BuiltIn("equipoise.workloads.images:image_workload", "DATA?weights=FILE", {**_NET, **_SIZED, "model": str}),
    "sentiment": BuiltIn(
        "equipoise.workloads.huggingface:sentiment_workload",
        "DATA?model=FOLDER",
        {"model": place, "weights": Path, **_TEXTS, **_WORDS},
    ),
    "translation": BuiltIn(
        "equipoise.workloads.translation:translation_workload",
        "FOLDER?model=FAMILY&weights=FILE",
        {"model": str, "weights": Path, **_PAIRS},
    ),
    "recommend": BuiltIn(
        "equipoise.workloads.recommend:recommend_workload",
        "FILE?weights=FILE&model=FAMILY",
        {"weights": Path, "model": str, **_RANKING},
    ),
    "speech": BuiltIn(
        "equipoise.workloads.speech:speech_workload",
        "DATA?model=FAMILY&weights=FILE",
        {**_SOUND, "model": str, "weights": Path},
    ),
    "driving": BuiltIn("equipoise.workloads.driving:driving_workload", "FOLDER", {**_DRIVEN, "model": str, "weights": Path}),
}
"""Workloads by name."""

TASKS: dict[str, BuiltIn] = {
    **WORKLOADS,
    "digits": BuiltIn("equipoise.workloads.digits:digits_task"),
    "cifar10": BuiltIn("equipoise.workloads.images:cifar10_task", "DATA", _TASK),
    "images": BuiltIn("equipoise.workloads.images:image_task", "DATA", {**_TASK, **_SIZED}),
    "text": BuiltIn("equipoise.workloads.text:text_task", "FILE?context=64", {"context": int}),
    "translation": BuiltIn("equipoise.workloads.translation:translation_task", "FOLDER?source=en&target=de", _PAIRS),
    "sentiment": BuiltIn(
        "equipoise.workloads.sentiment:sentiment_task",
        "DATA?length=64",
        {**_TEXTS, **_WORDS},
    ),
    "recommend": BuiltIn("equipoise.workloads.recommend:recommend_task", "FILE?length=64", _RANKING),
    "speech": BuiltIn("equipoise.workloads.speech:speech_task", "DATA", _SOUND),
    "driving": BuiltIn("equipoise.workloads.driving:driving_task", "FOLDER", _DRIVEN),
}
"""Tasks by name: every workload, its model left aside, and those that need no model."""


def forms(table: Mapping[str, BuiltIn]) -> Iterable[str]:
    """Yield how each row of a table is written, and how one of the user's own is.

    Example:
        >>> list(forms(WORKLOADS))[:2]
        ['digits', 'cifar10:DATA?weights=FILE']
    """
    yield from (f"{name}:{row.data}" if row.data else name for name, row in table.items())
    yield "FILE.py:FUNCTION"


def scaled(text: str) -> tuple[str, str]:
    """Split how a family at a scale is written into the family and the scale, which is empty where the text has none.

    Example:
        >>> scaled("cnn:0.5"), scaled("cnn:width=8,depth=3"), scaled("timm:NAME?weights=FILE")
        (('cnn', '0.5'), ('cnn', 'width=8,depth=3'), ('timm:NAME?weights=FILE', ''))
    """
    name, _, scale = text.rpartition(":")
    factor = re.fullmatch(r"[0-9.]+(e[+-]?[0-9]+)?", scale)
    return (name, scale) if name and (factor or ("=" in scale and "?" not in scale)) else (text, "")


def workload_of(family: str, task: str, scale: Mapping[str, float], store: Path) -> str:
    """Return how a model that ``train`` left in `store` is written as a workload; empty where it takes a file of one's own.

    Example:
        >>> workload_of("timm:NAME?weights=OLD", "images:DATA?size=160", {}, Path("runs/a"))
        'images:DATA?size=160&model=timm:NAME&weights=runs/a/model.safetensors'
        >>> workload_of("cnn", "images:DATA", {"width": 8, "depth": 3}, Path("runs/a"))
        'images:DATA?model=cnn:width=8,depth=3&weights=runs/a/model.safetensors'
        >>> workload_of("huggingface:OLD", "sentiment:DATA?tokenizer=OLD&length=32", {"depth": 6}, Path("runs/a"))
        'sentiment:DATA?length=32&model=runs/a/pretrained'
    >>> workload_of("bag", "sentiment:DATA?length=32", {"width": 64}, Path("runs/a"))
    'sentiment:DATA?length=32&model=bag:width=64&weights=runs/a/model.safetensors'
    """
    kind, _, rest = task.partition(":")
    data, _, query = rest.partition("?")
    row = WORKLOADS.get(kind)
    if row is None or "model" not in row.options or not data:
        return ""
    kept = [part for part in query.split("&") if part.partition("=")[0] in row.options]
    if family.startswith("huggingface:"):  # its folder holds its tokenizer
        others = [part for part in kept if not part.startswith("tokenizer=")]
        return f"{kind}:{data}?{'&'.join([*others, f'model={store}/pretrained'])}"
    if "weights" in row.options:
        sized = ",".join(f"{name}={value:g}" for name, value in scale.items())
        kept += [f"model={':'.join(filter(None, (family.partition('?')[0], sized)))}", f"weights={store / 'model.safetensors'}"]
    else:
        return ""
    return f"{kind}:{data}?{'&'.join(kept)}"


def trained_on_loading(spec: str) -> bool:
    """Return whether loading the workload `spec` trains its model, unless it is given the weights of an earlier load."""
    kind = spec.partition(":")[0]
    return kind in WORKLOADS and WORKLOADS[kind].trained
