"""The summary of a fit: plain data, complete, and true to the fit."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
from truth import SMALL, isoflop_runs

from equipoise.scaling import describe, fit


def test_the_summary_is_json_and_agrees_with_the_fit() -> None:
    runs = isoflop_runs(SMALL, noise=0.003, rng=np.random.default_rng(0))
    raw = dataclasses.replace(runs[0], annealed=False)
    fitted = fit([*runs, raw], seed=0)
    data = describe(fitted)
    json.dumps(data, allow_nan=False)
    assert len(data["runs"]) == 12
    assert data["runs"][3]["predicted"] == pytest.approx(float(fitted.law.loss(runs[3].params, runs[3].samples)))
    assert (
        data["law"]["constants"]["E"]["low"] <= data["law"]["constants"]["E"]["value"] <= data["law"]["constants"]["E"]["high"]
    )
    assert len(data["isoflop"]) == 3
    for level in data["isoflop"]:
        assert all(p["low"] <= p["loss"] <= p["high"] for p in level["curve"])
        least = min(level["curve"], key=lambda p: p["loss"])
        assert least["size"] == pytest.approx(float(fitted.optimum(level["flops"])["size"].value), rel=0.2)
    front = data["frontier"]
    assert all(a["loss_value"] > b["loss_value"] for a, b in itertools.pairwise(front))
    assert front[-1]["flops"] == pytest.approx(16 * max(r.flops for r in runs))
    assert any("had not come down" in note for note in data["notes"])
    assert any("repetition" in note for note in data["notes"])
    assert data["cross_check"]["agree"] is True
