"""Early exit, alone and in one line: inputs that are easy leave the model before its end, in the file that ships as well."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from equipoise import runtimes
from equipoise.batch import Inputs, mapped, size, take
from equipoise.compress.exits import Exit, fitted, sure
from equipoise.compress.fold import fold
from equipoise.errors import must_be
from equipoise.records import Reading, measured
from equipoise.runtimes import Program, Session
from equipoise.runtimes.branch import branched
from equipoise.runtimes.export import Exporter
from equipoise.runtimes.onnxruntime import FILE
from equipoise.stats import Interval, median, quantile, repeat_interval
from equipoise.units import is_real
from equipoise.verbs.given import beside, inputs_of, one_output, prepared
from equipoise.workloads import Split, predict

LOADS, VISITS = 5, 5
"""Times that each program is loaded, and that each input is answered in each load; the quicker of these count."""
MOST = 256
"""Inputs that are timed."""
QUICK = 0.25
BATCH = 64
Answer = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Pace:
    """Latency over real inputs, one at a time, of a program that takes longer for some than for others.

    Attributes:
        mean: Seconds, over inputs; its interval is over loads.
        p99: Seconds, of the inputs.
    """

    mean: Reading
    p99: Reading


@dataclass(frozen=True)
class Early:
    """A model with an exit; call it like the model it came from. Each sample takes its own way.

    Attributes:
        model: The scores of the whole model and of the exit side by side (N, 2 C), in torch.
        program: The file for ONNX Runtime; of several samples at once all must be sure, or none leaves.
        threshold: Largest class probability of the exit, from which it answers.
        leaves: Share of the samples of `dev` that leave.
        drop: What that loses of their accuracy, in points.
        notes: What to know of it.
    """

    model: Exit
    program: Program
    threshold: float
    leaves: float
    drop: float
    notes: tuple[str, ...]
    _whole: Program = field(repr=False)

    @cached_property
    def _session(self) -> Session:
        return runtimes.get("onnxruntime").load(self.program)

    def __call__(self, inputs: Inputs) -> Tensor:
        """Return the class scores (N, C) of inputs (N, ...), run one at a time as they would be served."""
        given = mapped(inputs_of("inputs", inputs), lambda value: value.contiguous().numpy())
        found = [self._session.run(take(given, slice(one, one + 1))) for one in range(size(given))]
        return torch.from_numpy(np.concatenate(found))

    def save(self, folder: str | Path) -> Path:
        """Write the program's file into `folder`, which is made when absent."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        self.program.write(path)
        return path

    def pace(self, inputs: Inputs, *, clock: Callable[[], float] = time.perf_counter) -> tuple[Pace, Pace, Interval]:
        """Return the latency of the whole model and with the exit, one thread, and how many times faster the mean is.

        Args:
            inputs: (N, ...) as they come in use: which of them leave decides. At most 256 are timed.
            clock: Seconds; `time.thread_time`, of the CPU alone, where others load the machine.
        """
        given = mapped(inputs_of("inputs", inputs), lambda value: value.contiguous().numpy())
        rows = [take(given, slice(one, one + 1)) for one in range(min(MOST, size(given)))]

        def load(program: Program) -> Callable[[], Answer]:
            def loaded() -> Answer:
                session = runtimes.get("onnxruntime").load(program)
                return lambda row: session.run(rows[row])

            return loaded

        return paced(load(self._whole), load(self.program), len(rows), clock=clock)


