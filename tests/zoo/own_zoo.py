"""Nets that no library has a name for, one for each way in which a model can be built: what users bring."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import many_inputs
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vision_zoo import lively

sys.path.insert(0, str(Path(__file__).parents[1] / "compress"))
from nets import ResNet20, Stubborn, TextEncoder

Source = torch.Generator


def _conv(wide_in: int, wide: int, stride: int = 1, **more: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(wide_in, wide, 3, stride, **{"padding": 1, **more}), nn.BatchNorm2d(wide), nn.ReLU())


def _conv1d(wide_in: int, wide: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(wide_in, wide, kernel, stride, kernel // 2), nn.BatchNorm1d(wide), nn.ReLU())


# ---- images to images --------------------------------------------------------------------------------------------------------


class UNet(nn.Module):
    """Two steps down and up again, each beside what it had on the way down."""

    def __init__(self, *, transposed: bool = True) -> None:
        super().__init__()
        self.first, self.second, self.deepest = _conv(3, 16), _conv(16, 32), _conv(32, 48)
        self.up1 = nn.ConvTranspose2d(48, 32, 2, 2) if transposed else nn.Conv2d(48, 32, 1)
        self.up2 = nn.ConvTranspose2d(32, 16, 2, 2) if transposed else nn.Conv2d(32, 16, 1)
        self.join1, self.join2, self.head = _conv(64, 32), _conv(32, 16), nn.Conv2d(16, 4, 1)
        self.transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        one = self.first(x)
        two = self.second(F.max_pool2d(one, 2))
        x = self.deepest(F.max_pool2d(two, 2))
        x = self.join1(torch.cat([self.risen(self.up1(x)), two], 1))
        return self.head(self.join2(torch.cat([self.risen(self.up2(x)), one], 1)))

    def risen(self, x: Tensor) -> Tensor:
        return x if self.transposed else F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class DeepLab(nn.Module):
    """Dilated convolutions beside one another and a mean of the whole image, as in DeepLab v3."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 16, 2), _conv(16, 32))
        self.arms = nn.ModuleList(_conv(32, 16, padding=rate, dilation=rate) for rate in (1, 2, 4))
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 16, 1), nn.ReLU())
        self.join, self.head = _conv(64, 24), nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        seen = self.stem(x)
        mean = self.whole(seen).expand(-1, -1, *seen.shape[2:])
        found = self.head(self.join(torch.cat([*(arm(seen) for arm in self.arms), mean], 1)))
        return {"out": F.interpolate(found, size=x.shape[2:], mode="bilinear", align_corners=False), "small": found}


class Pyramid(nn.Module):
    """A feature pyramid: three maps, each with what the coarser ones say, one head for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList([_conv(3, 16, 2), _conv(16, 24, 2), _conv(24, 32, 2)])
        self.sides = nn.ModuleList(nn.Conv2d(wide, 16, 1) for wide in (16, 24, 32))
        self.smooth, self.box, self.score = _conv(16, 16), nn.Conv2d(16, 4, 1), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = []
        for step in self.steps:
            maps.append(x := step(x))
        top = self.sides[2](maps[2])
        found = [top]
        for place in (1, 0):
            top = self.sides[place](maps[place]) + F.interpolate(top, scale_factor=2, mode="nearest")
            found.append(top)
        found = [self.smooth(part) for part in found]
        scores, boxes = (torch.cat([head(part).flatten(2) for part in found], 2) for head in (self.score, self.box))
        return scores, boxes


class SuperResolution(nn.Module):
    """Channels that become pixels, on top of the image made larger."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.body, self.out = nn.Conv2d(3, 24, 3, padding=1), _conv(24, 24), nn.Conv2d(24, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        large = F.interpolate(x, scale_factor=2, mode="nearest")
        return large + F.pixel_shuffle(self.out(self.body(F.relu(self.into(x)))), 2)


