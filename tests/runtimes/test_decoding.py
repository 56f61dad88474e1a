"""A model that reads on: in parts as in one, whatever was cut of it and in whatever its weights are held; liars are refused."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import load_from_string
from torch import Tensor, nn

from equipoise.axes import AXES
from equipoise.compress.blocks import Skip, replaced
from equipoise.compress.rounding import on_grid
from equipoise.errors import InputError
from equipoise.meters import meter
from equipoise.runtimes import Program, Target, available, get
from equipoise.runtimes.decoding import TOLERANCE, Reader, closed, hold, reads
from equipoise.runtimes.export import Exporter
from equipoise.runtimes.layers import layer_nodes
from equipoise.runtimes.structure import layer_bits
from equipoise.ship.card import is_past, written
from equipoise.workloads.families.transformer import GPT, Decoder
from equipoise.workloads.task import Shape
from equipoise.workloads.text import FILE, Alphabet

LENGTH, TOKENS = 12, 20
TARGET = "onnxruntime:cpu?threads=1&batch=1"


def decoder(**scale: float) -> Decoder:
    shape = Shape((LENGTH,), TOKENS, TOKENS, dense=True)
    generator = torch.Generator().manual_seed(0)
    net = GPT.model(GPT.scale(**{"width": 16, "depth": 2, "heads": 2, **scale}), shape, generator=generator).eval()
    assert isinstance(net, Decoder)
    for name, weight in net.named_parameters():  # at their initial values positions hardly matter
        if name.endswith(("position", "attend.weight")):
            nn.init.normal_(weight, generator=generator)
    return net


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, TOKENS, (3, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def exporter() -> Exporter:
    return Exporter()


@pytest.fixture(scope="module")
def program(tokens: Tensor, exporter: Exporter) -> Program:
    return get("onnxruntime").compile(exporter.source(decoder(), tokens, topology="plain"))


def in_parts(program: Program, tokens: Tensor, *cuts: int) -> np.ndarray[Any, Any]:
    reader = Reader(program)
    return np.concatenate([reader.on(part) for part in np.split(tokens.numpy(), cuts, 1)], -1)


def off(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("cuts", [(), (1,), (LENGTH - 1,), tuple(range(1, LENGTH))], ids=str)
@pytest.mark.parametrize("samples", [1, 3])
def test_a_file_reads_in_parts_what_torch_reads_at_once(
    program: Program, tokens: Tensor, cuts: tuple[int, ...], samples: int
) -> None:
    some = tokens[:samples]
    wanted = decoder()(some).detach().numpy()
    assert off(in_parts(program, some, *cuts), wanted) < TOLERANCE
    assert off(get("onnxruntime").load(program).run(some.numpy()), wanted) < TOLERANCE


def test_one_past_serves_several_texts(program: Program, tokens: Tensor) -> None:
    reader = Reader(program)
    reader.on(tokens[:1, :5].numpy())
    both = torch.cat((tokens[:1, :5].expand(3, -1), tokens[:, 5:]), 1)
    assert off(reader.on(tokens[:, 5:].numpy()), decoder()(both).detach().numpy()[:, :, 5:]) < TOLERANCE


def changed(what: str) -> Decoder:
    """A decoder of which something was cut, as the techniques cut it."""
    net = decoder()
    if what == "heads":
        block: Any = net.block1
        rows = torch.arange(48).view(3, 2, 8)[:, 1].flatten()
        block.attend = layer(block.attend.weight[rows], block.attend.bias[rows])
        block.merge = layer(block.merge.weight[:, 8:], block.merge.bias)
        block.heads = 1
        return net
    parts: dict[str, nn.Module] = {"depth": {"block2": Skip(0)}, "attention": {"block1.merge": Skip(-1)}}[what]
    return replaced(net, parts)  # type: ignore[return-value]


def layer(weight: Tensor, bias: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.weight, made.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
    return made


@pytest.mark.parametrize("what", ["heads", pytest.param("depth", marks=pytest.mark.slow), "attention"])
def test_what_is_left_after_a_cut_reads_on(what: str, tokens: Tensor, exporter: Exporter) -> None:
    net = changed(what)
    made = get("onnxruntime").compile(exporter.source(net, tokens, topology=what))
    assert off(in_parts(made, tokens, 4, 5), net(tokens).detach().numpy()) < TOLERANCE
    shapes = [value.shape for value in Reader(made)._session.get_overridable_initializers()]
    assert [shape[1] for shape in shapes] == {"heads": [1, 1, 2, 2], "depth": [2, 2], "attention": [2, 2, 2, 2]}[what]


def test_what_has_lost_every_block_still_counts_its_places(tokens: Tensor, exporter: Exporter) -> None:
    net = decoder()
    none = replaced(net, {name: Skip() for name, part in net.named_children() if name not in ("embed", "head")})
    hold(none, tokens)
    program = get("onnxruntime").compile(exporter.source(none, tokens, topology="none"))
    assert off(in_parts(program, tokens, 1, 5), none(tokens).detach().numpy()) < TOLERANCE


@pytest.mark.parametrize("scheme", ["8-weights", "4-weights", "8-dynamic", "float16"])
def test_weights_in_few_bits_read_on(scheme: str, program: Program, tokens: Tensor, exporter: Exporter) -> None:
    net, layers = decoder(), layer_nodes(program.file("model.onnx"))
    held = {name: "8-weights" if scheme == "8-dynamic" and name == "embed.token" else scheme for name in layers}
    rounded = on_grid(net, held, exact=True)
    made = get("onnxruntime").compile(exporter.source(rounded, tokens, topology="plain"), schemes=held)
    apart = 0.05 if scheme == "8-dynamic" else TOLERANCE  # ranges are those of what is read at once
    wanted = rounded(tokens).detach().numpy()
    assert off(in_parts(made, tokens, 5, 11), get("onnxruntime").load(made).run(tokens.numpy())) < apart
    assert off(in_parts(made, tokens, 5, 11), wanted) < 0.05  # kernels for few bits round what they read
    assert off(in_parts(program, tokens, 5, 11), wanted) > TOLERANCE  # the floats are another model
    assert made.size_bytes < program.size_bytes


def test_static_integers_read_on(program: Program, tokens: Tensor, exporter: Exporter) -> None:
    source = exporter.source(decoder(), tokens, topology="plain")
    made = get("onnxruntime").compile(source, calibration=tokens.numpy(), float_layers=frozenset())
    assert made.precision == "int8"
    assert not made.left
    assert set(layer_bits(made.file("model.onnx")).values()) == {8}
    assert off(in_parts(made, tokens, 5, 11), get("onnxruntime").load(made).run(tokens.numpy())) < TOLERANCE


class SeesAhead(Decoder):
    """Its mask hides nothing."""

    def read_on(self, tokens: Tensor, past: tuple[Tensor, ...]) -> Any:
        embed, *blocks, head = self
        before = past[0].shape[2] if past else 0
        x, present = embed(tokens, before), ()
        for block in blocks:
            x, kept = block.step(x, past[len(present) : len(present) + 2], torch.zeros(tokens.shape[1], 1))
            present = (*present, *kept)
        return head(x), present


class BeginsAgain(Decoder):
    """Each part stands at the first positions."""

    def read_on(self, tokens: Tensor, past: tuple[Tensor, ...]) -> Any:
        embed, *blocks, head = self
        before = past[0].shape[2] if past else 0
        places = torch.arange(before + tokens.shape[1])
        x, present = embed(tokens), ()
        for block in blocks:
            hidden = torch.where(places[before:, None] >= places, 0.0, -1e4)
            x, kept = block.step(x, past[len(present) : len(present) + 2], hidden)
            present = (*present, *kept)
        return head(x), present


class Forgets(Decoder):
    """It reads every part as if a text began."""

    def read_on(self, tokens: Tensor, past: tuple[Tensor, ...]) -> Any:
        return super().read_on(tokens, ())


class Swaps(Decoder):
    """It takes the past of one block for that of another."""

    def read_on(self, tokens: Tensor, past: tuple[Tensor, ...]) -> Any:
        return super().read_on(tokens, (*past[2:], *past[:2]))


@pytest.mark.parametrize("liar", [SeesAhead, BeginsAgain, Forgets, Swaps])
def test_a_model_that_reads_on_otherwise_is_refused(liar: type[Decoder], tokens: Tensor) -> None:
    wrong = liar(OrderedDict(decoder().named_children())).eval()
    with pytest.raises(InputError, match=r"model\.read_on must be what forward computes, read in parts"):
        hold(wrong, tokens)
    with pytest.raises(InputError, match=r"model\.read_on"):
        Exporter().onnx(wrong, tokens, topology="")
    hold(decoder(), tokens)


def test_tied_weights_are_exported_once(tokens: Tensor) -> None:
    exporter, net = Exporter(), decoder()
    layers = layer_nodes(exporter.onnx(net, tokens, topology=""))
    assert {"embed.token": ("embed.token/Gather",), "head.logits": ("head.logits/MatMul",)}.items() <= layers.items()
    with torch.no_grad():
        net.embed.token.weight.mul_(0.5)  # type: ignore[operator, union-attr]
    again = exporter.onnx(net, tokens, topology="")
    assert exporter.exports == 1
    assert (
        off(in_parts(Program("onnxruntime", "fp32", {"model.onnx": again}), tokens, 7), net(tokens).detach().numpy())
        < TOLERANCE
    )
    net.head.logits.weight = nn.Parameter(net.embed.token.weight * 2)  # type: ignore[operator, union-attr]
    apart = exporter.onnx(net, tokens, topology="")
    assert (
        off(in_parts(Program("onnxruntime", "fp32", {"model.onnx": apart}), tokens, 7), net(tokens).detach().numpy())
        < TOLERANCE
    )


@pytest.mark.parametrize("runtime", available())
def test_every_runtime_reads_a_window(runtime: str, tokens: Tensor, exporter: Exporter) -> None:
    made = get(runtime).compile(exporter.source(decoder(), tokens, topology="plain"))
    assert off(get(runtime).load(made).run(tokens.numpy()), decoder()(tokens).detach().numpy()) < TOLERANCE
    assert reads(made) == (runtime == "onnxruntime")


def test_a_closed_file_takes_and_gives_one_tensor(program: Program, tokens: Tensor) -> None:
    content = closed(program.file("model.onnx"))
    graph = load_from_string(content).graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["input", "output"]
    found = get("onnxruntime").load(Program("onnxruntime", "fp32", {"model.onnx": content})).run(tokens.numpy())
    assert off(found, get("onnxruntime").load(program).run(tokens.numpy())) < 1e-6
    assert closed(content) == content


def test_prefill_and_decode_are_read_where_a_program_reads_on(
    program: Program, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("equipoise.road.generation.SECONDS", 0.2)
    for word in ("prefill", "decode"):
        found = meter(word).read(program, Target("onnxruntime"), tokens.numpy())
        assert found.unit == AXES[word].unit
        assert found.provenance == "measured"
        assert found.low is not None and found.low < found.get() < found.high  # noqa: PT018
        assert "one text" in found.note
        shut = Program("onnxruntime", "fp32", {"model.onnx": closed(program.file("model.onnx"))})
        assert "does not read on" in meter(word).read(shut, Target("onnxruntime"), tokens.numpy()).note
    with pytest.raises(InputError, match="takes a past"):
        Reader(shut)


def test_the_cards_lines_write_what_a_whole_window_foretells(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alphabet = Alphabet(tuple("\ufffdTheabcdfgijklmno pq"))
    assert len(alphabet) == TOKENS
    program.write(tmp_path)
    (tmp_path / FILE).write_bytes(alphabet.file)
    monkeypatch.chdir(tmp_path)
    lines = written({"deployable": {"runtime": "onnxruntime", "files": ["model.onnx"], "target": TARGET}, "files": {FILE: 0}})
    exec(lines.replace("60, 0.7", f"{LENGTH}, 0"), {})
    text = capsys.readouterr().out.rstrip("\n")
    read, net = alphabet.encode("The "), decoder()
    while len(read) < LENGTH:
        read = torch.cat((read, net(read[None])[0, :, -1].argmax()[None]))
    assert text == alphabet.decode(read)
    assert json.loads(alphabet.file) == list(alphabet.characters)
    exec(lines.replace("60, 0.7", f"{LENGTH}, 5.0"), {})
    assert capsys.readouterr().out.startswith("The ")


class Remembers(nn.Module):
    """Its own parameters have the names of a past."""

    def __init__(self) -> None:
        super().__init__()
        self.past_token = nn.Parameter(torch.ones(1, 1, 8))
        self.past_proj, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat((self.past_token.expand(x.shape[0], -1, -1), x), 1)
        return self.head(torch.relu(self.past_proj(x)).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_parameters_that_are_called_a_past_stay(runtime: str, exporter: Exporter) -> None:
    net, x = Remembers().eval(), torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0))
    made = get(runtime).compile(exporter.source(net, x[:2], topology="remembers"))
    assert off(get(runtime).load(made).run(x.numpy()), net(x).detach().numpy()) < TOLERANCE


def test_a_model_that_diverged_takes_no_freedom_from_the_others(tokens: Tensor) -> None:
    lost, exporter = decoder(), Exporter()
    with torch.no_grad():
        next(lost.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="finite on the example"):
        exporter.onnx(lost, tokens, topology="plain")
    made = get("onnxruntime").compile(exporter.source(decoder(), tokens, topology="plain"))
    assert reads(made)


def test_inputs_that_are_called_past_values_are_inputs() -> None:
    names = ("past_0", "past_12", "past_values", "past_", "past_1_mask", "x")
    assert [name for name in names if is_past(name)] == ["past_0", "past_12"]
