"""CIFAR-10 from scratch on a CPU: seconds of training to 85 %, beside a plain one-cycle ResNet-20 in the same run.

    python benchmarks/cifar_speed.py --data CIFAR.zip                         # everything, about 5 hours on two cores
    python benchmarks/cifar_speed.py --data CIFAR.zip --seeds 0 --only race   # one seed of the race alone, 1 to 2 hours
    python benchmarks/cifar_speed.py --data CIFAR.zip --precision bf16        # the same, both in bf16
    python benchmarks/cifar_speed.py --summary                                # nothing is trained: what the result file says

Each training run is written to the result file as it ends, and the same command goes on where an earlier one was stopped.

*race*: ``resnet20`` (SGD with Nesterov momentum, one cycle, random shifts and flips) against ``speed`` (the *speed* family and
all that `OURS` says). How many epochs each is trained is chosen by validation accuracy alone, on the first seed: the shortest
of `LENGTHS` that ends above 85 % with half a point to spare. The other seeds then train for as long. The figure is the time
of the first evaluation with at least 85 % on the test images; both are evaluated at the same fractions of their runs.
*ten*: both trained for ``--minutes``, and evaluated once, at the end; ``speed`` with the wider net of `WIDER`.
*parts*: each part of ``speed`` taken away alone, trained for as many seconds as ``speed`` took; the difference of the final
accuracies is what the part gains.
*long* (only when asked for): the nets of *ten* trained ``--long-minutes``, once, for what they could reach; ``--weights``
gives a long-trained ResNet-20 at no cost.

Seconds are wall time of training: making the net and whitening its first layer included; decoding images, evaluation and
loading not, for all alike. Training, validation (5,000) and test images are disjoint; the test images choose nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.measure import machine
from equipoise.measure.counts import count
from equipoise.records import as_data, digest
from equipoise.training.filtering import Filtered, filtered
from equipoise.training.loop import Plan, Progress, run
from equipoise.training.recipe import Recipe
from equipoise.training.resizing import Growing
from equipoise.workloads import Split, metric_of, predict, shifted
from equipoise.workloads.augment import Alternating
from equipoise.workloads.families.speed import SpeedNet
from equipoise.workloads.images import Normalize, read_images
from equipoise.workloads.models import ResNet
from equipoise.workloads.weights import load_weights, read_weights

GOAL, TO_SPARE = 85.0, 0.5
VALIDATION = 5000
MARKS = (*(0.6 + 0.04 * i for i in range(10)), 1.0)
"""Fractions of a run at which it is evaluated."""
RESULT = Path(__file__).parent / "results" / "cifar_speed.json"


@dataclass(frozen=True)
class Way:
    """One way to train: a net, a recipe, and what is done to the images."""

    widths: tuple[int, ...] | None = None  # of the speed net; None is ResNet-20
    recipe: Recipe = field(default_factory=Recipe)
    whitening: bool = True
    identity: bool = True
    alternating: bool = True
    sides: tuple[tuple[float, int], ...] = ((0.0, 32),)
    shift: int = 2
    outside: Literal["zero", "reflect"] = "reflect"
    share: float | None = None  # of each batch that a proxy net lets through
    scale: float | None = None  # of the speed net's logits


ONE_CYCLE = Recipe(
    optimizer="sgd", lr=0.2, schedule="onecycle", momentum=0.9, weight_decay=5e-4, batch=128, clip=None, channels_last=True
)
PLAIN = Way(recipe=ONE_CYCLE, alternating=False, shift=4, outside="zero")
OURS = Way(
    widths=(32, 128, 128),
    recipe=Recipe(
        optimizer="muon",
        lr=0.03,
        schedule="linear",
        warmup=30,
        momentum=0.6,
        second_beta=0.98,
        weight_decay=0.1,
        batch=125,
        clip=None,
        channels_last=True,
        label_smoothing=0.1,
    ),
    sides=((0.0, 16), (0.3, 20), (0.55, 26), (0.75, 32)),
)
WIDER = replace(OURS, widths=(48, 192, 192))
PROXY = (8, 32, 32)
RACE = {"speed": OURS, "resnet20": PLAIN}
TIMED = {"resnet20": PLAIN, "speed": WIDER}
PRECISIONS = ("fp32", "bf16")

LENGTHS = {"resnet20": (12, 18, 27), "speed": (6, 9, 13)}
"""Epochs to choose from, by validation; each about half as many again as the one before."""

PARTS = {
    "whitening": replace(OURS, whitening=False),
    "identity init": replace(OURS, identity=False),
    "alternating flip": replace(OURS, alternating=False),
    "progressive resizing": replace(OURS, sides=((0.0, 32),)),
    "Muon": replace(OURS, recipe=replace(OURS.recipe, optimizer="sgd", lr=0.2, momentum=0.9, weight_decay=5e-4), scale=1 / 9),
    "no proxy filtering": replace(OURS, share=0.5, recipe=replace(OURS.recipe, batch=2 * OURS.recipe.batch)),
}
"""Part -> ours without it. What ours does without, proxy filtering, is there as its own absence."""


def at(way: Way, precision: str) -> Way:
    """Return `way` trained in another precision."""
    return replace(way, recipe=replace(way.recipe, precision=precision))


@dataclass(frozen=True)
class Data:
    """The splits, and training images for the first layer."""

    train: Split
    validation: Split
    test: Split

    @classmethod
    def read(cls, path: Path) -> Data:
        """Decode or load, and hold out a validation split by the fixed shuffle."""
        parts = read_images(path).parts
        train, test = (Split.of(parts[role], name=role, transform=Normalize()) for role in ("train", "test"))
        return cls(train.part(VALIDATION), train.part(0, VALIDATION, name="validation"), test)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="zip or folder of CIFAR-10 images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=10.0, help="of *ten* (10)")
    parser.add_argument("--long-minutes", type=float, default=60.0, help="of *long* (60)")
    parser.add_argument("--only", choices=("race", "ten", "parts", "long"), nargs="+", default=["race", "ten", "parts"])
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of training, for both contenders (fp32)")
    parser.add_argument("--weights", type=Path, help="weights of a long-trained ResNet-20, safetensors")
    parser.add_argument("--summary", action="store_true", help="train nothing, print what the result file says")
    parser.add_argument("--threads", type=int, default=0, help="0 takes torch's choice")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    book = Book(args.out)
    if not args.summary:
        if args.data is None:
            parser.error("--data is needed to train")
        torch.set_num_threads(args.threads or torch.get_num_threads())
        data = Data.read(args.data)
        if args.weights:
            way = at(PLAIN, args.precision)
            book.once("long", "resnet20", way, -1, 0, lambda: given(args.weights, data))
        for stage in args.only:
            if stage == "race":
                race(book, data, args.seeds, args.precision)
            elif stage == "parts":
                parts(book, data, args.seeds, args.precision)
            else:
                minutes = args.minutes if stage == "ten" else args.long_minutes
                timed(book, data, stage, minutes, args.seeds if stage == "ten" else args.seeds[:1], args.precision)
    return summary(book)


# --- stages


def race(book: Book, data: Data, seeds: Sequence[int], precision: str) -> None:
    """Choose each length on the first seed, then train the others in turn."""
    ways = {name: at(way, precision) for name, way in RACE.items()}
    chosen = {name: length_of(book, data, name, way, seeds[0]) for name, way in ways.items()}
    for seed in seeds:
        for name, way in ways.items():
            book.once(
                "race", name, way, seed, chosen[name], lambda w=way, n=name, s=seed: trained(w, data, s, epochs=chosen[n])
            )


def length_of(book: Book, data: Data, name: str, way: Way, seed: int) -> float:
    """Return the shortest length whose validation accuracy at the end is good enough, or the longest."""
    for epochs in LENGTHS[name]:
        found = book.once("race", name, way, seed, epochs, lambda e=epochs: trained(way, data, seed, epochs=e))
        if found["validation"] >= GOAL + TO_SPARE:
            break
    return epochs


def timed(book: Book, data: Data, stage: str, minutes: float, seeds: Sequence[int], precision: str) -> None:
    """Train both for a time, with a schedule that ends with it."""
    for seed in seeds:
        for name, kept in TIMED.items():
            way = at(kept, precision)
            book.once(stage, name, way, seed, minutes, lambda w=way, s=seed: trained(w, data, s, seconds=60 * minutes))


def given(weights: Path, data: Data) -> dict[str, Any]:
    """Score a ResNet-20 that somebody trained for long; it may have seen the validation images."""
    model = ResNet(20)
    load_weights(model, read_weights(weights), name=f"weights {weights}")
    return {"seconds": 0.0, **scored(model, data)}


def parts(book: Book, data: Data, seeds: Sequence[int], precision: str) -> None:
    """Take each part away, for as long as the whole took."""
    whole = book.found("race", "speed", at(OURS, precision))
    if not whole:
        sys.exit("parts need the race first: python benchmarks/cifar_speed.py --only race parts ...")
    longest = max(r["length"] for r in whole)
    seconds = round(statistics.median(r["seconds"] for r in whole if r["length"] == longest))
    for seed in seeds:
        for name, kept in {"": OURS, **PARTS}.items():
            way = at(kept, precision)
            book.once("parts", name, way, seed, seconds, lambda w=way, s=seed: trained(w, data, s, seconds=seconds))


# --- one run


def trained(way: Way, data: Data, seed: int, *, epochs: float | None = None, seconds: float | None = None) -> dict[str, Any]:
    """Train once and return what came out; runs of so many seconds are evaluated at their end alone."""
    started, used = time.perf_counter(), time.process_time()
    model = model_of(way, data.train, seed)
    prepared = time.perf_counter() - started
    curve: list[dict[str, float]] = []
    away = 0.0  # seconds of evaluation, which the loop's clock counts
    marks, live = list(MARKS), model

    def before_step(placed: nn.Module, fraction: float) -> None:
        nonlocal live
        live = placed
        objective.before_step(placed, fraction)

    def on_step(progress: Progress) -> None:
        nonlocal away
        print(f"\r    {progress}, {progress.seconds - away + prepared:.0f} s   ", end="", file=sys.stderr, flush=True)
        if steps is not None and marks and progress.fraction >= marks[0] - 1e-9:
            while marks and progress.fraction >= marks[0] - 1e-9:
                marks.pop(0)
            began = time.perf_counter()
            point = {"fraction": progress.fraction, "seconds": progress.seconds - away + prepared, **scored(live, data)}
            curve.append(point)
            away += time.perf_counter() - began

    batches = Alternating(data.train, seed) if way.alternating else data.train
    steps = None if epochs is None else math.ceil(epochs * len(data.train) / way.recipe.batch)
    objective = Growing(objective_of(way), way.sides)
    generator = torch.Generator().manual_seed(seed)
    augment = shifted(way.shift, flip=not way.alternating, outside=way.outside)
    done = run(
        model,
        batches,
        objective,
        way.recipe,
        generator,
        Plan(steps=steps, seconds=seconds, augment=augment, before_step=before_step, on_step=on_step),
    )
    if steps is None:
        curve.append({"fraction": 1.0, "seconds": done.seconds + prepared, **scored(done.model, data)})
    print(file=sys.stderr)
    counts = count(model.net if isinstance(model, Filtered) else model, data.test.take(1).tensors()[0])
    return {
        **{key: curve[-1][key] for key in ("seconds", "validation", "test")},
        "cpu_seconds": time.process_time() - used,  # evaluation included: beside `seconds`, it tells a crowded machine
        "images": done.steps * way.recipe.batch,
        "params": counts.params,
        "macs": counts.macs,
        "curve": curve,
        "load": machine.describe()["load"],
    }


def model_of(way: Way, train: Split, seed: int) -> nn.Module:
    """Return the untrained net, with its proxy where it has one; the weights depend on the seed alone."""
    images = train.take(1000).tensors()[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if way.widths is None:
            return ResNet(20)
        net, proxy = SpeedNet(way.widths, identity=way.identity, scale=way.scale), SpeedNet(PROXY)
    for whitened in [net] * way.whitening + [proxy]:
        whitened.whiten(images)
    return net if way.share is None else Filtered(net, proxy)


def objective_of(way: Way) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """Cross entropy, on all of a batch or on what a proxy lets through."""

    def entropy(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs), targets, label_smoothing=way.recipe.label_smoothing)

    return entropy if way.share is None else filtered(entropy, F.cross_entropy, share=way.share)


def scored(net: nn.Module, data: Data) -> dict[str, float]:
    """Accuracies in points, in evaluation mode; the net is given back in training mode."""
    net.eval()
    metric = metric_of("accuracy")

    def answer(images: Tensor) -> Tensor:
        found: Tensor = net(images.contiguous(memory_format=torch.channels_last))
        return found

    found = {name: metric.score(*predict(answer, getattr(data, name), batch=500)) for name in ("validation", "test")}
    net.train()
    return found


# --- what is kept, and what it says


class Book:
    """The result file: runs by stage, name, way, seed and length (epochs, minutes or seconds), written whole after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        kept: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        self.runs: list[dict[str, Any]] = kept.get("runs", [])

    def once(
        self, stage: str, name: str, way: Way, seed: int, length: float, make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return the recorded run, or make and record it."""
        key = {"stage": stage, "name": name, "way": digest(as_data(way)), "seed": seed, "length": length}
        for kept in self.runs:
            if all(kept[k] == v for k, v in key.items()):
                return kept
        print(f"{stage}: {name or 'the whole'}, seed {seed}, length {length:g}", file=sys.stderr)
        made = {**key, **make()}
        self.runs.append(made)
        self.write()
        print(f"    {made['seconds']:.0f} s, validation {made['validation']:.2f}, test {made['test']:.2f}", file=sys.stderr)
        return made

    def found(self, stage: str, name: str, way: Way) -> list[dict[str, Any]]:
        """Return the runs of one contender as it is now; runs of an earlier recipe stay in the file, and count for nothing."""
        return [r for r in self.runs if (r["stage"], r["name"], r["way"]) == (stage, name, digest(as_data(way)))]

    def write(self) -> None:
        """Replace the file by one with everything recorded so far."""
        facts = {
            "what": "CIFAR-10 (JPEG copy) from scratch; seconds are training alone; see benchmarks/cifar_speed.py",
            "ways": {"resnet20": asdict(PLAIN), "speed": asdict(OURS), "wider": asdict(WIDER)},
            "threads": torch.get_num_threads(),
            "machine": machine.describe(),
            "summary": list(lines(self)),
            "runs": self.runs,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        os.replace(part, self.path)


def summary(book: Book) -> int:
    print(*lines(book), sep="\n")
    ratios = ratios_of(book, "fp32", "fp32")
    return 0 if ratios and min(ratios) >= 3 else 1


def lines(book: Book) -> Iterator[str]:
    """Every figure with n and spread, from the recorded runs; precisions in which nothing was run are left out."""
    for precision in PRECISIONS:
        if any(book.found(stage, "speed", at(way, precision)) for stage, way in (("race", OURS), ("ten", WIDER))):
            yield from (f"{precision}: {line}" for line in lines_in(book, precision))
    if told_mixed := ratios_of(book, "fp32", "bf16"):
        yield f"times fewer seconds, ours in bf16 against the plain recipe in fp32: {told(told_mixed, '.2f')}"


def lines_in(book: Book, precision: str) -> Iterator[str]:
    """The figures of one precision."""
    for name in RACE:
        seconds = list(reached(book, name, precision).values())
        yield f"seconds to {GOAL:g} % (test), {name}: {told(seconds, '.0f')}"
    yield f"times fewer seconds: {told(ratios_of(book, precision, precision), '.2f')}"
    for name, way in TIMED.items():
        short, long = ([r["test"] for r in book.found(stage, name, at(way, precision))] for stage in ("ten", "long"))
        yield f"test accuracy of *ten*, {name}: {told(short, '.2f')}"
        if short and long:
            yield f"    % of a long-trained net of its size ({max(long):.2f}): {100 * statistics.median(short) / max(long):.1f}"
    whole = {(r["seed"], r["length"]): r["test"] for r in book.found("parts", "", at(OURS, precision))}
    for name, way in PARTS.items():
        kept = [r for r in book.found("parts", name, at(way, precision)) if (r["seed"], r["length"]) in whole]
        gains = [whole[r["seed"], r["length"]] - r["test"] for r in kept]
        yield f"points gained by {name}, at equal seconds: {told(gains, '+.2f')}"


def reached(book: Book, name: str, precision: str) -> dict[int, float]:
    """Seed -> seconds to the goal on the test images, of the runs of the length that was chosen (the longest that was run)."""
    kept = book.found("race", name, at(RACE[name], precision))
    longest = max((r["length"] for r in kept), default=0)
    found = {}
    for r in kept:
        times = [point["seconds"] for point in r["curve"] if point["test"] >= GOAL]
        if r["length"] == longest and times:
            found[r["seed"]] = times[0]
    return found


def ratios_of(book: Book, plain_precision: str, our_precision: str) -> list[float]:
    """How many times fewer seconds, by seed."""
    plain, ours = reached(book, "resnet20", plain_precision), reached(book, "speed", our_precision)
    return [plain[seed] / ours[seed] for seed in sorted(plain.keys() & ours.keys())]


def told(values: Sequence[float], form: str) -> str:
    """Median, range and n."""
    if not values:
        return "not reached, or not run"
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}], n = {len(values)}"


if __name__ == "__main__":
    sys.exit(main())
