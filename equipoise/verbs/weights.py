"""Techniques that leave every width as it is, in one line, without a study: sparsify, factorize, share."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import nn

from equipoise.batch import Inputs, take
from equipoise.compress import codebook, ranks, sparse
from equipoise.compress.blocks import replaced
from equipoise.compress.codebook import BYTE
from equipoise.compress.factorize import Ranks, full_rank, tuckers
from equipoise.compress.fold import fold
from equipoise.compress.ranks import Form
from equipoise.compress.repair import HELD, refit
from equipoise.compress.schedule import Train, check_steps, eased, trained
from equipoise.compress.statistics import collect
from equipoise.compress.trace import WEIGHTED
from equipoise.errors import listed, must_be, unknown
from equipoise.runtimes import Program
from equipoise.runtimes.export import Exporter
from equipoise.runtimes.onnxruntime import FILE
from equipoise.runtimes.palette import palettized
from equipoise.units import is_real, is_whole
from equipoise.verbs.given import beside, in_precision_of, inputs_of, one_output, prepared
from equipoise.workloads.wrapped import bare, copied

ZEROS_COST = (
    "a zero costs ONNX Runtime and OpenVINO on a CPU what any number costs: the program is neither faster nor, unless it is "
    "packed, smaller; eq.prune takes whole channels away"
)


SHARED_COST = (
    "sharing makes the file smaller alone: a runtime gathers the values when it loads it, and then runs as quick as before"
)


@dataclass(frozen=True)
class Sparse:
    """A model with zeros among its weights.

    Attributes:
        model: The copy, in evaluation mode.
        sparsity: Fraction of zeros among the weights of all its linear and convolution layers, biases aside.
        layers: The same of each layer that was made sparse.
        left: Why another was left whole.
        notes: What the zeros do not gain.
    """

    model: nn.Module
    sparsity: float
    layers: Mapping[str, float]
    left: Mapping[str, str]
    notes: tuple[str, ...] = (ZEROS_COST,)


def sparsify(
    model: nn.Module,
    example: Inputs,
    *,
    rate: float | None = None,
    threshold: float | None = None,
    pattern: str | None = None,
    criterion: str = "magnitude",
    scope: Literal["layer", "global"] = "layer",
    layers: Collection[str] | None = None,
    data: Inputs | None = None,
    repair: bool = True,
    steps: int = 1,
    train: Train | None = None,
) -> Sparse:
    """Return a copy of `model` in which single weights are zero: those below a threshold, a share of them, or n of every m.

    Args:
        model: Any module; not changed.
        example: A small batch (N, ...) that the model accepts.
        rate: Fraction of the weights that become zero, in [0, 1), exact to a weight. Give this, `threshold` or `pattern`.
        threshold: Magnitude below which a weight becomes zero; for criterion 'magnitude' alone.
        pattern: ``n:m``, such as ``2:4``: of every m weights that read neighbouring channels, n stay.
        criterion: Which go: 'magnitude'; 'activation' (magnitude times the size of what the weight reads: Wanda) or 'obs' (what
            is left of its damage after the best update of the others: best), which need `data`.
        scope: Whether `rate` is that of each layer or of all together (``global``), where a layer keeps at least 2 %.
        layers: Names of the layers; None takes every linear and convolution layer.
        data: Unlabelled inputs (N, ...) drawn at random, 192 to 512. None: weights alone decide, nothing is repaired.
        repair: Whether to re-solve, on `data`, the weights that are left; the result then has its BatchNorms folded.
        steps: Cuts on the way to `rate`, after each of which `train` is called: 1 - (1 - t)³ of it after the share t of them.
        train: Called with the model after each cut; what it changes of the zeros is undone. With ``hold='zeros'`` `eq.distill`
            keeps them while it trains.
    Returns:
        The model, and how sparse it and its layers are.
    Raises:
        InputError: None or several of rate, threshold and pattern, a value out of range, an unknown criterion or layer, a
            criterion without its data, or a model in which nothing can be made sparse.
    Example:
        >>> from torch import randn
        >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> sparsify(net, randn(2, 8), rate=0.75).sparsity
        0.75

    Limits:
        On the runtimes here zeros gain no time, see `Sparse.notes`; so `eq.optimize` does not search them.
    References:
        Zhu & Gupta 2017, "To prune, or not to prune", equation 1; `compress.sparse` names those of the criteria.
    """
    amount = _amount(rate, threshold, pattern, scope, criterion)
    check_steps(steps, train)
    if steps > 1 and rate is None:
        raise must_be("steps", "1 without a rate to go to", steps, "Pass rate= in place of a threshold or a pattern.")
    plain, _ = prepared("model", model)
    example, data = beside(plain, example, data)
    repaired = repair and data is not None
    made = fold(plain, example, data=data) if repaired else copied(plain).eval()
    targets = collect(made, data).targets if repaired and data is not None else {}
    masks: sparse.Masks | None = None
    left: Mapping[str, str] = {}
    for step in range(1, steps + 1):
        part = amount if amount.rate is None else replace(amount, rate=amount.rate * eased(step / steps))
        evidence = sparse.gather(made, criterion=criterion, data=data, layers=layers, pattern=amount.pattern)
        left = evidence.left
        masks, weights = sparse.chosen(evidence, part, criterion=criterion, before=masks)
        sparse.settle(made, masks, weights)
        if repaired and data is not None:
            made = refit(made, data, targets=targets, zeros=masks, held=HELD)
        if train is not None:
            made = trained(train, made)
            sparse.settle(made, masks)
    zeros = {name: float((~mask).double().mean()) for name, mask in (masks or {}).items()}
    found = [part.weight.detach() for part in made.modules() if isinstance(part, WEIGHTED)]
    share = sum(int((weight == 0).sum()) for weight in found) / sum(weight.numel() for weight in found)
    return Sparse(in_precision_of(bare(model), made), share, zeros, left)


def factorize(
    model: nn.Module,
    example: Inputs,
    *,
    rank: int | Mapping[str, Ranks] | None = None,
    energy: float | None = None,
    ratio: float | None = None,
    form: Form | None = None,
    layers: Collection[str] | None = None,
    data: Inputs | None = None,
    round_to: int = 8,
    repair: bool = True,
) -> nn.Module:
    """Return a copy of `model` in which thin layers stand for each thick one: of a rank, an energy or a share of its weights.

    Args:
        model: Any module; not changed.
        example: A small batch (N, ...) that the model accepts.
        rank: Channels between the two halves of each layer (of both sides of a Tucker core), or by layer name, where (in, out)
            asks for a Tucker core. Give this, `energy` or `ratio`.
        energy: Share of the power of each layer's outputs that its thin layers keep at least, in (0, 1).
        ratio: Share of each layer's weights that goes, in (0, 1).
        form: 'halves' (k×1 then 1×k; of a linear layer two matrices), or 'tucker' (1×1, k×k, 1×1), which convolutions alone
            have. None takes the one of less output error at this ratio, or of fewer weights at this energy; of a rank, halves.
        layers: Names of the layers; None takes every linear layer and ungrouped 2-D convolution.
        data: Unlabelled inputs (N, ...) drawn at random, 192 to 512, by which directions are weighed. None: `example`.
        round_to: Ranks that follow from energy or ratio are whole multiples of this; energy rounds up.
        repair: Whether to re-solve the weights on `data`; the result then has its BatchNorms folded.
    Returns:
        A new module in evaluation mode. A layer whose thin layers would hold as many weights as it does stays whole, with a
        warning where all do.
    Raises:
        InputError: None or several of rank, energy and ratio, a value out of range, an unknown layer or form.
    Example:
        >>> from torch import randn
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
        >>> thin = factorize(net, randn(200, 64), ratio=0.5, repair=False)
        >>> [tuple(part.weight.shape) for part in thin[0]]
        [(16, 64), (64, 16)]

    References:
        `compress.factorize` has those of the forms.
    """
    ask = _ask(rank, energy, ratio, form, round_to)
    plain, _ = prepared("model", model)
    example, data = beside(plain, example, data)
    repaired = repair and data is not None
    whole = fold(plain, example, data=data) if repaired else copied(plain).eval()
    valid = {name: part for name, part in whole.named_modules() if full_rank(part)}
    chosen = valid if layers is None else listed("layers", layers, valid)
    names = frozenset(chosen) & frozenset(listed("rank", rank, valid) if isinstance(rank, Mapping) else valid)
    found = collect(whole, example if data is None else data, moments_of=names, targets=repaired)
    grams = {name: found.moments[name].gram if name in found.moments else None for name in valid if name in names}
    parts = {name: made for name, gram in grams.items() if (made := ranks.thinned(name, valid[name], gram, ask))}
    if not parts:
        able = form != "tucker" or any(tuckers(valid[name]) for name in grams)
        why = "would hold fewer weights; ask for less rank or energy" if able else "has the k×k kernel of a Tucker core"
        warnings.warn(f"nothing was factorized: no layer {why}", stacklevel=2)
    small = replaced(whole, parts)
    if repaired and data is not None:
        targets = {f"{n}.{len(parts[n]) - 1}" if n in parts else n: target for n, target in found.targets.items()}
        small = refit(small, data, targets=targets, held=HELD)
    return in_precision_of(bare(model), small)


@dataclass(frozen=True)
class Shared:
    """A model whose weights share values.

    Attributes:
        model: The copy, in evaluation mode, BatchNorms folded. ``eq.distill(..., hold='shared')`` trains it as it is.
        values: How many values each layer has.
        notes: What it does not gain.
    """

    model: nn.Module
    values: Mapping[str, int]
    example: Inputs = field(repr=False)
    notes: tuple[str, ...] = (SHARED_COST,)

    @cached_property
    def program(self) -> Program:
        """The ONNX file that would ship, a byte or half of one for each shared weight; ``program.size_bytes`` is its size.

        Raises:
            InputError: A model that cannot be exported.
        """
        plain, _ = prepared("model", self.model)
        example = inputs_of("example", self.example)
        source = Exporter().source(one_output("model", plain, example), take(example, slice(2)), topology="")
        return Program("onnxruntime", "fp32", {FILE: palettized(source.onnx())})

    def save(self, folder: str | Path) -> Path:
        """Write the program's file into `folder`, which is made when absent."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        self.program.write(path)
        return path


