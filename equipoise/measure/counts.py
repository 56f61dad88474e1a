"""Params, MACs and activations of a model, counted operator by operator on one real forward pass.

Every operator that runs falls in one of three classes, and all three are reported: *counted* (a formula gives its MACs),
*ignored* (costs no MACs by convention: element-wise, norms, pooling, look-ups, views) and *unsupported* (unknown, so the total
is a lower bound and says so). A total is never silently partial.

1 MAC = 2 FLOPs. Biases, activations and norms are not counted, as is the custom of the pruning literature.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from equipoise.batch import Inputs, call, mapped, positional
from equipoise.errors import must_be
from equipoise.records import Reading, estimated, measured

Formula = Callable[[Sequence[Any], Any], int]


@dataclass(frozen=True, slots=True)
class LayerCount:
    """What one module itself costs, without its children, for one sample.

    Attributes:
        name: Dotted name in the model; empty for the model's own operators.
        kind: Class name of the module.
        params: Its own parameters; those shared with an earlier module are counted there.
        macs: MACs of its own operators over all its calls.
        output: Shape of its (first) output in its last call, batch of one included; empty if it was never called.
    """

    name: str
    kind: str
    params: int
    macs: int
    output: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Counts:
    """Static costs of a model for one sample.

    Attributes:
        params: Parameters, each shared one once.
        macs: MACs of the counted operators: a lower bound unless `complete`.
        activations: Elements that the counted operators put out.
        by_layer: Every module that has params or MACs of its own, in the order of the model; both columns add up to the totals.
        counted, ignored, unsupported: Operator -> how often it ran.
    """

    params: int
    macs: int
    activations: int
    by_layer: tuple[LayerCount, ...]
    counted: Mapping[str, int]
    ignored: Mapping[str, int]
    unsupported: Mapping[str, int]

    @property
    def complete(self) -> bool:
        """Whether every operator was either counted or ignored on purpose."""
        return not self.unsupported

    def reading(self) -> Reading:
        """Return the MACs as a `Reading`; a partial total is an estimate that names what is missing."""
        if self.complete:
            return measured(self.macs, "1", note="MACs of one sample")
        missing = ", ".join(f"{name} ×{times}" for name, times in self.unsupported.items())
        return estimated(self.macs, "1", note=f"lower bound: no formula for {missing}")


def count(model: nn.Module, example: Inputs) -> Counts:
    """Count params, MACs and activations of `model` for one sample.

    The model runs once in evaluation mode, on the first sample of `example`, and is left as it was found. Fused attention
    is switched off for that pass, so that its matrix products are seen.

    Args:
        example: A batch (N, ...), N >= 1; for a model of several inputs a tuple or a mapping of them.
    Raises:
        InputError: `example` has no batch axis or no sample.
    Limits:
        Counts what this pass runs: a model that branches on its input may cost more on another one. Attention is counted in
        full even under a causal mask, as the usual counters do.
    """
    inputs = mapped(positional(example) if isinstance(example, tuple) else example, _first)
    names = {module: name for name, module in model.named_modules()}
    tally = _Tally(names)
    with _evaluation(model), _watched(names, tally), torch.no_grad(), tally:
        call(model, inputs)
    own = _own_params(model)
    layers = (
        LayerCount(name, type(module).__name__, own[name], tally.macs[name], tally.outputs.get(name, ()))
        for module, name in names.items()
    )
    return Counts(
        params=sum(own.values()),
        macs=sum(tally.macs.values()),
        activations=tally.activations,
        by_layer=tuple(layer for layer in layers if layer.params or layer.macs),
        counted=dict(sorted(tally.counted.items())),
        ignored=dict(sorted(tally.ignored.items())),
        unsupported=dict(sorted(tally.unsupported.items())),
    )


class _Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Sees every operator that runs and books it on the innermost module that is running."""

    def __init__(self, names: Mapping[nn.Module, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = names
        self.running: list[str] = []
        self.outputs: dict[str, tuple[int, ...]] = {}
        self.macs: Counter[str] = Counter()
        self.counted: Counter[str] = Counter()
        self.ignored: Counter[str] = Counter()
        self.unsupported: Counter[str] = Counter()
        self.activations = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = str(func.overloadpacket)
        formula = FORMULAS.get(name)
        free = name.removesuffix("_") in FREE or func.is_view or torch.Tag.pointwise in func.tags
        if formula is None and not free:
            with self:  # a compound operator (as inference mode hands them on) is seen through its parts
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if formula is not None:
            self.macs[self.running[-1] if self.running else ""] += formula(args, out)
            self.activations += _first_tensor(out).numel()
            self.counted[name] += 1
        elif free:
            self.ignored[name] += 1
        else:
            self.unsupported[name] += 1
        return out

    def enter(self, module: nn.Module, _inputs: Any) -> None:
        """Note that `module` starts."""
        self.running.append(self.names[module])

    def leave(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        """Note that `module` is done."""
        name = self.running.pop()
        found = _first_tensor(output)
        if found is not None:
            self.outputs[name] = tuple(found.shape)


@contextlib.contextmanager
def _watched(names: Mapping[nn.Module, str], tally: _Tally) -> Iterator[None]:
    """Tell `tally` which module runs, for as long as the context lasts."""
    hooks = [module.register_forward_pre_hook(tally.enter) for module in names]
    hooks += [module.register_forward_hook(tally.leave) for module in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode and attention on its open path; restore both."""
    before = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in before:
            module.training = training


def _own_params(model: nn.Module) -> dict[str, int]:
    """Name of each module -> elements of its own parameters, a shared parameter only at its first place."""
    seen: set[int] = set()
    own: dict[str, int] = {}
    for name, module in model.named_modules():
        fresh = {id(p): p.numel() for p in module.parameters(recurse=False) if id(p) not in seen}
        seen.update(fresh)
        own[name] = sum(fresh.values())
    return own


def _first(batch: Tensor) -> Tensor:
    """The first sample, still as a batch."""
    if not isinstance(batch, Tensor) or batch.dim() < 1 or len(batch) < 1:
        shape = tuple(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
        raise must_be("measure.count(example)", "a tensor (N, ...) with N >= 1", shape, "Pass a small batch of inputs.")
    return batch[:1]


def _first_tensor(value: Any) -> Any:
    """The first tensor in an operator's or a module's output, or None."""
    if isinstance(value, Mapping):
        value = list(value.values())
    while isinstance(value, (tuple, list)) and value:
        value = value[0]
    return value if isinstance(value, Tensor) else None


def _matmul(left: int) -> Formula:
    """(..., n, k) @ (..., k, m), the left one being argument `left`: every element of the left meets m columns."""
    return lambda args, out: int(args[left].numel() * args[left + 1].shape[-1])


def _matvec(left: int) -> Formula:
    """(n, k) @ (k,), or a dot product: every element of the left is used once."""
    return lambda args, out: int(args[left].numel())


def _convolution(args: Sequence[Any], out: Tensor) -> int:
    """Each output (for a transposed one each input) element meets one filter: weight (C_out, C_in / groups, k...)."""
    source, weight, transposed = args[0], args[1], args[6]
    return int((source if transposed else out).numel() * prod(weight.shape[1:]))


def _attention(args: Sequence[Any], out: Any) -> int:
    """Q (..., S, E) Kᵀ (..., T, E), then with V (..., T, F): S T (E + F) for each head."""
    query, key, value = args[:3]
    heads = prod(query.shape[:-2])
    return int(heads * query.shape[-2] * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _recurrent(args: Sequence[Any], out: Any) -> int:
    """A whole LSTM layer over (T, N, C): all its weights meet each sample of each step."""
    steps, samples = args[0].shape[:2]
    return int(steps * samples * (args[1].numel() + args[2].numel()))


FORMULAS: dict[str, Formula] = {
    "aten.mm": _matmul(0),
    "aten.bmm": _matmul(0),
    "aten.addmm": _matmul(1),
    "aten.baddbmm": _matmul(1),
    "aten.addbmm": _matmul(1),
    "aten._addmm_activation": _matmul(1),
    "aten.mv": _matvec(0),
    "aten.addmv": _matvec(1),
    "aten.dot": _matvec(0),
    "aten.convolution": _convolution,
    "aten._convolution": _convolution,
    "aten._scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten._scaled_dot_product_flash_attention": _attention,
    "aten._scaled_dot_product_efficient_attention": _attention,
    "aten._scaled_dot_product_cudnn_attention": _attention,
    "aten.mkldnn_rnn_layer": _recurrent,
}
"""Operator -> MACs from its arguments and its output."""

FREE = frozenset(
    "aten." + name
    for name in (
        # element-wise ones and views that torch does not mark as such
        *("glu", "hardswish", "log_sigmoid_forward", "mish", "_prelu_kernel", "rrelu_with_noise"),
        *("transpose", "t", "squeeze", "unsqueeze", "swapaxes", "swapdims"),
        # norms and softmax
        *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"),
        *("_batch_norm_with_update", "native_layer_norm", "native_group_norm", "_fused_rms_norm"),
        *("_softmax", "_log_softmax", "_safe_softmax"),
        # pooling and resizing
        *("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices"),
        *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
        *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d"),
        *("upsample_bilinear2d", "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d", "_upsample_bilinear2d_aa"),
        *("grid_sampler_2d", "grid_sampler_3d"),
        # reductions and order
        *("sum", "mean", "var", "var_mean", "std", "std_mean", "prod", "amax", "amin", "aminmax", "max", "min", "argmax"),
        *("argmin", "any", "all", "norm", "linalg_vector_norm", "logsumexp", "cumsum", "cumprod", "sort", "topk", "median"),
        *("cummax", "cummin", "logcumsumexp", "kthvalue", "bincount"),
        # look-up, placement and copies
        *("embedding", "_embedding_bag", "_embedding_bag_forward_only", "index", "index_select", "gather", "scatter"),
        *("index_put", "index_fill", "index_add", "scatter_add", "masked_select", "nonzero", "unique_consecutive", "one_hot"),
        *("slice_scatter", "select_scatter", "take_along_dim", "bucketize", "searchsorted"),
        *("cat", "stack", "clone", "copy", "_to_copy", "contiguous", "repeat", "roll", "flip", "constant_pad_nd", "tril"),
        *("reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d", "pixel_shuffle", "triu"),
        *("pixel_unshuffle", "channel_shuffle", "im2col", "col2im", "_reshape_copy", "_unsafe_view", "unsafe_split"),
        *("unsafe_chunk", "split_with_sizes_copy", "_pack_padded_sequence", "lift_fresh", "lift_fresh_copy"),
        # creation and bookkeeping
        *("empty", "empty_like", "empty_strided", "zeros", "zeros_like", "ones", "ones_like", "full", "full_like", "arange"),
        *("new_empty", "new_zeros", "new_ones", "new_full", "scalar_tensor", "eye", "linspace", "zero", "fill"),
        *("_local_scalar_dense", "is_same_size", "native_dropout", "equal", "resize", "set", "item", "alias"),
        *("rand", "rand_like", "randn", "randn_like", "randint", "randperm", "bernoulli"),
        *("sym_size", "sym_numel", "_assert_async", "_assert_scalar", "_assert_tensor_metadata"),
    )
)
"""Operators that cost no MACs by convention, in place or not, besides the views and element-wise ones that torch marks."""