class AutoEncoder(nn.Module):
    """Down to a few numbers and up again."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(_conv(3, 16, 2), _conv(16, 32, 2), nn.Flatten(), nn.Linear(32 * 64, 24))
        self.up = nn.Sequential(nn.Linear(24, 32 * 64), nn.ReLU(), nn.Unflatten(1, (32, 8, 8)))
        self.image = nn.Sequential(nn.ConvTranspose2d(32, 16, 2, 2), nn.ReLU(), nn.ConvTranspose2d(16, 3, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.image(self.up(self.down(x)))


# ---- images to classes -------------------------------------------------------------------------------------------------------


class Mixer(nn.Module):
    """MLP-Mixer: along the patches, along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 32, 8, 8), nn.Linear(32, 5)
        self.along = nn.ModuleList(nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)) for _ in range(2))
        self.across = nn.ModuleList(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        for place, (along, across) in enumerate(zip(self.along, self.across, strict=True)):
            x = x + along(self.norms[2 * place](x).transpose(1, 2)).transpose(1, 2)
            x = x + across(self.norms[2 * place + 1](x))
        return self.head(x.mean(1))


class Norms(nn.Module):
    """Group, instance, local and batch norm, PReLU, Mish and Hardswish, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.PReLU(16), nn.Conv2d(16, 24, 3, padding=1),
            nn.InstanceNorm2d(24, affine=True), nn.Mish(), nn.Conv2d(24, 24, 3, padding=1, groups=4), nn.LocalResponseNorm(3),
            nn.Hardswish(), nn.Conv2d(24, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ELU(),
        )  # fmt: skip
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Excited(nn.Module):
    """Depthwise blocks whose channels are weighed by what the whole image says."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = _conv(3, 16, 2), nn.Linear(16, 5)
        self.up, self.deep, self.down = _conv(16, 48), _conv(48, 48, groups=48), nn.Conv2d(48, 16, 1)
        self.squeeze, self.excite = nn.Linear(48, 12), nn.Linear(12, 48)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        wide = self.deep(self.up(x))
        gate = self.excite(F.relu(self.squeeze(wide.mean((2, 3))))).sigmoid()
        return self.head((x + self.down(wide * gate[:, :, None, None])).mean((2, 3)))


class Standardised(nn.Module):
    """Weights that forward computes: standardised, and made by another net."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 24, 3, padding=1)
        self.maker, self.head = nn.Linear(8, 24 * 16), nn.Linear(16, 5)
        self.seed = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.second.weight - self.second.weight.mean((1, 2, 3), keepdim=True)
        x = F.relu(F.conv2d(F.relu(self.first(x)), weight, self.second.bias, padding=1)).mean((2, 3))
        return self.head(F.relu(F.linear(x, self.maker(self.seed).view(16, 24))))


# ---- sequences ---------------------------------------------------------------------------------------------------------------


class Tones(nn.Module):
    """Convolutions along a sound, as in M5."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv1d(1, 16, 15, 4), _conv1d(16, 24, 5), nn.MaxPool1d(2), _conv1d(24, 32, 3))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(2))


class WaveNet(nn.Module):
    """Dilated convolutions that see the past alone, gated, each added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.head = nn.Conv1d(4, 16, 1), nn.Conv1d(16, 4, 1)
        self.seen = nn.ModuleList(nn.Conv1d(16, 16, 2, dilation=2**place) for place in range(3))
        self.gate = nn.ModuleList(nn.Conv1d(16, 16, 2, dilation=2**place) for place in range(3))
        self.out = nn.ModuleList(nn.Conv1d(16, 16, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.into(x), 0.0
        for place, (seen, gate, out) in enumerate(zip(self.seen, self.gate, self.out, strict=True)):
            past = F.pad(x, (2**place, 0))
            step = out(seen(past).tanh() * gate(past).sigmoid())
            x, total = x + step, total + step
        return self.head(F.relu(total))


class Recurrent(nn.Module):
    """A GRU or an LSTM over vectors, in one direction or both, its last state read by a linear layer."""

    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM], *, both: bool = False, layers: int = 1) -> None:
        super().__init__()
        self.into = nn.Linear(8, 16)
        self.rnn = kind(16, 24, layers, batch_first=True, bidirectional=both)
        self.head = nn.Linear(48 if both else 24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(F.relu(self.into(x)))[0][:, -1])


class Speech(nn.Module):
    """A spectrogram through convolutions, a GRU, and one answer for each place."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv1d(16, 24, 5, 2), _conv1d(24, 24, 3))
        self.rnn, self.head = nn.GRU(24, 16, batch_first=True, bidirectional=True), nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.body(x).transpose(1, 2))[0]).transpose(1, 2)


