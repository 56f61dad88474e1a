"""ResNet-20 with half its MACs, cut and repaired alone: no training, no labels, 512 images; how far does test accuracy drop?

    python benchmarks/one_shot.py --data CIFAR.zip --weights W.safetensors     # some 10 min of one core

Widths, ranks and blocks are chosen by the tools of the road, MACs in the place of latency: one-knob losses (`road.prober`), the
front that they predict, then `--rounds` rounds of eight whole plans proposed near half the MACs. Every loss is the divergence
from the untouched network on images that repair was not given: of 512 training images 384 are repaired on and 128 read. The
plan of least loss within the bound is then repaired on all 512, its MACs are counted on the model itself, and it is run, beside
the untouched network, on all 10,000 test images, which nothing before has seen. The uniform half of every inner width is there
to compare with. Interval: paired, normal, over test images.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from equipoise.compress.builder import Builder
from equipoise.compress.statistics import collect
from equipoise.compress.subject import Subject
from equipoise.measure import machine
from equipoise.measure.counts import count
from equipoise.records import Plan
from equipoise.road.features import Features
from equipoise.road.prober import Change, Prober
from equipoise.road.survey import survey
from equipoise.search import Evaluated, first_points, fit_loss, loss_table, predicted_front, propose, to_measure
from equipoise.workloads.divergence import Divergence
from equipoise.workloads.models import ResNet

IMAGES, FITTED = 512, 384
WORST = 0.3
"""Nats beyond which a plan is of no interest."""
KINDS = ("width", "rank", "depth")
OF = {"onnxruntime:cpu": (32,)}


class Macs:
    """MACs of genomes, in closed form."""

    def __init__(self, features: Features) -> None:
        self._features = features

    def many(self, genomes: np.ndarray) -> np.ndarray:
        """Return the MACs of each `(n,)`."""
        return self._features.macs(genomes)[:, 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="zip of CIFAR-10 images")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors of ResNet-20")
    parser.add_argument("--times", type=float, default=2.0, help="how many times fewer MACs (%(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="of eight whole plans (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which images, and the draws of the search")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    calibration, _ = images(args.data, "train", IMAGES, args.seed)
    network = ResNet(20).eval()
    network.load_state_dict(load_file(args.weights))
    builder = Builder(Subject.prepare(network, calibration[:2], calibration[:FITTED]))
    chosen, table_s, losses = searched(builder, calibration[FITTED:], args)
    subject = builder.subject
    whole = Builder(replace(subject, calibration=calibration, statistics=collect(subject.model, calibration)))
    half = Plan({name: int(offer.menu[0]) // 2 for name, offer in builder.offers.items() if inner(name)})
    seconds = time.process_time() - began
    pixels, labels = images(args.data, "test", 10_000, 0)
    right = {"untouched": correct(subject.model, pixels, labels)}
    macs = {"untouched": counted(subject.model, calibration)}
    for name, plan in {"chosen": chosen, "half of every inner width": half}.items():
        model = whole.build(plan).model
        right[name], macs[name] = correct(model, pixels, labels), counted(model, calibration)
    rows = {name: row(right["untouched"], found, macs["untouched"] / macs[name]) for name, found in right.items()}
    result = {
        "what": __doc__.splitlines()[0], "plan": dict(chosen.choices), "rows": rows, "seed": args.seed, "table_cpu_s": table_s,
        "search_cpu_s": seconds, "losses": losses, "machine": machine.describe(),
    }  # fmt: skip
    out = args.out or Path(__file__).parent / "results" / "one_shot_resnet20.json"
    out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print(json.dumps(rows, indent=1))


def searched(builder: Builder, read: torch.Tensor, args: argparse.Namespace) -> tuple[Plan, float, dict[str, float]]:
    """Return the plan of least loss on `read` within the bound on MACs, the processor seconds of the table, and the losses."""
    facts = survey(builder, OF)
    layers = facts.layers
    space = facts.space.restrict({k.name: k.menu[:1] for k in facts.space.knobs if k.kind not in KINDS})
    macs = Macs(Features(space, layers, {}, (32,)))
    with torch.no_grad():
        reference = builder.subject.model(read)
    prober = Prober(builder.subject.model, builder.subject.calibration, read, reference, Divergence("softmax"))
    began = time.process_time()
    measured = {}
    for name, choice in to_measure(space, most=10_000):
        draft = builder.changed(name, choice, {})
        kept = {layer: places for (layer, axis), places in draft.keep.items() if axis == "out"}
        make, reach = (lambda n=name, c=choice: builder.changed(n, c, {}).model), builder.reach(name, draft)
        measured[name, choice] = prober.loss(Change(make, reach, kept, draft.renamed, draft.damaged), len(read)).mean
    table, spent = loss_table(space, measured), time.process_time() - began
    print(f"{len(measured)} entries in {spent:.0f} s", flush=True)
    bound = float(macs.many(space.encode_all([space.untouched]))[0]) / args.times
    seen: dict[Plan, tuple[float, float]] = {space.untouched: (bound * args.times, 0.0)}

    def evaluate(plan: Plan) -> None:
        with torch.no_grad():
            loss = float(Divergence("softmax").loss(builder.build(plan).model(read).double(), reference.double()))
        seen[plan] = (float(macs.many(space.encode_all([plan]))[0]), loss)
        print(f"{bound * args.times / seen[plan][0]:.2f}x fewer MACs: {loss:.4f} nats", flush=True)

    front = predicted_front(space, table, [macs])
    front = front[np.any(front > 0, axis=1)]
    for plan in first_points(space, front, macs.many(front), table.sums(front), n=8, focus=bound):
        evaluate(plan)
    for turn in range(args.rounds):
        values = np.array(list(seen.values()))
        known = Evaluated(space.encode_all(list(seen)), values[:, :1], values[:, 1])
        model = fit_loss(table, known.genomes, known.losses)
        rng = np.random.default_rng([args.seed, turn])

        def excess(genomes: np.ndarray) -> np.ndarray:
            return np.maximum(macs.many(genomes) / bound - 1, 0.0)[:, None]

        for plan in propose(space, model, [macs], known, rng=rng, q=8, worst_loss=WORST, excess=excess, focus=bound):
            evaluate(plan)
    best = min((plan for plan, (cost, _) in seen.items() if cost <= bound), key=lambda plan: seen[plan][1])
    return best, spent, {f"{cost / bound / args.times:.4f}": loss for cost, loss in seen.values()}


def inner(name: str) -> bool:
    """Whether the width is of the first convolution of a block."""
    return name.startswith("width.layer") and name.endswith(".conv1")


def row(untouched: np.ndarray, found: np.ndarray, times: float) -> dict[str, Any]:
    """Accuracy in percent, the drop in points with its 95 % interval, and how many times fewer MACs."""
    lost = 100 * (untouched.astype(float) - found)
    half = 1.96 * lost.std(ddof=1) / np.sqrt(len(lost))
    return {"accuracy": 100 * float(found.mean()), "drop": float(lost.mean()), "half_width": float(half), "fewer_macs": times}


def counted(model: torch.nn.Module, inputs: torch.Tensor) -> float:
    """MACs of one image, counted on the model."""
    return float(count(model, inputs[:1]).macs)


@torch.inference_mode()
def correct(model: torch.nn.Module, pixels: torch.Tensor, labels: np.ndarray) -> np.ndarray:
    """Whether each image is classified right."""
    return torch.cat([model(some).argmax(1) for some in pixels.split(250)]).numpy() == labels


def images(data: Path, split: str, n: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Draw `n` images (n, 3, 32, 32) of a split at random, normalized, and their labels."""
    with zipfile.ZipFile(data) as held:
        names = sorted(name for name in held.namelist() if name.startswith(f"{split}/") and name.endswith(".jpg"))
        classes = sorted({name.split("/")[1] for name in names})
        chosen = [names[i] for i in np.random.default_rng(seed).permutation(len(names))[:n]]
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(held.read(name))).convert("RGB")) for name in chosen])
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    scaled = (torch.from_numpy(pixels).float() / 255 - mean) / std
    return scaled.permute(0, 3, 1, 2).contiguous(), np.array([classes.index(name.split("/")[1]) for name in chosen])


if __name__ == "__main__":
    main()
