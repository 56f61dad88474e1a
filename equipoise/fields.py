"""The gallery: fields in which the balance of scale and efficiency is asked for, a row each.

Words only. A field is a task and one or two families; what is written here is how the roads are walked on it, and where a small
made-up set comes from with which each command can be tried offline.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast


@dataclass(frozen=True, slots=True)
class Field:
    """One of them.

    Attributes:
        says: What is asked, in a line.
        data: Which data it was measured on, and in which form ``--data`` takes them.
        task: How the task is written, ``{data}`` standing for the path.
        family: Whose models learn it.
        scale: Dimension -> value of the model that is trained; empty takes the family's own.
        recipe: As of ``equipoise train``; empty takes the usual.
        budget: Of the search that follows.
        page: Of the documentation.
        sample: ``module:function`` that writes a small made-up set into a folder and returns it.
        sampled: The same as `task`, for that set; empty where it is written alike.
        small: Scale of the model that is trained on it; empty where `scale` will do.
    """

    says: str
    data: str
    task: str
    family: str
    sample: str
    page: str
    budget: str = "drop<=1"
    scale: Mapping[str, float] = field(default_factory=dict)
    recipe: str = ""
    sampled: str = ""
    small: Mapping[str, float] = field(default_factory=dict)

    def written(self, folder: Path) -> Path:
        """Write the small made-up set and return where it lies."""
        return cast("Callable[[Path], Path]", pkgutil.resolve_name(self.sample))(folder)


FIELDS: dict[str, Field] = {
    "photographs": Field(
        says="which class does a photograph belong to?",
        data="a folder or zip of train/CLASS/*, test/CLASS/*, or ImageNet's own",
        task="images:{data}?size=64",
        family="mobilenet",
        scale={"width": 16, "depth": 9},
        sampled="images:{data}?size=32",
        small={"width": 8, "depth": 9},
        sample="equipoise.generated.pictures:write",
        page="images.md",
    ),
    "sentiment": Field(
        says="is a text friendly?",
        data="a folder of train.tsv, dev.tsv, test.tsv: text and label",
        task="sentiment:{data}?length=40",
        family="textcnn",
        sampled="sentiment:{data}?length=12",
        small={"width": 32, "filters": 32},
        sample="equipoise.generated.opinions:write",
        page="text.md",
    ),
    "translation": Field(
        says="what is it in the other language?",
        data="a folder of train.en, train.de, val.*, test.*",
        task="translation:{data}",
        family="transformer",
        budget="drop<=0.5",
        sampled="translation:{data}?vocabulary=300&length=16&beams=2",
        small={"width": 48, "depth": 1, "heads": 2},
        sample="equipoise.generated.languages:write",
        page="translation.md",
    ),
    "speech": Field(
        says="which word was said?",
        data="a folder or zip of CLASS_SPEAKER_NUMBER.wav, or train/CLASS/*.wav, test/CLASS/*.wav",
        task="speech:{data}",
        family="conformer",
        budget="drop<=0.3",
        small={"width": 32, "depth": 1},
        sample="equipoise.generated.sounds:write",
        page="speech.md",
    ),
    "recommendation": Field(
        says="what does somebody take next?",
        data="a .csv or .csv.gz of user, item and time",
        task="recommend:{data}?length=64",
        family="twotower",
        budget="drop<=0.3",
        sampled="recommend:{data}?length=16",
        small={"width": 32},
        sample="equipoise.generated.shop:write",
        page="recommend.md",
    ),
    "driving": Field(
        says="which way now?",
        data="a folder that equipoise.workloads.driving.train_teacher wrote",
        task="driving:{data}",
        family="mlp",
        scale={"width": 64, "depth": 2},
        sampled="driving:{data}?episodes=20",
        small={"width": 16, "depth": 2},
        sample="equipoise.workloads.driving:small_teacher",
        page="driving.md",
    ),
}
"""Fields by name."""