def share(
    model: nn.Module,
    example: Inputs,
    *,
    clusters: int = 16,
    layers: Collection[str] | None = None,
    data: Inputs | None = None,
) -> Shared:
    """Return a copy of `model` in which the weights of each layer share `clusters` values, for a file of an eighth or a fourth.

    Args:
        model: Any module; not changed.
        example: A small batch (N, ...) that the model accepts.
        clusters: Values of each layer, from 2 to 256: up to 16 take half a byte for each weight, more a byte. A layer of less
            than 1 % of the weights takes up to 256.
        layers: Names of the layers; None takes every linear and convolution layer.
        data: Unlabelled inputs (N, ...) drawn at random, 192 to 512, by which a weight counts as the square of what it reads.
            None: all count alike.
    Returns:
        The model, and the file that holds it.
    Raises:
        InputError: A number of clusters out of range, or an unknown layer.
    Example:
        >>> from torch import randn
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
        >>> small = share(net, randn(2, 64), clusters=16)
        >>> len(small.model[0].weight.unique())
        16
        >>> small.program.size_bytes    # doctest: +SKIP

    Limits:
        Size alone, see `Shared.notes`. What `eq.quantize` computes in int8 is as small as a byte for each weight, and quicker.
    References:
        Han et al. 2016, "Deep compression", section 3.
    """
    if not (is_whole(clusters) and 2 <= clusters <= BYTE):
        raise must_be(
            "clusters", f"a whole number from 2 to {BYTE}", clusters, "Pass 16 for half a byte a weight, 256 for a byte."
        )
    plain, _ = prepared("model", model)
    example, data = beside(plain, example, data)
    made = fold(plain, example, data=data)
    books, shifts = codebook.codebooks(made, clusters=clusters, data=data, layers=layers)
    if not books:
        raise must_be("model", "one with linear or convolution layers", type(model).__name__, "There is nothing to share.")
    codebook.settle(made, books, shifts)
    values = {name: len(book.values) for name, book in books.items()}
    return Shared(in_precision_of(bare(model), made), values, example)


