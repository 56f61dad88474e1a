"""Single weights: counted to the weight, and fitted as an exact solver fits each row of them."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from nets import made
from torch import Tensor

from equipoise.compress import sparse
from equipoise.compress.builder import Builder
from equipoise.compress.masked import masked_solution
from equipoise.compress.schedule import eased
from equipoise.compress.sparse import Amount, Weighed, chosen, fitted
from equipoise.compress.statistics import Moments
from equipoise.compress.subject import Subject
from equipoise.compress.technique import Draft, Offer
from equipoise.errors import InputError
from equipoise.records import Plan
from equipoise.techniques import TECHNIQUES, Kind, Stage
from equipoise.testing.techniques import Probe, probe_inputs

SOURCE = torch.Generator().manual_seed(0)
ROWS = (torch.randn(500, 12, generator=SOURCE) @ torch.randn(12, 12, generator=SOURCE)).double()
WEIGHT = torch.randn(6, 12, generator=SOURCE).double()
MOMENTS = Moments(torch.cov(ROWS.T, correction=0), ROWS.mean(0))
WEIGHED = Weighed({"a": WEIGHT, "b": 10 * WEIGHT}, {"a": MOMENTS, "b": MOMENTS})


def damage(weight: Tensor) -> float:
    """Squared error of the centred outputs: a bias makes up for their mean."""
    off = (ROWS - ROWS.mean(0)) @ (weight - WEIGHT).T
    return float(off.square().mean())


def test_conjugate_gradients_solve_every_row_as_its_own_system_does() -> None:
    factor = torch.randn(12, 20, generator=SOURCE).double()
    matrix, right = factor @ factor.T / 20, torch.randn(6, 12, generator=SOURCE).double()
    mask = torch.rand(6, 12, generator=SOURCE) < 0.6
    found = masked_solution(matrix, right, mask, rounds=200)
    for x, b, left in zip(found, right, mask, strict=True):
        exact = torch.linalg.solve(matrix[left][:, left], b[left])
        torch.testing.assert_close(x[left], exact, rtol=1e-5, atol=1e-6)
        assert not bool(x[~left].any())
        dense = torch.linalg.solve(matrix, b)[left]  # the planted wrong answer: solved whole, then masked
        assert float((dense - exact).abs().max()) > 1e-2


def test_what_is_left_makes_up_for_what_went() -> None:
    mask = sparse._all_but(WEIGHT.abs().flatten(), 0.5).view_as(WEIGHT)
    kept = fitted(WEIGHT, mask, MOMENTS)
    assert not bool(kept[~mask].any())
    assert damage(kept) < 0.7 * damage(WEIGHT * mask)


def test_obs_leaves_less_damage_than_activation_and_that_less_than_magnitude() -> None:
    found = {c: chosen(WEIGHED, Amount(rate=0.5), criterion=c) for c in sparse.CRITERIA}
    assert damage(found["obs"][1]["a"]) < damage(found["activation"][1]["a"]) < damage(found["magnitude"][0]["a"] * WEIGHT)


def test_saliency_is_the_damage_of_one_weight_after_the_best_update() -> None:
    """Two oracles: the formula, and the damage of a fit without that weight."""
    scores = sparse.obs(WEIGHT, MOMENTS)
    for row, column in ((0, 0), (3, 7), (5, 11)):
        mask = torch.ones_like(WEIGHT, dtype=torch.bool)
        mask[row, column] = False
        off = (ROWS - ROWS.mean(0)) @ (fitted(WEIGHT, mask, MOMENTS) - WEIGHT).T
        power = float(((ROWS - ROWS.mean(0)) @ WEIGHT.T).square().mean())
        assert float(scores[row, column]) == pytest.approx(float(off.square().sum(1).mean()) / power, rel=0.1)
        naive = float(sparse.activation(WEIGHT, MOMENTS)[row, column])
        assert naive > 1.2 * float(scores[row, column])


@pytest.mark.parametrize("criterion", sparse.CRITERIA)
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9])
def test_the_rate_is_exact(criterion: str, rate: float) -> None:
    for scope in ("layer", "global"):
        masks, _ = chosen(WEIGHED, Amount(rate=rate, scope=scope), criterion=criterion)
        gone = {name: int((~mask).sum()) for name, mask in masks.items()}
        assert sum(gone.values()) == (round(144 * rate) if scope == "global" else 2 * round(72 * rate))
        if scope == "layer":
            assert set(gone.values()) == {round(72 * rate)}
        elif criterion == "magnitude" and rate:
            assert gone["a"] > gone["b"]  # b has ten times the weights
        else:
            assert abs(gone["a"] - gone["b"]) <= 1  # of its output each weight moves the same share in both


def test_no_layer_goes_whole_where_all_are_ranked_together() -> None:
    masks, _ = chosen(Weighed({"a": WEIGHT, "b": 1e6 * WEIGHT}), Amount(rate=0.5, scope="global"), criterion="magnitude")
    assert int(masks["a"].sum()) == 1


def test_of_every_four_neighbours_the_two_largest_stay() -> None:
    masks, _ = chosen(WEIGHED, Amount(pattern=(2, 4)), criterion="magnitude")
    for row, mask in zip(WEIGHT.reshape(-1, 4), masks["a"].reshape(-1, 4), strict=True):
        assert set(mask.nonzero().flatten().tolist()) == set(row.abs().topk(2).indices.tolist())


@pytest.mark.parametrize("criterion", sparse.CRITERIA)
def test_the_schedule_is_cubic_and_what_went_stays_away(criterion: str) -> None:
    assert [round(eased(t), 4) for t in (0, 0.5, 1)] == [0, 0.875, 1]
    first, _ = chosen(WEIGHED, Amount(rate=0.5), criterion=criterion)
    swapped = replace(WEIGHED, weights={name: first[name] / w for name, w in WEIGHED.weights.items()})  # the others are small
    masks, weights = chosen(swapped, Amount(rate=0.6), criterion=criterion, before=first)
    assert all(not bool((masks[name] & ~first[name]).any()) for name in first)
    assert all(not bool(weights[name][~masks[name]].any()) for name in first)
    assert int((~masks["a"]).sum()) == round(0.6 * 72)


class Masks:
    """A technique of a user: half of a layer's weights are zero."""

    def offers(self, subject):
        yield Offer("conv", (1, 0), ("conv",))

    def apply(self, draft, subject, chosen):
        if set(chosen) - {"conv"}:
            raise InputError("no such place")
        model = copy.deepcopy(draft.model)
        weight = model.conv.weight
        weight.data[weight.abs() < weight.abs().median()] = 0
        return replace(draft, model=model, damaged=True, hold=draft.hold | {"conv"} if self.holds else draft.hold)

    def ops(self, subject, offer, layer, choice):
        return (subject.ops[layer],)

    holds = True


