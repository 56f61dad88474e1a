"""A model split for real: two processes, a shaped link, the folder that ships, and a server that survives its visitors."""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.errors import EquipoiseError, InputError
from equipoise.halves import far
from equipoise.halves.coding import OUTPUT, unpacked
from equipoise.halves.near import Near, server
from equipoise.halves.pair import HERE, MANIFEST, Bundle, first, held
from equipoise.halves.places import worth
from equipoise.halves.split import THERE, Ride, Sharing, Splits, picked, tried
from equipoise.halves.wire import ANSWER, REFUSAL, REQUEST, connect, receive, send
from equipoise.runtimes.base import Target
from equipoise.runtimes.export import Exporter
from equipoise.stats import Interval


def workload() -> eq.Workload:
    """Images of 3,072 values, of which a first layer makes 128: little passes behind it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.Conv2d(8, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)
    )
    x = torch.rand(160, 3, 32, 32)
    with torch.no_grad():
        y = model(x).argmax(1)
    return eq.Workload(
        model=model, train=(x[:80], y[:80]), test=(x[80:120], y[80:120]), validation=(x[120:], y[120:]), name="net"
    )


@pytest.fixture(scope="module")
def found() -> Splits:
    steps = list[str]()
    made = eq.split(
        workload(), uplink=["0.2Mbit/s", "1Gbit/s", "1kbit/s"], rtt="0ms", budget="drop<=5", time=1, on_step=steps.append
    )
    assert steps[0] == "exporting"
    assert "verifying the halves together" in steps
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All cuts that are worth trying."""
    bundle, trials, quality = tried(workload(), Target("onnxruntime"), Target("onnxruntime"), 5.0, lambda _: None)
    assert len(trials) == len(bundle.pairs) > 1
    assert quality.get() == 100
    return bundle.write(tmp_path_factory.mktemp("split"))


@pytest.mark.slow
def test_the_ends_and_a_cut_compete(found) -> None:
    assert list(found.cuts)[:2] == [HERE, THERE]
    inner = [cut for name, cut in found.cuts.items() if name not in (HERE, THERE)]
    assert inner
    assert all(cut.sent.get() < found.cuts[THERE].sent.get() for cut in inner)
    assert all(cut.drop.get() <= 5 for cut in found.cuts.values())
    for ride in found.rides:
        assert {HERE, THERE} <= ride.latency.keys() <= found.cuts.keys()
        assert ride.latency.keys() <= ride.predicted.keys()
        assert ride.pick in ride.latency
        assert ride.late.unit == "s"
    slow, quick, hopeless = found.rides
    assert slow.predicted[THERE] > quick.predicted[THERE]
    assert slow.latency[THERE].get() >= slow.link.seconds(found.cuts[THERE].sent.low)
    assert hopeless.latency[THERE].provenance == "estimated"  # a link that slow is not waited for
    assert not hopeless.over_there
    assert not hopeless.late.known
    assert hopeless.pick == HERE
    assert slow.latency[THERE].provenance == quick.latency[THERE].provenance == "measured"
    assert found.energy.known or found.energy.note


@pytest.mark.slow
def test_what_was_found_is_told(found, tmp_path) -> None:
    said = repr(found)
    assert said.startswith("Splits(net: 200 kbit/s")
    saved = found.save(tmp_path / "out")
    recorded = json.loads((saved / MANIFEST).read_text())["recorded"]
    assert recorded["rides"][0]["link"] == {"uplink": 200_000.0, "rtt": 0.0}
    picks = {found.cuts[ride.pick].number for ride in found.rides} - {None}
    assert set(Bundle.read(saved).pairs) == picks
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="empty folder"):
        found.save(tmp_path)


def test_a_pick_is_an_end_unless_a_cut_is_told_to_be_faster(found) -> None:
    latency = {HERE: 4.0, THERE: 5.0, "3": 3.0}
    assert picked(latency, {HERE: {"3": Interval(1.33, 1.2, 1.5, 8)}, THERE: {}}) == "3"
    assert picked(latency, {HERE: {"3": Interval(1.33, 0.9, 1.9, 8)}, THERE: {}}) == HERE
    assert picked({**latency, THERE: 2.0}, {HERE: {}, THERE: {}}) == THERE


def test_two_processes_answer_as_one(folder) -> None:
    bundle = Bundle.read(folder)
    apart = bundle.check()
    assert set(apart) == set(bundle.pairs)
    with server(folder) as address, connect(address) as connection:
        for number, pair in bundle.pairs.items():
            answers = Near(bundle, number, connection)(bundle.probe)
            assert held(pair, answers, bundle.answers) <= pair.tolerance
            with pytest.raises(EquipoiseError, match="must answer as the whole model"):
                held(pair, -answers, bundle.answers)


