"""Bits layer by layer: our losses against Fisher scores, in one integer program, at every budget of bits.

    python benchmarks/mixed_precision.py resnet20     --workload "cifar10:CIFAR.zip?weights=W.safetensors&holdout=3000&shift=2"
    python benchmarks/mixed_precision.py efficientnet --workload benchmarks/efficientnet.py:make_workload
    python benchmarks/mixed_precision.py minilm       --workload "sentiment:SST2?model=FOLDER&length=32"

Each layer's weights are held in 4, 8 or 16 bits; both sides round by the same code and see the same calibration inputs.
*Theirs* is the recipe of ModelOpt's AutoQuantize, from its formula: a layer's score is the sum of (dL/dY)^2 (Y_q - Y)^2 over
its outputs, with one backward pass, made to fall with the bits; an integer program (HiGHS) finds the least sum within a budget.
It is run with L the loss on the labels and with L on labels drawn from the model's own answers: the better of the two counts at
each budget. *Ours* are the losses of the road: one divergence a layer and choice, leant on the second of these scores as its
readings lean on its own (`road.entries.leant`), in the same program. What is compared is the divergence (nats) on validation
inputs that neither saw, paired, with the interval of the difference.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

from equipoise import workloads
from equipoise.batch import Inputs, call, parts, size
from equipoise.compress.fold import folded
from equipoise.compress.rounding import round_layer
from equipoise.compress.statistics import collect
from equipoise.compress.trace import copied
from equipoise.measure import machine
from equipoise.records import Choice, Knob, Plan
from equipoise.road.entries import Key, Loss, leant
from equipoise.runtimes.cpu import has_exact_int8
from equipoise.search import Space
from equipoise.workloads import Workload

sys.path.insert(0, str(Path(__file__).parent))
import photographs

RESULTS = Path(__file__).parent / "results"
BITS: Mapping[Choice, int] = {"float16": 16, "8-weights": 8, "4-weights": 4}
BUDGETS = (4.2, 4.5, 5.0, 5.5, 6.0, 6.5, 7.0, 7.5, 8.0)
BATCH = 64


class Layers:
    """The problem: layers held in few bits, their bits for a cost, the divergence on the calibration inputs for a loss."""

    def __init__(self, work: Workload, *, calibration: int, held_out: int) -> None:
        self.name, self.work = work.name, work
        inputs, self.labels = work.calibration.take(calibration).tensors()
        self.inputs = inputs
        self.held_out = work.validation.take(held_out).tensors()[0]
        self.model = folded(work.model, work.example, data=inputs).model.eval()
        kinds = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.Embedding)
        self.layers = {name: layer for name, layer in self.model.named_modules() if isinstance(layer, kinds)}
        read = frozenset(name for name, layer in self.layers.items() if not isinstance(layer, nn.Embedding))
        moments = collect(self.model, inputs, moments_of=read, targets=False).moments
        self.weights: dict[tuple[str, Choice], tuple[Tensor, Tensor | None]] = {}
        for name, layer in self.layers.items():
            for choice in BITS:
                one = copied(layer)
                round_layer(one, choice, moments.get(name), exact=has_exact_int8())
                bias = getattr(one, "bias", None)
                self.weights[name, choice] = (one.weight.detach(), None if bias is None else bias.detach())
        self.space = Space(tuple(Knob(f"bits.{name}", tuple(BITS)) for name in self.layers))
        self.sizes = {name: layer.weight.numel() for name, layer in self.layers.items()}
        self.model.requires_grad_(True)
        self.work_model = copied(self.model)
        self.wanted, self.wanted_held_out = (self.answers(self.model, given) for given in (inputs, self.held_out))

    def cost(self, plan: Plan) -> float:
        """Bits of a weight in the mean."""
        total = sum(BITS[plan[f"bits.{name}"]] * count for name, count in self.sizes.items())
        return total / sum(self.sizes.values())

    @torch.no_grad()
    def divergences(self, plan: Plan, inputs: Inputs, wanted: Tensor) -> Tensor:
        """Divergence of each sample."""
        for name in self.layers:
            layer: Any = self.work_model.get_submodule(name)
            weight, bias = self.weights[name, plan[f"bits.{name}"]]
            layer.weight.copy_(weight)
            if bias is not None:
                layer.bias.copy_(bias)
        ours, theirs = (self._scores(found) for found in (self.answers(self.work_model, inputs), wanted))
        return (theirs.exp() * (theirs - ours)).sum(-1)

    def _scores(self, outputs: Tensor) -> Tensor:
        scores = self.work.divergence.logits(outputs)
        assert scores is not None, "a model that tells classes"
        return scores.double().log_softmax(-1)

    @torch.no_grad()
    def answers(self, model: nn.Module, inputs: Inputs) -> Tensor:
        return torch.cat([call(model, few) for few in parts(inputs, BATCH)])

    def losses(self, scores: Mapping[Key, float]) -> dict[Key, float]:
        """Return the loss of each layer and choice as the road has it: read alone, leant on its score."""
        alone = {(name, choice): self.space.untouched.but({f"bits.{name}": choice}) for name, choice in self.weights}
        read = {key: float(self.divergences(plan, self.inputs, self.wanted).mean()) for key, plan in alone.items()}
        pairs = ({key: Loss(value, 0.0, 0) for key, value in found.items()} for found in (read, scores))
        return {key: loss.mean for key, loss in leant(*pairs).items()}

    def fisher(self, *, own: bool) -> dict[tuple[str, Choice], float]:
        """The score of each layer and choice; `own` draws the labels from the model's answers."""
        generator = torch.Generator().manual_seed(0)
        scores = dict.fromkeys(self.weights, 0.0)
        done = 0
        for few in parts(self.inputs, BATCH // 4):
            seen: dict[str, tuple[tuple[Any, ...], Tensor]] = {}

            def keep(name: str, module: nn.Module, given: tuple[Any, ...], output: Tensor, seen: Any = seen) -> None:
                output.retain_grad()
                seen[name] = (given, output)

            handles = [layer.register_forward_hook(lambda *a, name=name: keep(name, *a)) for name, layer in self.layers.items()]
            logits = self.work.divergence.logits(call(self.model, few))
            assert logits is not None
            labels = self.labels[done : done + size(few)]
            if own:
                labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
            done += size(few)
            F.cross_entropy(logits, labels, reduction="sum").backward()
            for handle in handles:
                handle.remove()
            with torch.no_grad():
                for name, (given, output) in seen.items():
                    one = copied(self.layers[name])
                    for choice in BITS:
                        weight, bias = self.weights[name, choice]
                        one.weight.copy_(weight)
                        if bias is not None:
                            one.bias.copy_(bias)
                        scores[name, choice] += float((output.grad * (one(*given) - output)).double().square().sum())
            self.model.zero_grad()
        return scores

    def program(self, scores: Mapping[tuple[str, Choice], float], budget: float) -> Plan:
        """The plan of the least sum of scores within a budget of bits, by an integer program."""
        names, ways = list(self.layers), list(BITS)
        loss = np.array([[scores[name, way] for way in ways] for name in names])
        loss = np.maximum.accumulate(loss, axis=1)  # fewer bits never score less
        bits = np.array([[BITS[way] * self.sizes[name] for way in ways] for name in names], dtype=float)
        one_each = np.kron(np.eye(len(names)), np.ones(len(ways)))
        limit = budget * sum(self.sizes.values())
        found = milp(
            loss.ravel() / max(loss.max(), 1e-30),
            integrality=np.ones(loss.size),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(bits.ravel()[None] / limit, -np.inf, 1.0)],
            options={"mip_rel_gap": 1e-6, "time_limit": 60},
        )
        picked = found.x.reshape(loss.shape).argmax(1)
        return Plan({f"bits.{name}": ways[i] for name, i in zip(names, picked, strict=True)})


