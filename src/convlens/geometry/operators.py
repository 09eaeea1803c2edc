"""What each of torch's operators does to receptive fields.

An operator has an effect here, or is pointwise by torch's own tag; ``relu_`` has the effect of
``relu``. After any other operator the field is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch._ops import OpOverload

from convlens.geometry.operator_effects import (
    convolution_and_pooling,
    indexing,
    rearranging,
    reductions,
)
from convlens.geometry.operator_effects.calls import Effect, everywhere, pointwise, valueless

_NAMES: tuple[tuple[Effect, str], ...] = (
    (convolution_and_pooling.convolution, "convolution"),
    (
        convolution_and_pooling.pooling,
        "max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d",
    ),
    (
        convolution_and_pooling.adaptive_pooling,
        "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d",
    ),
    (convolution_and_pooling.constant_pad, "constant_pad_nd"),
    (
        convolution_and_pooling.repeating_pad,
        "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d"
        " replication_pad3d _pad_circular",
    ),
    (
        convolution_and_pooling.interpolation,
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d"
        " _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d"
        " upsample_trilinear3d upsample_bicubic2d",
    ),
    (convolution_and_pooling.pixel_shuffle, "pixel_shuffle"),
    (convolution_and_pooling.channel_shuffle, "channel_shuffle native_channel_shuffle"),
    (convolution_and_pooling.unfolded, "unfold"),
    (convolution_and_pooling.im2col, "im2col"),
    (convolution_and_pooling.col2im, "col2im"),
    (
        reductions.batch_norm,
        "native_batch_norm cudnn_batch_norm _native_batch_norm_legit"
        " _native_batch_norm_legit_no_training",
    ),
    (reductions.layer_norm, "native_layer_norm _fused_rms_norm"),
    (reductions.group_norm, "native_group_norm"),
    (
        reductions.reduction,
        "mean sum amax amin aminmax max min var std var_mean std_mean prod all any median mode"
        " nansum nanmedian kthvalue argmax argmin count_nonzero logsumexp norm linalg_vector_norm",
    ),
    (reductions.along_axis, "_softmax _log_softmax _safe_softmax sort topk argsort"),
    (reductions.matrix_product, "mm addmm bmm baddbmm"),
    (
        reductions.attention,
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention"
        " _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention"
        " _scaled_dot_product_fused_attention_overrideable",
    ),
    (rearranging.viewed, "view _unsafe_view _reshape_alias squeeze unsqueeze"),
    (rearranging.restrided, "as_strided"),
    (rearranging.permuted, "permute transpose t"),
    (rearranging.expanded, "expand"),
    (rearranging.repeated, "repeat"),
    (rearranging.sliced, "slice"),
    (rearranging.selected, "select"),
    (rearranging.unbound, "unbind"),
    (rearranging.split, "split split_with_sizes unsafe_split unsafe_split_with_sizes"),
    (rearranging.gated, "glu"),
    (rearranging.flipped, "flip"),
    (rearranging.rolled, "roll"),
    (rearranging.concatenated, "cat"),
    (rearranging.stacked, "stack"),
    (rearranging.copied, "copy"),
    (indexing.chosen, "where masked_fill"),
    (indexing.indexed, "index _unsafe_index"),
    (indexing.embedded, "embedding"),
    (indexing.selected_by, "index_select"),
    (
        pointwise,
        "detach alias lift lift_fresh _to_copy _conj complex hardswish _prelu_kernel"
        " floor_divide rrelu_with_noise mse_loss smooth_l1_loss huber_loss",
    ),
    (everywhere, "native_dropout log_sigmoid_forward frexp"),
    (
        valueless,
        "empty_like zeros_like ones_like full_like rand_like randn_like randint_like new_empty"
        " new_empty_strided new_zeros new_ones new_full zero uniform normal exponential",
    ),
)

EFFECTS: Mapping[str, Effect] = MappingProxyType(
    {name: effect for effect, names in _NAMES for name in names.split()}
)
"""The effect of each operator, by torch's name."""

EXCEPTIONS: Mapping[tuple[str, str], Effect] = MappingProxyType(
    {
        ("max", "other"): pointwise,
        ("min", "other"): pointwise,
        ("fill", "Scalar"): valueless,
        ("bernoulli", "float"): valueless,
    }
)
"""Overloads with another effect than their name."""

_NOT_FOLLOWED = frozenset(
    {
        ("view", "dtype"),
        ("normal", "Tensor_float"),
        ("normal", "float_Tensor"),
        ("normal", "Tensor_Tensor"),
        ("repeat_interleave", "Tensor"),
    }
)
"""Overloads without an effect."""


def effect_of(function: OpOverload) -> Effect | None:
    """The effect of an operator; None if unknown."""
    space, _, rest = function.name().partition("::")
    full, _, overload = rest.partition(".")
    name = full if full in EFFECTS else full.removesuffix("_")
    if space != "aten" or overload == "out" or (name, overload) in _NOT_FOLLOWED:
        return None
    if (name, overload) in EXCEPTIONS:
        return EXCEPTIONS[name, overload]
    if name in EFFECTS:
        return EFFECTS[name]
    if torch.Tag.nondeterministic_seeded in function.tags:
        return None
    return pointwise if _pointwise(function.tags, full, name) else None


def _pointwise(tags: Sequence[torch.Tag], full: str, name: str) -> bool:
    """Whether torch tags an operator, or the one that does not write in place, as pointwise."""
    if torch.Tag.pointwise in tags or full == name:
        return torch.Tag.pointwise in tags
    plain = getattr(torch.ops.aten, name, None)
    overloads = plain.overloads() if plain is not None else []
    return any(torch.Tag.pointwise in getattr(plain, each).tags for each in overloads)
