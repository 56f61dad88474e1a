"""Nets whose forward moves, splits, repeats or mixes channels: what a group builder guesses wrong. All take `(N, 3, 8, 8)`."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[[nn.Module, Tensor], Tensor]


class Net(nn.Module):
    """A stem of 24 channels, one step that is the matter of the test, and a head that reads what the step gives."""

    def __init__(self, step: Step, wide: int = 24, parts: dict[str, nn.Module | nn.Parameter] | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        for name, part in (parts or {}).items():
            setattr(self, name, part)
        self.after = nn.Conv2d(wide, 16, 1)
        self.head = nn.Linear(16, 4)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        x = self.step(self, F.relu(self.stem(x)))
        return self.head(F.relu(self.after(x)).mean((2, 3)))


def _shuffle(_m: nn.Module, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def _padded(m: nn.Module, x: Tensor) -> Tensor:
    y = m.wide(x)
    return y + torch.cat((x, torch.zeros(len(x), y.shape[1] - x.shape[1], *x.shape[2:], dtype=x.dtype)), 1)


def _in_place(m: nn.Module, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :8] = m.part(x[:, :8])
    return x


def _attention(m: nn.Module, x: Tensor) -> Tensor:
    gate = m.neighbours(x.mean((2, 3))[:, None]).sigmoid()
    return x * gate[:, 0, :, None, None]


def _pooled(m: nn.Module, x: Tensor) -> Tensor:
    return x * m.up(F.relu(m.down(x.mean((2, 3), keepdim=True)))).sigmoid()


def _outer(m: nn.Module, x: Tensor) -> Tensor:
    product = x[:, :, None] * m.other(x)[:, None]
    return product.flatten(1, 2)


def _recurrent(m: nn.Module, x: Tensor) -> Tensor:
    return m.rnn(x.flatten(2).transpose(1, 2))[0].transpose(1, 2)[..., None]


def _paired(m: nn.Module, x: Tensor) -> Tensor:
    return m.pair(x.movedim(1, -1), x.movedim(1, -1)).movedim(-1, 1)


def _mixed(m: nn.Module, x: Tensor) -> Tensor:
    return torch.einsum("nchw,dc->ndhw", x, m.mix.weight)


def _thirds(_m: nn.Module, x: Tensor) -> Tensor:
    a, b, c = torch.chunk(x, 3, 1)
    return a * b.sigmoid() + c


def _merged(m: nn.Module, x: Tensor, how: str) -> Tensor:
    x = F.relu(m.inner(x)).permute(0, 2, 3, 1)
    n, h, w, c = x.shape
    if how == "cat":
        x = torch.cat([x[:, a::2, b::2] for a in (0, 1) for b in (0, 1)], -1)
    else:
        x = x.reshape(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).flatten(3)
    return F.relu(m.reduce(m.norm(x))).permute(0, 3, 1, 2)


def _merge(how: str) -> nn.Module:
    parts = {"inner": nn.Conv2d(24, 24, 1), "norm": nn.LayerNorm(96), "reduce": nn.Linear(96, 24, bias=False)}
    return Net(lambda m, x: _merged(m, x, how), parts=parts)


def _normed(norm: nn.Module) -> nn.Module:
    def step(m: nn.Module, x: Tensor) -> Tensor:
        return m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    return Net(step, parts={"norm": norm})


conv = nn.Conv2d
MOVERS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "plain": (lambda: Net(lambda _m, x: x), True),
    "glu": (lambda: Net(lambda _m, x: F.glu(x, 1), 12), False),
    "glu by slices": (lambda: Net(lambda _m, x: x[:, : x.shape[1] // 2] * x[:, x.shape[1] // 2 :].sigmoid(), 12), False),
    "glu by chunk": (lambda: Net(lambda _m, x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid(), 12), False),
    "chunk in three": (lambda: Net(_thirds, 8), False),
    "maxout": (lambda: Net(lambda _m, x: x.view(len(x), -1, 2, *x.shape[2:]).amax(2), 12), False),
    "shuffle": (lambda: Net(_shuffle), False),
    "every second": (lambda: Net(lambda _m, x: x[:, ::2], 12), False),
    "flip": (lambda: Net(lambda _m, x: x.flip(1)), False),
    "roll": (lambda: Net(lambda _m, x: x.roll(1, 1)), False),
    "pixel shuffle": (lambda: Net(lambda _m, x: F.pixel_shuffle(x, 2), 6), False),
    "padded by cat": (lambda: Net(_padded, 32, {"wide": conv(24, 32, 1)}), False),
    "padded by pad": (lambda: Net(lambda _m, x: F.pad(x, (0, 0, 0, 0, 4, 4)), 32), False),
    "in place": (lambda: Net(_in_place, parts={"part": conv(8, 8, 3, padding=1)}), False),
    "twice": (lambda: Net(lambda _m, x: torch.cat([x, x], 1), 48), True),
    "outer product": (lambda: Net(_outer, 96, {"other": conv(24, 4, 1)}), False),
    "merged by cat": (lambda: _merge("cat"), False),
    "merged by reshape": (lambda: _merge("reshape"), False),
    "layer norm": (lambda: _normed(nn.LayerNorm(24)), True),
    "layer norm function": (lambda: Net(lambda _m, x: F.layer_norm(x.movedim(1, -1), (x.shape[1],)).movedim(-1, 1)), False),
    "rms norm": (lambda: _normed(nn.RMSNorm(24)), True),
    "one group norm": (lambda: Net(lambda m, x: m.norm(x), parts={"norm": nn.GroupNorm(1, 24)}), False),
    "local response": (lambda: Net(lambda m, x: m.norm(x), parts={"norm": nn.LocalResponseNorm(5, alpha=0.5)}), False),
    "unit length": (lambda: Net(lambda _m, x: F.normalize(x, dim=1)), False),
    "softmax": (lambda: Net(lambda _m, x: x.softmax(1)), False),
    "mean of channels": (lambda: Net(lambda _m, x: x - x.mean(1, keepdim=True)), False),
    "neighbour attention": (lambda: Net(_attention, parts={"neighbours": nn.Conv1d(1, 1, 3, padding=1)}), False),
    "squeeze and excite": (lambda: Net(_pooled, parts={"down": conv(24, 8, 1), "up": conv(8, 24, 1)}), True),
    "odd groups": (lambda: Net(lambda m, x: m.grouped(x), parts={"grouped": conv(24, 24, 3, padding=1, groups=3)}), False),
    "multiplier": (lambda: Net(lambda m, x: m.deep(x), 48, {"deep": conv(24, 48, 3, padding=1, groups=24)}), False),
    "depthwise": (lambda: Net(lambda m, x: m.deep(x), parts={"deep": conv(24, 24, 3, padding=1, groups=24)}), True),
    "recurrent": (lambda: Net(_recurrent, 20, {"rnn": nn.GRU(24, 20, batch_first=True)}), False),
    "layer scale": (lambda: Net(lambda m, x: x * m.scale, parts={"scale": nn.Parameter(torch.ones(24, 1, 1))}), True),
    "positions": (lambda: Net(lambda m, x: x + m.where, parts={"where": nn.Parameter(torch.randn(1, 24, 8, 8))}), True),
    "bilinear": (lambda: Net(_paired, 6, {"pair": nn.Bilinear(24, 24, 6)}), False),
    "weight read by forward": (lambda: Net(_mixed, 12, {"mix": nn.Linear(24, 12, bias=False)}), False),
}
"""Name -> how to make the net, and whether the channels of `stem` (of `inner` where there is one) are offered for cutting."""


def made(name: str) -> tuple[nn.Module, Tensor]:
    """Return a net in eval mode and 160 inputs for it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MOVERS[name][0]().eval(), torch.randn(160, 3, 8, 8)
