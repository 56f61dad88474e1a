"""Attention of torch's own making, `nn.MultiheadAttention`, put in linear layers, which everything else knows.

It holds the weights of queries, keys and values in one tensor and multiplies by them inside of one function, or, in
`nn.TransformerEncoderLayer`, inside of one function with the rest of the layer: no head could be cut, no weight rounded. In
linear layers it answers the same, which is compared on real inputs, each attention alone and the model as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from equipoise.batch import Inputs, call
from equipoise.compress.proof import changed, difference
from equipoise.compress.trace import RUN_ERRORS, copied, tensors

_Projection = tuple[Tensor, Tensor | None]


class Multihead(nn.Module):
    """What an `nn.MultiheadAttention` computes; how many heads there are follows from the widths of its layers.

    Args:
        whole: The attention; its weights are copied.
        packed: Whether one layer makes queries, keys and values, as of one tensor it is quickest; otherwise each has its own.
    """

    in_proj_bias = None  # tells `nn.TransformerEncoderLayer` to call its parts and not a function over all of them
    _qkv_same_embed_dim = False

    def __init__(self, whole: Any, *, packed: bool) -> None:
        super().__init__()
        self.head_dim, self.batch_first, self.dropout = whole.head_dim, whole.batch_first, whole.dropout
        if packed:
            self.qkv = _linear(whole.in_proj_weight, whole.in_proj_bias)
        else:
            self.query, self.key, self.value = (_linear(*projection) for projection in _projections(whole))
        self.out_proj = _linear(whole.out_proj.weight, whole.out_proj.bias)
        self.train(whole.training)

    @property
    def num_heads(self) -> int:
        """Return how many heads are left."""
        return self.out_proj.in_features // int(self.head_dim)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what was attended and, where asked for, the weights: arguments and shapes as in `nn.MultiheadAttention`."""
        alone = query.dim() == 2
        query, key, value = self._by_sample(query, key, value)
        asked, known, told = self._projected(query, key, value)  # (N, heads, L or S, head_dim)
        mask = _mask(key_padding_mask, attn_mask, asked)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = asked @ known.transpose(-2, -1) * self.head_dim**-0.5
            weights = functional.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            seen = weights @ told
        else:
            seen = functional.scaled_dot_product_attention(asked, known, told, mask, dropout)
        answer = self.out_proj(seen.transpose(1, 2).reshape(*query.shape[:2], -1))  # (N, L, E)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if alone:
            return answer.squeeze(0), None if weights is None else weights.squeeze(0)
        return answer if self.batch_first else answer.transpose(0, 1), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values (N, heads, L, head_dim)."""
        if not hasattr(self, "qkv"):
            return tuple(self._split(layer(x)) for layer, x in ((self.query, query), (self.key, key), (self.value, value)))
        if query is key and key is value:
            together = self.qkv(query)
            return tuple(together.view(*query.shape[:2], 3, -1, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0))
        weights, biases = self.qkv.weight.chunk(3), (None,) * 3 if self.qkv.bias is None else self.qkv.bias.chunk(3)
        apart = zip((query, key, value), weights, biases, strict=True)
        return tuple(self._split(functional.linear(x, weight, bias)) for x, weight, bias in apart)

    def _split(self, made: Tensor) -> Tensor:
        return made.view(*made.shape[:2], -1, self.head_dim).transpose(1, 2)

    def _by_sample(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors as (N, L, E); what was one tensor stays one."""
        turned = {id(x): x.unsqueeze(0) if x.dim() == 2 else x if self.batch_first else x.transpose(0, 1) for x in given}
        return tuple(turned[id(x)] for x in given)


def multihead_form(model: nn.Module, example: Inputs) -> nn.Module:
    """Return `model` with every `nn.MultiheadAttention` in linear layers; itself where there is none, or its answers change.

    Args:
        model: In evaluation mode; it is not changed.
        example: A batch (N, ...) that it accepts.
    """
    if not any(map(_plain, model.modules())):
        return model
    trial = copied(model)
    for part in trial.modules():
        if getattr(part, "use_nested_tensor", False) is True:  # padding left out by a kind of tensor that few layers know
            part.use_nested_tensor = False  # type: ignore[assignment]
    able = {id(part): part for part in trial.modules() if _plain(part)}
    forms: dict[int, Multihead | None] = {}
    handles = [part.register_forward_hook(_judged(forms), with_kwargs=True) for part in able.values()]
    try:
        with torch.no_grad():
            call(trial, example)
    except RUN_ERRORS:
        return model
    finally:
        for handle in handles:
            handle.remove()
    found = {key: form for key, form in forms.items() if form is not None}
    for name, part in list(trial.named_modules(remove_duplicate=False)):
        if name and id(part) in found:
            trial.set_submodule(name, found[id(part)])
    return trial if found and not changed(trial, model, [example]) else model


def _plain(part: Any) -> bool:
    """Whether a module is an attention whose every weight is its own to hold, and of which linear layers can make one."""
    if type(part) is not nn.MultiheadAttention or part._forward_hooks or part._forward_pre_hooks:
        return False
    return part.bias_k is None and part.bias_v is None and not part.add_zero_attn


def _judged(forms: dict[int, Multihead | None]) -> Any:
    """Put an attention, at each of its calls, beside its form: None is noted where the two differ."""

    def hook(part: Any, given: tuple[Any, ...], named: Mapping[str, Any], answer: Any) -> None:
        if id(part) in forms and forms[id(part)] is None:
            return
        parts = dict(zip(("query", "key", "value"), given, strict=False)) | dict(named)
        alike = parts["query"] is parts["key"] is parts["value"]
        before = forms.get(id(part))
        packed = alike and part.in_proj_weight is not None and (before is None or hasattr(before, "qkv"))
        form = Multihead(part, packed=packed)
        forms[id(part)] = None if _differ(form, given, named, answer) else form

    return hook


def _differ(form: Multihead, given: tuple[Any, ...], named: Mapping[str, Any], answer: Any) -> bool:
    try:
        with torch.no_grad():
            return bool(difference(list(tensors(form(*given, **named))), list(tensors(answer))))
    except RUN_ERRORS:
        return True


def _projections(whole: Any) -> list[_Projection]:
    """Return weight and bias with which queries, keys and values are made."""
    biases = (None,) * 3 if whole.in_proj_bias is None else whole.in_proj_bias.chunk(3)
    if whole.in_proj_weight is not None:
        return list(zip(whole.in_proj_weight.chunk(3), biases, strict=True))
    return list(zip((whole.q_proj_weight, whole.k_proj_weight, whole.v_proj_weight), biases, strict=True))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return layer


def _mask(padding: Tensor | None, mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Return what is added to the scores (N, heads, L, S), or broadcasts to them; None for nothing."""
    found = None if padding is None else _added(padding, like).reshape(-1, 1, 1, padding.shape[-1])
    if mask is None:
        return found
    each = _added(mask, like)
    if each.dim() == 3:  # (N · heads, L, S)
        each = each.view(like.shape[0], -1, *each.shape[1:])
    return each if found is None else each + found


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask as numbers to be added: where it is true, minus infinity."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
