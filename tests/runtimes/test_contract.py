from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from equipoise.batch import Inputs
from equipoise.compress.rounding import on_grid
from equipoise.records import Choice
from equipoise.runtimes.base import RUNTIMES, Program, Session, Source, get
from equipoise.runtimes.export import Exporter
from equipoise.runtimes.onnxruntime import OnnxRuntime
from equipoise.testing.runtimes import check_runtime


@pytest.mark.parametrize("name", sorted(RUNTIMES))
def test_a_runtime_keeps_the_contract(name: str, probe: Source) -> None:
    runtime = get(name)
    if runtime.unavailable():
        pytest.skip(runtime.unavailable())
    check_runtime(runtime, probe)


class _Shifted(OnnxRuntime):
    """Wrong on purpose: every output is a little off."""

    def load(self, program: Program, *, threads: int = 1, batch: int | None = None) -> Session:
        session = super().load(program, threads=threads, batch=batch)

        @dataclasses.dataclass
        class Off:
            def run(self, inputs: NDArray[Any]) -> NDArray[Any]:
                return np.asarray(session.run(inputs) * 1.001)

        return Off()


class _Pretender(OnnxRuntime):
    """Wrong on purpose: says int8 and computes in float."""

    def compile(
        self,
        source: Source,
        *,
        calibration: NDArray[Any] | None = None,
        float_layers: frozenset[str] | None = None,
        schemes: Mapping[str, Choice] | None = None,
    ) -> Program:
        program = super().compile(source, schemes=schemes)
        if float_layers is None:
            return program
        return dataclasses.replace(program, precision="mixed" if float_layers else "int8")


class _Spendthrift(OnnxRuntime):
    """Wrong on purpose: takes every scheme and holds floats."""

    def compile(self, source: Source, *, schemes: Mapping[str, Choice] | None = None, **given: Any) -> Program:
        super().compile(source, schemes=schemes)
        return super().compile(source, **given)


class _Squeezer(OnnxRuntime):
    """Wrong on purpose: holds every scheme in 4 bits of its own choice."""

    def compile(self, source: Source, *, schemes: Mapping[str, Choice] | None = None, **given: Any) -> Program:
        program = super().compile(source, schemes=schemes, **given)
        if not schemes:
            return program
        model = copy.deepcopy(source.model)
        assert model is not None
        coarse = on_grid(_shifted(model), dict.fromkeys(schemes, "4-weights"), exact=False)
        return super().compile(Exporter().source(coarse, source.example, topology=""), schemes=schemes, **given)


def _shifted(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1.1).add_(0.01)
    return model


class _Guesser(OnnxRuntime):
    """Wrong on purpose: makes up an input that it was not given."""

    def load(self, program: Program, *, threads: int = 1, batch: int | None = None) -> Session:
        session = super().load(program, threads=threads, batch=batch)

        @dataclasses.dataclass
        class Guess:
            def run(self, inputs: Inputs) -> NDArray[Any]:
                if isinstance(inputs, Mapping) and "weights" not in inputs:
                    inputs = {**inputs, "weights": np.ones(inputs["tokens"].shape, np.float32)}
                return np.asarray(session.run(inputs))

        return Guess()


LIARS = [
    (_Shifted, "computes what torch computes"),
    (_Pretender, "int8 is close"),
    (_Spendthrift, "is smaller than floats"),
    (_Squeezer, "without loss"),
    (_Guesser, "an input that is missing"),
]


@pytest.mark.parametrize(("wrong", "message"), LIARS)
def test_the_contract_refuses_a_wrong_runtime(wrong: type[OnnxRuntime], message: str, probe: Source) -> None:
    with pytest.raises(AssertionError, match=message):
        check_runtime(wrong(), probe)
