"""The test figures in one sentence, and where a study, its report and its demo find them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from equipoise.pages.view import lead
from equipoise.records import Reading, as_data, measured
from equipoise.study.tested import exports_of, headline, verified

ACCURACY = {"name": "accuracy", "unit": "points"}


@pytest.mark.parametrize(
    ("speed", "said"),
    [
        (measured(2.1, "1", low=2.0, high=2.2), "2.10× faster [2.00, 2.20]"),
        (measured(0.5, "1", low=0.4, high=0.8), "2.00× slower [1.25, 2.50]"),
        (measured(1.02, "1", low=0.97, high=1.1), "1.02× as fast [0.97, 1.10], which cannot be told from 1"),
        (measured(1.3, "1"), "1.30× as fast (no interval)"),
    ],
)
def test_the_headline_says_what_the_intervals_allow(speed: Reading, said: str) -> None:
    found = {
        "drop": measured(3.33, "points", low=0.18, high=6.49, n=300),
        "speed_up": speed,
        "times_smaller": measured(5.7, "1"),
    }
    expected = (
        f"on 300 test samples that the search never saw: drop 3.33 [0.18, 6.49] points of accuracy, {said}, 5.70× smaller"
    )
    assert headline(found, ACCURACY) == expected
    assert headline({}, ACCURACY) == ""
    assert headline({"times_smaller": measured(0.5, "1")}, ACCURACY) == "2.00× larger"


def written(folder: Path, name: str, *, digest: str, result: dict[str, Any] | None) -> None:
    artifact = folder / name
    artifact.mkdir(parents=True)
    (artifact / "manifest.json").write_text(json.dumps({"digest": digest}))
    if result is not None:
        (artifact / "verify.json").write_text(json.dumps(result))


def test_a_study_finds_what_was_verified_and_only_that(tmp_path: Path) -> None:
    study = tmp_path / "study"
    study.mkdir()
    assert verified(study) == []
    good = {"headline": "on 3 test samples", "digest": "a", "broken": ["drop on test"], "cannot_tell": [], "test": {}}
    written(tmp_path, "good", digest="a", result=good)
    written(tmp_path, "unverified", digest="b", result=None)
    written(tmp_path, "exported again", digest="new", result={**good, "digest": "c"})  # the result is of an older export
    written(tmp_path, "other", digest="d", result={**good, "digest": "d"})  # the study remembers another digest
    rows = [("good", "a"), ("unverified", "b"), ("exported again", "new"), ("other", "x"), ("gone", "e")]
    kept = [{"path": f"../{name}", "key": f"key of {name}", "digest": digest} for name, digest in rows]
    (study / "exports.json").write_text(json.dumps(kept))
    assert [row["path"] for row in exports_of(study)] == [row["path"] for row in kept]
    assert [(row.key, row.headline, row.broken) for row in verified(study)] == [
        ("key of good", "on 3 test samples", ("drop on test",))
    ]
    for damaged in ("", "{", "[1, 2]", '[{"path": 3}]', "null", "[" * 100_000):
        (study / "exports.json").write_text(damaged)
        assert verified(study) == []


def test_the_report_leads_with_the_test_figures() -> None:
    study = {"sentence": "2× faster, drop -0.25 ± 0.98", "pick": "k", "pick_rule": "budget met"}
    before = lead(study)
    assert before["sentence"].replace("\u00a0", " ") == "2× faster, drop -0.25 ± 0.98"
    assert before["tested"] == before["validation"] == ""
    row = {"key": "k", "headline": "on 300 test samples: drop 3.33", "broken": [], "cannot_tell": ["budget drop"]}
    after = lead({**study, "verified": [{**row, "key": "another"}, row]})
    assert after["sentence"].replace("\u00a0", " ") == "On 300 test samples: drop 3.33"
    assert after["tested"].endswith("no promise is broken; cannot be told: budget drop")
    assert "2× faster" in after["validation"].replace("\u00a0", " ")
    assert lead({**study, "verified": [{**row, "broken": ["size"]}]})["tested"].endswith(
        "broken: size; cannot be told: budget drop"
    )
    assert as_data(row)["key"] == "k"