def test_what_cannot_be_served_is_one_line(folder, tmp_path, capsys) -> None:
    uncut = replace(Bundle.read(folder), pairs={})
    uncut.write(tmp_path / "uncut")
    for given, said in (
        ([str(tmp_path)], "folder must be one that split wrote"),
        ([str(tmp_path / "uncut")], "the whole model runs on the device"),
        ([str(folder), "--host", "nowhere.invalid"], "nowhere.invalid:7707 must be an address"),
    ):
        with pytest.raises(SystemExit, match=said) as ended:
            far.main(given)
        assert "\n" not in str(ended.value)
    with pytest.raises(InputError, match="number must be of a cut"):
        Near(uncut, 1, None)  # type: ignore[arg-type]
    with pytest.raises(EquipoiseError, match="the whole model runs on the device"), server(tmp_path / "uncut"):
        pass


def test_the_server_refuses_what_it_does_not_know_and_goes_on(folder) -> None:
    bundle = Bundle.read(folder)
    number = max(bundle.pairs)
    with server(folder) as address:
        with connect(address) as connection:
            for cut, body in ((77, b""), (number, b"noise"), (number, b"")):
                send(connection, REQUEST, cut, body)
                kind, _, words = receive(connection)
                assert kind == REFUSAL
                assert words
            body = bundle.pairs[number].begin(None if number == 0 else _session(bundle, number), bundle.probe)
            wide = body.replace(struct.pack("!I", len(bundle.answers)), struct.pack("!I", 2**31), 1)
            send(connection, REQUEST, number, wide)
            assert receive(connection)[0] == REFUSAL
            send(connection, REQUEST, number, body)
            kind, _, answer = receive(connection)
            assert kind == ANSWER
            held(bundle.pairs[number], unpacked(OUTPUT, answer)["output"], bundle.answers)
        with socket.create_connection(address, timeout=10) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert receive(stranger)[0] == REFUSAL
        for _ in range(40):  # more than it holds at once, each leaving in the middle of a frame
            with socket.create_connection(address, timeout=10) as rude:
                rude.sendall(b"EqSp\x01")
        with connect(address) as connection:
            assert Near(bundle, number, connection)(bundle.probe).shape == bundle.answers.shape


def _session(bundle: Bundle, number: int):
    return first(bundle.pairs[number], bundle.device)


def test_a_changed_folder_is_refused(folder, tmp_path) -> None:
    for name, change in (
        ("whole.model.onnx", lambda c: c + b"\0"),
        (MANIFEST, lambda c: c.replace(b'"levels": ', b'"level": ', 1)),
    ):
        for file in folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
        with pytest.raises(InputError, match="one that split wrote, unchanged"):
            Bundle.read(tmp_path)
    with pytest.raises(EquipoiseError, match="did not start"), server(tmp_path):
        pass


def test_later_cuts_are_kept_only_where_less_passes() -> None:
    work = workload()
    content = Exporter().onnx(work.model, work.example, topology="net")
    places = worth(content, np.asarray(work.calibration.take(16).tensors()[0]), 1)
    assert places[0].number == 0
    assert places[0].low.shape == (1, 3, 1, 1)  # of each channel, as pixels pass without loss
    assert 1 < len(places) <= 5
    assert all(place.low.shape == () for place in places[1:])


BAD = [
    ({"uplink": "10"}, "uplink must be"),
    ({"uplink": []}, "uplink must be"),
    ({"uplink": "1Mbit/s,1Mbit/s"}, "uplink must be"),
    ({"rtt": "soon"}, "rtt must be"),
    ({"budget": "latency<=1ms"}, "budget axis must be"),
    ({"budget": ""}, "budget must be"),
    ({"time": 0}, "time must be"),
    ({"device": "torch"}, "device must be"),
    ({"server": "onnxruntime?batch=2"}, "server must be"),
    ({"server": "onnxruntime?threads=9999"}, "target.threads must be"),
]


@pytest.mark.parametrize(("given", "told"), BAD)
def test_bad_input_is_told_before_any_work(given, told) -> None:
    with pytest.raises(InputError, match=told):
        eq.split("no such workload", **{"uplink": "1Mbit/s", **given})


@pytest.mark.slow
def test_records_are_plain(found) -> None:
    assert isinstance(found.rides[0], Ride)
    assert isinstance(found.cuts[HERE], Sharing)
    json.dumps(found.data(), allow_nan=False)