class Cells(nn.Module):
    """A GRU cell in a loop of Python's own."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(8, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], 16)
        for place in range(x.shape[1]):
            state = self.cell(x[:, place], state)
        return self.head(state)


class Translator(nn.Module):
    """`nn.Transformer`: encoder, decoder, masks; one table of tokens for input and output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.body = nn.Transformer(16, 2, 1, 1, 32, dropout=0.0, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = torch.triu(torch.full((target.shape[1], target.shape[1]), float("-inf")), 1)
        found = self.body(self.embed(source), self.embed(target), tgt_mask=mask, tgt_is_causal=True)
        return F.linear(found, self.embed.weight).transpose(1, 2)


class Experts(nn.Module):
    """A mixture of experts, all of them computed and the best of each token kept."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.route, self.head = nn.Embedding(30, 16), nn.Linear(16, 3), nn.Linear(16, 5)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        shares = self.route(x).softmax(-1)
        best = shares * (shares == shares.amax(-1, keepdim=True))
        told = torch.stack([expert(x) for expert in self.experts], -1)
        return self.head((x + (told * best[..., None, :]).sum(-1)).mean(1))


# ---- several inputs, several outputs -----------------------------------------------------------------------------------------


class Towers(nn.Module):
    """Who and what, each through a tower of its own; the product of both."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(40, 16), nn.Embedding(30, 16)
        self.left, self.right = (nn.Sequential(nn.Linear(wide, 32), nn.ReLU(), nn.Linear(32, 8)) for wide in (20, 16))

    def forward(self, user: Tensor, item: Tensor, facts: Tensor) -> Tensor:
        left = self.left(torch.cat([self.user(user), facts], 1))
        return (left * self.right(self.item(item))).sum(1, keepdim=True)


class Siamese(nn.Module):
    """Two images through one net; how they differ."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.head = nn.Sequential(_conv(3, 16, 2), _conv(16, 24, 2)), nn.Linear(48, 3)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        a, b = (self.net(image).mean((2, 3)) for image in (one, other))
        return self.head(torch.cat([(a - b).abs(), a * b], 1))


class Graph(nn.Module):
    """A graph convolution: features of nodes, and who neighbours whom."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 24), nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        shares = edges / edges.sum(-1, keepdim=True).clamp_min(1.0)
        x = F.relu(self.first(shares @ nodes))
        return self.head(F.relu(self.second(shares @ x)).amax(1))


class Tasks(nn.Module):
    """One body, three heads, a list in a dictionary: what detectors and multi-task nets return."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(3, 16, 2), _conv(16, 32, 2))
        self.kind, self.age, self.mask = nn.Linear(32, 5), nn.Linear(32, 1), nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        seen = self.body(x)
        mean = seen.mean((2, 3))
        return {"kind": self.kind(mean), "age": self.age(mean), "maps": [self.mask(seen)]}


class DeepSets(nn.Module):
    """Points in any order: each through one net, then all together; attention with a query that the model holds."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU())
        self.query, self.head = nn.Parameter(torch.randn(24)), nn.Sequential(nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, points: Tensor) -> Tensor:
        x = self.each(points)
        weights = (x @ self.query).softmax(1)
        return self.head(torch.cat([x.amax(1), (x * weights[..., None]).sum(1)], 1))


# ---- shared parts and control flow -------------------------------------------------------------------------------------------


class Repeated(nn.Module):
    """One block that runs three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = _conv(3, 16, 2), nn.Linear(16, 5)
        self.block = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 16, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = F.relu(x + self.block(x))
        return self.head(x.mean((2, 3)))


class Tied(nn.Module):
    """A decoder that reads the encoder's weights the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(20, 32), nn.Linear(32, 12)

    def forward(self, x: Tensor) -> Tensor:
        code = F.relu(self.narrow(F.relu(self.wide(x))))
        return F.linear(F.relu(F.linear(code, self.narrow.weight.t())), self.wide.weight.t())


class Flow(nn.Module):
    """Euler's steps of a differential equation: a loop, one net, and the time beside the state."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(9, 32), nn.Tanh(), nn.Linear(32, 8))

    def forward(self, x: Tensor) -> Tensor:
        for step in range(4):
            time = torch.full_like(x[:, :1], step / 4)
            x = x + self.net(torch.cat([x, time], 1)) / 4
        return x


class Coupling(nn.Module):
    """A normalising flow: halves of the channels that change each other."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 12)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for net in self.nets:
            left, right = x.chunk(2, 1)
            scale, shift = net(left).chunk(2, 1)
            x = torch.cat([right * scale.tanh().exp() + shift, left], 1)
        return x


class Shaped(nn.Module):
    """Code that looks at shapes, modes and options, and takes another path for each."""

    def __init__(self, *, deep: bool = True) -> None:
        super().__init__()
        self.small, self.large, self.deep = _conv(3, 16, 2), _conv(3, 16, 4), _conv(16, 16) if deep else None
        self.head, self.aux = nn.Linear(16, 5), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.small(x) if x.shape[-1] <= 32 else self.large(x)
        if self.deep is not None:
            x = x + self.deep(x)
        found = x.mean((2, 3))
        return (self.head(found), self.aux(found)) if self.training else self.head(found)


class Gated(nn.Module):
    """A choice between two branches for each sample, by values, without a branch in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.ask, self.yes, self.no = nn.Linear(10, 1), nn.Linear(10, 24), nn.Linear(10, 24)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(torch.where(self.ask(x) > 0, self.yes(x), self.no(x))))


class Branching(nn.Module):
    """A branch on values in the code itself: no graph can hold it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(10, 24), nn.Linear(10, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.first(x) if bool((x.abs() < 100).all()) else self.second(x)))


