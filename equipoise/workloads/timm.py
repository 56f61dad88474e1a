"""A model of timm by its name, with weights from a file: to fine-tune on images. Nothing is downloaded.

timm:mobilenetv2_100?weights=FILE     trained weights, whose last layer gives way where it is of other classes
timm:mobilenetv2_100                  the architecture alone
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from equipoise.errors import InputError, missing_extra, must_be, unknown
from equipoise.workloads.families.base import Family
from equipoise.workloads.families.pretrained import seen
from equipoise.workloads.task import Shape
from equipoise.workloads.weights import load_weights, read_weights

COUNTERS = "num_batches_tracked"
"""BatchNorm's step counters, which some files leave out."""


def timm_family(name: Path, *, weights: Path | None = None) -> Family:
    """Return the family of one architecture of timm; it has no dimensions.

    Images are normalised as its configuration says, and read no larger than that says where the task leaves it open.

    Args:
        name: As ``timm.list_models()`` has it.
        weights: State dict, safetensors or saved by torch. Tensors of other names are taken where they are the same one after
            another: as many, each of the same kind and shape. None: weights are drawn anew.
    Raises:
        InputError: An unknown name, or weights of another model.
        MissingExtraError: timm is not installed.
    """
    library, kind = _library(), str(name)
    if not library.is_model(kind):
        raise unknown("timm model", kind, library.list_models())
    config = library.get_pretrained_cfg(kind)
    about = {} if config is None else config.to_dict()
    tensors = None if weights is None else read_weights(weights)

    def build(_: object, shape: Shape) -> nn.Module:
        net: nn.Module = library.create_model(kind, pretrained=False, num_classes=shape.outputs, in_chans=shape.sample[0])
        if about.get("fixed_input_size") and shape.sample[1:] != tuple(about["input_size"][1:]):
            raise must_be("size", f"the {about['input_size'][1]} that {kind} takes", shape.sample[1:], "Write ?size= so.")
        if tensors is not None:
            _fill(net, tensors, about.get("classifier") or (), f"weights {weights}")
        return net

    return Family(
        f"timm-{kind}",
        (),
        build=build,
        kinds=("images",),
        cost=lambda _: 1.0,
        growth={},
        pretrained=tensors is not None,
        frozen_first=tensors is not None,
        **seen(about),
    )


def _fill(net: nn.Module, tensors: Mapping[str, Tensor], classifier: str | Sequence[str], name: str) -> None:
    """Load trained tensors; where the classifier's are of other classes, the net keeps its own."""
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    wanted = net.state_dict()
    own = {key: value for key, value in wanted.items() if key.rpartition(".")[0] in heads}
    found = dict(tensors) if tensors.keys() & wanted.keys() else _renamed(tensors, wanted, own)
    fresh = {key: value for key, value in own.items() if key not in found or found[key].shape != value.shape}
    load_weights(net, {**found, **fresh}, name=name, remedy="Give the weights of this very architecture.")


def _renamed(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names of the net where both are the same one after another, else as they are named."""
    theirs, ours = ([key for key in table if not key.endswith(COUNTERS)] for table in (tensors, wanted))
    pairs = list(zip(theirs, ours, strict=False))
    same = len(theirs) == len(ours) and all(
        old.rpartition(".")[2] == new.rpartition(".")[2] and (new in own or tensors[old].shape == wanted[new].shape)
        for old, new in pairs
    )
    return {new: tensors[old] for old, new in pairs} if same else dict(tensors)


def _library() -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name == "timm":
            raise missing_extra("timm", "vision") from error
        raise InputError(f"timm cannot be used here: {error}. Install what it needs: pip install torchvision.") from error
    except (ImportError, RuntimeError, OSError) as error:
        remedy = "Install the torchvision that was built for this torch, from where torch came."
        raise InputError(f"timm cannot be used here: {str(error).splitlines()[0]}. {remedy}") from error
    return timm
