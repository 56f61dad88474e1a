"""A Conformer that listens on: read in chunks it answers as it does of the whole, in torch and in the file that ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from equipoise import runtimes
from equipoise.compress.blocks import ZERO, Skip
from equipoise.compress.fold import fold
from equipoise.errors import InputError
from equipoise.road.generation import Decode
from equipoise.runtimes import Target
from equipoise.runtimes.decoding import Reader, cuts, grows, hold, reads
from equipoise.runtimes.export import Exporter
from equipoise.ship.card import grows as grows_by_axes
from equipoise.testing import check_family
from equipoise.workloads import Shape, family
from equipoise.workloads.families.conformer import STEP
from equipoise.workloads.families.streaming import Listener

FRAMES, CHUNK, MEMORY = 14, 2, 2
ROWS = Shape((FRAMES * STEP,), 4, dense=True, aligned=False)
SCALE: dict[str, float] = {"width": 32, "depth": 2, "kernel": 3, "chunk": CHUNK, "memory": MEMORY}


def sound(n: int = 2, frames: int = FRAMES) -> Tensor:
    return 0.1 * torch.randn(n, frames * STEP, generator=torch.Generator().manual_seed(1))


def built(**more: float) -> Listener:
    """In evaluation mode, its normalizations having seen data."""
    net = family("streaming").model({**SCALE, **more}, ROWS, generator=torch.Generator().manual_seed(0))
    assert isinstance(net, Listener)
    with torch.no_grad():
        for _ in range(20):
            net.train()(sound(8))
    return net.eval()


def in_parts(net: Any, samples: Tensor, frames: list[int]) -> Tensor:
    past, parts = (), []
    with torch.no_grad():
        for part in samples.split([count * STEP for count in frames], 1):
            out, past = net.read_on(part, past)
            parts.append(out)
    return torch.cat(parts, 2)


@pytest.mark.parametrize("frames", [[2] * 7, [14], [4, 2, 8], [2, 4, 4, 4]])
def test_chunks_are_answered_as_in_the_whole(frames: list[int]) -> None:
    net = built()
    with torch.no_grad():
        whole = net(sound())
    assert whole.shape == (2, 4, FRAMES)
    assert torch.allclose(in_parts(net, sound(), frames), whole, atol=1e-5)
    astray = in_parts(net, sound(), [3, 4, 7])  # not at the bounds of chunks
    assert not torch.allclose(astray, whole, atol=1e-3)


def test_a_frame_sees_its_chunk_and_the_kept_ones() -> None:
    """Through one block: what is changed in a later chunk, or before all that is kept, is not noticed."""
    net = built(depth=1)
    samples = sound(1)
    with torch.no_grad():
        before = net(samples)[0]
        for frame in range(FRAMES):
            changed = samples.clone()
            changed[:, frame * STEP : (frame + 1) * STEP] *= -0.5
            differs = ((net(changed)[0] - before).abs().amax(0) > 1e-6).nonzero().flatten().tolist()
            chunk = frame // CHUNK
            assert min(differs) >= chunk * CHUNK  # no earlier chunk hears it
            heard = (frame + 1) // CHUNK  # the front tells the next frame too
            assert max(differs) < (heard + MEMORY + 1) * CHUNK + 2  # and the convolution two more
            if chunk + MEMORY < FRAMES // CHUNK:
                assert max(differs) >= (chunk + MEMORY) * CHUNK  # and it is kept as long as is said


def test_what_is_kept_does_not_grow() -> None:
    net = built()
    _, short = net.read_on(sound(1, 2), ())
    _, long = net.read_on(sound(1, 12), ())
    assert [part.shape for part in short] == [part.shape for part in long]
    assert not any(grows(net, sound()))
    kept = sum(part.numel() for part in long)
    assert kept == 4 + 80 + 32 + 32 + 2 * (2 * 4 * 32 + 32 * 2)


def test_one_past_serves_for_many() -> None:
    net = built()
    _, past = net.read_on(sound(1, 4), ())
    two = torch.cat([sound(1), sound(1, FRAMES).flip(1)])[:, : 4 * STEP]
    both, _ = net.read_on(two, past)
    for place in range(2):
        assert torch.allclose(net.read_on(two[place : place + 1], past)[0], both[place : place + 1], atol=1e-5)


def test_a_dropped_part_has_no_past() -> None:
    net = built()
    block: Any = net.get_submodule("block1")
    block.attend = Skip(ZERO)
    with torch.no_grad():
        assert torch.allclose(in_parts(net, sound(), [2] * 7), net(sound()), atol=1e-5)
    block.convolve = Skip(ZERO)
    with torch.no_grad():
        assert torch.allclose(in_parts(net, sound(), [2] * 7), net(sound()), atol=1e-5)


def test_the_contract_and_what_is_refused() -> None:
    check_family(family("streaming"), ROWS)
    with pytest.raises(InputError, match="one with one label for each position"):
        family("streaming").model({}, Shape((640,), 4), generator=torch.Generator())


def test_cuts_are_at_bounds_of_chunks() -> None:
    assert cuts(12, 1) == (6, 10, 11)
    assert cuts(FRAMES * STEP, CHUNK * STEP) == (6 * STEP, 10 * STEP, 12 * STEP)


class Forgets(nn.Module):
    """Reads on without what it was given."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net, self.read_every = net, net.read_every

    def forward(self, samples: Tensor) -> Tensor:
        out: Tensor = self.net(samples)
        return out

    def read_on(self, samples: Tensor, past: tuple[Tensor, ...]) -> Any:
        return self.net.read_on(samples, ())


def test_one_that_forgets_is_caught() -> None:
    hold(built(), sound())
    with pytest.raises(InputError, match=r"model\.read_on must be what forward computes, read in parts"):
        hold(Forgets(built()), sound())


@pytest.mark.slow
def test_the_file_carries_the_past(tmp_path: Path) -> None:
    net = fold(built(depth=1), sound())
    with torch.no_grad():
        whole = net(sound()).numpy()
    exporter = Exporter()
    source = exporter.source(net, sound(), topology="streaming")
    program = runtimes.get("onnxruntime").compile(source)
    assert exporter.exports == 1
    assert reads(program)
    reader = Reader(program)
    parts = np.split(sound().numpy(), range(CHUNK * STEP, FRAMES * STEP, CHUNK * STEP), 1)
    assert np.allclose(np.concatenate([reader.on(np.ascontiguousarray(part)) for part in parts], 2), whole, atol=1e-4)
    last = reader.on(np.ascontiguousarray(parts[0]))
    assert not np.allclose(last, whole[:, :, :CHUNK], atol=1e-3)  # it goes on, and does not begin anew
    reader.past = {}
    assert np.allclose(reader.on(np.ascontiguousarray(parts[0])), whole[:, :, :CHUNK], atol=1e-4)
    graph = onnx.load_from_string(source.onnx()).graph
    axes = [[d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in graph.input if "past_" in v.name]
    assert len(axes) == 7
    assert not grows_by_axes(axes)
    assert grows_by_axes([("batch", 4, "length", 8)])
    told = Decode().read(program, Target("onnxruntime"), sound().numpy())
    assert not told.known
    if not runtimes.get("openvino").unavailable():
        shut = runtimes.get("openvino").compile(source)
        assert np.allclose(runtimes.get("openvino").load(shut).run(sound().numpy()), whole, atol=1e-4)
