"""Photographs of clothes at 160 pixels, and a linear head on a pretrained network's features of them: for the benchmarks."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import equipoise as eq

SIDE = 160
CLASSES = 10
DECLARED = []
"""torchvision's operators, which are imported and never called here: they have no build beside a CPU's torch."""


def declare_operators() -> None:
    """Let torchvision be imported beside a torch that its operators were not built for."""
    for operator in ("nms(Tensor a, Tensor b, float c) -> Tensor", "qnms(Tensor a, Tensor b, float c) -> Tensor"):
        if not hasattr(torch.ops.torchvision, operator.partition("(")[0]):
            DECLARED.append(torch.library.Library("torchvision", "FRAGMENT"))
            DECLARED[-1].define(operator)


def workload(
    model: nn.Module,
    linear: nn.Linear,
    *,
    name: str,
    path: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    head: str | None = None,
) -> eq.Workload:
    """Return `model` with its last layer `linear` fitted to the photographs; with `head`, from that file once it was fitted.

    Args:
        path: The zip of photographs.
        mean, std: What the network's inputs are normalised by, per channel, in pixels of 0 to 255.
    """
    splits = photographs(path, mean, std)
    if head is not None and Path(head).is_file():
        linear.load_state_dict(torch.load(head, map_location="cpu", weights_only=True))
    else:
        fit_head(model, linear, *splits["train"])
        if head is not None:
            torch.save(linear.state_dict(), head)
    return eq.Workload(model=model, metric="accuracy", name=name, **splits)


def photographs(path: str, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, tuple[Tensor, Tensor]]:
    """Decode every photograph, cut to the square in its middle, normalised."""
    found: dict[str, list[tuple[Tensor, int]]] = {"train": [], "validation": [], "test": []}
    with zipfile.ZipFile(path) as held:
        names = sorted(name for name in held.namelist() if name.endswith(".jpg"))
        classes = sorted({name.split("/")[-2] for name in names})
        for name in names:
            image = Image.open(io.BytesIO(held.read(name))).convert("RGB")
            left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
            pixels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float32)
            pixels = (pixels - np.float32(mean)) / np.float32(std)
            *_, split, label, _file = name.split("/")
            found[split].append((torch.from_numpy(pixels.transpose(2, 0, 1)), classes.index(label)))
    return {split: (torch.stack([x for x, _ in rows]), torch.tensor([y for _, y in rows])) for split, rows in found.items()}


@torch.no_grad()
def fit_head(model: nn.Module, linear: nn.Linear, inputs: Tensor, targets: Tensor) -> None:
    """Fit the last layer by logistic regression (C = 0.03) on what it reads, few photographs at a time."""
    features: list[Tensor] = []
    watched = linear.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    for few in inputs.split(6):
        model(few)
    watched.remove()
    fitted = LogisticRegression(C=0.03, max_iter=2000).fit(torch.cat(features).numpy(), targets.numpy())
    linear.weight.copy_(torch.from_numpy(fitted.coef_))
    linear.bias.copy_(torch.from_numpy(fitted.intercept_))
