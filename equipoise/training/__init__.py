"""Training: one loop, on labels or from a teacher, on one device or many, resumable."""

from equipoise.training.loop import Trained
from equipoise.training.normalize import refold, unfold
from equipoise.training.progress import Progress
from equipoise.training.recipe import Recipe
from equipoise.training.recover import distill
from equipoise.training.samples import Batches, Samples
from equipoise.training.supervised import fit
from equipoise.training.validation import CurvePoint

__all__ = [
    "Batches",
    "CurvePoint",
    "Progress",
    "Recipe",
    "Samples",
    "Trained",
    "distill",
    "fit",
    "refold",
    "unfold",
]