def early_exit(model: nn.Module, inputs: Inputs, *, dev: tuple[Inputs, Tensor], after: str, drop: float = 0.5) -> Early:
    """Return `model` with an exit after one of its parts: samples of which that is sure are answered there.

    The exit is linear on what the part gives, solved by least squares for the answers of the whole model: no training, and no
    labels but those of `dev`, by which it is decided how sure is sure enough.

    Args:
        model: With class scores (N, C) out; not changed.
        inputs: Unlabelled (N, ...), 500 to 1,000 drawn at random: one tensor, or several by name.
        dev: Other inputs, and their class indices (N,), several hundred; of few the drop is known to a point or more.
        after: Name of a block, past which the samples that leave do not go.
        drop: Points of accuracy on `dev` that may be lost at most.
    Raises:
        InputError: An unknown part, no class scores, classes that are none, a drop below zero, a model that cannot be exported.
    Example:
        >>> early = early_exit(net, inputs, dev=(x, y), after="layer3.0", drop=0.5)   # doctest: +SKIP
        >>> early.leaves, early.pace(x)    # doctest: +SKIP

    Limits:
        Faster in the mean alone: what does not leave takes a little longer than before, see `pace`. ONNX Runtime, batch 1.
        Latency then depends on the input, which no table foretells: so `eq.optimize` does not search it.
    References:
        Teerapittayanon et al. 2016, "BranchyNet: fast inference via early exiting from deep neural networks".
    """
    if not (is_real(drop) and drop >= 0):
        raise must_be("drop", "at least 0 points", drop, "Pass e.g. drop=0.5.")
    if not (isinstance(dev, (tuple, list)) and len(dev) == 2 and isinstance(dev[1], Tensor) and dev[0] is not None):
        raise must_be("dev", "inputs and their class indices, a pair", type(dev).__name__, "Pass dev=(x, y).")
    plain, notes = prepared("model", model)
    data, kept = beside(plain, inputs, dev[0], names=("inputs", "dev[0]"))
    assert kept is not None
    targets = dev[1]
    net = fold(one_output("model", plain, take(data, slice(2))), take(data, slice(2)), data=take(data, slice(64))).eval()
    with torch.no_grad():
        shape = predict(net, Split.of((take(data, slice(2)), torch.zeros(2)), name="inputs"), batch=2)[0].shape
    if len(shape) != 2 or shape[1] < 2:
        raise must_be("model", "one with class scores (N, C), C of at least 2", f"outputs {tuple(shape)}", "See eq.distill.")
    if (
        targets.shape != (size(kept),)
        or targets.is_floating_point()
        or not 0 <= int(targets.min()) <= int(targets.max()) < shape[1]
    ):
        got = f"{tuple(targets.shape)} of {targets.dtype} for {size(kept)} inputs"
        raise must_be("dev[1]", f"class indices (N,) below {shape[1]}", got, "Pass (inputs, labels).")
    made = fitted(net, after, data)
    both, targets = predict(made, Split.of((kept, targets), name="dev"), batch=BATCH)  # in an order of its own
    found = sure(both, targets, drop=drop)
    exporter, example, runtime = Exporter(), take(data, slice(2)), runtimes.get("onnxruntime")
    content = branched(exporter.onnx(made, example, topology="exit"), threshold=found.threshold)
    whole = runtime.compile(exporter.source(net, example, topology="whole"))
    said = f"{found.leaves:.0%} of {len(targets)} samples leave after {after}, at a drop of {found.drop:.2f} points on them"
    if not found.leaves:
        said = f"no sample of {len(targets)} can leave after {after} at a drop of {drop:g} points: take a later part"
    return Early(
        made, Program("onnxruntime", "fp32", {FILE: content}), found.threshold, found.leaves, found.drop, (*notes, said), whole
    )


def paced(
    whole: Callable[[], Answer], early: Callable[[], Answer], count: int, *, clock: Callable[[], float] = time.perf_counter
) -> tuple[Pace, Pace, Interval]:
    """Return the pace of two programs over `count` inputs, and how many times faster the second's mean is.

    An input counts by the lower quartile of its visits, so that what disturbs the machine is no property of the input; a load
    is one sample of a program's speed, as everywhere.
    """
    order, contenders = random.Random(0), {"whole": whole, "early": early}
    times: dict[str, list[list[float]]] = {name: [] for name in contenders}
    for _ in range(LOADS):
        answers = {name: load() for name, load in contenders.items()}
        visits: Mapping[str, list[list[float]]] = {name: [[] for _ in range(count)] for name in contenders}
        for visit in range(VISITS + 1):
            for name in order.sample(list(answers), len(answers)):
                for row in range(count):
                    began = clock()
                    answers[name](row)
                    took = clock() - began
                    if visit:  # the first warms up
                        visits[name][row].append(took)
        for name, rows in visits.items():
            times[name].append([quantile(row, QUICK) for row in rows])
    means = {name: [sum(rows) / count for rows in loads] for name, loads in times.items()}
    paces = [
        Pace(
            repeat_interval(means[name]).reading("s", note=f"{count} inputs, {LOADS} loads"),
            measured(quantile([median(each) for each in zip(*times[name], strict=True)], 0.99), "s", n=count),
        )
        for name in contenders
    ]
    return paces[0], paces[1], repeat_interval([a / b for a, b in zip(means["whole"], means["early"], strict=True)])
