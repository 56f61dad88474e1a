"""Commands that cannot be meant: exit 2, one line that names the argument, the value and what to do, and nothing begun."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from equipoise.cli import main
from equipoise.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_MISSING_EXTRA

SCALE = ["mlp", "digits"]

LIGHT = {
    # verbs and options
    "optimise digits": "optimize",
    "--sead 3": "verb",
    "train mlp digits --sead 3": "--seed",
    "optimize digits --bugdet drop<=1": "--budget",
    "scale mlp digits --tine 3min": "--time",
    "report": "STUDY",
    "train": "FAMILY",
    "train mlp": "TASK",
    "optimize": "WORKLOAD",
    "optimize digits digits": "digits",
    "train mlp digits --time": "--time",
    "profile digits --seconds": "--seconds",
    "train mlp digits --test=yes": "--test",
    # names and files
    "optimize digit": "digits",
    "optimize ''": "workload",
    "optimize cifar10": "cifar10:PATH",
    "optimize nowhere.py:make": "nowhere.py",
    "optimize images:nowhere?weights=w.safetensors": "nowhere",
    "optimize cifar10:no.zip?weights=w": "no.zip",
    "profile digitz": "digits",
    "profile nowhere.py:make": "nowhere.py",
    "train mpl digits": "mlp",
    "train mlp digitz": "digits",
    "train mlp text:nowhere.txt": "nowhere.txt",
    "train nowhere.py:net digits": "nowhere.py",
    "train mlp nowhere.py:task": "nowhere.py",
    "scale mpl digits": "mlp",
    "scale mlp digitz": "digits",
    "scale table mpl digits": "mlp",
    "scale table mlp text:nowhere.txt": "nowhere.txt",
    # lengths and counts of train
    "train mlp digits --epochs nan": "--epochs",
    "train mlp digits --epochs inf": "--epochs",
    "train mlp digits --epochs -inf": "--epochs",
    "train mlp digits --epochs 0": "--epochs",
    "train mlp digits --epochs -1": "--epochs",
    "train mlp digits --epochs ten": "--epochs",
    "train mlp digits --epochs 1e-400": "--epochs",
    "train mlp digits --epochs 1e400": "--epochs",
    "train mlp digits --epochs ''": "--epochs",
    "train mlp digits --steps 0": "--steps",
    "train mlp digits --steps -5": "--steps",
    "train mlp digits --steps 1.5": "--steps",
    "train mlp digits --steps 1e3": "--steps",
    "train mlp digits --steps 99999999999999999999": "--steps",
    "train mlp digits --time 10": "--time",
    "train mlp digits --time nan": "--time",
    "train mlp digits --time inf": "--time",
    "train mlp digits --time -3s": "--time",
    "train mlp digits --time 0s": "--time",
    "train mlp digits --time 1e-400s": "--time",
    "train mlp digits --time 1e400s": "--time",
    "train mlp digits --time 1e308d": "--time",
    "train mlp digits --time 5lightyears": "--time",
    "train mlp digits --seed -1": "--seed",
    "train mlp digits --seed 1.0": "--seed",
    "train mlp digits --seed 18446744073709551616": "--seed",
    "train mlp digits --seed x": "--seed",
    "train mlp digits --ranks 0": "--ranks",
    "train mlp digits --ranks -2": "--ranks",
    "train mlp digits --ranks two": "--ranks",
    "train mlp digits --ranks 100000": "--ranks",
    "train mlp digits --kind dpp": "ddp",
    "train mlp digits --kind ''": "--kind",
    "train mlp digits --offload optimiser": "optimizer",
    "train mlp digits --price-per-hour -5": "--price-per-hour",
    "train mlp digits --price-per-hour 0": "--price-per-hour",
    "train mlp digits --price-per-hour nan": "--price-per-hour",
    "train mlp digits --price-per-hour 5$": "--price-per-hour",
    "train mlp digits --watts-per-core 0": "--watts-per-core",
    "train mlp digits --watts-per-core 9..4": "--watts-per-core",
    "train mlp digits --watts-per-core inf": "--watts-per-core",
    "train mlp digits --watts-per-core ''": "--watts-per-core",
    "train mlp digits --scale width": "--scale",
    "train mlp digits --scale width=": "--scale",
    "train mlp digits --scale =3": "--scale",
    "train mlp digits --scale width=wide": "--scale",
    "train mlp digits --scale width=nan": "--scale",
    "train mlp digits --scale width=1e999": "--scale",
    "train mlp digits --scale width=8,width=16": "--scale",
    "train mlp digits --store {file}": "--store",
    "train mlp digits --store {file}/below": "--store",
    "train mlp digits --store /proc/nowhere": "--store",
    "train mlp digits --store /dev/null": "--store",
    # split
    "split digits": "--uplink",
    "split digitz --uplink 1Mbit/s": "digits",
    "split digits --uplink 10": "--uplink",
    "split digits --uplink 0Mbit/s": "--uplink",
    "split digits --uplink 1Mbit/s,": "--uplink",
    "split digits --uplink 1Mbit/s --rtt 20": "--rtt",
    "split digits --uplink 1Mbit/s --rtt -1ms": "--rtt",
    "split digits --uplink 1Mbit/s --budget latency<=1ms": "--budget",
    "split digits --uplink 1Mbit/s --device onnxruntime:gpu": "cpu",
    "split digits --uplink 1Mbit/s --server a,b": "a",
    "split digits --uplink 1Mbit/s --time 0s": "--time",
    "split digits --uplink 1Mbit/s --device torch:cpu": "device must be of a runtime that reads ONNX",
    "split digits --uplink 1Mbit/s --out {file}": "--out",
    "split digits --uplink 1Mbit/s --out {full}": "--out must be an empty folder",
    # optimize
    "optimize digits --time soon": "--time",
    "optimize digits --time 1e-400s": "--time",
    "optimize digits --time nan": "--time",
    "optimize digits --time -1min": "--time",
    "optimize digits --seed -1": "--seed",
    "optimize digits --seed 0.5": "--seed",
    "optimize digits --budget drop": "budget",
    "optimize digits --budget drop<=x": "budget drop",
    "optimize digits --budget drop>=1": "budget drop",
    "optimize digits --budget latency<=-1ms": "budget latency",
    "optimize digits --budget latency<=1": "budget latency",
    "optimize digits --budget latency<=nanms": "budget latency",
    "optimize digits --budget latency<=1e-400ms": "budget latency",
    "optimize digits --budget drop<=1,drop<=2": "budget",
    "optimize digits --budget lateny<=1ms": "latency",
    "optimize digits --target onxruntime:cpu": "onnxruntime",
    "optimize digits --target onnxruntime:gpu": "cpu",
    "optimize digits --target onnxruntime?threads=100000": "--target",
    "optimize digits --target onnxruntime?threads=0": "threads",
    "optimize digits --target onnxruntime?batch=-1": "batch",
    "optimize digits --target onnxruntime?treads=1": "threads",
    "optimize digits --target torch,torch": "targets",
    "optimize digits --target ''": "targets",
    "optimize digits --store {file}": "--store",
    "optimize digits --store {full}": "--store",
    "optimize digits --store /proc/1/x": "--store",
    "optimize digits --only ''": "--only must be",
    "optimize digits --time -5s": "--time must be",
    "optimize digits --seed 99999999999999999999": "at most 9223372036854775807",
    "scale mlp digits --time -.5min": "--time must be",
    "demo --time -5s": "--time must be",
    # scale
    "scale": "FAMILY",
    "scale mlp": "FAMILY TASK",
    "scale mlp digits more": "FAMILY TASK",
    "scale efficiency x": "efficiency x",
    "scale fit": "RUNS.csv",
    "scale fit a.csv b.csv": "RUNS.csv",
    "scale table mlp": "table FAMILY TASK",
    "scale mlp digits --time 1e-400s": "--time",
    "scale mlp digits --time nan": "--time",
    "scale mlp digits --time 0s": "--time",
    "scale mlp digits --limits trian<=2h": "train",
    "scale mlp digits --limits latency>=1ms": "latency",
    "scale mlp digits --limits drop<=1": "drop",
    "scale mlp digits --limits cost<=5$": "--price-per-hour",
    "scale mlp digits --target torch,openvino": "--target",
    "scale mlp digits --target torch?threads=100000": "--target",
    "scale mlp digits --requests 0": "--requests",
    "scale mlp digits --requests -1e6": "--requests",
    "scale mlp digits --requests many": "--requests",
    "scale mlp digits --price-per-hour -5": "--price-per-hour",
    "scale mlp digits --price-per-hour inf": "--price-per-hour",
    "scale mlp digits --seed -3": "--seed",
    "scale mlp digits --store {file}": "--store",
    "scale mlp digits --store {full}": "--store",
    "scale mlp digits --store /proc/x": "--store",
    "scale table mlp digits --scales a,b": "--scales",
    "scale table mlp digits --scales abc": "--scales",
    "scale table mlp digits --scales 1,,2": "--scales",
    "scale table mlp digits --scales ,": "--scales",
    "scale table mlp digits --scales 0": "--scales",
    "scale table mlp digits --scales nan,1": "--scales",
    "scale table mlp digits --scales -1,inf": "--scales",
    "scale fit runs.csv --flops 0": "--flops",
    "scale fit runs.csv --flops nan": "--flops",
    # profile, demo, report
    "profile digits --batch 0": "--batch",
    "profile digits --batch 1.5": "--batch",
    "profile digits --seconds nan": "--seconds",
    "profile digits --seconds 0": "--seconds",
    "profile digits --seconds -3": "--seconds",
    "profile digits --seconds inf": "--seconds",
    "profile digits --price-per-hour -5": "--price-per-hour",
    "profile digits --price-per-hour free": "--price-per-hour",
    "profile digits --watts-per-core -1": "--watts-per-core",
    "profile digits --watts-per-core 4...9": "--watts-per-core",
    "profile digits --target onnxruntime?threads=100000": "--target",
    "profile digits --target tensorrt": "onnxruntime",
    "profile digits --target torch:gpu": "Did you mean 'cuda'",
    "demo --time nan": "--time",
    "demo --time 1e-400s": "--time",
    "demo --store {file}": "--store",
    "report nowhere": "nowhere",
    "report {file}": "file",
    "report {full}": "full",
    "report {full} --out {full}": "--out",
    "export nowhere --out x": "nowhere",
    "export {full} --out x --pick best": "full",
    "export {full}": "--out",
    "verify nowhere": "nowhere",
    "verify {full}": "full",
    "verify {full} --seconds nan": "--seconds",
    "verify {full} --seconds -1": "--seconds",
    "verify {full} --seconds soon": "--seconds",
    "verify": "ARTIFACT",
}
"""Command -> what the line must name; nothing of these needs torch. {file} is a file, {full} a folder with things in it."""

SCRIPT = """
import contextlib, io, json, shlex, sys
from equipoise.cli import main
for line in sys.stdin.read().splitlines():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(shlex.split(line))
    print(json.dumps([code, out.getvalue(), err.getvalue(), sys.modules.pop("torch", None) is not None]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, list]:
    """What each light command answers, all run in one process; and what they left behind."""
    desk = tmp_path_factory.mktemp("desk")
    (desk / "file").write_text("not a study")
    (desk / "full").mkdir()
    (desk / "full" / "notes.txt").write_text("mine")
    lines = "\n".join(line.format(file="file", full="full") for line in LIGHT)
    done = subprocess.run([sys.executable, "-c", SCRIPT], input=lines, capture_output=True, text=True, check=True, cwd=desk)
    told = dict(zip(LIGHT, map(json.loads, done.stdout.splitlines()), strict=True))
    left = sorted(str(path.relative_to(desk)) for path in desk.rglob("*"))
    return {**told, "left": left}


@pytest.mark.parametrize("line", LIGHT)
def test_a_bad_command_is_one_line_and_loads_no_torch(line, answers):
    code, out, err, torch = answers[line]
    assert (code, out, err.count("\n"), torch) == (EXIT_BAD_INPUT, "", 1, False), err
    assert any(word in err for word in LIGHT[line].split("|")), err
    assert err.startswith("equipoise: ")
    assert "Error" not in err


def test_none_of_them_leaves_anything_behind(answers):
    assert answers["left"] == ["file", "full", "full/notes.txt"]


OWN = """
import sys
import torch
from torch import nn
from equipoise.workloads import Workload

class Strange(BaseException):
    pass

def leaves(): sys.exit(3)
def strange(): raise Strange("[/] boo")
def nothing(): return None
def net(width=8): return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, 10))
def huge(width=8): return nn.Linear(10**7, 10**7)
def quits(width=8): sys.exit(0)
"""

HEAVY = {
    "optimize own.py:leaves": "SystemExit",
    "optimize own.py:strange": "Strange",
    "optimize own.py:nothing": "Workload",
    "optimize own.py:absent": "absent",
    "optimize own.py": "own.py:make_workload",
    "optimize w.pt": "w.pt",
    "optimize images:pics": "weights",
    "optimize images:pics?weight=w": "weights",
    "optimize images:pics?weights=no.safetensors": "no.safetensors",
    "optimize cifar10:file.zip?weights=no.safetensors": "file.zip|no.safetensors",
    "train mlp cifar10:file.zip": "file.zip",
    "train mlp images:pics": "pics",
    "train mlp text:file.zip?context=x": "context",
    "train mlp text:file.zip?contxt=3": "context",
    "train own.py:absent digits": "absent",
    "train own.py:quits digits": "SystemExit|quits",
    "train own.py:huge digits": "scale",
    "train mlp digits --scale height=3": "width",
    "train mlp digits --scale width=0": "width",
    "train mlp digits --scale width=1e15": "scale",
    "train mlp digits --scale width=200000,depth=9": "this machine's",
    "scale table cnn digits --scales 1e9": "this machine's",
    "scale table mlp digits --scales 1,1e9": "this machine's",
    "train mlp digits --scale width=1e300": "scale|width",
    "train mlp digits --recipe lr=abc": "recipe lr",
    "train mlp digits --recipe lr=nan": "lr",
    "train mlp digits --recipe lr=-1": "lr",
    "train mlp digits --recipe lr": "recipe",
    "train mlp digits --recipe rl=1": "lr",
    "train mlp digits --recipe optimizer=sdg": "sgd",
    "train mlp digits --recipe optimizer=3": "recipe optimizer",
    "train mlp digits --recipe batch=0": "batch",
    "train mlp digits --recipe batch=many": "recipe batch",
    "train mlp digits --recipe batch=1.5": "recipe batch",
    "train mlp digits --recipe nesterov=maybe": "recipe nesterov",
    "train mlp digits --recipe clip=high": "recipe clip",
    "train mlp digits --recipe warmup=true": "recipe warmup",
    "train mlp digits --recipe patience=never": "recipe patience",
    "train gpt digits": "gpt",
    "scale table gpt digits": "gpt",
    "scale table mlp digits --scales 1e-30": "--scales",
    "scale table mlp digits --scales 1e30": "--scales",
    "scale mlp digits --recipe schedule=cosine": "wsd",
    "scale mlp digits --recipe lr=abc": "recipe lr",
    "scale fit nowhere.csv": "nowhere.csv",
    "scale fit file.zip": "file.zip",
    "scale fit empty.csv": "empty.csv",
    "profile own.py:leaves": "SystemExit",
    "profile w.pt": "w.pt",
}
"""The same, where torch has to be loaded to know."""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "file.zip").write_text("no archive, and no table")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "w.pt").write_bytes(b"junk")
    (tmp_path / "pics").mkdir()
    return tmp_path


