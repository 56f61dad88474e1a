"""Where a road's first plans come from, if not from the guided search: a sampler of Optuna's, another study."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planted_road import ONE, asked, evaluations, facts, study_of, walked


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random"])
def test_a_sampler_of_optunas_proposes_in_place_of_the_guided_search(name: str) -> None:
    pytest.importorskip("optuna")
    what = replace(asked(limit_s=60.0), sampler=name)
    formula = walked(what)
    study = study_of(formula.record)
    assert study.searched
    assert len({e.plan for e in study.evaluations}) == len({e.key for e in study.evaluations if e.fidelity != "recovered"})
    again = walked(what)
    assert [row[:2] for row in again.record.rows] == [row[:2] for row in formula.record.rows]
    guided = study_of(walked(asked(limit_s=60.0)).record)
    assert {e.plan for e in guided.evaluations} != {e.plan for e in study.evaluations}


def test_what_another_study_found_is_tried_first_as_near_as_this_space_has_it() -> None:
    plain = facts(ONE).space.untouched.choices
    found = {**plain, "width.a": 40, "bits.a": 8, "gone.layer": "drop"}
    record = walked(replace(asked(limit_s=90.0), forked=(found, plain))).record
    tried = [e.plan for e in evaluations(record)]
    wanted = facts(ONE).space.nearest(found)
    assert wanted["width.a"] in (32, 48)
    assert wanted["bits.a"] == 8
    searched = next(i for i, e in enumerate(evaluations(record)) if e.predicted)
    assert tried.index(wanted) < searched
    assert len(tried) > searched
