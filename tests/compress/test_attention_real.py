"""Heads of attentions as people have them: torch's own, T5's, Swin's of two libraries, vision transformers of three."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import hugging_face
import pytest
import torch
from torch import Tensor, nn
from vision_names import declare

from equipoise.batch import Inputs, call, take
from equipoise.compress.builder import Builder
from equipoise.compress.fold import fold
from equipoise.compress.graph import Group, groups
from equipoise.compress.subject import Subject
from equipoise.records import Plan
from equipoise.runtimes.export import Exporter

WIDTH = 24


class Classified(nn.Module):
    """A model whose answer is one tensor of a record, of images or of tokens."""

    def __init__(self, net: nn.Module, field: str) -> None:
        super().__init__()
        self.net, self.field = net, field

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = getattr(self.net(x), self.field)
        return answer.mean(1) if self.field == "last_hidden_state" else answer


class Asked(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:
        return self.net(input_ids=input_ids, decoder_input_ids=decoder_input_ids).logits  # type: ignore[no-any-return]


class Turned(nn.Module):
    """Torch's encoder and decoder, which read sequences first."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 4, 48), 2, enable_nested_tensor=False)
        self.writes = nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, 4, 48), 2)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        turned = x.transpose(0, 1)
        return self.head(self.writes(turned[:4], self.reads(turned)).transpose(0, 1))  # type: ignore[no-any-return]


def tokens(count: int, length: int = 9) -> Tensor:
    return torch.randint(1, hugging_face.VOCABULARY, (count, length))


def images(count: int, side: int = 32) -> Tensor:
    return torch.randn(count, 3, side, side)


def t5(kind: str) -> nn.Module:
    library = hugging_face.transformers()
    sizes = {"d_model": WIDTH, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4, "use_cache": False}
    config = library.T5Config(vocab_size=hugging_face.VOCABULARY, decoder_start_token_id=0, **sizes)
    return (
        Asked(library.T5ForConditionalGeneration(config))
        if kind == "both"
        else Classified(library.T5EncoderModel(config), "last_hidden_state")
    )


def swin() -> nn.Module:
    library = hugging_face.transformers()
    config = library.SwinConfig(
        image_size=32, patch_size=2, embed_dim=WIDTH, depths=[2, 1], num_heads=[3, 6], window_size=4, num_labels=5
    )
    return Classified(library.SwinForImageClassification(config), "logits")


def of_timm(name: str, **options: Any) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=5, **options)  # type: ignore[no-any-return]


def of_torchvision() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    net = VisionTransformer(32, 8, 2, 4, WIDTH, 48, num_classes=5)
    nn.init.normal_(net.heads.head.weight)
    return net


_SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "depths": (2, 1), "num_heads": (3, 6), "embed_dim": WIDTH}
_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 4}
_BOTH: Callable[[int], Inputs] = lambda n: {"input_ids": tokens(n), "decoder_input_ids": tokens(n, 6)}  # noqa: E731
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Inputs], list[int], tuple[int, ...]]] = {
    # maker, inputs, heads of each attention or stack of them, how many of them go in plans of one export
    "torch": (Turned, lambda n: torch.randn(n, 7, WIDTH), [4, 4, 4, 4, 4, 4], (0, 1, 2)),
    "torchvision": (of_torchvision, images, [4, 4], (0, 1, 2)),
    "timm ViT": (lambda: of_timm("vit_tiny_patch16_224", **_VIT), images, [4, 4], (0, 1, 2)),
    "timm Swin": (lambda: of_timm("swin_tiny_patch4_window7_224", **_SWIN), images, [3, 3, 6], (1,)),
    "transformers Swin": (swin, images, [3, 3, 6], (1, 2)),
    "transformers T5": (lambda: t5("both"), _BOTH, [4, 4, 4], (1,)),
    "transformers T5 encoder": (lambda: t5("encoder"), tokens, [4], (1, 2)),
}
"""Numbers of heads that the code of timm's Swin and of T5's decoder remembers are in the graph: each is another export."""


def made(name: str) -> tuple[nn.Module, Inputs]:
    if name.startswith("transformers") and not hugging_face.INSTALLED:
        pytest.skip("transformers is not installed")
    if name.startswith(("timm", "torchvision")):
        for needed in ("torchvision", *(["timm"] if name.startswith("timm") else [])):
            if importlib.util.find_spec(needed) is None:
                pytest.skip(f"{needed} is not installed: `make test` does it")
        declare()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[name][0]().eval()
        for parameter in model.parameters():
            if parameter.numel() > 1 and float(parameter.detach().std()) < 0.1:  # begun at next to nothing
                parameter.data += 0.2 * torch.randn(parameter.shape)
        return model, MODELS[name][1](64)


def heads(found: tuple[Group, ...]) -> list[Group]:
    return [group for group in found if group.places > 1]


@pytest.mark.parametrize("name", MODELS)
def test_all_heads_are_found_and_proven(name: str) -> None:
    model, data = made(name)
    example = take(data, slice(2))
    found = heads(groups(fold(model, example), example))
    assert [group.size for group in found] == MODELS[name][2]
    assert all(group.prunable for group in found), [(group.name, group.reason) for group in found if not group.prunable]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_what_is_cut_is_repaired_and_exported(name: str) -> None:
    model, data = made(name)
    example = take(data, slice(2))
    builder, exporter = Builder(Subject.prepare(model, example, data)), Exporter()
    found = heads(builder.subject.groups)
    with torch.no_grad():
        wanted = call(model, data)
    for gone in MODELS[name][3]:
        plan = Plan({f"width.{group.name}": group.size - gone for group in found})
        drafts = [builder.build(plan, repair=repair) for repair in (False, True)]
        with torch.no_grad():
            cut, mended = (float((call(draft.model, data) - wanted).square().mean()) for draft in drafts)
        assert mended < 0.5 * cut if gone else max(cut, mended) < 1e-8 * float(wanted.square().mean())
        exporter.onnx(drafts[1].model, example, topology=name)  # it compares its answers with torch's itself
    assert exporter.exports == 1