@pytest.mark.parametrize("line", HEAVY)
def test_what_only_loading_can_know_is_one_line_too(line, desk, capsys):
    code = main([*shlex.split(line), *(["--quiet"] if line.split()[0] in ("train", "optimize") else [])])
    out, err = capsys.readouterr()
    told = err[err.index("equipoise: ") :]  # after the lines that say what is being done
    assert (code, out) == (EXIT_BAD_INPUT, ""), err
    assert told.count("\n") == (2 if line == "train mlp images:pics" else 1)  # two mistakes are told together
    assert any(word in told for word in HEAVY[line].split("|")), err
    assert "Traceback" not in err


def test_what_the_user_s_code_ends_while_it_runs_is_told_and_not_taken_for_success(desk, capsys, monkeypatch):
    from equipoise.verbs import train as trainer

    def leaves(*_: object, **__: object) -> None:
        sys.exit(0)

    monkeypatch.setattr(trainer, "fit", leaves)
    assert main(["train", "mlp", "digits", "--quiet"]) == EXIT_FAILED
    assert capsys.readouterr().err == (
        "equipoise: the run was ended from inside, by SystemExit(0); what was measured is kept "
        "(EQUIPOISE_DEBUG=1 shows the traceback)\n"
    )


@pytest.mark.parametrize(
    ("workload", "name"),
    [
        ("digits", "digits"),
        ("images:photos?weights=w", "images-photos"),
        ("images:/data/photos/?weights=a/b", "photos"),
        ("a/b/mine.py:make", "mine-py-make"),
        ("images:/", "images"),
        ("images:../", "images"),
        ("///", "study"),
    ],
)
def test_a_study_never_stands_in_the_folder_of_all_studies(workload, name):
    from equipoise.cli.optimize import _name

    assert _name(workload) == name


