"""Where a run computes: one process, or many that give the same curve."""

from equipoise.training.distribution.base import PRECISIONS, Distribution, Objective, OneProcess, autocast, micro_batches

__all__ = ["PRECISIONS", "Distribution", "Objective", "OneProcess", "autocast", "micro_batches"]
