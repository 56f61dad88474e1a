"""A model between a device and a server: where to cut it, answered by measurement.

References:
    Kang et al. 2017, "Neurosurgeon: collaborative intelligence between the cloud and mobile edge" (ASPLOS).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.axes import AXES
from equipoise.batch import mapped, parts
from equipoise.budget import parse_budget
from equipoise.errors import must_be
from equipoise.halves.pair import HERE, Bundle, first, held, load
from equipoise.halves.wire import Link, connect
from equipoise.measure import energy, machine
from equipoise.progress import of_words
from equipoise.records import Reading, as_data, estimated, measured, unavailable
from equipoise.runtimes.base import Target, check_threads, check_usable
from equipoise.stats import Interval, verdict
from equipoise.units import duration, show

if TYPE_CHECKING:
    from equipoise.halves.places import Trial
    from equipoise.measure.race import Race
    from equipoise.workloads import Workload

THERE = "there"
"""What the cut that sends the inputs is called: all runs on the server."""
BUDGET = "drop<=0.5"
FINALISTS, WORTH = 3, 1.25
"""Cuts inside the model that are run end to end: those predicted best, unless they take so many times the better end."""
FAR, SLOW_S = 4.0, 0.5
"""All on the server is not run end to end where it should take so many times the best, and so long, as over a slow link."""
CALIBRATION, VALIDATION, PROBE = 256, 2000, 8
Step = Callable[[str], None]


@dataclass(frozen=True)
class Sharing:
    """One way to share the work.

    Attributes:
        number: Of the cut in the model, 0 for the inputs; None where the whole model stays on the device.
        after: The operator that it is cut after, by the name of its layer; ``here`` or ``there`` at the ends.
        levels: In which it passes; 0 for numbers as they are.
        sent: Bytes of a request: median, least and most.
        drop: Points on validation.
        tolerance: Largest difference of an answer from the whole model's, as a fraction of the largest.
        device_s, server_s: Seconds of either half, packing included.
    """

    number: int | None
    after: str
    levels: int
    sent: Reading
    drop: Reading
    tolerance: float
    device_s: Reading
    server_s: Reading


@dataclass(frozen=True)
class Ride:
    """The model over one link.

    Attributes:
        link: The uplink and the time there and back.
        predicted: Name of a split -> seconds, the sum of its measured parts and what the link takes for its bytes.
        latency: Name -> seconds end to end, of those that were run; an estimate of all on the server where that was not.
        over_here, over_there: Name -> how many times faster end to end than all on the device, and than all on the server,
            which is empty where that was not run.
        pick: The name of the split to use: the quickest end to end, where it is not told from the better end that end.
        late: Seconds by which a request of the pick's size and no work comes later than the link says; unavailable where
            nothing was worth sending.
        stopped: Why the race ended.
    """

    link: Link
    predicted: Mapping[str, float]
    latency: Mapping[str, Reading]
    over_here: Mapping[str, Interval]
    over_there: Mapping[str, Interval]
    pick: str
    late: Reading
    stopped: str


@dataclass(frozen=True)
class Splits:
    """What `split` found.

    Attributes:
        name: Of the workload.
        device, server: Targets.
        quality: Of the whole model on the device, in points of `metric` on validation.
        cuts: Name -> split; ``here`` first, then ``there``.
        rides: One for each uplink.
        energy: Joules of the device's part of a request of the first pick; the radio is not in it.
        apart: Name -> how far the answers of two processes were from the whole model's, for each pick that is cut.
        machine: `measure.machine.describe`.
        everything: All cuts that were tried, as they would ship.
    """

    name: str
    device: Target
    server: Target
    metric: str
    quality: Reading
    cuts: Mapping[str, Sharing]
    rides: tuple[Ride, ...]
    energy: Reading
    apart: Mapping[str, float]
    machine: Mapping[str, Any] = field(repr=False)
    everything: Bundle = field(repr=False)

    def __repr__(self) -> str:
        return f"Splits({self.name}: {'; '.join(map(self.sentence, self.rides))})"

    def sentence(self, ride: Ride) -> str:
        """Return what to do on a link, in words."""
        found = self.cuts[ride.pick]
        where = {HERE: "all on the device", THERE: "all on the server"}.get(ride.pick, f"cut after {found.after}")
        told = f"{ride.link}: {where}, {ride.latency[ride.pick]}"
        if ride.pick in (HERE, THERE):
            return told
        if ride.over_there:
            there = _times(ride.over_there[ride.pick])
        else:
            there = f"some {ride.latency[THERE].get() / ride.latency[ride.pick].get():.0f}, estimated,"
        return f"{told}, {_times(ride.over_here[ride.pick])} times as fast as here and {there} as there, {found.sent} sent"

    def save(self, folder: str | Path) -> Path:
        """Write what both machines need into `folder`: the whole model, the halves of each pick, and what was found.

        Raises:
            InputError: It holds something else.
        """
        return replace(_only(self.everything, self._picks), recorded=self.data()).write(Path(folder))

    @property
    def _picks(self) -> list[int]:
        return _numbers(self.cuts, self.rides)

    def data(self) -> dict[str, Any]:
        """Return all of it but the halves as plain JSON data."""
        told = {
            each.name: as_data(getattr(self, each.name))
            for each in fields(self)
            if each.name not in ("everything", "device", "server")
        }
        return {**told, "device": str(self.device), "server": str(self.server)}


def split(
    model: Workload | str,
    *,
    device: Target | str = "onnxruntime:cpu?threads=1",
    server: Target | str = "onnxruntime:cpu?threads=2",
    uplink: str | Sequence[str],
    rtt: str = "20ms",
    budget: str = BUDGET,
    time: str | float = "30s",
    seed: int = 0,
    on_step: Step | None = None,
) -> Splits:
    """Find where to cut a model between a device and a server, for each uplink, and measure it as two processes.

    All on the device and all on the server compete. What passes is rounded to the fewest levels that keep the budget, the
    inputs too, and coded; every half is timed alone, and the best sums are run end to end, over a loopback link that is shaped.

    Args:
        model: A workload, or what names one.
        device, server: Where the halves run; runtimes that read ONNX, of one batch.
        uplink: One or several, such as ``10Mbit/s``.
        rtt: Time there and back of a bit. Downwards nothing else counts: an answer is some bytes.
        budget: ``drop<=POINTS`` on validation.
        time: Wall time of each race, a quantity or seconds: one of the halves, and one for each uplink. Slow links take longer.
        seed: Of order and layout of the races.
        on_step: Called with a few words before each long step; None shows them in a notebook or an interactive session.
    Raises:
        InputError: A target that is unknown or not here, a rate or time that is none, another bound than of the drop, or a
            model that cannot be cut: of several outputs, or whose metric asks it questions of its own.
        MissingExtraError: A package of a target's runtime is not installed.
        EquipoiseError: Two processes answer otherwise than the whole model by more than the tolerance.
    Example:
        >>> found = split("digits", uplink="1Mbit/s", rtt="1ms")    # doctest: +SKIP
        >>> found.rides[0].pick, found.save("out/split")            # doctest: +SKIP

    Limits:
        Both halves run on this machine and its cores: what a slower device or a faster server takes is to be measured there.
        What TCP and a radio add is not in it.
    """
    targets = _target("device", device), _target("server", server)
    if targets[0].batch != targets[1].batch:
        raise must_be("server", f"of the device's batch, {targets[0].batch}", str(server), "Write the same ?batch= for both.")
    links = [Link.parse(rate.strip(), rtt) for rate in (uplink.split(",") if isinstance(uplink, str) else uplink)]
    if not links or len(set(links)) < len(links):
        raise must_be("uplink", "one or more different rates", uplink, "Write for example 1Mbit/s,10Mbit/s.")
    bound = parse_budget(budget, axes={"drop": AXES["drop"]}).bound("drop")
    if bound is None:
        raise must_be("budget", "drop<=POINTS", budget, f"Write for example {BUDGET}.")
    seconds = duration(time)

    tell = on_step or of_words()
    if isinstance(model, str):
        tell(f"loading {model}")
    from equipoise.workloads import as_workload

    work = as_workload(model)
    bundle, trials, quality = tried(work, *targets, bound, tell)
    tell("timing the halves")
    from equipoise.halves.timing import race_parts

    raced = race_parts(bundle, seconds=seconds, seed=seed)
    cuts = _cuts(trials, raced)
    rides = [_ride(bundle, cuts, link, seconds, seed, tell) for link in links]
    kept = _only(bundle, _numbers(cuts, rides))
    tell("verifying the halves together")
    apart = {str(number) if number else THERE: off for number, off in _verified(kept).items()}
    joules = _energy(kept, cuts[rides[0].pick].number)
    return Splits(
        work.name, *targets, work.metric.name, quality, cuts, tuple(rides), joules, apart, machine.describe(), bundle
    )  # fmt: skip


def _numbers(cuts: Mapping[str, Sharing], rides: Sequence[Ride]) -> list[int]:
    """The cuts that were picked, by their numbers."""
    numbers = [cuts[ride.pick].number for ride in rides]
    return list(dict.fromkeys(number for number in numbers if number is not None))


def _only(bundle: Bundle, numbers: Sequence[int]) -> Bundle:
    return replace(bundle, pairs={number: bundle.pairs[number] for number in numbers})


def _target(name: str, target: Target | str) -> Target:
    found = Target.parse(target) if isinstance(target, str) else target
    if found.runtime not in ("onnxruntime", "openvino"):
        raise must_be(name, "of a runtime that reads ONNX", str(found), "Write for example onnxruntime:cpu?threads=1.")
    check_threads(found.threads)
    check_usable(found, name=name)
    return found


def tried(work: Workload, device: Target, server: Target, bound: float, tell: Step) -> tuple[Bundle, list[Trial], Reading]:
    """Return the halves of each cut that is worth trying, the whole model's program beside them, and its quality.

    Args:
        bound: Points that may be lost.
    """
    from equipoise.compress.fold import folded
    from equipoise.halves.places import Judge, arrays, compiled, worth
    from equipoise.halves.timing import REQUESTS
    from equipoise.runtimes.export import Exporter
    from equipoise.workloads.running import one_thread

    if work.metric.ask is not None:
        raise must_be("model", "scored by its outputs", f"the metric {work.metric.name}", "What writes is not split.")
    tell("exporting")
    data = work.calibration.take(CALIBRATION).tensors()[0]
    with one_thread():
        plain = folded(work.model, work.example, data=data).model
        content = Exporter().onnx(plain, work.example, topology="whole")
    inputs = arrays(data)
    tell("looking where to cut")
    places = worth(content, inputs, device.batch)
    whole = compiled(content, device)
    judge = Judge(content, whole, device, server, inputs, work.validation.take(VALIDATION), work.metric, bound)
    trials = []
    for place in places:
        tell(f"rounding what passes at cut {place.number}")
        trials.append(judge.best(place))
    batch = device.batch
    probe = arrays(work.validation.take(-(-max(PROBE, REQUESTS * batch) // batch) * batch).tensors()[0])
    probe = mapped(probe, lambda value: value[: max(1, len(value) // batch) * batch])  # whole requests
    pairs = {trial.pair.number: trial.pair for trial in trials}
    return Bundle(work.name, device, server, whole, pairs, probe, judge.answers(probe)), trials, judge.quality()


def _cuts(trials: Sequence[Trial], raced: Race) -> dict[str, Sharing]:
    """The splits by name, with the times of their halves."""
    none, zero = measured(0.0, "s", note="nothing runs there"), measured(0.0, "points", note="the model itself")
    found = {HERE: Sharing(None, HERE, 0, measured(0.0, "B"), zero, 0.0, raced.latency(HERE), none)}
    for trial in trials:
        number = trial.pair.number
        found[str(number) if number else THERE] = Sharing(
            number, trial.place.cut.after if number else THERE, trial.levels, trial.sent, trial.drop, trial.pair.tolerance,
            raced.latency(f"{number} device"), raced.latency(f"{number} server"),
        )  # fmt: skip
    return found


def _ride(bundle: Bundle, cuts: Mapping[str, Sharing], link: Link, seconds: float, seed: int, tell: Step) -> Ride:
    """Run the ends and the cuts that are predicted best over a link."""
    from equipoise.halves.timing import ECHO, race_link

    predicted = {
        name: found.device_s.get() + found.server_s.get() + (0.0 if found.number is None else link.seconds(found.sent.get()))
        for name, found in cuts.items()
    }
    best = min(predicted[HERE], predicted[THERE])
    inner = sorted((name for name in cuts if name not in (HERE, THERE)), key=predicted.__getitem__)
    far = predicted[THERE] > max(SLOW_S, FAR * min(predicted.values()))
    names = [*([] if far else [THERE]), *(name for name in inner[:FINALISTS] if predicted[name] <= WORTH * best)]
    guess = estimated(predicted[THERE], "s", note="its parts and the link's time for its bytes; not run")
    if not names:  # nothing is worth sending
        latency = {HERE: cuts[HERE].device_s, THERE: guess}
        return Ride(link, predicted, latency, {}, {}, HERE, unavailable("s", "nothing was sent over it"), "nothing to race")
    tell(f"end to end over {link}")
    echo = int(cuts[min(names, key=predicted.__getitem__)].sent.get())
    raced = race_link(bundle, [cuts[name].number or 0 for name in names], link, echo=echo, seconds=seconds, seed=seed)
    keys = {name: str(cuts[name].number or 0) for name in names} | {HERE: HERE}
    latency = {name: raced.latency(key) for name, key in keys.items()}
    ends = [end for end in (HERE, THERE) if end in keys]
    over = {end: {name: raced.speedup(keys[end], key) for name, key in keys.items() if name != end} for end in ends}
    pick = picked({name: found.get() for name, found in latency.items()}, over)
    if far:
        latency[THERE] = guess
    late = raced.latency(ECHO)
    off = measured(late.get() - link.seconds(echo), "s", n=late.n, note=f"of {show(echo, 'B')} and no work")
    return Ride(link, predicted, latency, over[HERE], over.get(THERE, {}), pick, off, raced.stopped)


def picked(latency: Mapping[str, float], over: Mapping[str, Mapping[str, Interval]]) -> str:
    """Return the split to use: the quickest, or the better end where that is not told from it.

    Args:
        latency: Name -> seconds of what was run, the ends that were among them.
        over: Of these ends -> name -> how many times faster than that end.
    """
    better = min(over, key=latency.__getitem__)
    quickest = min(latency, key=latency.__getitem__)
    return quickest if quickest == better or verdict(over[better][quickest]) == "faster" else better


def _verified(bundle: Bundle) -> dict[int, float]:
    """How far the answers of two processes are from the whole model's, for each cut."""
    from equipoise.halves.near import Near, server

    if not bundle.pairs:
        return {}
    bundle.check()
    found, batch = {}, bundle.device.batch
    with tempfile.TemporaryDirectory(prefix="equipoise-split-") as folder, server(bundle.write(Path(folder))) as address:
        bundle = Bundle.read(Path(folder))
        with connect(address) as connection:
            requests = list(parts(bundle.probe, batch))
            for number, pair in bundle.pairs.items():
                near = Near(bundle, number, connection, batch=batch)
                answers = np.concatenate([near(request) for request in requests])
                found[number] = held(pair, answers, bundle.answers)
    return found


def _energy(bundle: Bundle, number: int | None) -> Reading:
    """The joules of the device's part of a request, where the machine has a meter."""
    access = energy.access(bundle.device.device)
    if access.meter is None:
        return unavailable("J", access.reason)
    batch = bundle.device.batch
    request = mapped(bundle.probe, lambda value: value[:batch])
    if number is None:
        whole = load(bundle.whole, bundle.device, batch)
        return energy.read(lambda: whole.run(request), access)
    pair = bundle.pairs[number]
    begin = first(pair, bundle.device, batch)
    return energy.read(lambda: pair.begin(begin, request), access)


def _times(ratio: Interval) -> str:
    return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