@pytest.mark.parametrize(
    "line",
    [
        "optimize digits --target onnxruntime:cpu,torch:cuda",
        "profile digits --target torch:cuda",
        "advise digits --target torch:cuda",
        "scale mlp digits --target torch:cuda",
        "split digits --uplink 1Mbit/s --device torch:cuda",
    ],
)
def test_a_card_that_is_not_there_is_told_before_anything_is_loaded(line, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("equipoise.runtimes.cuda.card.missing", lambda: "no card")
    monkeypatch.setattr("equipoise.workloads.spec._named", lambda *_, **__: pytest.fail("loaded"))
    assert main(shlex.split(line)) == EXIT_BAD_INPUT
    assert (
        capsys.readouterr().err.count("must be a runtime that can be used here; got 'torch:cuda?threads=1&batch=1'. no card")
        == 1
    )
    assert not list(tmp_path.iterdir())


def test_a_runtime_that_is_not_installed_is_a_missing_extra(capsys, monkeypatch):
    monkeypatch.setattr("equipoise.runtimes.openvino.OpenVino.unavailable", lambda _: "install it")
    assert main(["profile", "digits", "--target", "openvino:cpu"]) == EXIT_MISSING_EXTRA
    assert "--target must be a runtime that can be used here" in capsys.readouterr().err
