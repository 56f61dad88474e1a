"""What must be kept: a model, its data splits, its metric, and where they come from."""

from equipoise.workloads.augment import Augment, shifted
from equipoise.workloads.base import Workload
from equipoise.workloads.check import check
from equipoise.workloads.data import Split, predict
from equipoise.workloads.metrics import LOSSES, METRICS, Metric, classes, metric_of
from equipoise.workloads.spec import load

__all__ = [
    "LOSSES",
    "METRICS",
    "Augment",
    "Metric",
    "Split",
    "Workload",
    "check",
    "classes",
    "load",
    "metric_of",
    "predict",
    "shifted",
]
