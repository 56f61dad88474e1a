"""Training that goes on from earlier weights: what is kept, what is new, and that it serves where items came later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.errors import InputError
from equipoise.generated.shop import write_rows
from equipoise.training import Recipe
from equipoise.verbs.train import train
from equipoise.workloads import Shape, family
from equipoise.workloads.recommend import recommend_task
from equipoise.workloads.weights import go_on_from

RECIPE = Recipe(lr=1e-2, batch=64, weight_decay=0.01)


def built(items: int, seed: int = 0, name: str = "twotower") -> Any:
    shape = Shape((8,), items, items, unseen=True)
    return family(name).model({"width": 16}, shape, generator=torch.Generator().manual_seed(seed)).eval()


@pytest.mark.parametrize("name", ["sasrec", "twotower"])
def test_what_was_learned_is_kept_and_new_rows_stay_as_drawn(name: str) -> None:
    old, new = built(20, name=name), built(23, seed=1, name=name)
    drawn = {key: value.clone() for key, value in new.state_dict().items()}
    assert go_on_from(new, old.state_dict(), name="start") == 3
    for key, value in new.state_dict().items():
        before = old.state_dict()[key]
        assert torch.equal(value[: len(before)], before)
        assert torch.equal(value[len(before) :], drawn[key][len(before) :])
    rows = torch.tensor([[3, 5, 7, 0, 0, 0, 0, 0]])
    assert torch.allclose(new(rows)[:, :20], old(rows))
    assert go_on_from(built(20, seed=2, name=name), old.state_dict(), name="start") == 0


def test_the_two_sides_of_a_table_stay_one() -> None:
    new = built(23, seed=1)
    go_on_from(new, built(20).state_dict(), name="start")
    assert new.head.weight is new.token.weight


@pytest.mark.parametrize("change", ["fewer", "wider", "other"])
def test_weights_of_another_model_are_refused(change: str) -> None:
    state = {"fewer": built(30), "other": built(20, name="sasrec")}.get(change, built(20)).state_dict()
    if change == "wider":
        shape = Shape((8,), 20, 20, unseen=True)
        state = family("twotower").model({"width": 32}, shape, generator=torch.Generator()).state_dict()
    with pytest.raises(InputError, match="of items, words or classes there may be more now"):
        go_on_from(built(23), state, name="start")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop in which an item comes late, and is then taken by everybody."""
    path = write_rows(tmp_path_factory.mktemp("tastes") / "a.csv", 300)
    users = sorted({line.partition(",")[0] for line in path.read_text().splitlines()[1:]})
    with path.open("a") as opened:
        opened.writelines(f"{user},late,{30 * 86_400 + place}\n" for place, user in enumerate(users))
        opened.writelines(f"{user},later,{31 * 86_400 + place}\n" for place, user in enumerate(users))
    return path


def test_a_new_item_is_recommended_once_it_was_seen(file: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"length": 16, "first": 3, "hold": "time"}
    before = recommend_task(file, **common, until="1970-01-15", days=3)
    first = train("twotower", before, {"width": 16}, store=tmp_path / "a", epochs=4, recipe=RECIPE)
    then = recommend_task(file, **common, until="1970-01-31T00:02", since="1970-01-15", replay=1.0, days=0.003)
    assert then.outputs == before.outputs + 1
    options: dict[str, Any] = {"start": tmp_path / "a" / "model.safetensors", "recipe": RECIPE}
    found = train("twotower", then, {"width": 16}, store=tmp_path / "b", epochs=4, **options)
    assert f"1 rows are new beside {options['start']}" in found.notes
    assert "late" in then.labels
    late = then.labels.index("late")
    rows, targets = then.test.tensors()
    assert float((targets == late).float().mean()) > 0.9  # what everybody takes then
    assert then.metric.score(found.model(rows).detach(), targets) > 60  # guessing: 3 of 42
    assert late >= first.model(rows).shape[1]  # which the first could not tell
    with pytest.raises(InputError, match="store must be the folder of this same run"):
        train("twotower", then, {"width": 16}, store=tmp_path / "b", epochs=4, recipe=RECIPE)


def test_the_same_run_again_trains_nothing(file: Path, tmp_path: Path) -> None:
    task = recommend_task(file, length=16)
    options: dict[str, Any] = {"recipe": RECIPE, "epochs": 1}
    train("twotower", task, {"width": 16}, store=tmp_path / "a", **options)
    options["start"] = str(tmp_path / "a" / "model.safetensors")
    one, same = (train("twotower", task, {"width": 16}, store=tmp_path / "b", **options) for _ in range(2))
    assert one.run.log == same.run.log
    assert set(one.also) == {"NDCG@10"}
    assert "NDCG@10" in one.sentence()
    with pytest.raises(InputError, match="weights must be an existing file"):
        train("twotower", task, {"width": 16}, store=tmp_path / "c", recipe=RECIPE, epochs=1, start=tmp_path / "none")
