"""The paths of a graphics card, with a card of the CPU at the seam: all but the card's own kernels runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conv_net import conv_net
from torch import Tensor, nn

from equipoise.compress.fold import fold
from equipoise.errors import InputError
from equipoise.measure import device, energy
from equipoise.ops import Op
from equipoise.road.facts import Layer
from equipoise.road.probing import layer_times
from equipoise.runtimes import Source, Target, cuda, get, onnxruntime_gpu
from equipoise.runtimes.base import Resident
from equipoise.runtimes.cuda import Card
from equipoise.runtimes.export import Exporter
from equipoise.runtimes.half_precision import halved
from equipoise.runtimes.onnxruntime_gpu import OnnxRuntimeCuda
from equipoise.testing import check_runtime


class OfTheCpu(Card):
    """A card that plays what was recorded by running it again."""

    recorded = 0

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def missing(self) -> str:
        return ""

    def played(self, call: Callable[..., Tensor], given: Sequence[Tensor]) -> tuple[Callable[[], object], Tensor]:
        answer, self.recorded = call(*given).clone(), self.recorded + 1
        return lambda: answer.copy_(call(*given)), answer

    def wait(self) -> None:
        pass

    def pinned(self, value: Tensor) -> Tensor:
        return torch.empty_like(value, memory_format=torch.contiguous_format)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> OfTheCpu:
    made = OfTheCpu()
    monkeypatch.setattr(cuda, "card", made)
    return made


class OrtOnCpu(OnnxRuntimeCuda):
    """The same, of ONNX Runtime."""

    provider = "CPUExecutionProvider"
    options = {}  # noqa: RUF012
    runs_code = False


def test_torch_on_a_card_keeps_the_contract(card: OfTheCpu, probe: Source) -> None:
    check_runtime(get("torch:cuda"), probe)
    assert card.recorded, "requests of one size are recorded"


@pytest.mark.slow
def test_the_compiler_on_a_card_keeps_the_contract(card: OfTheCpu, probe: Source) -> None:
    check_runtime(get("inductor:cuda"), probe)
    assert card.recorded


def test_onnxruntime_on_a_card_keeps_the_contract(probe: Source) -> None:
    check_runtime(OrtOnCpu(), probe)


def test_a_request_of_one_size_is_recorded_once(card: OfTheCpu, probe: Source) -> None:
    runtime, rows = get("torch:cuda"), probe.example.numpy()  # type: ignore[union-attr]
    session = runtime.load(runtime.compile(probe), batch=2)
    first, second = session.run(rows[:2]), session.run(rows[2:4])
    assert card.recorded == 1
    assert not np.allclose(first, second), "each play reads the request of then"
    assert np.allclose(first, runtime.load(runtime.compile(probe)).run(rows[:2]), atol=1e-5)
    with pytest.raises(InputError, match="a batch of 2"):
        session.run(rows[:3])


@pytest.mark.parametrize("row", ["torch:cuda", "onnxruntime"])
def test_what_lies_on_a_card_is_run_again_there(
    card: OfTheCpu, probe: Source, row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_gpu._OnCard, "device", "cpu")
    runtime = get(row) if row == "torch:cuda" else OrtOnCpu()
    rows: Any = probe.example
    for batch in (None, 2):
        session = runtime.load(runtime.compile(probe), batch=batch)
        wanted = session.run(rows.numpy()[:2])
        assert isinstance(session, Resident)
        session.again()
        session.again()
        assert np.array_equal(session.run(rows.numpy()[:2]), wanted)


def test_the_tables_of_a_card_leave_the_way_there_out(card: OfTheCpu, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    monkeypatch.setattr(card, "wait", lambda: waits.append(1), raising=False)
    layer = Layer("a", Op("linear", 8, 8), 72, ())
    times, failed = layer_times(Target.parse("torch:cuda"), [layer], (), seconds=1.0)
    assert not failed
    assert {key.split(":")[0] for key in times} == {"32", "fp16"}
    assert len(waits) > 20, "it is run again where it lies"


class Scores(nn.Module):
    """Two products and what is between them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        between = torch.relu(self.one(x))
        self.seen.append(between.dtype)
        answer: Tensor = self.two(between)
        return answer


