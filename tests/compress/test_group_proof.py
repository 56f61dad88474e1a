"""What is called prunable must be so in patterns that the proof never saw, and everything else must say why it is not."""

from __future__ import annotations

import movers
import pytest
import torch
import torch.nn.functional as F
from silenced import silenced, unseen
from torch import Tensor, nn

from equipoise.compress import candidates
from equipoise.compress.cut import sliced
from equipoise.compress.graph import groups, keeping
from equipoise.compress.group_proof import ROUNDS, pattern
from equipoise.compress.prune import prune


@pytest.mark.parametrize("name", movers.MOVERS)
def test_what_is_offered_can_be_cut_in_any_pattern(name: str) -> None:
    model, inputs = movers.made(name)
    found = groups(model, inputs[:2])
    offered = [group for group in found if group.prunable]
    for seed in range(12):
        chosen = offered if seed % 2 else offered[seed // 2 % max(1, len(offered)) :][:1]
        kept = {group.name: unseen(group.size, seed + place) for place, group in enumerate(chosen)}
        with torch.no_grad():
            cut = sliced(model, keeping(model, chosen, kept))(inputs)
            wanted = silenced(model, chosen, kept)(inputs)
        torch.testing.assert_close(cut, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", movers.MOVERS)
def test_the_step_decides_whether_the_stem_is_offered(name: str) -> None:
    model, inputs = movers.made(name)
    by_name = {group.name: group for group in groups(model, inputs[:2])}
    assert by_name["after"].prunable, "the rest of the net must not suffer"
    before = by_name.get("inner") or by_name["stem"]
    assert before.prunable is movers.MOVERS[name][1], before.reason
    assert all(group.prunable or group.reason for group in by_name.values())


@pytest.mark.parametrize("name", movers.MOVERS)
def test_pruning_with_data_ends_well(name: str) -> None:
    model, inputs = movers.made(name)
    smaller = prune(model, inputs[:2], ratio=0.5, data=inputs, criterion="obs")
    with torch.no_grad():
        answers = smaller(inputs)
    assert answers.shape == (160, 4)
    assert bool(answers.isfinite().all())
    assert sum(map(torch.numel, smaller.parameters())) < sum(map(torch.numel, model.parameters()))


def test_a_branch_that_starts_at_zero_hides_no_mistake() -> None:
    """A gain of zero makes every cut of its branch look right; the proof looks at a copy in which it is not zero."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out, self.head = nn.Linear(12, 16), nn.Linear(16, 12), nn.Linear(12, 3)
            self.gain = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.gain * self.out(F.relu(self.into(x)).roll(1, -1)))

    model = Residual().eval()
    found = {group.name: group for group in groups(model, torch.randn(2, 12, generator=torch.Generator().manual_seed(0)))}
    assert not found["into"].prunable
    assert "places" in found["into"].reason


class Chooses(nn.Module):
    """Of two branches each sample takes one; the stem is read by both."""

    def __init__(self, *, turned: bool) -> None:
        super().__init__()
        self.ask, self.stem = nn.Linear(6, 1), nn.Linear(6, 16)
        self.yes, self.no, self.after, self.head = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 12), nn.Linear(12, 3)
        self.turned = turned

    def forward(self, x: Tensor) -> Tensor:
        stem = F.relu(self.stem(x))
        yes = F.relu(self.yes(stem.roll(1, -1) if self.turned else stem))
        return self.head(F.relu(self.after(torch.where(self.ask(x) > 0, yes, F.relu(self.no(stem))))))


@pytest.mark.parametrize("turned", [True, False])
def test_a_branch_that_no_sample_takes_hides_no_mistake(turned: bool) -> None:
    torch.manual_seed(0)
    model = Chooses(turned=turned).eval()
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    asked = model.ask(x)[:, 0] > 0
    one_way, both = x[~asked][:2], torch.cat([x[asked][:1], x[~asked][:1]])
    right = {"yes", "after"} if turned else {"stem", "yes", "after"}
    assert {group.name for group in groups(model, both) if group.prunable} == right
    found = {group.name: group for group in groups(model, one_way)}
    assert not found["stem"].prunable
    assert found["stem"].reason == "on the example one of its layers changes no output, so a cut cannot be checked"
    assert not found["yes"].prunable, "it is written in both branches"
    assert found["after"].prunable


def test_a_step_without_gradient_is_seen_by_silencing() -> None:
    class Rounds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return (1e6 * self.head(F.relu(self.stem(x)))).round()

    stem, *_ = groups(Rounds(), torch.randn(2, 6, generator=torch.Generator().manual_seed(0)))
    assert stem.prunable, stem.reason


def test_several_outputs_are_all_compared() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            x = F.relu(self.stem(x))
            return {"right": self.right(x), "left": self.left(x.flip(-1))}

    found = {group.name: group for group in groups(Two(), torch.randn(2, 6, generator=torch.Generator().manual_seed(0)))}
    assert not found["stem"].prunable
    assert "places" in found["stem"].reason


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_any_precision_can_be_proven(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).to(dtype)
    inputs = torch.randn(2, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert [group.name for group in groups(model, inputs) if group.prunable] == ["0", "2"]


def test_whatever_the_builder_raises_leaves_its_layer_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    real = candidates._reached

    def fails(graph: object, root: nn.Module, *rest: object) -> object:
        if isinstance(root, nn.Conv2d):
            raise ZeroDivisionError("integer modulo by zero")
        return real(graph, root, *rest)

    monkeypatch.setattr(candidates, "_reached", fails)
    layers = (nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    found = {group.name: group for group in groups(nn.Sequential(*layers), torch.zeros(2, 3, 3, 3))}
    assert found["0"].reason == "its dependencies could not be found: ZeroDivisionError: integer modulo by zero"
    assert found["2"].prunable


def test_a_node_that_cannot_be_worked_out_spoils_only_the_groups_that_reach_it() -> None:
    """Channels shuffled as in ShuffleNet: the builder divides by zero at the reshape."""

    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.branch, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 24, 1)
            self.head = nn.Linear(24, 2)

        def forward(self, x: Tensor) -> Tensor:
            left, right = self.first(x).chunk(2, 1)
            x = torch.cat((left, self.branch(right)), 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
            return self.head(F.relu(self.last(x)).mean((2, 3)))

    model, inputs = Shuffled().eval(), torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    found = {group.name: group for group in groups(model, inputs)}
    assert found["last"].prunable
    assert not found["first"].prunable
    assert found["first"].reason


def test_a_graph_that_runs_in_a_circle_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "FARTHEST", 0.5)
    layers = (nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(200, 16), nn.ReLU(), nn.Linear(16, 2))
    found = {group.name: group for group in groups(nn.Sequential(*layers), torch.zeros(2, 3, 7, 7))}
    assert "OverflowError: its channels take more places than any layer has" in found["0"].reason
    assert found["2"].prunable


@pytest.mark.parametrize("error", [ZeroDivisionError("0"), RecursionError("deep"), KeyError("x"), AssertionError()])
def test_a_builder_that_breaks_down_leaves_the_net_whole(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    import torch_pruning

    def fails(*_given: object, **_named: object) -> None:
        raise error

    monkeypatch.setattr(torch_pruning.DependencyGraph, "build_dependency", fails)
    (only,) = groups(nn.Linear(3, 2), torch.zeros(1, 3))
    assert not only.prunable
    assert type(error).__name__ in only.reason


def test_places_outside_of_an_axis_leave_the_group_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    real = candidates._positions

    def beyond(places: set[object]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(spot + 5 for spot in channel) for channel in real(places))

    monkeypatch.setattr(candidates, "_positions", beyond)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    first = groups(net, torch.zeros(2, 3))[0]
    assert not first.prunable
    assert "outside of the layer" in first.reason


@pytest.mark.parametrize("size", [2, 3, 5, 16, 97])
def test_patterns_are_proper_and_differ(size: int) -> None:
    seen = [tuple(pattern(size, turn, place)) for turn in range(ROUNDS) for place in range(3)]
    assert all(0 < len(kept) < size and len(set(kept)) == len(kept) and kept == tuple(sorted(kept)) for kept in seen)
    assert len(set(seen)) >= min(size, 9)
    assert size < 5 or any(len(kept) % 2 for kept in seen)
