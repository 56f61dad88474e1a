"""``optimize``: what the user asked becomes the decisions of a road, and an executor that does its jobs."""

from __future__ import annotations

import time as clock
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from equipoise import runtimes
from equipoise.budget import parse_budget
from equipoise.errors import EquipoiseError, InputError, StoreError, must_be, unknown
from equipoise.events import Listener
from equipoise.listeners import Guarded, Stop
from equipoise.measure import machine
from equipoise.meters import Meters
from equipoise.progress import of_events
from equipoise.records import as_data
from equipoise.road.bench import Workbench
from equipoise.road.decisions import Asked, Road
from equipoise.road.here import Here, Maker
from equipoise.road.isolated import isolated
from equipoise.road.jobs import Job, drive
from equipoise.road.pool import Pool
from equipoise.road.trials import Trials
from equipoise.runtimes import Target, parse_targets
from equipoise.runtimes.base import check_threads, check_usable
from equipoise.search.samplers import SAMPLERS
from equipoise.study.place import caution, is_address
from equipoise.study.pruning import check_whole
from equipoise.study.record import Study
from equipoise.study.store import Store
from equipoise.techniques import named
from equipoise.units import check_seed, duration
from equipoise.workloads import Workload, as_workload, check
from equipoise.workloads.spec import located
from equipoise.workloads.students import read_student

FORKED = 16
"""Plans of another study that are tried at most."""


