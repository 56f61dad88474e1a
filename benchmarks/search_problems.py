"""Problems for the search duel: one made up, two real networks whose loss is the KL to the untouched network after repair."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import zipfile
from pathlib import Path
from typing import Protocol

import numpy as np

from equipoise.records import Knob, Plan
from equipoise.search import Space

LEVELS = (1.0, 0.75, 0.5, 0.375, 0.25)
"""Shares of the channels that a width menu offers, rounded to multiples of 4."""


class Problem(Protocol):
    """A space whose plans have a known cost and a loss that must be evaluated."""

    name: str
    space: Space
    worst_loss: float

    def cost(self, plan: Plan) -> float: ...

    def evaluate(self, plan: Plan) -> float: ...


class Synthetic:
    """Widths and droppable blocks with power-law losses, interactions between neighbors and a fixed ripple.

    What makes it hard is known: costs are products of neighboring widths, the joint loss is 0.7 of the sum to the power 0.87,
    neighbors cut together hurt more, and each plan has its own log-normal ripple.
    """

    def __init__(self, *, seed: int = 0, widths: int = 9, drops: int = 5, ripple: float = 0.1, clash: float = 0.6) -> None:
        self.name = f"synthetic-{seed}"
        self.worst_loss = 1.0
        rng = np.random.default_rng(seed)
        blocks = [f"layer{1 + 3 * i // widths}.{i}" for i in range(widths)]
        droppable = blocks[len(blocks) - drops :]
        self.space = Space(
            (
                *(Knob(f"width.{b}", (64, 48, 32, 24, 16)) for b in blocks),
                *(Knob(f"depth.{b}", ("keep", "drop")) for b in droppable),
            ),
            moot={(f"depth.{b}", "drop"): (f"width.{b}",) for b in droppable},
        )
        self._blocks, self._ripple = blocks, ripple
        self._scale = np.exp(rng.normal(math.log(0.25), 1.0, widths))
        self._power = rng.uniform(1.5, 3.5, widths)
        self._drop = np.exp(rng.normal(math.log(0.3), 0.6, widths))
        self._clash = clash * rng.random(widths)

    def _state(self, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
        """Share cut of each block, and whether it is gone."""
        cut = np.array([1 - int(plan[f"width.{b}"]) / 64 for b in self._blocks])
        return cut, np.array([plan.choices.get(f"depth.{b}") == "drop" for b in self._blocks])

    def cost(self, plan: Plan) -> float:
        cut, gone = self._state(plan)
        kept = np.where(gone, 0.0, 1 - cut)
        before = np.concatenate([[1.0], kept[:-1]])
        return float(np.sum(0.05 + 0.3 * kept + 0.65 * kept * before))

    def evaluate(self, plan: Plan) -> float:
        cut, gone = self._state(plan)
        part = np.where(gone, self._drop, self._scale * cut**self._power)
        harsh = np.where(gone, 1.0, cut)
        total = part.sum() + float(np.sum(4 * self._clash[1:] * np.sqrt(part[1:] * part[:-1]) * harsh[1:] * harsh[:-1]))
        if total == 0:
            return 0.0
        ripple = np.random.default_rng(int(plan.digest, 16)).normal(0, self._ripple)
        return float(0.7 * total**0.87 * math.exp(ripple))


class Network:
    """Widths and droppable blocks of a trained network.

    Cost: multiply-accumulates of the convolutions and linear layers, from the widths. Loss: mean KL divergence in nats from the
    untouched network on `images`, after one-shot closed-form repair on `calibration`; neither labels nor test images are used.
    """

    def __init__(self, name: str, model: object, calibration: object, images: object, *, worst_loss: float = 1.0) -> None:
        import torch

        from equipoise.compress.builder import Builder
        from equipoise.compress.subject import Subject

        assert isinstance(model, torch.nn.Module)
        assert isinstance(calibration, torch.Tensor)
        assert isinstance(images, torch.Tensor)
        self.name, self.worst_loss = name, worst_loss
        self._images, self.calibration = images, calibration
        subject = Subject.prepare(model, calibration[:2], calibration)
        self._builder = Builder(subject)
        self._target = self._log_probabilities(subject.model)
        self._groups = {g.name: g for g in subject.groups if g.prunable}
        self._macs = _macs(subject.model, calibration[:1])
        widths = [Knob(f"width.{g.name}", _menu(g.size)) for g in self._groups.values() if len(_menu(g.size)) > 1]
        drops = [Knob(f"depth.{b}", ("keep", "drop")) for b in subject.blocks]
        moot = {(d.name, "drop"): tuple(w.name for w in widths if w.place.startswith(d.place + ".")) for d in drops}
        self.space = Space((*widths, *drops), moot)

    def cost(self, plan: Plan) -> float:
        share: dict[str, float] = dict.fromkeys(self._macs, 1.0)
        for name, width in plan.of("width").items():
            group = self._groups[name]
            for layer in (*group.producers, *group.consumers):
                share[layer] *= int(width) / group.size
        gone = tuple(f"{b}." for b, choice in plan.of("depth").items() if choice == "drop")
        return float(sum(macs * share[layer] for layer, macs in self._macs.items() if not layer.startswith(gone or "\n")))

    def evaluate(self, plan: Plan) -> float:
        return self._divergence(self._log_probabilities(self._builder.build(plan).model))

    def _log_probabilities(self, model: object) -> object:
        import torch

        assert isinstance(model, torch.nn.Module)
        with torch.inference_mode():
            return torch.cat([model(batch).double().log_softmax(1) for batch in self._images.split(250)])

    def _divergence(self, student: object) -> float:
        import torch

        assert isinstance(student, torch.Tensor)
        assert isinstance(self._target, torch.Tensor)
        return float((self._target.exp() * (self._target - student)).sum(1).mean().clamp(min=0.0))


def _menu(size: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys(max(4, round(size * level / 4) * 4) for level in LEVELS)) if size > 4 else (size,)


def _macs(model: object, example: object) -> dict[str, float]:
    """Multiply-accumulates of each convolution and linear layer for one input."""
    import torch
    from torch import nn

    assert isinstance(model, nn.Module)
    found: dict[str, float] = {}
    hooks = [
        module.register_forward_hook(
            lambda layer, _, out, name=name: found.__setitem__(name, float(out[0].numel() * layer.weight[0].numel()))
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.inference_mode():
        model(example)
    for hook in hooks:
        hook.remove()
    return found


def digits() -> Network:
    """The embedded digits network: 256 calibration images, loss on the 941 others of the training and validation splits."""
    import torch

    from equipoise.workloads.digits import digits as workload

    work = workload()
    train, validation = work.train.tensors()[0], work.validation.tensors()[0]
    return Network("digits", work.model, train[:256], torch.cat([train[256:], validation]), worst_loss=0.3)


def resnet20(data: Path | None = None) -> Network:
    """ResNet-20 on the JPEG copy of CIFAR-10: 192 calibration images and 1000 others, all drawn from the training folder.

    Needs ``EQUIPOISE_DATA`` (default ``../shared/data`` beside the checkout) with ``models/`` beside it.
    """
    import torch
    from PIL import Image
    from safetensors.torch import load_file

    from equipoise.workloads.models import ResNet

    root = data or Path(os.environ.get("EQUIPOISE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    with zipfile.ZipFile(root / "cifar10-jpeg.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.startswith("train/") and n.endswith(".jpg"))
        chosen = [names[i] for i in np.random.default_rng(0).permutation(len(names))[:1192]]
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(n)))) for n in chosen])
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    images = ((torch.from_numpy(pixels).float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
    model = ResNet(20).eval()
    model.load_state_dict(load_file(root.parent / "models" / "resnet20-cifar10jpeg.safetensors"))
    return Network("resnet20", model, images[:192], images[192:])


class Remembered:
    """A problem whose evaluations are kept in a JSON file, written after each, so that a rerun is free."""

    def __init__(self, problem: Problem, path: Path) -> None:
        self.problem, self.path = problem, path
        self.name, self.space, self.worst_loss = problem.name, problem.space, problem.worst_loss
        told = repr([(k.name, k.menu) for k in problem.space.knobs])
        self.tag = f"{problem.name}:{hashlib.sha256(told.encode()).hexdigest()[:8]}"
        self.losses: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def cost(self, plan: Plan) -> float:
        return self.problem.cost(plan)

    def evaluate(self, plan: Plan) -> float:
        key = f"{self.tag}:{plan.digest}"
        if key not in self.losses:
            self.losses[key] = self.problem.evaluate(plan)
            spare = self.path.with_suffix(".new")
            spare.write_text(json.dumps(self.losses))
            spare.replace(self.path)
        return self.losses[key]


def problem_of(name: str, *, seed: int = 0, cache: Path | None = None) -> Problem:
    """Return the problem of that name, behind a cache file if one is given."""
    made: Problem = {"synthetic": lambda: Synthetic(seed=seed), "digits": digits, "resnet20": resnet20}[name]()
    return made if cache is None else Remembered(made, cache)
