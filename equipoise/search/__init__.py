"""Search: from tables and evaluations to the next plans worth evaluating. Numbers only; knows no model and no runtime."""

from equipoise.search.costs import CostFit, fit_cost
from equipoise.search.evolve import Population, nsga2
from equipoise.search.front import Cost, Solution, predicted_front, solve
from equipoise.search.propose import Evaluated, converged, first_points, front_volume, propose
from equipoise.search.space import Genomes, Space
from equipoise.search.surrogate import LossModel, fit_loss
from equipoise.search.tables import Calibration, LossTable, calibrate, loss_table, to_measure

__all__ = [
    "Calibration",
    "Cost",
    "CostFit",
    "Evaluated",
    "Genomes",
    "LossModel",
    "LossTable",
    "Population",
    "Solution",
    "Space",
    "calibrate",
    "converged",
    "first_points",
    "fit_cost",
    "fit_loss",
    "front_volume",
    "loss_table",
    "nsga2",
    "predicted_front",
    "propose",
    "solve",
    "to_measure",
]
