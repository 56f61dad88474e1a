"""Where a file can be cut, and that its two parts compute what it computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from equipoise.errors import InputError
from equipoise.runtimes.base import Source, get
from equipoise.runtimes.cutting import SENT, Cut, Grid, cuts, exposed, halves
from equipoise.runtimes.export import Exporter

RUNTIMES = [name for name in ("onnxruntime", "openvino") if not get(name).unavailable()]


class Residual(nn.Module):
    """Two blocks, each with a shortcut around it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        x = x + self.second(x).relu()
        return self.last(x.mean((2, 3)))


class Masked(nn.Module):
    """Tokens and their mask; the mask is read again at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.turn, self.last = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.turn(self.words(ids)).relu() * mask[:, :, None].float()
        return self.last(x.sum(1) / mask.sum(1, keepdim=True))


@pytest.fixture(scope="module")
def residual() -> tuple[bytes, np.ndarray]:
    torch.manual_seed(0)
    x = torch.randn(3, 3, 9, 9)
    return Exporter().onnx(Residual().eval(), x, topology="residual"), x.numpy()


def test_a_residual_net_is_cut_between_its_blocks_and_not_within(residual) -> None:
    content, x = residual
    found = cuts(content)
    assert found[0] == Cut("input")
    made = {cut.tensor for cut in found}
    sizes = {name: value.shape for name, value in _values(content, [name for name in made if name != "input"], x).items()}
    assert list(sizes.values()).count((3, 4, 4, 4)) == 3  # the first convolution, its rectifier, the sum: none in the branch
    assert all(cut.inputs == () for cut in found)
    assert "output" not in made


def _values(content: bytes, names: list[str], x: np.ndarray) -> dict[str, np.ndarray]:
    from equipoise.runtimes.sessions import session

    return dict(zip(names, session(exposed(content, names)).run(names, {"input": x}), strict=True))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("levels", [0, 256, 16])
def test_halves_compute_the_whole(residual, runtime, levels) -> None:
    content, x = residual
    runs = get(runtime)
    wanted = runs.load(runs.compile(Source.of_onnx(content))).run(x)
    for cut in cuts(content):
        value = x if cut.tensor == "input" else _values(content, [cut.tensor], x)[cut.tensor]
        grid = Grid.over(value.min(), value.max(), levels) if levels else None
        before, behind = halves(content, cut, grid)
        assert bool(before) == (levels > 0 or cut.tensor != "input")
        sent = runs.load(runs.compile(Source.of_onnx(before))).run(x) if before else x
        if grid is None:
            np.testing.assert_allclose(sent, value, atol=1e-5)
        else:
            assert sent.dtype == np.uint8
            assert int(sent.max()) == levels - 1
            assert np.abs(sent * grid.step + grid.low - value).max() <= 0.501 * grid.step
        passes = cut.tensor + (SENT if levels else "")
        off = np.abs(runs.load(runs.compile(Source.of_onnx(behind))).run({passes: sent}) - wanted).max()
        assert off <= (1e-5 if grid is None else 40 * grid.step)


def test_pixels_pass_without_loss(residual) -> None:
    content, _ = residual
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 9, 9))
    pixels[:, :, 0, :2] = [0, 255]
    x = ((pixels - 127.5) / 127.5).astype(np.float32)
    grid = Grid.over(x.min((0, 2, 3), keepdims=True), x.max((0, 2, 3), keepdims=True), 256)
    before, _ = halves(content, Cut("input"), grid)
    runs = get("onnxruntime")
    assert (runs.load(runs.compile(Source.of_onnx(before))).run(x) == pixels).all()


def test_inputs_of_whole_numbers_pass_beside_what_needs_them() -> None:
    torch.manual_seed(0)
    given = {"ids": torch.randint(1, 20, (2, 6)), "mask": torch.ones(2, 6, dtype=torch.long)}
    given["mask"][0, 4:] = 0
    model = Masked().eval()
    content = Exporter().onnx(model, given, topology="masked")
    found = cuts(content)
    assert found[0] == Cut("", ("ids", "mask"))
    inner = next(cut for cut in found if cut.inputs == ("mask",))
    runs = get("onnxruntime")
    before, behind = (runs.load(runs.compile(Source.of_onnx(half))) for half in halves(content, inner, None))
    arrays = {name: value.numpy() for name, value in given.items()}
    answers = behind.run({inner.tensor: before.run(arrays), "mask": arrays["mask"]})
    np.testing.assert_allclose(answers, model(**given).detach().numpy(), atol=1e-5)
    assert halves(content, found[0], None)[0] == b""


def test_a_file_of_two_outputs_is_refused(residual) -> None:
    content, _ = residual
    with pytest.raises(InputError, match="single output"):
        cuts(exposed(content, [cuts(content)[1].tensor, "output"]))
