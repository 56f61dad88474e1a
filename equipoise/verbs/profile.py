"""What a model costs, here: counts, size, memory, latency, energy and money on every runtime of this machine.

The model is profiled as it is, but in float32, which every runtime takes; targets are timed side by side, so their figures
compare. This module imports no torch until `profile` is called: its `run_program` is also the work of a fresh process whose
memory is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from equipoise.batch import Inputs, call, leaves, mapped, positional, size
from equipoise.errors import EquipoiseError, InputError, must_be
from equipoise.markup import table
from equipoise.measure import energy, machine, money
from equipoise.measure.loads import LatencyProfile, compare_loads, summarize
from equipoise.measure.memory import PeakMemory
from equipoise.progress import of_words
from equipoise.records import Reading, measured, unavailable
from equipoise.road.appetite import program_memory
from equipoise.road.consumption import WINDOW_S
from equipoise.road.racing import Contender
from equipoise.runtimes.base import Program, Session, Source, Target, everywhere, get
from equipoise.units import show

if TYPE_CHECKING:
    from torch import nn

    from equipoise.measure.counts import Counts
    from equipoise.workloads import Workload

ASK_FOR_ESTIMATE = "give watts_per_core (--watts-per-core) for an estimate"

Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Timing:
    """Latency of one target at one batch size, and what a million inferences cost at it.

    Attributes:
        price_per_million: Dollars, on a machine busy without pause with this alone; unavailable without a price.
    """

    batch: int
    latency: LatencyProfile
    price_per_million: Reading


@dataclass(frozen=True, slots=True)
class TargetProfile:
    """Measured costs of the model on one target.

    Attributes:
        target: As `Target` prints it.
        reason: Why there are no figures; empty when there are.
        precision: What the program computes in.
        size_bytes: All files that would ship.
        memory: Peak memory of loading and running it in a fresh process, at batch 1.
        timings: One entry per batch size; empty without figures.
        energy_j: Joules of one inference at batch 1.
        flops_per_joule: 2 × MACs / energy.
    """

    target: str
    reason: str
    precision: str
    size_bytes: Reading
    memory: PeakMemory
    timings: tuple[Timing, ...]
    energy_j: Reading
    flops_per_joule: Reading


@dataclass(frozen=True, slots=True)
class Profile:
    """What a model costs on this machine.

    Attributes:
        name: Of the workload, or the model's class; it says when the model was converted from another precision.
        counts: Params, MACs by layer, activations, and what was counted, ignored and unsupported.
        targets: One entry per target asked for; those that cannot run here say why.
        machine: `measure.machine.describe`.
        seconds: Wall time spent.
    """

    name: str
    counts: Counts
    targets: tuple[TargetProfile, ...]
    machine: Mapping[str, Any]
    seconds: float

    def __repr__(self) -> str:
        counts = f"{show(self.counts.params, '1')} params, {show(self.counts.macs, '1')} MACs"
        timed = [f"{row[0]} {row[2]}" for row in self._rows() if row[1] in ("", "1")]
        return f"Profile({self.name}: {', '.join([counts, *timed])})"

    def _repr_html_(self) -> str:
        rows = [["target", "batch", "p50 [95 %]", "size"], *self._rows()]
        return table(rows, caption=repr(self).partition(": ")[2].partition(", ")[0] + f" in {self.name}")

    def _rows(self) -> list[list[str]]:
        """Target, batch, latency and size of each timing; why there is none."""
        out = []
        for target in self.targets:
            place = target.target.partition("?")[0]
            if target.reason:
                out.append([place, "", f"unavailable ({target.reason})", ""])
            out += [[place, str(t.batch), str(t.latency.p50), str(target.size_bytes)] for t in target.timings]
        return out


def profile(
    model: nn.Module | Workload | str,
    example: Inputs | None = None,
    *,
    targets: Sequence[Target | str] | None = None,
    batch: int = 32,
    price_per_hour: float | None = None,
    watts_per_core: float | tuple[float, float] | None = None,
    seconds: float = 10.0,
    on_step: Step | None = None,
) -> Profile:
    """Measure what `model` costs on each target of this machine.

    Args:
        model: A module, or a workload or the name of one (which brings its own example).
        example: A batch of inputs (N, ...), N >= 1, several of them a mapping by keyword or a tuple by position; needed for a
            module.
        targets: Targets or their text; None takes every runtime, one thread.
        batch: Second batch size timed, beside 1 and those that targets name; 1 for no second one.
        price_per_hour: Dollars an hour of this machine.
        watts_per_core: Watts of a busy core, or (low, high): used, and labelled as an estimate, where no meter can be read.
        seconds: Wall time for all latency measurements together.
        on_step: Called with a few words before each long step; None shows them in a notebook or an interactive session.
    Returns:
        A record; ``records.as_data`` makes it JSON.
    Raises:
        InputError: No example, a batch under 1, or figures of money and watts that are not positive.
    Example:
        >>> import torch
        >>> found = profile(torch.nn.Linear(10, 3), torch.zeros(2, 10), targets=["torch"], seconds=0.2)
        >>> found.counts.params
        33
    """
    from equipoise.measure.counts import count
    from equipoise.runtimes.export import Exporter

    began, on_step = time.perf_counter(), on_step or of_words()
    name, module, inputs = _subject(model, example)
    _check(batch, price_per_hour, watts_per_core, seconds)
    wanted = everywhere() if targets is None else [_target(target) for target in targets]
    on_step("counting")
    counts = count(module, inputs)
    source = Exporter().source(module, inputs, topology="as it is")
    programs: dict[Target, Program] = {}
    reasons: dict[Target, str] = {}
    for target in wanted:
        on_step(f"compiling for {target.runtime}")
        try:
            programs[target] = _compile(target, source)
        except EquipoiseError as error:
            reasons[target] = str(error)
    samples = {size: _rows(inputs, size) for size in dict.fromkeys((1, batch, *(target.batch for target in wanted)))}
    timings = {size: _time(programs, rows, seconds / len(samples), on_step) for size, rows in samples.items()}
    found = []
    for target in wanted:
        if target in reasons:
            found.append(_without(target, reasons[target]))
            continue
        on_step(f"memory and energy on {target.runtime}")
        rows = tuple(_timing(size, timings[size][target], price_per_hour) for size in samples)
        joules = _energy(_call(target, programs[target], samples[1]), watts_per_core, target.device)
        found.append(_with(target, programs[target], rows, joules, counts.macs, samples[1]))
    return Profile(name, counts, tuple(found), machine.describe(), time.perf_counter() - began)


def _subject(model: nn.Module | Workload | str, example: Inputs | None) -> tuple[str, nn.Module, Inputs]:
    """Name, module and example of whatever was handed over."""
    import torch
    from torch import Tensor, nn

    from equipoise.workloads import as_workload
    from equipoise.workloads.outputs import reduced
    from equipoise.workloads.wrapped import bare, copied, hosted, single

    if not isinstance(model, nn.Module):
        model = as_workload(model)
        name, example, model = model.name, model.example if example is None else example, model.model
    else:
        name = type(model).__name__
    example = positional(example) if isinstance(example, tuple) else example
    arrays = leaves(example) if isinstance(example, (Tensor, Mapping)) else ()
    if not arrays or not all(isinstance(value, Tensor) and value.dim() and len(value) for value in arrays):
        got = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise must_be("profile(example)", "a batch of inputs (N, ...)", got, "Pass a tensor such as one batch of your data.")
    plain, said = single(bare(model))
    plain = hosted(plain)
    example = mapped(example, lambda value: (value.float() if value.is_floating_point() else value).cpu())
    with torch.inference_mode():
        answer = call(copied(plain).eval(), example)
    return f"{name} ({said})" if said else name, reduced(plain, answer), example


def _check(
    batch: int, price_per_hour: float | None, watts_per_core: float | tuple[float, float] | None, seconds: float
) -> None:
    """Raise before any work for figures that would only be noticed at the end."""
    if batch < 1:
        raise must_be("profile(batch)", "at least 1", batch, "Use 1 for single samples only.")
    if not seconds > 0:
        raise must_be("profile(seconds)", "positive", seconds, "Use 10.")
    if price_per_hour is not None:
        money.price_per_million(measured(1.0, "s"), price_per_hour)
    if watts_per_core is not None:
        energy.estimate(measured(1.0, "s"), watts_per_core)


def _target(target: Target | str) -> Target:
    return Target.parse(target) if isinstance(target, str) else target


def _compile(target: Target, source: Source) -> Program:
    runtime = get(target.row)
    reason = runtime.unavailable()
    if reason:
        raise InputError(reason)
    return runtime.compile(source)


def _rows(example: Inputs, batch: int) -> Inputs:
    """`batch` samples, repeated from the example as needed, as the runtimes take them."""
    import numpy as np

    rows = np.arange(batch) % size(example)
    return mapped(example, lambda value: np.ascontiguousarray(value.detach().cpu().numpy()[rows]))


def _call(target: Target, program: Program, rows: Inputs) -> Callable[[], object]:
    session: Session = get(target.row).load(program, threads=target.threads, batch=size(rows))
    return lambda: session.run(rows)


def _time(programs: Mapping[Target, Program], rows: Inputs, seconds: float, on_step: Step) -> dict[Target, LatencyProfile]:
    """Time all targets side by side on the same rows."""
    if not programs:
        return {}
    on_step(f"timing at batch {size(rows)}")
    contenders = {
        str(target): Contender(program, replace(target, batch=size(rows))).load(rows) for target, program in programs.items()
    }
    compared = compare_loads(contenders, seconds=seconds)
    return {target: summarize(compared, str(target), batch=size(rows)) for target in programs}


def _timing(batch: int, timed: LatencyProfile, price_per_hour: float | None) -> Timing:
    if price_per_hour is None:
        return Timing(batch, timed, unavailable("$", "no price of the machine was given (--price-per-hour)"))
    return Timing(batch, timed, money.price_per_million(timed.p50, price_per_hour, batch=batch))


def _energy(call: Callable[[], object], watts_per_core: float | tuple[float, float] | None, device: str = "cpu") -> Reading:
    """A counter where there is one, the asked-for estimate where there is none."""
    access = energy.access(device)
    if access.meter is not None:
        return energy.read(call, access, window_s=WINDOW_S)
    if watts_per_core is not None and device == "cpu":
        return energy.estimate(energy.cpu_seconds(call), watts_per_core)
    return unavailable("J", f"{access.reason}; {ASK_FOR_ESTIMATE}")


def _with(
    target: Target, program: Program, timings: tuple[Timing, ...], joules: Reading, macs: int, one: Inputs
) -> TargetProfile:
    return TargetProfile(
        target=str(target),
        reason="",
        precision=program.precision,
        size_bytes=measured(program.size_bytes, "B", note=", ".join(program.files)),
        memory=program_memory(target, program, one),
        timings=timings,
        energy_j=joules,
        flops_per_joule=money.flops_per_joule(macs, joules),
    )


def _without(target: Target, reason: str) -> TargetProfile:
    """The entry of a target that cannot run this model here."""
    no = unavailable("B", reason)
    joules, rate = unavailable("J", reason), unavailable("1", reason)
    return TargetProfile(str(target), reason, "", no, PeakMemory(no, no), (), joules, rate)