def optimize(
    work: Workload | str,
    *,
    target: str | Sequence[Target] = "onnxruntime:cpu",
    budget: str | None = None,
    time: str | float = "10min",
    store: str | Path,
    seed: int = 0,
    recovery: bool = True,
    student: str = "",
    only: str | Sequence[str] = (),
    sampler: str = "",
    fork: Study | str | Path | None = None,
    price_per_hour: float | None = None,
    grid: float | None = None,
    isolate: bool = False,
    workers: int = 1,
    engine: str = "",
    spec: str = "",
    listen: Listener | Sequence[Listener] | None = None,
    began: float | None = None,
) -> Study:
    """Search every technique of compression and the target together, on measured cost; return the whole study.

    Args:
        work: The model, its data and its metric, or its name as on the command line; never changed.
        target: Where it must run; several, separated by commas, make the target a knob. The first is the reference.
        budget: Bounds in the user's units, ``"latency<=1ms, size<=300KB, drop<=1"``; None asks for the knee.
        time: Wall time for the whole run (a quantity such as ``"20min"``, or seconds), everything counted. Nothing is begun
            that would not end in it, but the model is prepared and the untouched model measured in any case. What earlier,
            killed runs recorded counts; 0 reads the study as it stands.
        store: Folder of the study, or ``postgresql://HOST/DATABASE#NAME`` where other machines are to work for it
            (docs/machines.md). The same call again goes on where the last one stopped.
        seed: Of every random choice; recorded.
        recovery: Whether survivors are distilled from the untouched model (their training time counts).
        student: Family of new models that are to compete with what the model can be cut down to: ``"mobilenet"`` (a few scales
            that are cheaper than the model), ``"cnn:0.25"`` (that factor of its default size) or ``"cnn:width=16,depth=6"``.
            They are distilled from scratch, for as long as the others at each stage.
        only: The techniques to search, ``"width,bits"`` or several of `techniques.TECHNIQUES`; none for all that the model
            offers. Another choice in the same store goes on from what is recorded there.
        sampler: Of Optuna's, which proposes in place of the guided search, to compare: one of `samplers.SAMPLERS`.
        fork: A study of another model, other data or another space, of the same kind: what is on its front is tried first. What
            it held when this study was begun is recorded here.
        price_per_hour: Dollars an hour of this machine; a bound on the price needs it.
        grid: Grams of CO2 equivalent for a kilowatt-hour; a bound on carbon needs it.
        isolate: Whether each candidate is made, trained and scored in a process of its own, so that one that crashes, hangs, or
            eats the memory ends as a failed trial. Costs the memory of a second copy of the workload and the time to load it.
        workers: Processes that make, train and score candidates side by side, at most one a core; from 2 on each is isolated.
            Nothing runs beside what is timed. With a store in a database these are this machine's; 0 where it only times.
        engine: ``ray`` or ``ray:ADDRESS``: the workers are actors of a Ray cluster; none for processes of this machine.
        spec: How the command line names the workload, recorded so that `verify` can load it again.
        listen: Told about every step, one or several (see `listeners`); `eq.Stop` raised there ends the run in order. None
            shows a line of progress in a notebook or an interactive session.
        began: ``time.perf_counter()`` when the run began, where loading the workload is to count as well; None for now.
    Raises:
        InputError: Anything that cannot be used, a bound on what cannot be measured here, before any work starts.
        MissingExtraError: A package of a target's runtime is not installed.
        StoreError: The store cannot be written, or belongs to another workload.
    """
    started = clock.perf_counter() if began is None else began
    bounds = parse_budget(budget)
    targets = parse_targets(target)
    limit = duration(time, zero=True)
    check_seed(seed)
    if not isinstance(store, str | Path):
        raise must_be("store", "the path of a folder, or an address", store, 'Write for example "runs/a".')
    least = 0 if is_address(store) else 1
    if type(workers) is not int or workers < least:
        remedy = "1 makes candidates one after the other; 0 leaves all to other machines, with a store in a database."
        raise must_be("workers", f"a whole number from {least} on", workers, remedy)
    if engine and engine.partition(":")[0] != "ray":
        raise must_be("engine", "ray, or ray:ADDRESS", engine, "Leave it out for processes of this machine.")
    if engine and is_address(store):
        raise must_be(
            "engine", "left out with a store in a database", engine, "Start `equipoise worker` on each machine instead."
        )
    if not engine:
        check_threads(max(1, workers), name="workers")
    for wanted in targets:
        check_usable(wanted)
    if not isinstance(student, str):
        raise must_be("student", "the name of a family", type(student).__name__, 'Write for example student="mobilenet".')
    if student and not recovery:
        raise must_be("student", "left out where nothing is trained", student, "Leave recovery on.")
    only = named(only)
    if sampler and sampler not in SAMPLERS:
        raise unknown("sampler", sampler, SAMPLERS)
    meters = Meters(targets[0].batch, price_per_hour, grid)
    meters.check(bounds)
    spec = spec or (work if isinstance(work, str) else "")
    with staying("checking the workload"):
        work = as_workload(work)
        check(work)
        if student:
            read_student(student)
    for constraint in bounds.constraints:
        if constraint.word == "quality" and constraint.upper == work.metric.maximize:
            turned = "more" if work.metric.maximize else "less"
            says = f"turned round, since {turned} {work.metric.name} is better"
            raise must_be("budget quality", says, str(constraint), "Turn the relation round.")
    told = Guarded(*([listen or of_events()] if listen is None or callable(listen) else listen))
    fresh = is_address(store) or not Path(store).exists()
    found = [] if fork is None else _front(fork)
    with Store.open(store) as opened, _withdrawn(opened, new=fresh and not opened.all("identity")):
        about = {"workload": work.fingerprint, "parts": work.identity, "targets": [str(t) for t in targets], "seed": seed}
        opened.identity(about)
        forked = opened.get("fork", "0") or (opened.put("fork", "0", {"plans": found}, seconds=0.0) if found else {"plans": []})
        check_whole(opened)
        if opened.address:
            here = machine.describe()
            opened.identity({name: here[name] for name in ("cpu", "architecture", "cores")}, part="machine that times")
        asked = Asked(
            targets={str(t): tuple(runtimes.get(t.row).precisions) for t in targets},
            budget=bounds,
            limit_s=limit,
            seed=seed,
            recovery=recovery,
            only=(*only, "student") if only and student else only,
            sampler=sampler,
            forked=tuple(forked["plans"]),
            samples=len(work.validation),
            meters=meters,
            about={
                "workload": located(spec) or work.name,
                "name": work.name,
                "metric": work.metric.about(),
                "damage_unit": "squared spreads" if work.divergence.kind == "values" else "nats",
            },
        )
        bench = Workbench(
            work, targets, opened.blob, asked.meters, asked.meters.metered(asked.budget), student=located(student)
        )
        apart = workers if isolate or workers > 1 or opened.address else 0
        _walk(opened, asked, bench, spec=located(spec), apart=apart, engine=engine, listen=told, started=started)
        return Study.read(opened)