def test_a_model_all_of_whose_products_are_halved_is_so_between_them() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, x = Scores().eval(), torch.randn(4, 6)
    whole, part = halved(net, {"one": "fp16", "two": "fp16"}), halved(net, {"one": "fp16"})
    for made, between in ((whole, torch.float16), (part, torch.float32)):
        answer = made(x)
        assert answer.dtype == torch.float32
        assert torch.allclose(answer, net(x), atol=1e-2)
        assert made.get_submodule("inner" if made is whole else "").seen[-1] == between  # type: ignore[index]
    assert net.one.weight.dtype == torch.float32, "the model that was given stays as it is"
    both = halved(net, {"one": "fp16", "two": "bf16"})(x)
    assert torch.allclose(both, net(x), atol=5e-2)
    with pytest.raises(InputError, match="nowhere"):
        halved(net, {"nowhere": "fp16"})


def test_half_the_bytes_of_a_whole_net_in_half_precision(card: OfTheCpu) -> None:
    example = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    net = fold(conv_net(example, widths=(64, 64)), example)
    layers = [name for name, part in net.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    source = Exporter().source(net, example, topology="conv")
    for runtime in (get("torch:cuda"), OrtOnCpu()):
        whole, low = runtime.compile(source), runtime.compile(source, schemes=dict.fromkeys(layers, "fp16"))
        assert low.precision == "mixed"
        assert low.size_bytes < 0.75 * whole.size_bytes
        got, wanted = (runtime.load(program).run(example.numpy()) for program in (low, whole))
        assert got.dtype == np.float32
        assert 0 < np.abs(got - wanted).max() < 1e-2 * np.abs(wanted).max()


def test_a_file_in_half_precision_is_one_that_every_reader_takes(probe: Source) -> None:
    for layers in ({"inner"}, {"stem", "inner", "outer", "head"}):
        content = onnxruntime_gpu.halved(probe.onnx(), frozenset(layers))
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model, full_check=True)
        names = [node.name for node in model.graph.node]
        assert len(set(names)) == len(names) > 0
        casts = [node for node in model.graph.node if node.op_type == "Cast"]
        assert len(casts) == 2 or layers == {"inner"}, "a net all in half precision is converted at its ends alone"


def test_who_has_no_card_is_told_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "DRIVERS", (Path("/nowhere"),))
    monkeypatch.setattr("sys.platform", "linux")
    assert "no NVIDIA GPU" in get("torch:cuda").unavailable()
    monkeypatch.setattr(cuda, "DRIVERS", (Path("/"),))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch.__version__ in get("inductor:cuda").unavailable()
    assert "pip install onnxruntime-gpu" in get("onnxruntime:tensorrt").unavailable()


def test_a_provider_that_does_not_start_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class Listed(OnnxRuntimeCuda):
        provider = "AzureExecutionProvider" if _listed("AzureExecutionProvider") else "CPUExecutionProvider"

    class Fallen:
        def get_providers(self) -> list[str]:
            return ["Another"]

    onnxruntime_gpu._missing.cache_clear()
    monkeypatch.setattr(onnxruntime_gpu, "_opened", lambda *_: Fallen())
    try:
        assert "does not start here" in Listed().unavailable()
    finally:
        onnxruntime_gpu._missing.cache_clear()


def _listed(provider: str) -> bool:
    import onnxruntime

    return provider in onnxruntime.get_available_providers()


def test_a_target_names_a_device_that_its_runtime_has() -> None:
    assert Target.parse("torch:cuda?batch=8").row == "torch:cuda"
    assert Target.parse("torch").row == "torch"
    assert str(Target.parse("onnxruntime:tensorrt")) == "onnxruntime:tensorrt?threads=1&batch=1"
    with pytest.raises(InputError, match=r"target\.device must be one of cuda"):
        Target.parse("inductor")
    with pytest.raises(InputError, match=r"target\.device must be one of cpu"):
        Target.parse("openvino:cuda")


def test_a_cards_energy_is_its_own() -> None:
    assert energy.access("cpu") == energy.rapl()
    assert energy.access("cuda").reason == energy.nvml().reason


def test_the_memory_of_a_card_is_forgotten_before_it_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "init", lambda: asked.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: asked.append("reset"))
    device.forget_peak(torch.device("cuda", 0))
    assert asked == ["init", "reset"]
