"""Image classification from a folder or a zip of one: ``train/<class>/*``, ``test/<class>/*``, perhaps ``val/<class>/*``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from equipoise.errors import must_be
from equipoise.workloads.augment import Augment, shifted
from equipoise.workloads.base import Workload
from equipoise.workloads.data import Split
from equipoise.workloads.image_files import Images, Normalize, read_images
from equipoise.workloads.image_stream import Streamed, Streams, stream_images
from equipoise.workloads.learned import learned
from equipoise.workloads.models import ResNet, Shortcut
from equipoise.workloads.task import Task
from equipoise.workloads.weights import load_weights, read_weights

SHIFTED = 8
"""Images are shifted in training by up to one part in so many of their height: 4 pixels of 32, 20 of 160."""
OWN_MODEL = (
    "{name}: builds the ResNet for small images (here depth={depth}, shortcut={shortcut}), no other model: give its weights, "
    "or say what to build, model=FAMILY (timm:mobilenetv2_100, FILE.py:FUNCTION), "
    "or write a function make_workload() that builds your model, and pass FILE.py:make_workload."
)


def image_workload(
    path: Path,
    *,
    weights: Path,
    model: str = "",
    depth: int = 20,
    shortcut: Shortcut = "A",
    shift: int | None = None,
    holdout: int = 0,
    size: int | None = None,
    stream: int = 0,
    crop: float | None = None,
    name: str = "images",
) -> Workload:
    """Return a workload of an image folder and a model with the given weights: our ResNet, or one of a family.

    Without ``val`` images the validation split is carved from the training images by the fixed shuffle. That is right for a
    model that never saw them. One that was trained on all of ``train`` remembers them (ResNet-20 here: 95 % instead of 88 %),
    and its drop there is overstated by points: give `holdout` for such a model.

    Args:
        path: Folder, or zip of one.
        weights: State dict of the model, with as many outputs as there are classes.
        model: ``FAMILY``, or ``FAMILY:width=16,depth=8``, of which `weights` are; empty is our `ResNet`.
        depth, shortcut: Of the `ResNet`.
        shift: Largest random shift in training, in pixels; None is one part in `SHIFTED` of the height. Images are also
            mirrored.
        holdout: Test images that serve as the validation split instead; the test split is the others.
        size: Rows and columns of the images, as of `read_images`.
        stream, crop: As of `image_task`, with a model of a family.
        name: Of the workload.
    Raises:
        InputError: The images or the weights cannot be used.
    """
    if model:
        if (depth, shortcut) != (20, "A"):
            raise must_be("depth and shortcut", "left out with model=", (depth, shortcut), "Write model=FAMILY:depth=8.")
        task = partial(image_task, path, shift=shift, holdout=holdout, size=size, stream=stream, crop=crop, name=name)
        return learned(lambda family: task(most=family.side), model, weights)
    if stream or crop is not None:
        raise must_be("images stream and crop", "given with model=", (stream, crop), "Write model=resnet:depth=20.")
    tensors = read_weights(weights)  # first: it is quick
    images = read_images(path, size=size)
    net = ResNet(depth, classes=len(images.classes), shortcut=shortcut)
    load_weights(net, tensors, name=f"weights {weights}", remedy=OWN_MODEL.format(name=name, depth=depth, shortcut=shortcut))
    splits = _splits(images, holdout)
    return Workload(
        name=name,
        model=net,
        train=splits["train"],
        validation=splits.get("val"),
        test=splits["test"],
        metric="accuracy",
        augment=_augment(images, shift),
        labels=images.classes,
    )


def image_task(
    path: Path,
    *,
    shift: int | None = None,
    holdout: int = 0,
    size: int | None = None,
    most: int | None = None,
    stream: int = 0,
    crop: float | None = None,
    name: str = "images",
) -> Task:
    """Return the task of classifying the images of a folder or zip, without a model.

    Args:
        path, shift, size, name: As for `image_workload`.
        holdout: Test images that serve as the validation split; 0 takes ``val``, or carves it from the training images.
        most: Rows or columns above which images are brought to it, as of `read_images`.
        stream: Processes that read and decode images as they are needed; 0 holds all of them in memory.
        crop: Least share of a training image that a random crop takes (`image_stream.cropped`), in place of the shift; only
            where they are read as they are needed.
    Raises:
        InputError: The images cannot be used.
    """
    if crop is not None and not stream:
        raise must_be("images crop", "given with stream", crop, "Write stream=2&crop=0.35.")
    images: Images | Streams = (
        stream_images(path, size=size, most=most, crop=crop, workers=stream)
        if stream
        else read_images(path, size=size, most=most)
    )
    splits, count = _splits(images, holdout), len(images.classes)
    return Task.of(
        train=splits["train"],
        validation=splits.get("val"),
        test=splits["test"],
        augment=None if crop else _augment(images, shift),
        outputs=count,
        labels=images.classes,
        name=name,
    )


def cifar10_task(path: Path, *, shift: int | None = None, holdout: int = 0) -> Task:
    """Return the CIFAR-10 task: as `image_task`, with ten classes of 32x32 images."""
    task = image_task(path, shift=shift, holdout=holdout, name="cifar10")
    _is_cifar10(task.outputs, task.sample)
    return task


def _augment(images: Images | Streams, shift: int | None) -> Augment:
    height = images.parts["train"].side if isinstance(images, Streams) else images.parts["train"][0].shape[2]
    return shifted(height // SHIFTED if shift is None else shift, flip=True)


def _splits(images: Images | Streams, holdout: int) -> dict[str, Split]:
    """The splits by role, normalised; `holdout` of the test images serve as ``val``."""
    splits = {role: _split(part) for role, part in images.parts.items()}
    splits["train"] = replace(splits["train"], notes=(*splits["train"].notes, *images.notes))
    if holdout:
        test = splits["test"]
        if not 0 < holdout < len(test):
            raise must_be("holdout", f"between 1 and {len(test) - 1}", holdout, "Leave test images to verify on.")
        splits |= {"val": test.part(0, holdout, name="validation"), "test": test.part(holdout, name="test")}
    return splits


def _split(part: Any) -> Split:
    if not isinstance(part, Streamed):
        return Split.of(part, transform=Normalize())
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))
    return Split(part, order, Normalize())


def _is_cifar10(classes: int, shape: tuple[int, ...]) -> None:
    if classes != 10 or shape != (3, 32, 32):
        raise must_be("cifar10", "10 classes of 32x32 images", f"{classes} of {shape}", "Use images:PATH for other sets.")


def cifar10(
    path: Path, *, weights: Path, depth: int = 20, shortcut: Shortcut = "A", shift: int | None = None, holdout: int = 0
) -> Workload:
    """Return the CIFAR-10 workload: as `image_workload`, with ten classes of 32x32 images."""
    work = image_workload(path, weights=weights, depth=depth, shortcut=shortcut, shift=shift, holdout=holdout, name="cifar10")
    _is_cifar10(int(work.model.get_parameter("linear.weight").shape[0]), tuple(work.example.shape[1:]))
    return work
