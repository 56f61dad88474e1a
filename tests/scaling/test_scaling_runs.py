"""Runs from files: what is read, and that every mistake names its line and column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from equipoise.errors import InputError
from equipoise.scaling import Run, read_csv
from equipoise.scaling.runs import columns


def write(folder: Path, text: str) -> Path:
    path = folder / "runs.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_plain_table(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "Params,tokens,Loss,unique,flops_per_sample,quality,seed,annealed,label,scale.width,other\n"
        "1e6,2e7,2.5,1e7,3e6,71.5,3,0,a,32,x\n"
        "2e6,2e7,2.4,,,,,,,64,\n",
    )
    first, second = read_csv(path)
    assert first == Run(
        params=1e6,
        samples=2e7,
        loss=2.5,
        unique=1e7,
        flops_per_sample=3e6,
        quality=71.5,
        seed=3,
        annealed=False,
        label="a",
        scale={"width": 32.0},
    )
    assert second.flops_per_sample == 4e6  # 2 per parameter where nothing is said
    assert (second.unique, second.quality, second.annealed, second.scale) == (None, None, True, {"width": 64.0})
    assert first.flops == 3 * 3e6 * 2e7


def test_whole_compute_gives_the_work_of_a_sample(tmp_path: Path) -> None:
    (run,) = read_csv(write(tmp_path, "N,D,compute,loss\n1e6,1e7,6e13,2\n"))
    assert run.flops_per_sample == pytest.approx(2e6)


@pytest.mark.parametrize(
    ("text", "needles"),
    [
        ("params,loss\n1,2\n", ["samples missing"]),
        ("", ["params, samples, loss missing among none"]),
        ("params,samples,loss\n", ["at least one run"]),
        ("params,samples,loss\n1e6,2e7,\n", ["line 2", "column loss", "filled in"]),
        ("params,samples,loss\n1e6,2e7,abc\n1e6,x,2\n", ["line 2", "column loss", "'abc'", "line 3", "column samples"]),
        ("params,samples,loss\n1e6,2e7,nan\n", ["line 2", "column loss", "finite"]),
        ("params,samples,loss\n1e6,2e7,-1\n", ["line 2", "run.loss", "above 0"]),
        ("params,samples,loss,unique\n1e6,2e7,2,3e7\n", ["run.unique", "at most samples"]),
        ("params,samples,loss,annealed\n1e6,2e7,2,maybe\n", ["column annealed", "1 or 0"]),
        ("params,samples,loss,seed\n1e6,2e7,2,1.5\n", ["column seed", "whole"]),
        ("params,samples,loss\n1e6,2e7,2,9\n", ["line 2", "3 fields are expected"]),
    ],
)
def test_mistakes_name_row_and_column(tmp_path: Path, text: str, needles: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        read_csv(write(tmp_path, text))
    for needle in needles:
        assert needle in str(caught.value)


def test_many_mistakes_are_cut_short(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="and 5 more lines"):
        read_csv(write(tmp_path, "params,samples,loss\n" + "1,2,x\n" * 15))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="FileNotFoundError"):
        read_csv(tmp_path / "none.csv")


def test_columns_take_all_samples_as_distinct_by_default() -> None:
    at = columns(
        [Run(params=1, samples=10, flops_per_sample=2, loss=1), Run(params=1, samples=10, flops_per_sample=2, loss=1, unique=5)]
    )
    np.testing.assert_array_equal(at.unique, [10, 5])
    np.testing.assert_array_equal(at.flops, [60, 60])