class Chance(nn.Module):
    """Draws in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(10, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(F.relu(self.first(x)), 0.5, training=True))


class Spectral(nn.Module):
    """Filters in frequencies: complex numbers inside."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.head = nn.Linear(1, 16), nn.Linear(16, 3)
        self.filter = nn.Parameter(torch.randn(9, 16, 2) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.fft.rfft(self.into(x[..., None]), dim=1) * torch.view_as_complex(self.filter)
        return self.head(F.gelu(torch.fft.irfft(found, n=16, dim=1)).mean(1))


class Routed(nn.Module):
    """Samples sent to experts by their indices, as sparse mixtures do."""

    def __init__(self) -> None:
        super().__init__()
        self.route, self.head = nn.Linear(10, 2), nn.Linear(16, 3)
        self.experts = nn.ModuleList(nn.Linear(10, 16) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        found, where = x.new_zeros(x.shape[0], 16), self.route(x).argmax(1)
        for place, expert in enumerate(self.experts):
            rows = (where == place).nonzero()[:, 0]
            found = found.index_copy(0, rows, expert(x[rows]))
        return self.head(F.relu(found))


# ---- the table ---------------------------------------------------------------------------------------------------------------


def _floats(*shape: int) -> Callable[[int, Source], Tensor]:
    return lambda count, source: torch.randn(count, *shape, generator=source)


def _numbers(most: int, *shape: int) -> Callable[[int, Source], Tensor]:
    return lambda count, source: torch.randint(1, most, (count, *shape), generator=source)


def _several(*given: Callable[[int, Source], Tensor]) -> Callable[[int, Source], tuple[Tensor, ...]]:
    return lambda count, source: tuple(one(count, source) for one in given)


def _edges(count: int, source: Source) -> Tensor:
    return (torch.rand(count, 7, 7, generator=source) > 0.5).float()


@dataclass(frozen=True)
class Own:
    """A net: how it is made, its inputs, which output is judged; and the words with which it must be refused, if it must."""

    name: str
    kind: str
    make: Callable[[], nn.Module]
    given: Callable[[int, Source], Any]
    output: Any = None
    refused: str = ""

    def __str__(self) -> str:
        return f"own:{self.name}"

    def inputs(self, count: int) -> Any:
        """Return `count` inputs from a fixed seed."""
        return self.given(count, torch.Generator().manual_seed(1))

    def built(self) -> nn.Module:
        """Return the model in evaluation mode, with weights from a fixed seed."""
        torch.manual_seed(0)
        model = self.make()
        lively(model, self.inputs(16))
        return model.eval()


_IMAGE, _ROW, _SERIES, _TOKENS = _floats(3, 32, 32), _floats(10), _floats(12, 8), _numbers(30, 16)
_DRAWN = "must be the same for a sample alone and in a batch"

OWN: tuple[Own, ...] = (
    Own("unet", "segmentation", UNet, _IMAGE),
    Own("unet-bilinear", "segmentation", lambda: UNet(transposed=False), _IMAGE),
    Own("deeplab", "segmentation", DeepLab, _IMAGE),
    Own("feature-pyramid", "several inputs or outputs", Pyramid, _IMAGE, 0),
    Own("super-resolution", "images", SuperResolution, _IMAGE),
    Own("autoencoder", "images", AutoEncoder, _IMAGE),
    Own("resnet20-padded", "images", lambda: ResNet20((8, 16, 24), depth=2), _floats(3, 32, 32)),
    Own("shuffling", "images", Stubborn, _floats(3, 16, 16)),
    Own("mlp-mixer", "images", Mixer, _IMAGE),
    Own("many-norms", "images", Norms, _IMAGE),
    Own("squeeze-excite", "images", Excited, _IMAGE),
    Own("computed-weights", "images", Standardised, _IMAGE),
    Own("mlp", "rows", lambda: nn.Sequential(nn.Linear(10, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 3)), _ROW),
    Own("conv1d", "sound", Tones, _floats(1, 400)),
    Own("wavenet", "sound", WaveNet, _floats(4, 40)),
    Own("speech-gru", "sound", Speech, _floats(16, 40)),
    Own("gru", "sequences", lambda: Recurrent(nn.GRU), _SERIES),
    Own("gru-both-ways", "sequences", lambda: Recurrent(nn.GRU, both=True, layers=2), _SERIES),
    Own("lstm", "sequences", lambda: Recurrent(nn.LSTM, layers=2), _SERIES),
    Own("gru-cell", "sequences", Cells, _floats(5, 8)),
    Own("text-encoder", "text", TextEncoder, _numbers(50, 12)),
    Own("translator", "text", Translator, _several(_numbers(30, 12), _numbers(30, 7))),
    Own("mixture-of-experts", "text", Experts, _TOKENS),
    Own("masked-encoder", "text", many_inputs.Encoder, lambda n, g: many_inputs.sentences(n, seed=1)[0]),
    Own("image-and-row", "several inputs or outputs", many_inputs.Pair, _several(_floats(3, 8, 8), _floats(4))),
    Own("two-towers", "several inputs or outputs", Towers, _several(_numbers(40), _numbers(30), _floats(4))),
    Own("siamese", "several inputs or outputs", Siamese, _several(_IMAGE, _IMAGE)),
    Own("graph", "several inputs or outputs", Graph, _several(_floats(7, 6), _edges)),
    Own("three-heads", "several inputs or outputs", Tasks, _IMAGE, "kind"),
    Own("deep-sets", "rows", DeepSets, _floats(9, 3)),
    Own("repeated-block", "shared parts and control flow", Repeated, _IMAGE),
    Own("tied-autoencoder", "shared parts and control flow", Tied, _floats(20)),
    Own("euler-steps", "shared parts and control flow", Flow, _floats(8)),
    Own("coupling-flow", "shared parts and control flow", Coupling, _floats(12)),
    Own("branches-on-shape", "shared parts and control flow", Shaped, _IMAGE),
    Own("where", "shared parts and control flow", Gated, _ROW),
    Own("branches-on-values", "shared parts and control flow", Branching, _ROW, refused="no branches on values"),
    Own("draws-at-random", "shared parts and control flow", Chance, _ROW, refused=_DRAWN),
    Own("frequencies", "rows", Spectral, _floats(16)),
    Own("routed-by-index", "shared parts and control flow", Routed, _ROW),
)
