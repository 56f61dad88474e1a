"""Scaling: from a few small runs to the size worth training. Numbers only; knows no model and no data."""

from equipoise.scaling.curves import Extrapolation, extrapolate, grow, should_stop
from equipoise.scaling.decide import Candidate, Decision, Option, decide, for_compute
from equipoise.scaling.describe import describe
from equipoise.scaling.design import Addition, Available, Design, PlannedRun, affordable, plan, to_add
from equipoise.scaling.diagnosis import Diagnosis, Remedy, diagnose
from equipoise.scaling.efficiency import Efficiency, efficiency, statement, worked_case
from equipoise.scaling.fit import Beliefs, Fit, fit, predict
from equipoise.scaling.holdout import Foretold, hold_out, rules
from equipoise.scaling.isoflop import IsoFlop, isoflop
from equipoise.scaling.laws import CHINCHILLA, EPOCH, PUBLISHED, ErrorLaw, Law, ShapeLaw, cheapest, fit_shape, in_time
from equipoise.scaling.quality import ErrorFit, Link, fit_error, link
from equipoise.scaling.reading import Curves, Evidence
from equipoise.scaling.runs import Run, read_csv

__all__ = [
    "CHINCHILLA",
    "EPOCH",
    "PUBLISHED",
    "Addition",
    "Available",
    "Beliefs",
    "Candidate",
    "Curves",
    "Decision",
    "Design",
    "Diagnosis",
    "Efficiency",
    "ErrorFit",
    "ErrorLaw",
    "Evidence",
    "Extrapolation",
    "Fit",
    "Foretold",
    "IsoFlop",
    "Law",
    "Link",
    "Option",
    "PlannedRun",
    "Remedy",
    "Run",
    "ShapeLaw",
    "affordable",
    "cheapest",
    "decide",
    "describe",
    "diagnose",
    "efficiency",
    "extrapolate",
    "fit",
    "fit_error",
    "fit_shape",
    "for_compute",
    "grow",
    "hold_out",
    "in_time",
    "isoflop",
    "link",
    "plan",
    "predict",
    "read_csv",
    "rules",
    "should_stop",
    "statement",
    "to_add",
    "worked_case",
]
