"""`train` on images with a trained model: the last layer first, then all of it, and the workload of what came out."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from vision_names import declare

import equipoise.verbs.train as verb
from equipoise.built_in import WORKLOADS
from equipoise.cli import main
from equipoise.cli.arguments import check_named
from equipoise.errors import InputError
from equipoise.training.distribution import OneProcess
from equipoise.training.progress import Progress
from equipoise.verbs.thaw import FILE, THAWED, frozen_start
from equipoise.verbs.train import train, usual_recipe
from equipoise.workloads import load, load_family, load_task
from equipoise.workloads.spec import located

COLORS = {"blue": (40, 40, 220), "green": (40, 220, 40), "red": (220, 40, 40)}

MODEL = '''
import torch
from torch import nn


def net():
    """Trained elsewhere on other classes."""
    torch.manual_seed(5)
    body = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU()]
    made = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 50))
    made.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "input_size": (3, 24, 24)}
    return made
'''


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares of a color, somewhere on noise: of many sizes."""
    root, draw = tmp_path_factory.mktemp("images") / "set", torch.Generator().manual_seed(0)
    for role, count in (("train", 40), ("val", 10), ("test", 10)):
        for name, color in COLORS.items():
            (root / role / name).mkdir(parents=True)
            for i in range(count):
                width, height = (int(v) for v in torch.randint(30, 50, (2,), generator=draw))
                noise = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=draw)
                picture = Image.fromarray(noise.numpy())
                x, y = (int(v) for v in torch.randint(4, 18, (2,), generator=draw))
                picture.paste(color, (x, y, x + 9, y + 9))
                picture.save(root / role / name / f"{i}.png")
    return root


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(MODEL)
    return file


