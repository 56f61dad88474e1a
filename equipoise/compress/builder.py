"""From a plan to a model: every technique of the table, applied in the order of its stage, the rest repaired in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from equipoise.compress import fakequant
from equipoise.compress.repair import HELD, refit
from equipoise.compress.rounding import on_grid
from equipoise.compress.subject import Subject
from equipoise.compress.technique import Draft, Offer, technique
from equipoise.compress.trace import WEIGHTED
from equipoise.errors import unknown
from equipoise.ops import Op
from equipoise.records import Choice, Plan, digest
from equipoise.schemes import scheme
from equipoise.techniques import TECHNIQUES, Stage


@dataclass(frozen=True)
class Builder:
    """Builds the models of a subject's plans; the subject is never changed."""

    subject: Subject

    @cached_property
    def offers(self) -> dict[str, Offer]:
        """Knob name -> what is offered there, refusals too, in the order of the techniques and of the model."""
        return {
            f"{kind}.{offer.place}" if offer.place else kind: offer
            for kind in TECHNIQUES
            for offer in technique(kind).offers(self.subject)
        }

    def build(self, plan: Plan, *, repair: bool = True) -> Draft:
        """Return the draft of a plan, not trained; deterministic. Knobs that the plan does not name stay untouched.

        Args:
            repair: Whether to re-solve the weights on the calibration inputs. Without it the model still has the biases that
                repair gives to layers without one, so that stored weights of a repaired model fit it.
        Raises:
            InputError: A knob that is not offered, or a choice that cannot be built.
        """
        for name in plan.choices:
            if name.partition(".")[0] in TECHNIQUES and name not in self.offers:
                raise unknown("plan knob", name, self.offers)
        draft = scaled = self._applied(Draft(self.subject.model), plan, Stage.SCALE)
        draft = self._cut(draft, plan)
        if draft.damaged:
            draft = replace(draft, model=self._repaired(draft, plan, scaled.model) if repair else self._with_biases(draft))
        return self._applied(draft, plan, Stage.ROUND)

    def changed(self, name: str, choice: Choice, ranges: Mapping[str, tuple[float, float]]) -> Draft:
        """Return the draft of one choice alone, neither repaired nor trained, integers imitated in torch.

        Args:
            ranges: Layer -> range of its input, from which int8 is imitated.
        """
        plan = Plan({name: choice})
        draft = self._applied(self._cut(self._applied(Draft(self.subject.model), plan, Stage.SCALE), plan), plan, Stage.ROUND)
        if not draft.request:
            return draft
        subject, asked = self.subject, {layer: scheme(way) for layer, way in draft.request.items()}
        moments = subject.moments([layer for layer, way in asked.items() if way.encoded and layer in subject.ops])
        model = on_grid(draft.model, draft.request, exact=subject.exact, moments=moments)
        static = {layer: ranges[layer] for layer, way in asked.items() if way.inputs == "static"}
        model = fakequant.rounded(model, static) if static else model
        dynamic = [layer for layer, way in asked.items() if way.inputs == "dynamic"]
        return replace(draft, model=fakequant.rounding_inputs(model, dynamic))

    def reach(self, name: str, draft: Draft) -> frozenset[str] | None:
        """Return the modules in which a draft of the knob `name` differs from the untouched model; None where all may."""
        offer = self.offers[name]
        if not offer.place:
            return None
        return frozenset({offer.place, *offer.layers, *(layer for layer, _ in draft.keep)})

    def _cut(self, draft: Draft, plan: Plan) -> Draft:
        for stage in (Stage.CUT, Stage.FACTORIZE):
            draft = self._applied(draft, plan, stage)
        return draft

    def touched(self, plan: Plan) -> dict[str, Choice]:
        """Return the knobs of the techniques that a plan changes."""
        return {name: c for name, c in plan.choices.items() if name in self.offers and c != self.offers[name].menu[0]}

    def ops(self, name: str, layer: str, choice: Choice, *, of: Op | None = None) -> tuple[Op, ...]:
        """Return the operators that `layer` becomes when the knob `name` alone is set to `choice`.

        Args:
            of: What other choices made of the layer before; None is the untouched layer.
        """
        subject = self.subject if of is None else replace(self.subject, ops={**self.subject.ops, layer: of})
        return technique(name.partition(".")[0]).ops(subject, self.offers[name], layer, choice)

    def _applied(self, draft: Draft, plan: Plan, stage: Stage) -> Draft:
        changed = self.touched(plan)
        for kind in (kind for kind, row in TECHNIQUES.items() if row.stage == stage):
            chosen = {self.offers[name].place: choice for name, choice in changed.items() if name.partition(".")[0] == kind}
            if chosen:
                draft = technique(kind).apply(draft, self.subject, chosen)
        return draft

    def _repaired(self, draft: Draft, plan: Plan, whole: nn.Module) -> nn.Module:
        """Fit the draft's layers to what those of `whole`, the model at the draft's scale, answer."""
        scale = {name: c for name, c in self.touched(plan).items() if TECHNIQUES[name.partition(".")[0]].stage == Stage.SCALE}
        statistics, calibration = self.subject.answers_of(whole, key=digest(scale)), self.subject.calibration
        assert calibration is not None, "a subject of shapes alone repairs nothing"
        kept = {layer: places for (layer, axis), places in draft.keep.items() if axis == "out"}
        targets = {draft.renamed.get(layer, layer): target for layer, target in statistics.targets.items()}
        kept = {draft.renamed.get(layer, layer): places for layer, places in kept.items()}
        return refit(draft.model, calibration, targets=targets, kept=kept, zeros=draft.hold, held=HELD)

    def _with_biases(self, draft: Draft) -> nn.Module:
        """Give each layer that repair would fit a bias of zeros where it has none."""
        layers = dict(draft.model.named_modules())
        for name in self.subject.fitted:
            layer = layers.get(draft.renamed.get(name, name))
            if isinstance(layer, WEIGHTED) and layer.bias is None:
                layer.bias = nn.Parameter(torch.zeros(len(layer.weight), dtype=layer.weight.dtype), layer.weight.requires_grad)
        return draft.model
