"""Which widths can change together: coupled channel groups, each proven on a copy before it is called prunable.

The `candidates` are a guess on hard models (zero-padded shortcuts, reshapes, code that remembers a width), so what counts is
the comparison made in `group_proof`: a group is prunable when cutting it agrees with the same model whose readers read zeros
for what was removed.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from torch import nn

from equipoise.batch import Inputs
from equipoise.compress.attention import attention
from equipoise.compress.candidates import candidates
from equipoise.compress.coupling import Cut as Cut
from equipoise.compress.coupling import Group as Group
from equipoise.compress.coupling import keeping as keeping
from equipoise.compress.cut import AXES, axis_size, refusal, sliced
from equipoise.compress.dense import shared_parameters
from equipoise.compress.group_proof import prove, said
from equipoise.compress.group_proof import silence as _silence  # noqa: F401 - the same comparison by hand
from equipoise.compress.trace import WEIGHTED, Watched, copied, record, unwatched


def groups(model: nn.Module, example: Inputs, *, watched: Watched = unwatched) -> tuple[Group, ...]:
    """Return the channel groups of `model` in execution order, prunable or with the reason why not.

    Args:
        model: any module; it is not changed.
        example: a small batch `(N, ...)` that the model accepts, N >= 1.
        watched: As `group_proof.prove`.

    Returns:
        Every group found. When the model cannot be traced at all, one group named "" that is not prunable and says why.

    Limits:
        Recurrent layers, GroupNorm and grouped convolutions are left whole, with all that is tied to them. Attention is cut by
        whole heads where its queries, keys and values come from linear layers (`attention`).
        A group with a LayerNorm is proven against a LayerNorm over the kept channels alone.
    """
    try:
        subject = copied(model).eval()
        for parameter in subject.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        tape = record(subject, example)
        heads = list(attention(subject, example, tape))
        mixed = {cut.layer for ways in heads for cut in ways[0] if cut.axis == "out"}
        shared, idle = _sharing(subject, {call.layer for call in tape.calls})
        channels = [
            (_with_idle(cuts, idle), reason) for cuts, reason in candidates(subject, example) if not mixed & _writers(cuts)
        ]
    except Exception as error:  # noqa: BLE001 - somebody else's graph builder walks somebody else's model
        reason = f"the dependency graph could not be built: {said(error)}"
        return (Group("", 0, (), (), False, reason),)
    places: dict[str, int] = {}
    for place, call in enumerate(tape.calls):
        places.setdefault(call.layer, place)
    judged: dict[str, Group] = {}
    for cuts, reason in [*((ways[0], "") for ways in heads), *channels]:
        group = _describe(cuts, places, subject)
        twice = "its first layer begins another group too" if group.name in judged else ""
        why = reason or twice or _static_reason(group, subject, shared)
        judged[group.name] = replace(group, prunable=not why, reason=why)
    proofs = prove(subject, example, [group for group in judged.values() if group.prunable], watched=watched)
    told = [(cuts, *_telling(subject, cuts)) for cuts, _ in channels]
    others = {
        group.name: rest for ways in (*heads, *told) for group, *rest in [[_describe(way, places, subject) for way in ways]]
    }
    instead = _remembering(
        subject, example, {name: others[name] for name in proofs if proofs[name] and name in others}, watched
    )
    if instead:
        judged |= instead
        alive = [group for group in judged.values() if group.prunable and (group.name in instead or not proofs[group.name])]
        proofs = {**proofs, **prove(subject, example, alive, watched=watched)}
    for name, why in proofs.items():
        judged[name] = replace(judged[name], prunable=not why, reason=why)
    return tuple(sorted(judged.values(), key=lambda group: places.get(group.name, len(places))))


def _remembering(
    model: nn.Module, example: Inputs, failed: Mapping[str, Sequence[Group]], watched: Watched
) -> dict[str, Group]:
    """Return, of groups that fail as they are, those of which another way passes; what one group has tried teaches the next.

    The way of the first of a kind is proven here, that of the others with all groups together.

    Args:
        failed: Group -> the other ways to cut it.
    """
    found: dict[str, Group] = {}
    known: dict[tuple[tuple[str, ...], ...], Sequence[int]] = {}
    for name, ways in failed.items():
        kind = tuple(tuple(cut.axis for cut in way.cuts) for way in ways)
        if kind in known:
            for place in known[kind]:
                found[name] = ways[place]
            continue
        known[kind] = ()
        for place in range(len(ways)):
            if not prove(model, example, [ways[place]], watched=watched)[name]:
                found[name], known[kind] = ways[place], (place,)
                break
    return found


def _describe(cuts: tuple[Cut, ...], places: Mapping[str, int], model: nn.Module) -> Group:
    """Name the group and list its writers and readers in execution order."""
    ordered = sorted(cuts, key=lambda cut: places.get(cut.layer, len(places)))
    weighted = [cut for cut in ordered if isinstance(model.get_submodule(cut.layer), (*WEIGHTED, nn.Embedding))]
    producers = tuple(dict.fromkeys(cut.layer for cut in weighted if cut.axis == "out"))
    consumers = tuple(dict.fromkeys(cut.layer for cut in weighted if cut.axis == "in"))
    return Group(producers[0], len(cuts[0].positions), producers, consumers, True, "", tuple(ordered))


def _writers(cuts: Iterable[Cut]) -> set[str]:
    return {cut.layer for cut in cuts if cut.axis == "out"}


def _static_reason(group: Group, model: nn.Module, shared: set[str]) -> str:
    """Return why the group must stay whole, as far as the layers themselves tell."""
    for cut in group.cuts:
        layer = model.get_submodule(cut.layer)
        if cut.axis not in AXES and ":" not in cut.axis:
            continue
        if cut.axis in AXES and (why := refusal(layer)):
            return f"{cut.layer} is {why}, which is not sliced"
        if len(cut.positions) != group.size:
            return f"{cut.layer or 'the model'} holds only some of the channels"
        if len({len(spots) for spots in cut.positions}) > 1:
            return f"its channels take unequal numbers of places in {cut.layer or 'the model'}"
        spots = [spot for channel in cut.positions for spot in channel]
        if len(set(spots)) < len(spots) or not set(spots) <= set(range(axis_size(layer, cut.axis))):
            return f"its places in {cut.layer or 'the model'} could not be made out: some repeat or lie outside of the layer"
    if not group.consumers:
        return "it feeds the model's output"
    if group.size < 2:
        return "it has a single channel"
    parting = next((cut.layer for cut in group.cuts if cut.layer in shared), None)
    if parting is not None and not _cut_alike(group, model):
        return f"{parting or 'the model'} shares its weight with another layer"
    return ""


def _cut_alike(group: Group, model: nn.Module) -> bool:
    """Whether layers that share a weight, as a table and a head do, share it still when the group is cut."""
    smaller = sliced(model, keeping(model, [group], {group.name: range(1, group.size)}), borrow=True)
    before, after = (dict(m.named_parameters(remove_duplicate=False)) for m in (model, smaller))
    first: dict[int, str] = {}
    return all(after[name] is after[first.setdefault(id(value), name)] for name, value in before.items())


def _sharing(model: nn.Module, running: Collection[str]) -> tuple[set[str], dict[str, list[str]]]:
    """Return the modules that hold a parameter which another one that runs holds too, and, by name, those that hold it idly."""
    shared, holders = shared_parameters(model), dict[int, list[str]]()
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in shared:
                holders.setdefault(id(parameter), []).append(name)
    both, idle = set(), dict[str, list[str]]()
    for names in holders.values():
        used = [name for name in names if name in running]
        alike = len({type(model.get_submodule(name)) for name in names}) == 1
        if len(used) == 1 and alike:
            idle[used[0]] = [name for name in names if name not in used]
        else:
            both |= set(names)
    return both, idle


def _with_idle(cuts: tuple[Cut, ...], idle: Mapping[str, Sequence[str]]) -> tuple[Cut, ...]:
    """Return the cuts with those of layers that hold the same weight and are never run."""
    return (*cuts, *(replace(cut, layer=other) for cut in cuts for other in idle.get(cut.layer, ())))


def _telling(model: nn.Module, cuts: tuple[Cut, ...]) -> Iterator[tuple[Cut, ...]]:
    """Yield the cuts with numbers of channels that the code around the layers may have remembered: with all, and each alone."""
    size = len(cuts[0].positions)
    around = {"", *(place for cut in cuts for place in itertools.accumulate(cut.layer.split("."), lambda a, b: f"{a}.{b}"))}
    channels = tuple((channel,) for channel in range(size))
    numbers = [
        Cut(name, attribute, channels)
        for name in sorted(around)
        if refusal(model.get_submodule(name))
        for attribute, value in vars(model.get_submodule(name)).items()
        if type(value) is int and value == size and attribute not in AXES
    ]
    if numbers:
        yield (*cuts, *numbers)
    if len(numbers) > 1:
        yield from ((*cuts, number) for number in numbers)
