"""Does closed-form repair ever harm? Plans cut alone, repaired by the former rule, and as now, on the same held inputs.

    PHOTOGRAPHS=... WEIGHTS=... python benchmarks/repair.py efficientnet      # 25 min on a busy core, see efficientnet.py
    python benchmarks/repair.py resnet20 --data CIFAR.zip --weights W.safetensors
    python benchmarks/repair.py minilm --data sst2/ --weights FOLDER     # a fine-tuned encoder, its head in head.safetensors

Plans are the ones named in `KNOWN` (which the former rule harmed), then others drawn at random: one knob each, and several
together. Every layer downstream of the change is re-solved on 256 inputs without labels. The loss is the divergence from the
untouched model in nats, mean over inputs that repair has not seen. The former rule is the present one without its second part:
a ridge relative to the variance of each column alone; it fitted no convolution in groups. Of each plan all three are read on
the same inputs, and the processor seconds of both repairs are told.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from equipoise.batch import Inputs, take
from equipoise.compress import repair as repairing
from equipoise.compress.builder import Builder
from equipoise.compress.statistics import Target, decomposed
from equipoise.compress.subject import Subject
from equipoise.compress.suffix import Suffixes
from equipoise.compress.technique import Draft
from equipoise.measure import machine
from equipoise.records import Plan
from equipoise.road.survey import survey
from equipoise.workloads.divergence import Divergence

FITTED = 256
KINDS = ("width", "rank", "depth")
KNOWN: dict[str, tuple[tuple[str, int], ...]] = {
    "efficientnet": (
        ("rank.blocks.4.1.conv_pw", 50),
        ("width.blocks.5.0.conv_pwl", 48),
        ("width.blocks.3.1.conv_pw", 176),
        ("rank.blocks.4.1.conv_pwl", 50),
        ("rank.blocks.3.0.conv_pwl", 25),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("efficientnet", "resnet20", "minilm"))
    parser.add_argument("--data", help="of resnet20: zip of CIFAR-10 images; of minilm: folder of SST-2")
    parser.add_argument("--weights", help="of resnet20: safetensors; of minilm: folder of the encoder")
    parser.add_argument("--single", type=int, default=12, help="plans of one knob, drawn at random (%(default)s)")
    parser.add_argument("--joint", type=int, default=5, help="plans of several knobs (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, fitted, held = {"efficientnet": photographs, "resnet20": images, "minilm": sentences}[args.model](args)
    builder = Builder(Subject.prepare(model, take(fitted, slice(2)), fitted))
    teacher = builder.subject.model
    fitting = Suffixes(teacher, fitted, step=FITTED)
    scoring = Suffixes(teacher, held, step=64)
    reference = [scoring.run(teacher, None, batch=i) for i in range(len(scoring.batches))]
    rows = []
    out = Path(__file__).parent / "results" / f"repair_{args.model}.json"
    for plan in plans(builder, args):
        draft, reach = draft_of(builder, plan)
        row: dict[str, Any] = {"plan": dict(plan.choices)}
        each = {"cut": losses(scoring, draft.model, reach, reference)}
        for way in ("former", "now"):
            began = time.process_time()
            mended = repaired(builder, draft, fitting, reach, former=way == "former")
            row[f"{way}_cpu_s"] = round(time.process_time() - began, 2)
            each[way] = losses(scoring, mended, reach, reference)
        row |= {way: float(found.mean()) for way, found in each.items()}
        gap = each["now"] - each["former"]
        row["now_less_former"] = [float(gap.mean()), 1.96 * float(gap.std()) / math.sqrt(len(gap))]
        rows.append(row)
        print({k: v for k, v in row.items() if k != "plan"}, str(row["plan"])[:90], flush=True)
        result = {"what": __doc__.splitlines()[0], "n_held": len(gap), "rows": rows, "machine": machine.describe()}
        out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


def plans(builder: Builder, args: argparse.Namespace) -> Iterator[Plan]:
    """Those known, then some drawn at random."""
    yield from (Plan(dict([choice])) for choice in KNOWN.get(args.model, ()))
    space = survey(builder, {"onnxruntime:cpu": (32,)}).space
    space = space.restrict({knob.name: knob.menu[:1] for knob in space.knobs if knob.kind not in KINDS})
    rng = np.random.default_rng(args.seed)
    every = [(knob.name, choice) for knob in space.knobs for choice in knob.menu[1:]]
    yield from (Plan(dict([every[i]])) for i in rng.permutation(len(every))[: args.single])
    for _ in range(args.joint):
        mild = (rng.random(len(space.knobs)) < 0.33).astype(np.int64)
        genome = space.canonical(np.minimum(mild * rng.integers(1, 3, len(mild)), space.sizes - 1)[None])
        chosen = space.decode(genome[0]).choices
        yield Plan({name: choice for name, choice in chosen.items() if choice != space.knob(name).menu[0]})


def draft_of(builder: Builder, plan: Plan) -> tuple[Draft, frozenset[str] | None]:
    """Return the draft of a plan, not repaired, and in which modules it differs; None where that is not known."""
    with mock.patch.object(Builder, "_repaired", lambda _self, draft, _plan, _whole: draft.model):
        draft = builder.build(plan)
    return draft, builder.reach(next(iter(plan.choices)), draft) if len(plan.choices) == 1 else None


def repaired(
    builder: Builder, draft: Draft, fitting: Suffixes, reach: frozenset[str] | None, *, former: bool
) -> torch.nn.Module:
    """Re-solve every layer downstream of the change, by the former rule or as now."""
    subject = builder.subject
    assert subject.statistics is not None
    assert subject.calibration is not None
    kept = {draft.renamed.get(name, name): places for (name, axis), places in draft.keep.items() if axis == "out"}
    fitted = {n: t for n, t in subject.statistics.targets.items() if not former or was_fitted(subject, n)}
    targets = {draft.renamed.get(name, name): target for name, target in fitted.items()}
    first = 0 if reach is None else fitting.script.first(reach)
    back = {new: old for old, new in draft.renamed.items()}
    after: dict[str, Target] = {n: t for n, t in targets.items() if fitting.script.last([back.get(n, n)]) >= first}
    rule = (lambda moment, ridge, *, each: decomposed(moment, ridge)) if former else decomposed

    def through(model: torch.nn.Module, _inputs: Inputs, answer: Any) -> Any:
        return fitting.run(model, reach, answer=answer)

    with mock.patch.object(repairing, "decomposed", rule):
        return repairing.refit(
            draft.model, subject.calibration, targets=after, kept=kept, through=through, held=repairing.HELD
        )  # fmt: skip


def was_fitted(subject: Subject, name: str) -> bool:
    """Whether the former rule fitted the layer."""
    return getattr(subject.model.get_submodule(name), "groups", 1) == 1 and not name.endswith(".out_proj")


@torch.no_grad()
def losses(
    scoring: Suffixes, model: torch.nn.Module, reach: frozenset[str] | None, reference: list[torch.Tensor]
) -> torch.Tensor:
    """Return the divergence of each held input (n,)."""
    of = Divergence("softmax").loss
    model = model.eval()
    found = [scoring.run(model, reach, batch=i).double() for i in range(len(scoring.batches))]
    pairs = zip(torch.cat(found).split(1), torch.cat(reference).double().split(1), strict=True)
    return torch.stack([of(ours, theirs) for ours, theirs in pairs])


def photographs(_args: argparse.Namespace) -> tuple[torch.nn.Module, Inputs, Inputs]:
    """EfficientNet-Lite0; 256 photographs of train, all of validation and test."""
    from efficientnet import make_workload

    work = make_workload()
    assert work.test is not None
    held = [split.tensors()[0] for split in (work.validation, work.test)]
    return work.model.eval(), work.calibration.take(FITTED).tensors()[0], torch.cat(held)


def images(args: argparse.Namespace) -> tuple[torch.nn.Module, Inputs, Inputs]:
    """ResNet-20; 256 images of train, 1,000 of test."""
    from one_shot import images as drawn
    from safetensors.torch import load_file

    from equipoise.workloads.models import ResNet

    network = ResNet(20).eval()
    network.load_state_dict(load_file(args.weights))
    data = Path(args.data)
    return network, drawn(data, "train", FITTED, 0)[0], drawn(data, "test", 1000, 0)[0]


class Sentiment(torch.nn.Module):
    """An encoder and a linear head on the mean of the words that are there."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        from safetensors.torch import load_file
        from transformers import AutoModel

        head = load_file(f"{folder}/head.safetensors")
        self.encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="sdpa")
        self.head = torch.nn.Linear(head["weight"].shape[1], len(head["bias"]))
        self.head.load_state_dict(head)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        there = (input_ids != 0).unsqueeze(-1).float()
        words = self.encoder(input_ids=input_ids, attention_mask=(input_ids != 0).long()).last_hidden_state
        return self.head((words * there).sum(1) / there.sum(1))  # type: ignore[no-any-return]


def sentences(args: argparse.Namespace) -> tuple[torch.nn.Module, Inputs, Inputs]:
    """MiniLM fine-tuned on SST-2; 256 sentences of train, all of dev, 32 tokens each."""
    from photographs import declare_operators

    declare_operators()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.weights)

    def tokens(name: str, n: int) -> torch.Tensor:
        lines = [line.rsplit("\t", 1)[0] for line in (Path(args.data) / name).read_text().splitlines()]
        chosen = [lines[i] for i in np.random.default_rng(0).permutation(len(lines))[:n]]
        made = tokenizer(chosen, padding="max_length", truncation=True, max_length=32, return_tensors="pt")
        return made["input_ids"]  # type: ignore[no-any-return]

    return Sentiment(args.weights).eval(), tokens("train.tsv", FITTED), tokens("dev.tsv", 872)


if __name__ == "__main__":
    main()
