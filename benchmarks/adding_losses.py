"""What single changes lose, added up in different ways, against what plans of many of them lose.

    python benchmarks/adding_losses.py resnet20 --workload "cifar10:CIFAR.zip?weights=W.safetensors&holdout=3000&shift=2"
    python benchmarks/adding_losses.py minilm   --workload "sentiment:SST2?model=FOLDER&length=32"

Random plans change a twelfth to a half of all knobs (precision only where weights alone are rounded), are built and repaired as
the search does, and their divergence is read on `--samples` validation inputs. The entries of the loss table are read on 128.
For each share of the angles that counts (0: the plain sum), a line in logarithms is fitted on all plans; what is told is the
rank correlation and the standard deviation of what is left.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from equipoise import workloads
from equipoise.batch import call, parts
from equipoise.measure import machine
from equipoise.records import Choice, Plan
from equipoise.road import entries, probing
from equipoise.road.bench import Workbench
from equipoise.road.facts import TARGET
from equipoise.runtimes import parse_targets
from equipoise.schemes import scheme
from equipoise.search import Space, loss_table, tables
from equipoise.search.tables import EPSILON

sys.path.insert(0, str(Path(__file__).parent))
import photographs

RESULTS = Path(__file__).parent / "results"
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
READ = 128
"""Samples that an entry is read on."""


def main() -> None:
    photographs.declare_operators()  # transformers and timm import torchvision
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", help="names the result file")
    parser.add_argument("--workload", required=True)
    parser.add_argument("--plans", type=int, default=40)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--only", default="", help="kinds of knobs to change, with commas between; else all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Workbench(workloads.load(args.workload), parse_targets("onnxruntime:cpu"), lambda content: "0" * 64)
    space, prober = bench.facts.space, probing.prober(bench)
    plans = drawn(space, args.plans, args.only.split(",") if args.only else [], np.random.default_rng(args.seed))
    read: dict[entries.Key, entries.Loss] = {}
    for knob in space.knobs:
        for choice in dict.fromkeys(plan[knob.name] for plan in plans):
            if choice != knob.menu[0]:
                read[knob.name, choice] = prober.loss(probing.change_of(bench.builder, prober, knob.name, choice), READ)
    inputs = bench.work.validation.take(args.samples).tensors()[0]
    wanted = answers(bench.teacher, inputs)
    lost = []
    for place, plan in enumerate(plans):
        model = bench.on_grid(bench.build(plan)).model
        lost.append(bench.work.divergence.between(wanted, answers(model, inputs)))
        print(f"\rplan {place + 1} of {len(plans)}: {lost[-1]:.4f}", end="", flush=True)
    known = {(name, choice): loss.mean for (name, choice), loss in read.items()}
    for knob in space.knobs:  # what no plan has needs no reading, but a table is whole
        known |= {(knob.name, c): 1.0 for c in knob.menu[1:] if (knob.name, c) not in known and not knob.nested}
        if knob.nested and not any(name == knob.name for name, _ in known):
            known[knob.name, knob.menu[-1]] = 1.0
    toward = {key: entries.directed(loss.toward) for key, loss in read.items() if loss.toward}
    table, genomes = loss_table(space, known, toward=toward), space.encode_all(plans)
    target, rows = np.log(np.array(lost) + EPSILON), {}
    for share in SHARES:
        tables.TOGETHER = share
        sums = np.log(table.sums(genomes) + EPSILON)
        line = np.polyfit(sums, target, 1)
        left = target - np.polyval(line, sums)
        row = {"rank": float(spearmanr(sums, target)[0]), "left": float(left.std()), "line": line.tolist()}
        rows[f"{share:g}"] = row
        print(f"\nshare {share:4.2f}: rank correlation {row['rank']:.3f}, left {row['left']:.3f}", end="", flush=True)
    print()
    result = {
        "what": f"{bench.work.name}: divergence of {len(plans)} random plans on {len(wanted)} samples, entries on {READ}",
        "only": args.only,
        "seed": args.seed,
        "shares": rows,
        "divergences": lost,
        "machine": machine.describe(),
    }
    name = f"adding_losses_{args.subject}{'_' + args.only.replace(',', '_') if args.only else ''}"
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


def drawn(space: Space, count: int, only: list[str], rng: np.random.Generator) -> list[Plan]:
    """Return random plans, each with its own share of changed knobs; small steps of a width are likelier, blocks seldom go."""
    plans = []
    for _ in range(count):
        share, changes = rng.uniform(0.08, 0.5), dict[str, Choice]()
        for knob in space.knobs:
            last = len(knob.menu) - 1
            if knob.name == TARGET or not last or (only and knob.kind not in only) or rng.random() > share:
                continue
            if knob.kind == "depth" and rng.random() < 0.6:
                continue
            step = min(int(rng.geometric(0.5)), last) if knob.kind == "width" else int(rng.integers(1, last + 1))
            choice = knob.menu[step]
            if knob.kind != "bits" or scheme(choice).inputs == "float":
                changes[knob.name] = choice
        plans.append(space.untouched.but(changes))
    return space.decode_all(space.canonical(space.encode_all(plans)))


@torch.no_grad()
def answers(model: torch.nn.Module, inputs: torch.Tensor) -> np.ndarray:
    return torch.cat([call(model, few) for few in parts(inputs, 100)]).double().numpy()


if __name__ == "__main__":
    main()
