"""``scale``: what the user asked becomes the decisions of the road before training, and an executor that does its jobs.

What it gives is a range of sizes with next to no regret and the cheapest of them to serve, or a refusal that says which runs
would lift it.
"""

from __future__ import annotations

import math
from pathlib import Path

from equipoise.axes import SCALE_AXES
from equipoise.budget import parse_budget
from equipoise.errors import must_be
from equipoise.events import Listener
from equipoise.progress import of_events
from equipoise.records import as_data
from equipoise.road.jobs import drive
from equipoise.runtimes import Target
from equipoise.runtimes.base import check_threads, check_usable
from equipoise.sizing.advice import Advice, check_version, read
from equipoise.sizing.decisions import Advisor, Asked
from equipoise.sizing.here import Here
from equipoise.sizing.sizes import Sizes
from equipoise.sizing.small_runs import SmallRuns, recipe_for
from equipoise.study.place import caution
from equipoise.study.store import Store
from equipoise.training import Recipe
from equipoise.units import check_seed, duration
from equipoise.workloads import Task, as_family, as_task
from equipoise.workloads.families import Family


def scale(
    family: Family | str,
    task: Task | str,
    *,
    limits: str | None = None,
    time: str | float = "30min",
    target: str = "onnxruntime:cpu",
    requests: float | None = None,
    price_per_hour: float | None = None,
    store: str | Path,
    seed: int = 0,
    recipe: Recipe | None = None,
    shape: bool = True,
    compress: bool = True,
    spec: str = "",
    listen: Listener | None = None,
) -> Advice:
    """Say how large a model of `family` the data and the limits deserve, by a dozen small runs and a law fitted to them.

    Args:
        family: Builds a model of every scale; or its name, as on the command line.
        task: What must be learned, or its name; its test split is never read.
        limits: ``"train<=2h, latency<=5ms, cost<=50$, size<=5MB"``. `train` (or `cost`, with a price) is what each size is
            trained for; without it, 4 times the compute of the largest runs.
        time: Wall time for all small runs and measurements (a quantity, or seconds).
        target: Where it will be served.
        requests: Expected over the life of the model: then training and serving together decide within the range.
        price_per_hour: Dollars for an hour of this machine.
        store: Folder of the record. The same call again goes on where the last one stopped.
        seed: Of every random choice; recorded.
        recipe: A ``wsd`` recipe; None takes one for the kind of inputs, in the precision in which a step is quicker here, and
            finds its learning rate on the quickest run.
        shape: Whether the genetic search looks for better shapes than the family's own rule of growth.
        compress: Whether "train larger, then compress down" competes, by the compressor's own measured front.
        spec: How the command line names family and task; recorded.
        listen: Told about every step; None shows a line of progress in a notebook or an interactive session.
    Raises:
        InputError: Anything that cannot be used, a store of another family, task, seed or recipe among it, before any run.
        MissingExtraError: A package of the target's runtime is not installed.
        StoreError: The store cannot be written, or another version of Equipoise answered in it.
    """
    bounds = parse_budget(limits, axes=SCALE_AXES)
    seconds = duration(time)
    check_seed(seed)
    for name, value in (("requests", requests), ("price_per_hour", price_per_hour)):
        if value is not None and not 0 < value < math.inf:
            raise must_be(name, "a finite number above 0", value, "Leave it out where it is not known.")
    if price_per_hour is None and (bounds.bound("cost") is not None or bounds.bound("price") is not None):
        raise must_be("price_per_hour", "given with a limit on cost or price", None, "Pass the price of this machine.")
    where = Target.parse(target)
    check_usable(where)
    check_threads(where.threads)
    kind, learned = as_family(family), as_task(task)
    spec = spec or " ".join(given for given in (family, task) if isinstance(given, str))
    chosen = recipe or recipe_for(learned)
    if chosen.schedule != "wsd":
        raise must_be("recipe.schedule", "wsd, whose runs can share a trunk", chosen.schedule, 'Use schedule="wsd".')
    with Store.open(store) as opened:
        check_version(opened)
        about = {"family": kind.name, "task": learned.fingerprint, "target": str(where), "seed": seed}
        opened.identity({**about, "recipe": as_data(recipe)})
        counting = SmallRuns(kind, learned, chosen, seed, opened)
        asked = Asked(
            sizes=Sizes(kind, counting.available), limits=bounds, limit_s=seconds, seed=seed, recipe=chosen,
            finds=recipe is None,
            shape=shape, compress=compress, positions=counting.positions, unique=counting.unique, price_per_hour=price_per_hour,
            about={
                "family": kind.name, "task": learned.name, "spec": spec, "target": str(where), "requests": requests,
                "metric": learned.metric.about(),
            },
        )  # fmt: skip
        road = Advisor(asked, listen or of_events())
        if not opened.address and (words := caution(opened.path)):
            road.tell("store", f"WARNING: {words}")
        here = Here(opened, kind, learned, target=where, seed=seed, propose=road.proposal, tell=road.tell)
        drive(road, opened, here, around=road.watched)
        said = opened.all("asked")
        if not said or said[-1]["advice"] != road.answer:  # `read` gives the answer to what was asked last
            opened.put("asked", str(len(said)), {"advice": road.answer}, seconds=0.0)
        return read(opened)
