"""Search: from tables and evaluations to the next plans worth evaluating. Numbers only; knows no model and no runtime."""

from equipoise.search.costs import CostFit, CostModel, fit_cost
from equipoise.search.space import Genomes, Knob, Space
from equipoise.search.tables import Calibration, LossTable, calibrate, loss_table

__all__ = [
    "Calibration",
    "CostFit",
    "CostModel",
    "Genomes",
    "Knob",
    "LossTable",
    "Space",
    "calibrate",
    "fit_cost",
    "loss_table",
]
