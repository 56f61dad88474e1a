"""Train one scale of a family on a task, into a folder that a killed run goes on from, and say what holds it back."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from equipoise.errors import InputError, must_be, unknown
from equipoise.measure import device, energy, machine
from equipoise.measure.counts import count
from equipoise.progress import of_steps
from equipoise.records import SCHEMA, Reading, as_data, dumps, estimated, measured, unavailable
from equipoise.scaling import Curves, Diagnosis, diagnose
from equipoise.sizing.costs import check_size
from equipoise.sizing.small_runs import recipe_for
from equipoise.study.files import write_atomic
from equipoise.training import Recipe, Trained, fit
from equipoise.training.distribution import PRECISIONS, Distribution, OneProcess
from equipoise.training.frozen import Fitted
from equipoise.training.logs import CsvLog, Log, TensorBoardLog
from equipoise.training.progress import Progress
from equipoise.training.transfer import discriminative
from equipoise.units import check_seed, show
from equipoise.verbs.thaw import THAWED, better_of, frozen_start, reached_frozen, rescaled, seconds_left
from equipoise.workloads import Metric, Task, as_family, as_task, asked, predict
from equipoise.workloads.beside import shipped
from equipoise.workloads.classification import MOST_CLASSES, Classification, classification
from equipoise.workloads.families import Family, Scale
from equipoise.workloads.weights import go_on_from, packed, read_weights

LOOKS, FEW_LOOKS = 24, 8
"""Looks at the validation split in a run: enough for a diagnosis, few enough to cost little; in fine-tuning, which is short."""

FINE_TUNED = Recipe(lr=7e-5, schedule="onecycle", rise_share=0.1, weight_decay=0.01, second_beta=0.999, clip=1.0, batch=32)
"""For a model that was trained before: small rates, raised over the first tenth of the run (Devlin et al. 2018, A.3)."""
LAYER_DECAY = 0.9
"""Share of a layer's rate that the layer before it has, in fine-tuning (Howard & Ruder 2018)."""


@dataclass(frozen=True)
class TrainedModel:
    """A trained model, what it reached and what it cost.

    Attributes:
        model: In evaluation mode.
        run: What the loop recorded: curve, seconds, steps.
        diagnosis: What holds it back; None with too few looks at the validation split.
        reached: Name -> reading (quality, losses, training time and money).
        classification: Precision, recall and F1 by class, on the test split if that was asked for, else on the validation
            split; None where samples have no classes.
        examples: Answers of the model that the page shows (`workloads.metrics.Examples`).
    """

    folder: Path
    model: nn.Module
    run: Trained
    diagnosis: Diagnosis | None
    reached: Mapping[str, Reading]
    header: Mapping[str, Any]
    recipe: Recipe
    classification: Classification | None = None
    notes: tuple[str, ...] = ()
    examples: tuple[Mapping[str, Any], ...] = ()
    also: Mapping[str, Reading] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"TrainedModel({self.header['model']} on {self.header['task']}: {self.sentence()}; in {self.folder})"

    def sentence(self) -> str:
        """Return what came out, in words."""
        quality = self.reached.get("quality")
        metric = self.header["metric"]["name"]
        told = "" if quality is None or not quality.known else f"{metric} {quality.get():.2f} on validation data, "
        if told and (frozen := self.reached.get("frozen_quality")) is not None:
            kept = self.run.best is not None and self.run.best.step == 0
            said = "with the last layer alone: the others' training brought no more" if kept else "with the last layer alone"
            told = f"{told[:-2]} ({frozen.get():.2f} {said}), "
        told += "".join(f"{name} {reading.get():.2f}, " for name, reading in self.also.items())
        verdict = "" if self.diagnosis is None else f"; {self.diagnosis.verdict}"
        loss, seconds = self.reached["validation_loss"].get(), show(self.reached["train_s"].get(), "s")
        return f"{told}loss {loss:.4g}, after {self.run.steps} steps in {seconds}{verdict}"

    def summary(self) -> dict[str, Any]:
        """Return what `report.render_train` shows, as JSON data."""
        return {
            "schema": SCHEMA,
            "header": dict(self.header),
            "curve": [as_data(point) for point in self.run.curve],
            "best": None if self.run.best is None else as_data(self.run.best),
            "stopped": self.run.stopped,
            "reached": {name: as_data(reading) for name, reading in self.reached.items()},
            "diagnosis": None if self.diagnosis is None else _told(self.diagnosis),
            "classification": None if self.classification is None else as_data(self.classification),
            "examples": list(self.examples),
            "recipe": {k: v for k, v in as_data(self.recipe).items() if v is not None},
            "notes": list(self.notes),
        }