def test_a_file_of_ones_own_by_command(images: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", f"{model}:net", f"images:{images}", "--epochs", "4", "--store", str(tmp_path / "run"), "--test"]
    assert main([*words, "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    frozen, quality = (found["reached"][key]["value"] for key in ("frozen_quality", "quality"))
    assert 40 < frozen <= quality  # of three classes; the better of the two stages is kept
    assert f"{frozen:.2f} with the last layer alone" in found["sentence"]
    assert found["recipe"]["frozen_norm"] is True
    assert found["reached"]["train_s"]["value"] > found["reached"]["frozen_s"]["value"]
    assert "100 % of the samples read by the frozen layers" in shown.err
    assert "each brought to 24x24 by its middle" in found["notes"][0]
    assert "of the last layer alone, on validation data" in (tmp_path / "run" / "report.html").read_text()
    check_named("workload", found["workload"], WORKLOADS)
    work = load(located(found["workload"]))
    assert work.example.shape == (2, 3, 24, 24)  # type: ignore[union-attr]
    assert work.labels == tuple(COLORS)
    assert work.quality(split=work.test) == pytest.approx(found["reached"]["test_quality"]["value"])
    other = load(found["workload"].replace("&weights", "&size=16&weights"))  # control: the images of another size
    assert other.quality(split=other.test) != pytest.approx(found["reached"]["test_quality"]["value"])
    assert main(words) == 0  # once more, in words: nothing is trained again
    shown = capsys.readouterr()
    assert f"next: equipoise optimize 'images:{images}?model={model}:net&weights=" in shown.out
    assert "of training" not in shown.err


class Killed(Exception):
    """Stands for a signal."""


def test_a_killed_run_goes_on_to_the_same_curve(images: Path, model: Path, tmp_path: Path) -> None:
    family = load_family(f"{model}:net")
    task = load_task(f"images:{images}", family=family)
    assert usual_recipe(task, family) == THAWED
    whole = train(family, task, store=tmp_path / "whole", epochs=4)

    def stop(stage: bool) -> None:
        def on_step(progress: Progress) -> None:
            if bool(progress.stage) is stage and (stage or progress.step == 5):
                raise Killed

        with pytest.raises(Killed):
            train(family, task, store=tmp_path / "killed", epochs=4, on_step=on_step)

    stop(True)
    assert not (tmp_path / "killed" / FILE).exists()
    stop(False)
    told: list[Progress] = []
    again = train(family, task, store=tmp_path / "killed", epochs=4, on_step=told.append)
    assert not any(progress.stage for progress in told)  # the first stage is read, not made again
    assert [(p.step, p.validation_loss) for p in again.run.curve] == [(p.step, p.validation_loss) for p in whole.run.curve]
    assert all(map(torch.equal, again.model.state_dict().values(), whole.model.state_dict().values()))


def test_where_training_all_of_it_harms_the_first_stage_is_kept(images: Path, model: Path, tmp_path: Path) -> None:
    family = load_family(f"{model}:net")
    task = load_task(f"images:{images}", family=family)
    harm = verb.recipe_of("lr=3, clip=none", THAWED)
    found = train(family, task, store=tmp_path / "run", epochs=2, recipe=harm)
    assert found.reached["quality"].get() == found.reached["frozen_quality"].get()
    assert found.reached["validation_loss"].get() < min(p.validation_loss for p in found.run.curve)
    assert "whose model is kept" in found.notes[-1]
    assert "brought no more" in found.sentence()
    net = family.model({}, task, generator=torch.Generator().manual_seed(0))
    start = frozen_start(net, family.prepared(task), tmp_path / "run", where=OneProcess())
    assert all(map(torch.equal, found.model.state_dict().values(), start.model.state_dict().values()))
    impatient = verb.recipe_of("lr=3, clip=none, patience=none", THAWED)  # as asked: the last weights
    last = train(family, task, store=tmp_path / "last", epochs=2, recipe=impatient)
    assert last.reached["validation_loss"].get() == last.run.curve[-1].validation_loss


@dataclass(frozen=True)
class OneOfTwo(OneProcess):
    """A rank of two: keeps what rank 0 says, or hears it from a list."""

    said: list[float] = field(default_factory=list)

    def agree(self, value: float) -> float:
        if self.rank:
            return self.said.pop(0)
        self.said.append(value)
        return value


def test_ranks_that_wait_for_the_first_stage_hear_of_each_batch(images: Path, model: Path, tmp_path: Path) -> None:
    family = load_family(f"{model}:net")
    task = family.prepared(load_task(f"images:{images}", family=family))
    net = family.model({}, task, generator=torch.Generator().manual_seed(0))
    (tmp_path / "run").mkdir()
    first = OneOfTwo(rank=0, world=2)
    made = frozen_start(net, task, tmp_path / "run", where=first)
    assert len(first.said) > 2
    assert first.said == [0.0] * (len(first.said) - 1) + [1.0]
    other = OneOfTwo(rank=1, world=2, said=list(first.said))
    read = frozen_start(net, task, tmp_path / "run", where=other)
    assert other.said == []
    assert all(map(torch.equal, made.model.state_dict().values(), read.model.state_dict().values()))


def test_time_is_shared_by_the_stages(images: Path, model: Path, tmp_path: Path) -> None:
    family = load_family(f"{model}:net")
    task = load_task(f"images:{images}", family=family)
    found = train(family, task, store=tmp_path / "run", seconds=4)
    assert found.run.stopped in ("seconds", "patience")
    assert found.run.curve[-1].seconds <= 4 - found.reached["frozen_s"].get() + 1  # a step and a look
    assert found.reached["train_s"].get() == pytest.approx(found.run.seconds + found.reached["frozen_s"].get())


def test_a_module_in_python(images: Path, tmp_path: Path) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.norm, self.head = nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.Linear(6, 9)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.norm(self.body(x)).relu().amax((2, 3)))
            return logits

    net = Small()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = train(net, f"images:{images}?size=24", store=tmp_path / "run", epochs=1)
    assert "frozen_quality" in found.reached
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(found.model.norm.running_mean, before["norm.running_mean"])  # kept in the second stage too
    with pytest.raises(InputError, match="a Family, its name, a function of a scale, or a trained model"):
        train(5, f"images:{images}", store=tmp_path / "other")  # type: ignore[arg-type]


@pytest.mark.skipif(any(importlib.util.find_spec(name) is None for name in ("timm", "torchvision")), reason="the extra vision")
def test_timm_by_command(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    declare()
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(timm.create_model("test_efficientnet").state_dict(), tmp_path / "w.safetensors")
    spec = f"timm:test_efficientnet?weights={tmp_path / 'w.safetensors'}"
    words = ["train", spec, f"images:{images}?size=32", "--steps", "2", "--store", str(tmp_path / "run"), "--json", "--quiet"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["workload"] == (
        f"images:{images}?size=32&model=timm:test_efficientnet&weights={tmp_path / 'run' / 'model.safetensors'}"
    )
    work = load(found["workload"])
    assert 100 * found["classification"]["accuracy"] == pytest.approx(work.quality())
    shutil.copy(tmp_path / "w.safetensors", tmp_path / "run" / "model.safetensors")  # control: weights of 1,000 classes
    with pytest.raises(InputError, match=r"have the model's shapes.*classifier"):
        load(found["workload"])
