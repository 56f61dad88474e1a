"""Training: one loop, on labels or from a teacher, resumable."""

from equipoise.training.loop import Batches, Progress, Recovery, fit
from equipoise.training.normalize import refold, unfold
from equipoise.training.recipe import Recipe
from equipoise.training.recover import distill, kl

__all__ = ["Batches", "Progress", "Recipe", "Recovery", "distill", "fit", "kl", "refold", "unfold"]