def train(
    family: Family | str,
    task: Task | str,
    scale: Scale | None = None,
    *,
    store: str | Path,
    epochs: float | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    start: str | Path | None = None,
    distribution: Distribution | None = None,
    price_per_hour: float | None = None,
    watts_per_core: float | tuple[float, float] | None = None,
    tensorboard: bool = False,
    test: bool = False,
    on_step: Callable[[Progress], None] | None = None,
) -> TrainedModel:
    """Train `family` at `scale` on `task` and write weights, curve and figures to `store`.

    The same call again goes on where a killed one stopped. The folder then holds ``model.safetensors``, ``curve.csv``,
    ``run.json`` (figures, recipe, verdict) and, with `tensorboard`, event files.

    Args:
        family, task: Or their names, as on the command line.
        scale: Dimension -> value; the family's defaults stand for what is left out.
        store: Folder of the run; made if need be.
        epochs, steps, seconds: Length; the first that is reached ends the run. None of them: 10 epochs, or 3
            of a pretrained family. Where the last layer is trained alone first, that is in the seconds, and in no epoch.
        recipe: None takes one for the kind of inputs, brought down over the whole run, or for a pretrained family `FINE_TUNED`
            or `thaw.THAWED`.
        seed: Of weights, order and augmentation; recorded.
        start: Weights that an earlier run of this family and scale wrote, to go on from; where there are more items, words or
            classes now, theirs are drawn anew.
        distribution: Where to compute; rank 0 alone writes.
        price_per_hour: Dollars, for what the run cost.
        watts_per_core: For an energy estimate where no meter can be read.
        test: Whether to score the test split, once, at the end.
        on_step: Called with the `Progress` of each step; None shows a line in a notebook or an interactive session.
    Raises:
        InputError: Anything that cannot be used, before any step; or a folder that holds another run.
        EquipoiseError: The loss is no longer finite; the last good checkpoint stays.
    """
    folder, where = Path(store), distribution or OneProcess()
    _check(epochs=epochs, steps=steps, seconds=seconds, price_per_hour=price_per_hour)
    check_seed(seed)
    family = as_family(family)
    task = family.prepared(as_task(task, family))
    full = family.scale(**(scale or {}))
    chosen = recipe or usual_recipe(task, family)
    if epochs is None and steps is None and seconds is None:
        epochs = 3.0 if family.pretrained else 10.0
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise must_be("store", "a folder that can be made", str(folder), f"{error.strerror}: name another.") from error
    header = {
        "model": family.name,
        "task": task.name,
        "scale": {k: float(v) for k, v in full.items()},
        "seed": seed,
        "device": str(where.device),
        "ranks": where.world,
        "length": {"epochs": epochs, "steps": steps, "seconds": seconds},
        "metric": {"name": task.metric.name, "maximize": task.metric.maximize},
    }
    claimed = {**header, "recipe": as_data(chosen), "task": task.fingerprint}
    learned = None if start is None else read_weights(Path(start))
    if start is not None:
        claimed["start"] = hashlib.sha256(Path(start).read_bytes()).hexdigest()[:16]
    claim(folder, claimed, first=False)
    model, listen = built(family, full, task, seed), on_step or of_steps()
    new = 0 if learned is None else go_on_from(model, learned, name=f"start {start}")
    claim(folder, claimed, first=where.rank == 0)  # what cannot be built takes no folder
    frozen, left = None, seconds
    if family.frozen_first:
        frozen = frozen_start(model, task, folder, where=where, seconds=seconds, on_step=listen)
        model = rescaled(frozen.model, task.example) if chosen.frozen_norm else frozen.model
        left = None if seconds is None else seconds_left(seconds, frozen, task, test=test)
    per_epoch = max(1, math.ceil(len(task.train) / chosen.batch))
    expected = min(
        n for n in (steps, None if epochs is None else math.ceil(epochs * per_epoch), per_epoch * 10) if n is not None
    )
    logs: Sequence[Log] = [CsvLog(folder / "curve.csv"), *([TensorBoardLog(folder / "tensorboard")] if tensorboard else [])]
    device.forget_peak(where.device)
    done = fit(
        model,
        task.train,
        loss=task.loss,
        steps=steps,
        epochs=epochs,
        seconds=left,
        recipe=chosen,
        augment=task.augment,
        validation=task.validation,
        metric=task.metric.of_outputs,
        evaluate_steps=max(1, min(per_epoch, expected // (FEW_LOOKS if family.pretrained else LOOKS))),
        rates=discriminative(model, LAYER_DECAY) if family.pretrained else None,
        generator=torch.Generator().manual_seed(seed),
        checkpoint=folder / "checkpoint.safetensors",
        logs=logs,
        distribution=where,
        on_step=listen,
    )
    notes, reached = (*_notes(task), *([f"{new} rows are new beside {start}"] if new else [])), {}
    if frozen is not None:
        done, more = better_of(done, frozen, task, chosen)
        notes, reached = (*notes, *more), reached_frozen(frozen, task)
    reached |= _reached(done, model, task, chosen, price_per_hour, watts_per_core, where, frozen)
    told: Classification | None = None
    shown: tuple[Mapping[str, Any], ...] = ()
    also: dict[str, Reading] = {}
    if where.rank == 0:
        shown = tuple(task.metric.examples(done.model, task.validation)) if task.metric.examples else ()
        split = task.test if test else task.validation
        outputs, targets = predict(done.model, split)
        reached |= _asked(done.model, task, test=test) if task.metric.ask else {}
        reached |= _tested(outputs, targets, task) if test else {}
        also = {metric.name: _scored(outputs, targets, task, split.name, metric) for metric in task.also}
        told = _classified(outputs, targets, task, split.name)
    found = TrainedModel(
        folder,
        done.model,
        done,
        _diagnosed(done, task, seed),
        reached,
        {**header, "machine": machine.describe()},
        chosen,
        told,
        (*notes, *(f"{name} {reading.get():.2f}: {reading.note}" for name, reading in also.items())),
        shown,
        also,
    )
    if where.rank == 0:
        write_files(done.model, task, folder)
        write_atomic(folder / "model.safetensors", packed(done.model))
        write_atomic(folder / "run.json", dumps(found.summary()).encode())
    return found


def _check(**given: float | None) -> None:
    """Raise for a length or a price that is no number above 0."""
    for name, value in given.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise must_be(name, "a finite number above 0", value, "Leave it out for the usual.")
        if name == "steps" and value != int(value):
            raise must_be(name, "a whole number", value, f"Write for example steps={math.ceil(value)}.")


def built(family: Family, scale: Scale, task: Task, seed: int) -> nn.Module:
    """Build the model; one that this machine cannot hold is bad input, whatever torch calls it."""
    check_size(family, scale, task)
    try:
        return family.model(scale, task, generator=torch.Generator().manual_seed(seed))
    except InputError:
        raise
    except (MemoryError, RuntimeError, TypeError, OverflowError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise must_be(
            "scale", "a size that can be built and held here", dict(scale), f"{reason}. Take a smaller one."
        ) from error


def usual_recipe(task: Task, family: Family | None = None) -> Recipe:
    """Return the recipe that `train` takes where none is given: that of small runs, brought down over the whole run."""
    if family is not None and family.pretrained:
        return THAWED if family.frozen_first else FINE_TUNED
    return replace(recipe_for(task), schedule="onecycle")


def write_files(model: nn.Module, task: Task, folder: Path) -> None:
    """Write what belongs to the data, and a model that has a layout of its own once more in that: ``folder/pretrained``."""
    own = getattr(model, "save_pretrained", None)
    place = folder / "pretrained" if callable(own) else folder
    if callable(own):
        own(place)
    for name, content in shipped(task.files, task.labels).items():
        write_atomic(place / name, content)


def recipe_of(text: str, base: Recipe) -> Recipe:
    """Return `base` with the changes of ``"lr=0.1, optimizer=sgd, ema=0.999"``.

    Raises:
        InputError: An unknown name, or a value that it does not take.
    """
    known, hints = {f.name: f for f in fields(Recipe)}, get_type_hints(Recipe)
    changes: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals:
            raise must_be("recipe", "written as name=value", part, 'Write for example "lr=0.1, optimizer=sgd".')
        if name not in known:
            raise unknown("recipe entry", name, known)
        if name in changes:
            raise must_be(f"recipe {name}", "given once", text, "Remove the second.")
        changes[name] = _value(value)
        if not _takes(hints[name], changes[name]):
            raise must_be(f"recipe {name}", _wanted(hints[name]), value, f"Write for example {name}={_example(known[name])}.")
    return replace(base, **changes)


def _takes(hint: Any, value: Any) -> bool:
    """Whether a value is of the type that an entry has."""
    choices = get_args(hint)
    if get_origin(hint) is Literal:  # the recipe itself knows the valid names, and the nearest
        return isinstance(value, str)
    if choices and get_origin(hint) is not tuple:
        return any(_takes(choice, value) for choice in choices)
    if hint is bool or isinstance(value, bool):
        return hint is bool and isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    plain = get_origin(hint) or hint
    return isinstance(value, plain) if isinstance(plain, type) else True


def _wanted(hint: Any) -> str:
    """What an entry takes, in words."""
    names = {float: "a finite number", int: "a whole number", bool: "true or false", type(None): "none", str: "a name"}
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    kinds = [hint] if hint in names else [kind for kind in get_args(hint) if kind in names]
    return " or ".join(names[kind] for kind in kinds) or "of the type that it has"


def _example(entry: Field[Any]) -> str:
    return json.dumps(entry.default).strip('"') if entry.default is not None else "none"


def _value(text: str) -> Any:
    """A number, true, false, none, or a word."""
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _flat(rows: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested mappings as one, by names with dots."""
    found: dict[str, Any] = {}
    for name, value in rows.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return found


def claim(folder: Path, identity: Mapping[str, Any], *, first: bool) -> None:
    """Raise when the folder is another run's; make it this one's, where this is the `first` of its processes."""
    path, text = folder / "identity.json", dumps(identity)
    if path.is_file():
        if path.read_text() != text:
            held, asked = _flat(json.loads(path.read_text())), _flat(json.loads(text))
            other = sorted(name for name in held.keys() | asked.keys() if held.get(name) != asked.get(name))
            what = f"{folder}, of which {', '.join(other)} {'is' if len(other) == 1 else 'are'} not the same"
            raise must_be("store", "the folder of this same run", what, "Name another folder, or delete it.")
    elif first:
        write_atomic(path, text.encode())


def _reached(
    done: Trained,
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    price: float | None,
    watts: float | tuple[float, float] | None,
    where: Distribution,
    start: Fitted | None,
) -> dict[str, Reading]:
    last = done.best if recipe.patience is not None and done.best is not None else done.curve[-1]
    counts = count(model, task.example)
    samples = float(done.steps * recipe.batch)
    flops, access = 6.0 * counts.macs * samples + 2.0 * counts.macs * (start.samples if start else 0), energy.rapl()
    seconds = done.seconds + (start.point.seconds if start else 0.0)
    peak = device.peak_flops(where.device, PRECISIONS.get(recipe.precision, torch.float32))
    cpu = measured(seconds * (torch.get_num_threads() * where.world), "s", note="all threads busy")
    return {
        "quality": unavailable("points", "no metric was looked at")
        if last.validation_metric is None
        else measured(
            last.validation_metric, task.metric.unit, n=len(task.validation), note=f"{task.metric.name}, validation split"
        ),
        "train_loss": measured(last.train_loss, "1", note="mean since the look before"),
        "validation_loss": measured(
            last.validation_loss,
            "1",
            n=len(task.validation),
            note="of the weights that are kept" if last is done.best else "at the last look; the verdict is of the whole curve",
        ),
        "params": measured(counts.params, "1", note="counted"),
        "flops_per_sample": measured(2 * counts.macs, "1", note="counted, forward"),
        "samples": measured(samples, "1", note="seen, repeats counted"),
        "compute": estimated(flops, "1", note="3 times the forward FLOPs"),
        "train_s": measured(seconds, "s", note="training and looks at the validation split"),
        "train_memory_bytes": device.peak_memory(where.device),
        "utilization": device.utilization(flops / where.world, max(seconds, 1e-9), peak),
        "throughput_per_s": measured(samples / max(done.seconds, 1e-9), "1/s"),
        "train_cost": unavailable("$", "no price of the machine was given (--price-per-hour)")
        if price is None
        else estimated(price * seconds / 3600, "$", note="price of the machine times the training time"),
        "train_energy_j": energy.estimate(cpu, watts)
        if watts is not None
        else unavailable("J", access.reason or "the meter was not read; give --watts-per-core for an estimate"),
    }


def _notes(task: Task) -> tuple[str, ...]:
    """What is to be known of the data; of the test split too, which is told when the files are read."""
    return tuple(dict.fromkeys(note for split in (task.train, task.validation, task.test) for note in split.notes))


def _classified(outputs: Tensor, targets: Tensor, task: Task, split: str) -> Classification | None:
    """Return the report where each sample has one of some classes."""
    judged = task.metric.labels is not False and not targets.is_floating_point() and targets.ndim == 1
    if not judged or not 2 <= max(2, task.outputs) <= MOST_CLASSES or outputs.ndim > 2:
        return None
    return classification(outputs, targets, names=task.labels, ignore=task.ignore_label, split=split)


def _tested(outputs: Tensor, targets: Tensor, task: Task) -> dict[str, Reading]:
    loss = measured(float(task.loss(outputs, targets)), "1", n=len(task.test))
    if task.metric.ask:
        return {"test_loss": loss}
    return {"test_quality": _scored(outputs, targets, task, "test"), "test_loss": loss}


def _asked(model: nn.Module, task: Task, *, test: bool) -> dict[str, Reading]:
    """Qualities that the metric asks the trained model for itself."""
    splits = {"quality": task.validation, **({"test_quality": task.test} if test else {})}
    return {name: _scored(*asked(task.metric, model, split), task, split.name) for name, split in splits.items()}


def _scored(outputs: Tensor, targets: Tensor, task: Task, split: str, metric: Metric | None = None) -> Reading:
    metric = metric or task.metric
    return measured(metric.score(outputs, targets), metric.unit, n=len(targets), note=f"{metric.name}, {split} split")


def _diagnosed(done: Trained, task: Task, seed: int) -> Diagnosis | None:
    """Read the curve; a loss that cross entropy gives has the log of the classes for its chance level."""
    points = [p for p in done.curve if math.isfinite(p.train_loss)]
    if len(points) < 2:
        return None
    known = task.shape.aligned and task.outputs > 1  # rows of labels are laid against the answers in many ways
    chance = math.log(task.outputs) if known and not task.validation.targets().is_floating_point() else None
    curves = Curves(
        step=[p.step for p in points],
        train=[p.train_loss for p in points],
        validation=[p.validation_loss for p in points],
        metric=None
        if points[0].validation_metric is None or not task.metric.maximize
        else [float(p.validation_metric or 0) for p in points],
        rate=[p.lr for p in points],
    )
    try:
        return diagnose(curves, chance=chance, seed=seed)
    except InputError:
        return None


def _told(found: Diagnosis) -> dict[str, Any]:
    """A diagnosis as the report takes it."""

    def gain(interval: Any, basis: str) -> dict[str, Any]:
        if interval is None:
            return dict(as_data(unavailable("1", "no gain can be foretold from this curve")))
        return dict(as_data(estimated(interval.value, "1", low=interval.low, high=interval.high, note=basis)))

    return {
        "verdict": found.verdict,
        "reason": "; ".join(e.text for e in found.evidence),
        "evidence": [
            {"sign": e.name, "value": as_data(estimated(e.value, "1", note="read off the curve")), "means": e.text}
            for e in found.evidence
        ],
        "remedies": [{"do": r.name, "gain": gain(r.gain, r.basis), "why": r.why} for r in found.remedies],
    }