@pytest.mark.parametrize("holds", [True, False])
def test_a_draft_can_ask_repair_to_hold_its_zeros(holds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"mask": Kind(f"{__name__}:Masks", Stage.FACTORIZE, "mask", lambda *_: "", lambda *_: "")}
    for module in ("technique", "builder"):
        monkeypatch.setattr(f"equipoise.compress.{module}.TECHNIQUES", {**TECHNIQUES, **row})
    monkeypatch.setattr(Masks, "holds", holds)
    inputs = probe_inputs()
    net = Probe().eval()
    builder = Builder(Subject.prepare(net, inputs[:2], inputs))
    bare, repaired = (builder.build(Plan({"mask.conv": 0}), repair=repair) for repair in (False, True))
    zeros = bare.model.conv.weight == 0
    assert 0.4 < float(zeros.float().mean()) < 0.6
    assert bool((repaired.model.conv.weight[zeros] == 0).all()) == holds
    with torch.no_grad():
        off = [float((draft.model(inputs) - net(inputs)).square().mean()) for draft in (bare, repaired)]
    assert off[1] < 0.5 * off[0]
    assert isinstance(repaired, Draft)


def test_depthwise_layers_are_left_whole_by_a_criterion_that_cannot_judge_them() -> None:
    net, inputs = Probe().eval(), probe_inputs()
    found = sparse.gather(net, criterion="obs", data=inputs)
    assert set(found.left) == {"first.mix", "second.mix"}
    assert "depthwise" in found.left["first.mix"]
    assert not sparse.gather(net, criterion="magnitude", data=None).left
    assert "stem" in sparse.gather(net, criterion="magnitude", data=None, pattern=(2, 4)).left  # it reads three colours


def test_bad_asks_are_told() -> None:
    net, inputs = made("cnn")
    with pytest.raises(InputError, match=r"criterion.*obs"):
        sparse.gather(net, criterion="obsidian", data=inputs)
    with pytest.raises(InputError, match="data must be a batch of inputs"):
        sparse.gather(net, criterion="obs", data=None)
    with pytest.raises(InputError, match="layer"):
        sparse.gather(net, criterion="magnitude", data=None, layers=["nine"])


@pytest.mark.parametrize("rate", [0.9, 0.985, 0.99, 0.999])
def test_no_layer_goes_whole_at_any_rate(rate: float) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = {name: size * torch.randn(64, 64, generator=generator).double() for name, size in (("a", 1.0), ("b", 100.0))}
    masks, _ = chosen(Weighed(weights, {}), Amount(rate=rate, scope="global"), criterion="magnitude")
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    assert min(kept.values()) >= min(0.02, 1 - rate) * 64 * 64 - 1, kept
    assert abs(sum(kept.values()) - (1 - rate) * 2 * 64 * 64) <= 1