def _ask(rank: Any, energy: float | None, ratio: float | None, form: Form | None, round_to: int) -> ranks.Ask:
    given = [value for value in (rank, energy, ratio) if value is not None]
    if len(given) != 1:
        raise must_be("rank, energy or ratio", "given, one of them", given, "Pass ratio=0.5 for half of the weights.")
    for name, value in (("energy", energy), ("ratio", ratio)):
        if value is not None and not (is_real(value) and 0 < value < 1):
            raise must_be(name, "a share in (0, 1)", value, f"Pass e.g. {name}=0.5.")
    if rank is not None and not isinstance(rank, Mapping) and not (is_whole(rank) and rank >= 1):
        raise must_be(
            "rank",
            "a whole number of at least 1, or one by layer name",
            rank,
            "It is the number of channels between the thin layers.",
        )
    if form is not None and form not in ranks.FORMS:
        raise unknown("form", str(form), ranks.FORMS)
    if not (is_whole(round_to) and round_to >= 1):
        raise must_be("round_to", "a whole number of at least 1", round_to, "Pass 1 for any rank.")
    return ranks.Ask(int(rank) if is_whole(rank) else rank, energy, ratio, form, round_to)


def _amount(rate: float | None, threshold: float | None, pattern: str | None, scope: Any, criterion: str) -> sparse.Amount:
    given = {
        name: value for name, value in (("rate", rate), ("threshold", threshold), ("pattern", pattern)) if value is not None
    }
    if len(given) != 1:
        raise must_be(
            "rate, threshold or pattern", "given, one of them", given or None, "Pass rate=0.5 for half of the weights."
        )
    if rate is not None and not (is_real(rate) and 0 <= rate < 1):
        raise must_be("rate", "a fraction of the weights in [0, 1)", rate, "Pass e.g. rate=0.5 to make half of them zero.")
    if threshold is not None and not (is_real(threshold) and threshold > 0):
        raise must_be("threshold", "a magnitude above 0", threshold, "Weights below it become zero; or pass rate=0.5.")
    if threshold is not None and criterion != "magnitude":
        raise must_be("criterion", "'magnitude' with a threshold", criterion, "Pass rate= or pattern= for the others.")
    if scope not in ("layer", "global"):
        raise unknown("scope", str(scope), ("layer", "global"))
    parsed = None if pattern is None else re.fullmatch(r"(\d+):(\d+)", str(pattern))
    numbers = (int(parsed[1]), int(parsed[2])) if parsed else None
    if pattern is not None and (numbers is None or not 0 < numbers[0] < numbers[1]):
        raise must_be("pattern", "n:m with n from 1 to m - 1", pattern, "Pass e.g. pattern='2:4'; for a free choice rate=0.5.")
    return sparse.Amount(rate, threshold, numbers, scope)
