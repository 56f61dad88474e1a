"""Families: models of every scale, from a scale with named dimensions and the shape of a task."""

from equipoise.errors import unknown
from equipoise.workloads.families.base import Dimension, Family, Scale
from equipoise.workloads.families.convnext import CONVNEXT
from equipoise.workloads.families.mobile import EFFICIENTNET, MOBILENET
from equipoise.workloads.families.plain import CNN, MLP, RESNET
from equipoise.workloads.families.shuffle import SHUFFLENET
from equipoise.workloads.families.speed import SPEED
from equipoise.workloads.families.transformer import ENCODER, GPT

__all__ = ["FAMILIES", "Dimension", "Family", "Scale", "family"]

FAMILIES: dict[str, Family] = {
    "mlp": MLP,
    "cnn": CNN,
    "resnet": RESNET,
    "mobilenet": MOBILENET,
    "shufflenet": SHUFFLENET,
    "convnext": CONVNEXT,
    "efficientnet": EFFICIENTNET,
    "speed": SPEED,
    "gpt": GPT,
    "encoder": ENCODER,
}
"""Families by name."""


def family(name: str) -> Family:
    """Return the family of that name.

    Raises:
        InputError: There is none.
    """
    if name not in FAMILIES:
        raise unknown("family", name, FAMILIES)
    return FAMILIES[name]
