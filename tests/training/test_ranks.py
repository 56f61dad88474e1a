"""Two ranks, however they share the work, make the curve and the weights of one process."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import rank_program
import torch
from rank_program import CASES, MATRIX, PLANTED, RELAY, VARIANTS, Case, go, net, save

from equipoise.training.distribution import OneProcess
from equipoise.training.distribution.launch import launch

RELATIVE = 1e-5
QUICK = ("ddp: averaged", "fsdp: averaged", "pipeline: averaged", *RELAY, *PLANTED)
Found = dict[str, Any]


def alone(case: Case, folder: Path) -> Found:
    """Return what a case gives in this process."""
    save(go(case, folder), folder / "alone.pt")
    return read(folder, "alone")


def read(folder: Path, name: str) -> Found:
    found: Found = torch.load(folder / f"{name}.pt")
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
    """One process's run of a variant, made once."""
    folder = tmp_path_factory.mktemp("one")

    @cache
    def made(variant: str, batch_norm: bool = False) -> Found:
        how = dict(VARIANTS[variant])
        if batch_norm:
            how["net"] = lambda: net(batch_norm=True)
        return alone(Case(OneProcess, **how), folder)

    return made


def ranks(folder: Path, names: list[str]) -> Path:
    """Run cases on two ranks of this machine, after the first leg of the relay in this process."""
    with pytest.raises(InterruptedError):
        go(Case(OneProcess, **VARIANTS["averaged"], path="relay", stop_after=3), folder)
    assert launch([sys.executable, rank_program.__file__, str(folder), *names], 2) == 0
    return folder


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a few cases."""
    return ranks(tmp_path_factory.mktemp("quick"), list(QUICK))


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of all cases."""
    return ranks(tmp_path_factory.mktemp("every"), list(CASES))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp", "pipeline"])
def test_curve_and_weights_are_those_of_one_process(quick: Path, one_process: Any, kind: str) -> None:
    assert difference(read(quick, f"{kind}: averaged"), one_process("averaged")) < RELATIVE


@pytest.mark.slow
@pytest.mark.parametrize("planted", PLANTED)
def test_a_wrong_average_would_show(quick: Path, one_process: Any, planted: str) -> None:
    assert difference(read(quick, planted), one_process("plain")) > 10 * RELATIVE


@pytest.mark.slow
def test_a_run_goes_on_in_another_world(quick: Path, one_process: Any) -> None:
    """One process, then two that replicate, shard and pipeline, then one: each goes on from the file of the one before."""
    finished = alone(Case(OneProcess, **VARIANTS["averaged"], path="relay"), quick)
    assert difference(finished, one_process("averaged")) < RELATIVE


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MATRIX if name not in QUICK])
def test_every_kind_in_every_variant(every: Path, one_process: Any, name: str) -> None:
    assert difference(read(every, name), one_process(name.split(": ")[1])) < RELATIVE


@pytest.mark.slow
def test_batch_norm_sees_micro_batches_in_a_pipeline_and_own_rows_elsewhere(every: Path, one_process: Any) -> None:
    assert difference(read(every, "norm in micro-batches"), one_process("checkpointed", batch_norm=True)) < RELATIVE
    assert difference(read(every, "norm in shares"), one_process("plain", batch_norm=True)) > RELATIVE


@pytest.mark.slow
def test_dropout_draws_the_same_again_after_a_resume(every: Path, one_process: Any) -> None:
    whole = read(every, "dropout")
    assert difference(read(every, "dropout resumed"), whole) < RELATIVE
    assert difference(whole, one_process("plain")) > RELATIVE
