"""Real architectures, built small: names from timm and torchvision, widths and depths cut where their makers let us.

Both libraries are installed without their dependencies (their CPU builds would bring another torch), so torchvision's own
operators are only declared, never called.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, call, positional


@dataclass(frozen=True)
class Architecture:
    """One architecture: where its maker lives, the side of its square input, and what makes it small."""

    source: str
    name: str
    side: int = 64
    options: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    output: Any = None
    refused: str = ""

    def __str__(self) -> str:
        return f"{self.source}:{self.name}"

    @property
    def kind(self) -> str:
        """What it is for."""
        if self.name.startswith(("deeplab", "fcn", "lraspp")):
            return "segmentation"
        return "video" if self.shape else "images"

    def inputs(self, count: int) -> Tensor:
        """Return `count` inputs from a fixed seed."""
        shape = self.shape or (3, self.side, self.side)
        return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))

    def built(self) -> nn.Module:
        """Return the model in eval mode: weights from a fixed seed, none of them zero, BatchNorm statistics of its own."""
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: nn.Module = _MAKERS[self.source](self)
        lively(model, self.inputs(16))
        return model.eval()


@torch.no_grad()
def lively(model: nn.Module, inputs: Inputs) -> None:
    """Make every parameter and statistic count: nothing starts at zero or one, so that whatever is lost shows."""
    generator = torch.Generator().manual_seed(2)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    for parameter in model.parameters():
        if float(parameter.abs().max()) < 1e-3:  # biases, and gains of residual branches that start at nothing
            parameter.copy_(uniform(parameter, -0.3, 0.3))
    norms = [module for module in model.modules() if isinstance(getattr(module, "running_var", None), Tensor)]
    if not norms:
        return
    for norm in norms:
        if norm.weight is not None:
            norm.weight.copy_(uniform(norm.weight, 0.5, 1.5))
        norm.momentum = None
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout) or type(module).__name__ == "DropPath":
            module.eval()
    call(model, positional(inputs) if isinstance(inputs, tuple) else inputs)
    for norm in norms:
        norm.running_mean.add_(uniform(norm.running_mean, -0.2, 0.2) * norm.running_var.sqrt())
        norm.running_var.mul_(uniform(norm.running_var, 0.7, 1.4))
        norm.momentum = 0.1


def _timm(architecture: Architecture) -> nn.Module:
    import timm

    return timm.create_model(architecture.name, pretrained=False, num_classes=7, **architecture.options)


def _torchvision(architecture: Architecture) -> nn.Module:
    from torchvision import models

    name, options = architecture.name, dict(architecture.options)
    made: Callable[..., nn.Module] = models.get_model_builder(name) if name in models.list_models() else _classes()[name]
    if "weights_backbone" in inspect.signature(made).parameters:
        options["weights_backbone"] = None
    return made(num_classes=7, **options)


def _classes() -> Mapping[str, Callable[..., nn.Module]]:
    from torchvision import models
    from torchvision.models import quantization, resnet

    return {
        "basic_resnet": lambda **k: models.ResNet(resnet.BasicBlock, [1, 1, 1, 1], **k),
        "bottleneck_resnet": lambda **k: models.ResNet(resnet.Bottleneck, [1, 1, 1, 1], **k),
        "grouped_resnet": lambda **k: models.ResNet(resnet.Bottleneck, [1, 1, 1, 1], groups=32, width_per_group=4, **k),
        "wide_resnet": lambda **k: models.ResNet(resnet.Bottleneck, [1, 1, 1, 1], width_per_group=128, **k),
        "dilated_resnet": lambda **k: models.ResNet(
            resnet.Bottleneck, [1, 1, 1, 1], replace_stride_with_dilation=[False, True, True], **k
        ),
        "densenet": lambda **k: models.DenseNet(growth_rate=8, block_config=(2, 2, 2, 2), num_init_features=16, **k),
        "vit": lambda **k: models.VisionTransformer(64, 16, 2, 4, 48, 96, **k),
        "swin": lambda **k: models.SwinTransformer([4, 4], 24, [1, 1, 2, 1], [2, 2, 4, 4], [2, 2], **k),
        "swin_v2": lambda **k: _swin_v2(**k),
        "quantizable_mobilenet_v2": lambda **k: quantization.mobilenet_v2(**k),
        "quantizable_resnet18": lambda **k: quantization.resnet18(**k),
    }


def _swin_v2(**options: Any) -> nn.Module:
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    parts = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    return SwinTransformer([4, 4], 24, [1, 1, 2, 1], [2, 2, 4, 4], [2, 2], **parts, **options)


_MAKERS: Mapping[str, Callable[[Architecture], nn.Module]] = {"timm": _timm, "torchvision": _torchvision}


def _of(source: str, *rows: tuple[Any, ...]) -> tuple[Architecture, ...]:
    return tuple(Architecture(source, *row) for row in rows)


_SHALLOW = {"layers": (1, 1, 1, 1)}
_SWIN = {"img_size": 64, "window_size": 2, "depths": (1, 1, 2, 1), "embed_dim": 24}
_VIT = {"img_size": 64, "depth": 2, "embed_dim": 48}

TIMM = _of(
    "timm",
    *((f"test_{name}",) for name in ("byobnet", "convnext", "convnext2", "convnext3", "efficientnet", "efficientnet_evos")),
    *(
        (f"test_{name}",)
        for name in ("efficientnet_gn", "efficientnet_ln", "mambaout", "nfnet", "resnet", "vit", "vit2", "vit4")
    ),
    *((f"test_{name}", 160) for name in ("coatnet", "maxvit", "vit3", "vit_relpos")),
    ("beit_base_patch16_224", 64, {**_VIT, "num_heads": 3}),
    ("cait_xxs24_224", 64, {**_VIT, "num_heads": 3, "depth_token_only": 1}),
    ("coat_lite_tiny", 64, {"img_size": 64}),
    ("convit_tiny", 64, {"img_size": 64, "depth": 3, "local_up_to_layer": 2}),
    ("convnext_atto", 64, {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 48)}),
    ("convnext_zepto_rms", 64, {"depths": (1, 1, 1, 1)}),
    ("convnextv2_atto", 64, {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 48)}),
    ("cs3darknet_s",),
    ("cspnext_tiny",),
    ("davit_tiny", 64, {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 48, 64), "num_heads": (1, 2, 3, 4)}),
    ("deit_tiny_distilled_patch16_224", 64, _VIT),
    ("densenet121", 64, {"growth_rate": 8, "block_config": (2, 2, 2, 2)}),
    ("dla46_c",),
    ("dla60x_c",),
    ("dpn48b", 64, {"k_sec": (1, 1, 1, 1)}),
    ("ecaresnet26t", 64, _SHALLOW),
    ("edgenext_xx_small",),
    ("efficientformerv2_s0", 224),
    ("efficientnet_es",),
    ("efficientnet_lite0",),
    ("efficientvim_m1",),
    ("efficientvit_b0",),
    ("efficientvit_m0", 224),
    ("ese_vovnet19b_slim",),
    ("eva02_tiny_patch14_224", 56, {"img_size": 56, "depth": 2}),
    ("fasternet_t0",),
    ("fastvit_t8",),
    ("ghostnet_050",),
    ("ghostnetv2_100",),
    ("ghostnetv3_050",),
    ("gmlp_ti16_224", 64, {"img_size": 64}),
    ("hardcorenas_a",),
    ("hgnetv2_b0",),
    ("hrnet_w18_small",),
    ("iformer_t",),
    ("inception_next_atto",),
    ("lambda_resnet26t", 64, {"img_size": 64}),
    ("lcnet_035",),
    ("lcnetv2_small",),
    ("legacy_seresnet18",),
    ("levit_128s", 224),
    ("mixer_s32_224", 64, {"img_size": 64}),
    ("mixnet_s",),
    ("mnasnet_small",),
    ("mobilenetv2_035",),
    ("mobilenetv3_small_050",),
    ("mobilenetv4_conv_small_035",),
    ("mobileone_s0",),
    ("mobilevit_xxs",),
    ("mobilevitv2_050",),
    ("nf_resnet26",),
    ("pit_ti_224", 224),
    ("poolformerv2_s12",),
    ("pvt_v2_b0",),
    ("regnetx_002",),
    ("regnety_002",),
    ("regnetz_005",),
    ("repghostnet_050",),
    ("repvgg_a0",),
    ("repvit_m0_9",),
    ("res2net50_14w_8s",),
    ("resnest14d",),
    ("resnet10t",),
    ("resnetrs50", 64, _SHALLOW),
    ("resnetv2_18",),
    ("resnetv2_50", 64, _SHALLOW),
    ("resnext50_32x4d", 64, _SHALLOW),
    ("rexnet_100",),
    ("semnasnet_075",),
    ("seresnet18", 64, _SHALLOW),
    ("shvit_s1",),
    ("skresnet18", 64, _SHALLOW),
    ("starnet_s050",),
    ("swiftformer_xs",),
    ("swin_tiny_patch4_window7_224", 64, _SWIN),
    ("swinv2_tiny_window8_256", 64, _SWIN),
    ("tf_efficientnetv2_b0",),
    ("vit_tiny_patch16_224", 64, _VIT),
    ("vit_tiny_r_s16_p8_224", 64, {"img_size": 64}),
    ("xcit_nano_12_p16_224", 64, {"img_size": 64, "depth": 2}),
)

VISION = _of(
    "torchvision",
    ("alexnet",),
    ("basic_resnet",),
    ("bottleneck_resnet",),
    ("convnext_tiny",),
    ("deeplabv3_mobilenet_v3_large",),
    ("densenet",),
    ("dilated_resnet",),
    ("efficientnet_b0",),
    ("efficientnet_v2_s",),
    ("fcn_resnet50",),
    ("googlenet", 64, {"init_weights": False}),
    ("grouped_resnet",),
    ("inception_v3", 96, {"init_weights": False, "aux_logits": False}),
    ("lraspp_mobilenet_v3_large",),
    ("mc3_18", 32, {}, (3, 4, 32, 32)),
    ("mnasnet0_5",),
    ("mnasnet1_0",),
    ("mobilenet_v2", 64, {"width_mult": 0.35}),
    ("mobilenet_v3_large",),
    ("mobilenet_v3_small",),
    ("quantizable_mobilenet_v2", 64, {"width_mult": 0.35}),
    ("quantizable_resnet18",),
    ("r2plus1d_18", 32, {}, (3, 4, 32, 32)),
    ("r3d_18", 32, {}, (3, 4, 32, 32)),
    ("regnet_x_400mf",),
    ("regnet_y_400mf",),
    ("shufflenet_v2_x0_5",),
    ("shufflenet_v2_x1_0",),
    ("squeezenet1_0",),
    ("squeezenet1_1",),
    ("swin",),
    ("swin_v2",),
    ("vgg11", 32),
    ("vgg11_bn", 32),
    ("vit",),
    ("wide_resnet",),
)

ALL = TIMM + VISION
