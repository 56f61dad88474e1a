"""Two ranks, however they share the work, make the curve and the weights of one process."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import rank_program
import torch
from rank_program import CASES, RECIPES, TIED, Case, go, net, save

from equipoise.training.distribution import OneProcess
from equipoise.training.distribution.launch import launch

RELATIVE = 1e-5
QUICK = (
    "ddp-averaged", "fsdp-averaged", "pipeline-averaged", "relay-ddp", "relay-fsdp", "relay-pipeline", "alone-plain",
    "unweighted-plain",
)  # fmt: skip
Found = dict[str, Any]


def alone(case: Case, folder: Path) -> Found:
    """Return what a case gives in this process."""
    save(go(case, folder), folder / "alone.pt")
    return read(folder / "alone.pt")


def read(path: Path) -> Found:
    found: Found = torch.load(path)
    return found


def difference(found: Found, expected: Found) -> float:
    """Return the largest relative difference of step losses, looks, and (to their tensor's largest) weights."""
    assert found["log"].shape == expected["log"].shape
    assert found["weights"].keys() == expected["weights"].keys()
    pairs = [(found[key][i], expected[key][i]) for key in ("log", "looks") for i in range(len(expected[key]))]
    pairs += [(found["weights"][name], weight) for name, weight in expected["weights"].items()]
    return max(float((one - other).abs().max() / (1e-12 + other.abs().max())) for one, other in pairs)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One process's run of a recipe, made once."""
    folder = tmp_path_factory.mktemp("one")

    @cache
    def made(recipe: str, **changes: bool) -> Found:
        return alone(Case(OneProcess, RECIPES[recipe], net=lambda: net(**changes)), folder)

    return made


def ranks(folder: Path, names: list[str]) -> None:
    """Run cases on two ranks of this machine, after the first leg of the relay in this process."""
    with pytest.raises(InterruptedError):
        go(Case(OneProcess, RECIPES["averaged"], net=TIED, path="relay", stop_after=3), folder)
    assert launch([sys.executable, rank_program.__file__, str(folder), *names], 2) == 0


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a few cases."""
    folder = tmp_path_factory.mktemp("quick")
    ranks(folder, list(QUICK))
    return folder


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of all cases."""
    folder = tmp_path_factory.mktemp("every")
    ranks(folder, list(CASES))
    return folder


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "pipeline"])
def test_curve_and_weights_are_those_of_one_process(quick: Path, one_process: Any, kind: str) -> None:
    assert difference(read(quick / f"{kind}-averaged.pt"), one_process("averaged")) < RELATIVE


@pytest.mark.parametrize("planted", ["alone", "unweighted"])
def test_a_wrong_average_would_show(quick: Path, one_process: Any, planted: str) -> None:
    assert difference(read(quick / f"{planted}-plain.pt"), one_process("plain")) > 10 * RELATIVE


def test_a_run_goes_on_in_another_world_at_any_step(quick: Path, one_process: Any) -> None:
    """One process, then two that replicate, shard and pipeline, then one: each goes on from the file of the one before."""
    finished = alone(Case(OneProcess, RECIPES["averaged"], net=TIED, path="relay"), quick)
    assert difference(finished, one_process("averaged", tied=True)) < RELATIVE


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name.split("-")[1] in RECIPES and name not in QUICK])
def test_every_kind_with_every_recipe(every: Path, one_process: Any, name: str) -> None:
    assert difference(read(every / f"{name}.pt"), one_process(name.split("-")[1])) < RELATIVE


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fsdp", "pipeline"])
def test_a_weight_used_twice_stays_one_weight(every: Path, one_process: Any, kind: str) -> None:
    assert difference(read(every / f"{kind}-tied.pt"), one_process("clipped", tied=True)) < RELATIVE


@pytest.mark.slow
def test_batch_norm_sees_micro_batches_in_a_pipeline_and_own_rows_elsewhere(every: Path, one_process: Any) -> None:
    assert difference(read(every / "pipeline-batchnorm.pt"), one_process("checkpointed", batch_norm=True)) < RELATIVE
    assert difference(read(every / "fsdp-batchnorm.pt"), one_process("plain", batch_norm=True)) > RELATIVE


@pytest.mark.slow
def test_dropout_draws_the_same_again_after_a_resume(every: Path, one_process: Any) -> None:
    whole, resumed = read(every / "ddp-dropout.pt"), read(every / "resumed-ddp.pt")
    assert difference(resumed, whole) < RELATIVE
    assert difference(whole, one_process("plain")) > RELATIVE
