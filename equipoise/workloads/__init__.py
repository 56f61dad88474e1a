"""What must be kept or learned: a model, its data splits, its metric; tasks and families before there is a model."""

from equipoise.workloads.augment import Augment, shifted
from equipoise.workloads.base import Workload
from equipoise.workloads.cautions import cautions
from equipoise.workloads.check import check
from equipoise.workloads.data import Split, asked, predict
from equipoise.workloads.families import Dimension, Family, Scale, family
from equipoise.workloads.given import as_family, as_task, as_workload
from equipoise.workloads.metrics import LOSSES, METRICS, Metric, Quality, Scores, classes, metric_of
from equipoise.workloads.spec import load, load_family, load_task
from equipoise.workloads.task import Shape, Task, task_of

__all__ = [
    "LOSSES",
    "METRICS",
    "Augment",
    "Dimension",
    "Family",
    "Metric",
    "Quality",
    "Scale",
    "Scores",
    "Shape",
    "Split",
    "Task",
    "Workload",
    "as_family",
    "as_task",
    "as_workload",
    "asked",
    "cautions",
    "check",
    "classes",
    "family",
    "load",
    "load_family",
    "load_task",
    "metric_of",
    "predict",
    "shifted",
    "task_of",
]
