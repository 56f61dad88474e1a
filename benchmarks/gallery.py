"""What each field of the gallery reached: its search, its sizes, and the page docs/gallery.md that shows both.

    equipoise gallery speech --data DIGITS.zip --time 30min --store runs/gallery     # or train and optimize by themselves
    python benchmarks/gallery.py search speech runs/gallery/speech/search            # a second: what search and verify found
    python benchmarks/gallery.py sizes speech --data DIGITS.zip --store runs/sizes --train 2min --time 8min     # 20 minutes
    python benchmarks/gallery.py page                                                # docs/gallery.md and its pictures, anew

*search* keeps the points of a study and what `equipoise verify` found of its artifacts on the test split. *sizes* asks the
scale road which size deserves `--train` of this machine, then gives that compute to sizes around it, each half of the one
before: the regret is how much more loss the recommended size has than the best. Results: results/gallery_FIELD.json.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from equipoise.fields import FIELDS
from equipoise.measure import machine
from equipoise.records import Evaluation, Reading, as_data, reading_from
from equipoise.study.record import Study
from equipoise.study.tested import verified
from equipoise.units import show

ROOT = Path(__file__).parent
RESULTS, PAGE, PICTURES = ROOT / "results", ROOT.parent / "docs" / "gallery.md", ROOT.parent / "docs" / "gallery"
STEPS, GRID = (1, -1, 2, -2, -3, 3, 4, 5, -4, -5), 6
"""Powers of two times the recommended size, in FLOPs of a sample, whose nearest sizes are trained, until there are so many."""
RACES = {"photographs": "efficientnet", "sentiment": "minilm"}
"""Field -> the trained network that other tools were given as well."""
MARK = "<!-- figures: python benchmarks/gallery.py page -->"
AXES = ("latency_s", "size_bytes", "params", "macs")


def kept(field: str) -> dict[str, Any]:
    """What there is of a field: its result file, and the race of a trained network beside other tools (headline.py)."""
    found: dict[str, Any] = {}
    for part, name in (("race", f"headline_{RACES.get(field)}"), ("", f"gallery_{field}")):
        path = RESULTS / f"{name}.json"
        if path.is_file():
            held = json.loads(path.read_text())
            found |= {part: held["seed 0"]} if part else held
    return found


def keep(field: str, **parts: Any) -> None:
    """Write parts of a field's result file, beside those that are there."""
    found = {**kept(field), "field": field, **parts}
    found.pop("race", None)
    (RESULTS / f"gallery_{field}.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def search(field: str, store: Path) -> None:
    """Keep what a study found: its points, and what the test split says of what was exported."""
    study = Study.load(store)
    front = {e.key for e in study.front}
    tested = [row for row in verified(store) if not row.broken]
    found = {
        "task": re.sub(r"[^=:&?]*/", "", study.header.workload),  # without the folders of this machine
        "time_s": study.header.time_s,
        "seed": study.header.seed,
        "budget": study.header.budget,
        "target": study.header.target,
        "metric": dict(study.header.metric),
        "quality": study.baseline.quality.value,
        "untouched": costs(study.baseline),
        "best": {**costs(study.best), "drop": as_data(study.best.drop)},
        "tested": dict(tested[-1].figures) if tested else None,
        "said": tested[-1].headline if tested else study.sentence(study.best),
        "points": [point(e, study.baseline, front) for e in study.evaluations if timed(e)],
        "machine": machine.describe(),
    }
    keep(field, search=found)
    print(f"{field}: {found['said']}")


def timed(e: Evaluation) -> bool:
    return not e.error and e.axis("latency_s").known and e.drop.known


def costs(e: Evaluation) -> dict[str, Any]:
    return {axis: as_data(e.axis(axis)) for axis in AXES if axis in e.cost}


def point(e: Evaluation, baseline: Evaluation, front: set[str]) -> dict[str, Any]:
    """A point of the search as times faster, times smaller and drop."""

    def times(axis: str) -> float:
        return float(baseline.axis(axis).get() / e.axis(axis).get())

    return {
        "faster": times("latency_s"),
        "smaller": times("size_bytes"),
        "drop": [e.drop.value, e.drop.low, e.drop.high],
        "fidelity": e.fidelity,
        "front": e.key in front,
    }


def sizes(
    field: str, data: Path, store: Path, *, train: str, time: str, family: str, task: str, recipe: str, seeds: int
) -> None:
    """Ask the scale road, then train sizes around its answer with the same compute, each with so many seeds."""
    from equipoise.scaling import Available, PlannedRun
    from equipoise.scaling.runs import BACKWARD
    from equipoise.sizing.sizes import Sizes
    from equipoise.sizing.small_runs import SmallRuns, recipe_for
    from equipoise.sizing.walk import scale
    from equipoise.study.store import Store
    from equipoise.training import Recipe
    from equipoise.verbs.train import recipe_of
    from equipoise.workloads import as_family, as_task

    row = FIELDS[field]
    kind, learned = as_family(family or row.family), as_task(task or row.task.format(data=data))
    asked_for = recipe_of(recipe, recipe_for(learned)) if recipe else None
    limits = f"train<={train}"
    advice = scale(kind, learned, limits=limits, time=time, store=store, recipe=asked_for, shape=False, compress=False)
    print(advice.sentence(), flush=True)
    option = advice.decision.recommended or advice.decision.within
    if option is None:
        raise SystemExit("no size to compare with")
    header = advice.header
    with Store.open(store) as opened:
        every = [
            SmallRuns(kind, learned, Recipe(**header["recipe"]), header["seed"] + more, opened, header["tuned_at"])
            for more in range(seeds)
        ]
        runs, asked = every[0], option.candidate.available
        ladder = Sizes(kind, runs.available).reachable([asked.flops_per_sample])
        flops = BACKWARD * asked.flops_per_sample * option.candidate.samples
        grid: dict[str, Available] = {named(asked.scale): asked}
        for step in STEPS:
            if len(grid) == GRID:
                break
            work = asked.flops_per_sample * 2.0**step
            size = min(ladder, key=lambda one, work=work: abs(math.log(one.flops_per_sample / work)))
            grid.setdefault(named(size.scale), size)
        made = []
        for key, size in sorted(grid.items(), key=lambda item: item[1].flops_per_sample):
            samples = flops / (BACKWARD * size.flops_per_sample)
            planned = PlannedRun(size, samples, samples * (1 - runs.recipe.decay_share), flops, 9)
            found = []
            for more, one in enumerate(every):
                name = f"{key}, seed {one.seed}" if more else key
                found.append(opened.once("grid", name, lambda one=one, planned=planned: one.run(planned))["run"])
            run, losses = found[0], [each["loss"] for each in found]
            made.append({**run, "loss": fmean(losses), "losses": losses, "recommended": key == named(asked.scale)})
            print(f"{key}: {run['samples']:.3g} samples, {run['seconds']:.0f} s, losses {losses}", flush=True)
    best = min(run["loss"] for run in made)
    regret = next(run["loss"] for run in made if run["recommended"]) / best - 1
    spreads = [stdev(math.log(loss) for loss in run["losses"]) for run in made] if seeds > 1 else []
    error = math.sqrt(2 / seeds * fmean(spread**2 for spread in spreads)) if spreads else None
    ends = [option.candidate.costs["params"] for option in advice.decision.range]
    keep(
        field,
        sizes={
            "family": kind.name, "task": learned.name, "train": train, "time": time, "seed": header["seed"],
            "recipe": recipe,
            "answered": advice.decision.answered, "said": advice.sentence(), "range": [min(ends), max(ends)] if ends else None,
            "grid": made, "regret": regret, "regret_error": error, "seeds": seeds, "machine": machine.describe(),
        },
    )  # fmt: skip
    print(f"{field}: regret {100 * regret:.2f} % over {len(made)} sizes")


def named(scale: Mapping[str, float]) -> str:
    return ",".join(f"{name}={scale[name]:g}" for name in sorted(scale))


def page() -> None:
    """Write the figures into docs/gallery.md, and a picture of each field beside it."""
    head = PAGE.read_text().split(MARK)[0].rstrip()
    PICTURES.mkdir(exist_ok=True)
    told = [section(field, found) for field in FIELDS if (found := kept(field))]
    for field in FIELDS:
        if found := kept(field):
            draw(field, found)
    PAGE.write_text("\n\n".join([head, MARK, *told]) + "\n")


def section(field: str, found: Mapping[str, Any]) -> str:
    """A field's figures: one picture, one table."""
    lines = [f"## {field.capitalize()}", "", f"![what {field} gives up for what it gains](gallery/{field}.svg)", ""]
    if "race" in found:
        lines += raced(found["race"])
    if "search" in found:
        lines += [*([""] if "race" in found else []), "| | Untouched | Found | On the test split |", "|---|---|---|---|"]
        lines += searched(found["search"])
    if "sizes" in found:
        lines += ["", *sized(found["sizes"])]
    return "\n".join(lines)


FLOATS = "ONNX Runtime fp32"
"""The untouched model in a race."""
AGAIN = "Equipoise again"
"""The winner raced against itself: what two loads of one file differ by."""


def contenders(found: Mapping[str, Any]) -> dict[str, tuple[float, dict[str, Any]]]:
    """Who raced: times faster than the untouched model, and the rest."""
    rows = found["contenders"]
    floats = rows[FLOATS]["times_faster_of_equipoise"]["value"]
    return {name: (floats / row["times_faster_of_equipoise"]["value"], row) for name, row in rows.items() if name != AGAIN}


def raced(found: Mapping[str, Any]) -> list[str]:
    """Rows of a race on the validation and test splits, other tools beside it."""
    lines = ["| | Times faster | Bytes | Accuracy | Drop |", "|---|---|---|---|---|"]
    for name, (faster, row) in sorted(contenders(found).items(), key=lambda item: -item[1][0]):
        drop = spread(reading_from(row["drop"])) if isinstance(row["drop"], dict) else f"{row['drop']:.2f}"
        lines.append(f"| {name} | {faster:.2f} | {show(row['bytes'], 'B')} | {row['accuracy']:.2f} | {drop} |")
    return [*lines, "", f"{found['what']}; {found['machine']['cpu']}, {rows_of(found)} samples."]


def rows_of(found: Mapping[str, Any]) -> int:
    return int(found["contenders"][FLOATS]["samples"])


def searched(found: Mapping[str, Any]) -> list[str]:
    """Rows of the table."""
    tested = {axis: reading_from(row) for axis, row in (found["tested"] or {}).items()}
    before, after = found["untouched"], found["best"]
    rows = []
    for axis, name, test in (("latency_s", "latency", "speed_up"), ("size_bytes", "size", "times_smaller")):
        one, two = (reading_from(side[axis]) for side in (before, after))
        rows.append(f"| {name} | {show(one.get(), one.unit)} | {show(two.get(), two.unit)} | {times(tested.get(test))} |")
    drop, metric, quality = tested.get("drop"), found["metric"], found["quality"]
    said = "" if drop is None or not drop.known else f"drop {spread(drop)} {metric['unit']}, n = {drop.n}"
    rows.append(f"| {metric['name']} (validation) | {quality:.2f} | {quality - after['drop']['value']:.2f} | {said} |")
    cpu, target = found["machine"]["cpu"], found["target"]
    took = f"`{found['budget']}`, {show(found['time_s'], 's')} on {cpu}, {target}, seed {found['seed']}"
    return [*rows, "", f"The search: {took}."]


def times(reading: Reading | None) -> str:
    return "" if reading is None or not reading.known else f"{spread(reading)} times less"


def spread(reading: Reading) -> str:
    ends = "" if reading.low is None or reading.high is None else f" [{reading.low:.2f}, {reading.high:.2f}]"
    return f"{reading.get():.2f}{ends}"


def sized(found: Mapping[str, Any]) -> list[str]:
    """What the scale road said, beside what sizes trained alike came to."""
    lines = [
        f"How large, for {found['train']} of training? *{found['said']}*",
        "",
        "| Params without embeddings | Samples | Loss | |",
        "|---|---|---|---|",
    ]
    best, chosen = min(run["loss"] for run in found["grid"]), "recommended" if found["answered"] else "named"
    for run in found["grid"]:
        marks = [*([chosen] if run["recommended"] else []), *(["best"] if run["loss"] == best else [])]
        lines.append(f"| {show(run['params'], '1')} | {show(run['samples'], '1')} | {run['loss']:.4f} | {', '.join(marks)} |")
    error, seeds = found.get("regret_error"), found.get("seeds", 1)
    known = f", ± {100 * error:.2f} (one standard error, {seeds} seeds)" if error is not None else ", one seed"
    return [*lines, "", f"Regret of the {chosen} size: {100 * found['regret']:.2f} %{known}."]


def draw(field: str, found: Mapping[str, Any]) -> None:
    """Draw drop against times faster, and loss against size, as far as they were measured."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "equipoise", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    parts = [part for part in ("race", "search", "sizes") if part in found]
    figure, panels = pyplot.subplots(1, len(parts), figsize=(4.2 * len(parts), 2.8), layout="constrained", squeeze=False)
    for part, axes in zip(parts, panels[0], strict=True):
        {"race": others, "search": front, "sizes": curve}[part](axes, found[part])
    figure.savefig(PICTURES / f"{field}.svg", metadata={"Date": None})
    pyplot.close(figure)


def others(axes: Any, found: Mapping[str, Any]) -> None:
    for name, (faster, row) in contenders(found).items():
        drop = row["drop"]["value"] if isinstance(row["drop"], dict) else row["drop"]
        axes.scatter(
            [faster], [drop], marker="*" if name == "Equipoise" else "o", s=90 if name == "Equipoise" else 20, label=name
        )
    axes.set(xscale="log", xlabel="times faster", ylabel="drop, points")
    ticks(axes.xaxis, lambda value, _: f"{value:g}×")
    axes.legend(fontsize=7)


def front(axes: Any, found: Mapping[str, Any]) -> None:
    best = sorted((row for row in found["points"] if row["front"]), key=lambda row: row["faster"])
    rest = [row for row in found["points"] if not row["front"]]
    axes.scatter([row["faster"] for row in rest], [row["drop"][0] for row in rest], s=10, color="0.7", label="tried")
    drops = [[row["drop"][0] if end is None else end for end in row["drop"]] for row in best]
    reach = [[value - low for value, low, _ in drops], [high - value for value, _, high in drops]]
    places = [row["faster"] for row in best], [value for value, *_ in drops]
    axes.errorbar(*places, yerr=reach, marker="o", ms=4, capsize=2, label="front")
    axes.set(xscale="log", xlabel="times faster", ylabel=f"drop, {found['metric']['unit']}")
    ticks(axes.xaxis, lambda value, _: f"{value:g}×")
    axes.legend()


def curve(axes: Any, found: Mapping[str, Any]) -> None:
    rows = found["grid"]
    axes.plot([row["params"] for row in rows], [row["loss"] for row in rows], marker="o", ms=4)
    chosen = next(row for row in rows if row["recommended"])
    axes.scatter([chosen["params"]], [chosen["loss"]], marker="*", s=110, zorder=3, label="chosen by the road")
    axes.set(xscale="log", xlabel="params without embeddings", ylabel="validation loss")
    ticks(axes.xaxis, lambda value, _: show(value, "1"))
    axes.legend()


def ticks(axis: Any, write: Any) -> None:
    for place in (axis.set_major_formatter, axis.set_minor_formatter):
        place(write)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    one = what.add_parser("search")
    one.add_argument("field", choices=tuple(FIELDS))
    one.add_argument("store", type=Path)
    two = what.add_parser("sizes")
    two.add_argument("field", choices=tuple(FIELDS))
    two.add_argument("--data", type=Path, required=True)
    two.add_argument("--store", type=Path, required=True)
    two.add_argument("--train", default="2min")
    two.add_argument("--time", default="8min")
    two.add_argument("--family", default="", help="another than the field's")
    two.add_argument("--task", default="", help="another than the field's, as the command line writes it")
    two.add_argument("--recipe", default="", help="changes of the small runs' recipe, whose rate is then not searched for")
    two.add_argument("--seeds", type=int, default=1, help="of each size's training, for the error of the regret")
    what.add_parser("page")
    args = parser.parse_args()
    if args.what == "page":
        page()
    elif args.what == "search":
        search(args.field, args.store)
    else:
        asked = {name: getattr(args, name) for name in ("train", "time", "family", "task", "recipe", "seeds")}
        sizes(args.field, args.data, args.store, **asked)


if __name__ == "__main__":
    main()