@contextmanager
def _withdrawn(store: Store, *, new: bool) -> Iterator[None]:
    """Take a `new` study away again where the run is refused before anything was measured."""
    try:
        yield
    except InputError:
        if new and not store.all("evaluation"):
            store.forget()
        raise


def _front(study: Study | str | Path) -> list[dict[str, Any]]:
    """Return the plans that a study would give away, as data: its pick first."""
    held = study if isinstance(study, Study) else Study.load(study)
    chosen = dict.fromkeys(e.plan for e in (held.best, held.knee, *held.front) if e.key != held.baseline.key)
    return [as_data(plan) for plan in chosen][:FORKED]


def _walk(
    store: Store,
    asked: Asked,
    bench: Workbench,
    *,
    spec: str,
    apart: int,
    engine: str,
    listen: Guarded,
    started: float,
) -> None:
    """Drive the road to its end."""
    road = Road(asked, listen)
    if not store.address and (words := caution(store.path)):
        road.tell("prepare", f"WARNING: {words}")

    @contextmanager
    def around(job: Job) -> Iterator[None]:
        if listen.stopped:
            raise Stop
        _ask(store, road)
        with road.watched(job), staying("preparing the model") if job.kind == "prepare" else nullcontext():
            yield

    with _making(store, bench, road, spec=spec, apart=apart, engine=engine) as maker:
        here = Here(store, bench, maker, lambda: road.proposal(), spec=spec)
        if store.get("prepare", "0"):  # a run that goes on: loading and preparing anew are no part of its next job
            road.tell("prepare", "prepare the model again", extra_s=clock.perf_counter() - started)
            _ = here.maker
            started = clock.perf_counter()
        try:
            drive(road, store, here, mark=started, around=around)
        except Stop:
            if road.header is None:
                raise InputError("listen must let the untouched model be measured before it asks for the end") from None
        except StoreError:
            raise
        except EquipoiseError as error:
            if not isinstance(road.waiting, Job) or road.waiting.kind != "final":
                raise
            # nothing that was found is lost for it; `export` races again
            road.tell("final", f"WARNING: the last race failed, so latencies are those of the search: {error}")
    _ask(store, road)
    if not listen.stopped:
        store.tidy()


@contextmanager
def _making(store: Store, bench: Workbench, road: Road, *, spec: str, apart: int, engine: str) -> Iterator[Maker]:
    """Give what makes candidates: this process, children of it, workers of the study's database, or actors of a Ray cluster."""
    seed = road.asked.seed
    if store.address:
        from equipoise.road.ordered import ordered

        with ordered(bench, store, spec=spec, seed=seed, tell=road.tell, count=apart) as maker:
            yield maker
    elif engine:
        from equipoise.road.rays import rayed

        with rayed(bench, store.files, spec=spec, seed=seed, address=engine.partition(":")[2], count=max(1, apart)) as maker:
            yield maker
    elif apart:
        with isolated(bench, store.files, spec=spec, seed=seed, tell=road.tell, count=apart) as children:
            if apart == 1:
                yield children[0]
                return
            with closing(Pool(children)) as pool:
                yield pool
    else:
        yield Trials(bench, store.files, seed, road.tell)


def _ask(store: Store, road: Road) -> None:
    """Note what is asked now, once its header is recorded: what was asked last counts, also where it was asked before."""
    if road.header is None or store.get("study", road.header.asked) is None:
        return
    said = store.all("asking")
    if not said or said[-1]["header"] != road.header.asked:
        store.put("asking", str(len(said)), {"header": road.header.asked}, seconds=0.0)


@contextmanager
def staying(doing: str) -> Iterator[None]:
    """Turn an exit of the user's own code into an error that says so."""
    try:
        yield
    except SystemExit as error:
        raise InputError(
            f"the workload must not end the program; its own code raised SystemExit({error.code!r}) while {doing}. "
            "Raise an ordinary error there."
        ) from error
