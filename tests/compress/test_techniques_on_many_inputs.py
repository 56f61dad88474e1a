"""Every technique on models of several inputs: token ids with a mask, an image with a row of numbers."""

from __future__ import annotations

import torch
from many_inputs import paired, pairs, sentences, trained

from equipoise.batch import call, positional, take
from equipoise.compress.builder import Builder
from equipoise.compress.fakequant import simulate
from equipoise.compress.fold import folded
from equipoise.compress.graph import groups
from equipoise.compress.proof import changed
from equipoise.compress.prune import prune
from equipoise.compress.subject import Subject
from equipoise.compress.trace import record
from equipoise.records import Plan

IDS, _ = sentences(256)
BOTH = positional(pairs(256)[0])


def test_groups_reach_through_ids_and_mask() -> None:
    found = {group.name: group for group in groups(trained(steps=2), take(IDS, slice(2)))}
    assert found["layers.0.widen"].prunable
    assert found["layers.0.widen"].consumers == ("layers.0.narrow",)


def test_norms_fold_in_a_model_of_an_image_and_a_row() -> None:
    net = paired()
    done = folded(net, take(BOTH, slice(2)), data=BOTH)
    assert not done.left
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in done.model.modules())
    assert not changed(done.model, net, [BOTH])


def test_repair_brings_the_answers_closer() -> None:
    net = trained(steps=30)
    rough, mended = (prune(net, take(IDS, slice(2)), ratio=0.5, data=IDS, repair=repair) for repair in (False, True))
    with torch.no_grad():
        off = [float((call(made, IDS).logits - call(net, IDS).logits).square().mean()) for made in (rough, mended)]
    assert mended.layers[0].widen.out_features == 32
    assert off[1] < 0.5 * off[0]


def test_blocks_drop_and_layers_round() -> None:
    net = trained(steps=2)
    subject = Subject.prepare(net, take(IDS, slice(2)), IDS)
    assert Builder(subject).build(Plan({})).model.layers[1] is not None
    rounded = simulate(net, IDS, layers={"layers.0.widen"})
    with torch.no_grad():
        off = float((call(rounded, IDS).logits - call(net, IDS).logits).abs().max())
    assert 0 < off < 0.5


def test_the_tape_ends_in_the_tensors_of_a_record() -> None:
    tape = record(trained(steps=1), {**take(IDS, slice(2)), "detailed": True})
    assert [tape.shapes[end] for end in tape.outputs] == [(2, 2), (2, 32)]