def main() -> None:
    photographs.declare_operators()  # transformers and timm import torchvision
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", help="names the result file")
    parser.add_argument("--workload", required=True)
    parser.add_argument("--calibration", type=int, default=256, help="inputs that both see (%(default)s)")
    parser.add_argument("--held-out", type=int, default=1000, help="inputs that neither sees (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    problem = Layers(workloads.load(args.workload), calibration=args.calibration, held_out=args.held_out)
    began = time.process_time()
    theirs = {own: problem.fisher(own=own) for own in (False, True)}
    theirs_s = (time.process_time() - began) / 2
    began = time.process_time()
    losses = problem.losses(theirs[True])
    ours_s = time.process_time() - began + theirs_s
    rows = []
    for budget in BUDGETS:
        ours = problem.program(losses, budget)
        plans = {own: problem.program(scores, budget) for own, scores in theirs.items()}
        lost = {own: problem.divergences(plan, problem.held_out, problem.wanted_held_out) for own, plan in plans.items()}
        best = min(lost, key=lambda own: float(lost[own].mean()))
        mine = problem.divergences(ours, problem.held_out, problem.wanted_held_out)
        gap = lost[best] - mine
        rows.append(
            {
                "budget": budget,
                "ours": float(mine.mean()),
                "theirs": {"labels": float(lost[False].mean()), "own answers": float(lost[True].mean())},
                "less_by": float(gap.mean()),
                "error": float(gap.std() / len(gap) ** 0.5),
                "bits": {"ours": problem.cost(ours), "theirs": problem.cost(plans[best])},
            }
        )
        row = rows[-1]
        print(
            f"{budget:.1f} bits: ours {row['ours']:.5f} ({row['bits']['ours']:.2f} bits)  theirs {float(lost[best].mean()):.5f}"
            f" ({row['bits']['theirs']:.2f})  less by {row['less_by']:.5f} +- {1.96 * row['error']:.5f}",
            flush=True,
        )
    result = {
        "what": f"{problem.name}, weights of {len(problem.layers)} layers in 4, 8 or 16 bits; divergence in nats",
        "calibration": size(problem.inputs),
        "held_out": len(problem.wanted_held_out),
        "cpu_s": {"ours": ours_s, "theirs": theirs_s},
        "budgets": rows,
        "machine": machine.describe(),
    }
    (RESULTS / f"mixed_precision_{args.subject}.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
