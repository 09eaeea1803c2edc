"""Every operator that fields are followed through, against NaN in the real network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from geometry_probe import assert_as_probed
from torch import Tensor, nn

from convlens.geometry import receptive_field

F = nn.functional
Function = Callable[[Tensor], Tensor]

LINE, IMAGE, WIDE, VOLUME = (1, 2, 11), (1, 2, 7, 10), (1, 4, 6, 8), (1, 2, 5, 6, 4)

RESIZED: dict[str, tuple[Function, tuple[int, ...]]] = {
    f"{mode} {kind} {next(iter(sizes.values()))}": (
        lambda x, mode=mode, sizes=sizes, more=more: F.interpolate(x, mode=mode, **sizes, **more),
        shape,
    )
    for mode, shape, kind, more in [
        ("nearest", LINE, "1d", {}),
        ("nearest", IMAGE, "2d", {}),
        ("nearest", VOLUME, "3d", {}),
        ("nearest-exact", LINE, "1d", {}),
        ("nearest-exact", IMAGE, "2d", {}),
        ("nearest-exact", VOLUME, "3d", {}),
        ("linear", LINE, "1d", {}),
        ("linear", LINE, "1d corners", {"align_corners": True}),
        ("bilinear", IMAGE, "2d", {}),
        ("bilinear", IMAGE, "2d corners", {"align_corners": True}),
        ("bicubic", IMAGE, "2d", {}),
        ("bicubic", IMAGE, "2d corners", {"align_corners": True}),
        ("trilinear", VOLUME, "3d", {}),
        ("trilinear", VOLUME, "3d corners", {"align_corners": True}),
        ("area", LINE, "1d", {}),
        ("area", IMAGE, "2d", {}),
        ("area", VOLUME, "3d", {}),
    ]
    for sizes in [
        {"scale_factor": 2},
        {"scale_factor": 0.5},
        {"scale_factor": 1.7},
        {"scale_factor": 1.0},
        {"size": 5},
    ]
}


PADDED: dict[str, tuple[Function, tuple[int, ...]]] = {
    f"pad {mode} {pad}": (lambda x, mode=mode, pad=pad: F.pad(x, pad, mode=mode), shape)
    for mode in ("reflect", "replicate", "circular")
    for pad, shape in [
        ((3, 1), LINE),
        ((2, 0, 3, 1), IMAGE),
        ((0, 2, 1, 1, 2, 0), VOLUME),
    ]
}

CONVOLUTIONS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    f"convolution padded by {mode}": (
        nn.Conv2d(2, 4, (3, 5), (1, 2), (2, 3), padding_mode=mode),
        IMAGE,
    )
    for mode in ("zeros", "reflect", "replicate", "circular")
} | {
    "transposed 1d": (nn.ConvTranspose1d(2, 3, 4, 3, 2, 1), LINE),
    "transposed 2d": (
        nn.ConvTranspose2d(2, 4, 3, (2, 3), (0, 1), (1, 2), groups=2, dilation=(1, 2)),
        IMAGE,
    ),
    "transposed 3d": (nn.ConvTranspose3d(2, 2, (1, 2, 3), 2, (0, 0, 1)), VOLUME),
    "convolution of one image": (nn.Conv3d(2, 4, 2, 2, 1, 2, 2), VOLUME),
}


def _written_parts(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :1, :, 1:] = x[:, :1, :, :-1]  # as in temporal shift modules
    y[:, 1:, :-1] = x[:, 1:, 1:]
    return y


def _written_twice(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, 2:4].copy_(x[:, :, :2].flip(2))
    y.transpose(2, 3)[:, :, ::3].relu_().add_(x.transpose(2, 3)[:, :, 1::3][:, :, :1])
    y[0, 1, 3, 3] = 0.0
    y.view(1, 2, 70)[:, :, 33:45].add_(x.amax())  # several rows at once
    return y


def _siblings(x: Tensor) -> Tensor:
    y = x.clone()
    left, right, whole = y[:, :, :, :5], y[:, :, :, 3:], y.view(y.shape)
    left += x[:, :, :1, 1:6]
    return torch.cat([right, left, whole], 3)


def _part_of_what_is_written(x: Tensor) -> Tensor:
    y = x.clone(memory_format=torch.contiguous_format)
    part, column = y[:, :1, :3], y[..., 2]
    y += x.flip(2)
    return torch.cat([part.sum(2), part[..., :1, :3].sum(2), column.sum(2, keepdim=True)[:, :1]], 2)


def _in_place_views(x: Tensor) -> Tensor:
    y = x[:, :1].clone()
    return y.squeeze_(1).unsqueeze_(0).transpose_(2, 3)[..., 1:]


def _windows(x: Tensor) -> Tensor:
    """Attention within shifted windows (Liu et al., 2021), 4 pixels wide."""
    n, c, h, w = x.shape
    y = x.roll((-2, -2), (2, 3)).reshape(n, c, h // 2, 2, w // 4, 4)
    y = y.permute(0, 2, 4, 3, 5, 1).reshape(-1, 8, c)
    y = F.scaled_dot_product_attention(y[:, None], y[:, None], y[:, None])[:, 0]
    y = y.reshape(n, h // 2, w // 4, 2, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)
    return y.roll((2, 2), (2, 3))


def _einsum(x: Tensor) -> Tensor:
    return torch.einsum("nchw,ck->nkhw", x, torch.ones(2, 3, dtype=x.dtype))


UNKNOWN: dict[str, Function] = {
    "rot90": lambda x: x.rot90(1, (2, 3)),
    "roll of all": lambda x: x.roll(3),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x[..., :6, :], 2),
    "cumsum": lambda x: x.cumsum(3),
    "fourier": lambda x: torch.fft.rfft2(x).real,
    "tril": lambda x: x.tril(),
    "diagonal": lambda x: x.diagonal(0, 2, 3),
    "matrix and vector": lambda x: x[0, 0] @ torch.ones(10, dtype=x.dtype),
    "gather": lambda x: x.gather(3, torch.zeros(1, 1, 7, 5, dtype=torch.long)),
    "index_put": lambda x: x.index_put((torch.tensor([0]),), x[0]),
    "scatter": lambda x: x.scatter(3, torch.tensor([[[[4, 2]]]]), x[..., :2]),
    "masked": lambda x: x.masked_fill(torch.tensor([True, False] * 5), 0.0),
    "where": lambda x: torch.where(torch.tensor([True, False] * 5), x, x.flip(2)),
    "index of pixels": lambda x: x[:, :, torch.tensor([0, 3]), torch.tensor([4, 5])],
    "causal": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "hidden": lambda x: F.scaled_dot_product_attention(x, x, x, torch.eye(7, dtype=torch.bool)),
    "hidden by the input": lambda x: F.scaled_dot_product_attention(x, x, x, x[:, :, :, :1] > 0),
    "as_strided": lambda x: x.contiguous().as_strided((3, 4), (10, 2), 11),
    "antialias": lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True),
    "fractional": lambda x: F.fractional_max_pool2d(x, 2, (4, 6)),
}
"""Operators that no network of torchvision or timm applies to features."""

ROWS = torch.tensor([3, 0, 0, 6, -1])

FUNCTIONS: dict[str, tuple[Function, tuple[int, ...]]] = {
    "adaptive 1d": (lambda x: F.adaptive_avg_pool1d(x, 4), LINE),
    "adaptive max 1d": (lambda x: F.adaptive_max_pool1d(x, 3), LINE),
    "adaptive 3d": (lambda x: F.adaptive_avg_pool3d(x, (2, 1, 3)), VOLUME),
    "adaptive max 3d": (lambda x: F.adaptive_max_pool3d(x, (3, 4, 1)), VOLUME),
    "adaptive more than there is": (lambda x: F.adaptive_avg_pool2d(x, (9, 4)), IMAGE),
    "max 3d": (lambda x: F.max_pool3d(x, 2, 1, 1, ceil_mode=True), VOLUME),
    "max dilated": (lambda x: F.max_pool2d(x, 2, 2, 1, (2, 3), ceil_mode=True), IMAGE),
    "average padded": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), IMAGE),
    "average ceiled": (lambda x: F.avg_pool3d(x, 3, 2, ceil_mode=True), VOLUME),
    "lp 1d": (lambda x: F.lp_pool1d(x, 3, 3, 2), LINE),
    "lp 2d": (lambda x: F.lp_pool2d(x, 2, (2, 3)), IMAGE),
    "pixel shuffle": (lambda x: F.pixel_shuffle(x, 2), WIDE),
    "pixel shuffle in rows": (lambda x: F.pixel_shuffle(x.mean(3, keepdim=True), 2), WIDE),
    "channel shuffle": (
        lambda x: F.channel_shuffle(torch.cat([x[:, :2], x[:, 2:].flip(3)], 1), 2)[:, :2], WIDE
    ),
    "stepped slices": (lambda x: x[:, :, 1::2, -7:-1:3], IMAGE),
    "flip": (lambda x: x.flip(2, -1), IMAGE),
    "flip and add": (lambda x: x + x.flip(3), IMAGE),
    "roll": (lambda x: x.roll((2, -3), (2, 3)), IMAGE),
    "stack": (lambda x: torch.stack([x, x.flip(2), torch.zeros_like(x)], 2), IMAGE),
    "stacked last": (lambda x: torch.stack([x, x.flip(2)], -1), IMAGE),
    "split": (lambda x: torch.add(*x.split([4, 6], 3)[1].chunk(2, 3)), IMAGE),
    "tensor split": (lambda x: x.tensor_split(3, 3)[1], IMAGE),
    "repeat": (lambda x: x.repeat(1, 2, 1, 3), IMAGE),
    "repeat one": (lambda x: x[:, :1, :1].repeat(2, 1, 2, 4, 1), IMAGE),
    "repeat each": (lambda x: x.repeat_interleave(3, 3), IMAGE),
    "tile": (lambda x: x.tile(2), IMAGE),
    "expand": (lambda x: x[:, :1, :, :1].expand(1, 3, 7, 4), IMAGE),
    "instance norm": (F.instance_norm, IMAGE),
    "group norm": (
        lambda x: F.group_norm(torch.cat([x, x[:, :, 2:5].sum(2, True).expand_as(x)], 1), 2), IMAGE
    ),
    "layer norm of rows": (lambda x: F.layer_norm(x, (10,)), IMAGE),
    "rms norm": (lambda x: F.rms_norm(x, (7, 10)), IMAGE),
    "local response norm": (lambda x: F.local_response_norm(x, 2), IMAGE),
    "normalize": (lambda x: F.normalize(x, dim=3), IMAGE),
    "log softmax": (lambda x: F.log_softmax(x, 2), IMAGE),
    "windows of attention": (_windows, (1, 4, 6, 8)),
    "query attention": (
        lambda x: F.scaled_dot_product_attention(x, x[:, :, :4].detach(), x[:, :, :4]), IMAGE
    ),
    "matmul of rows": (lambda x: x @ x.transpose(2, 3), IMAGE),
    "einsum": (_einsum, IMAGE),
    "einsum of rows": (lambda x: torch.einsum("nchw,nchv->nwv", x, x[..., :3]), IMAGE),
    "linear over rows": (lambda x: F.linear(x, torch.ones(3, 10, dtype=x.dtype)), IMAGE),
    "unfold": (lambda x: x.unfold(3, 3, 2).unfold(2, 2, 1), IMAGE),
    "unfold and mean": (lambda x: x.unfold(3, 3, 2).mean(-1), IMAGE),
    "blocks": (lambda x: F.unfold(x, (2, 3), (2, 1), (1, 2), (2, 1)), IMAGE),
    "blocks folded": (
        lambda x: F.fold(F.unfold(x, 3, 1, 1, 2), (7, 10), 3, 1, 1, 2), IMAGE
    ),
    "folded with gaps": (lambda x: F.fold(F.unfold(x, 2, 1, 0, 3), (7, 10), 2, 1, 0, 3), IMAGE),
    "mean": (lambda x: x.mean((2, 3)), IMAGE),
    "maximum of rows": (lambda x: x.amax(2, keepdim=True), IMAGE),
    "maximum with places": (lambda x: x.max(3).values, IMAGE),
    "maximum of all": (lambda x: x.max(), IMAGE),
    "larger": (lambda x: torch.max(x, x.flip(2)), IMAGE),
    "variance and mean": (lambda x: torch.add(*torch.var_mean(x, (1, 2), keepdim=True)), IMAGE),
    "norm": (lambda x: x.norm(dim=2), IMAGE),
    "product": (lambda x: x.prod(3), IMAGE),
    "glu": (lambda x: F.glu(torch.cat([x, x.flip(2)], 1), 1), IMAGE),
    "index of rows": (lambda x: x[:, :, ROWS], IMAGE),
    "every other row by index": (lambda x: x[:, :, torch.arange(1, 7, 2)], IMAGE),
    "index by a mask": (lambda x: x[:, :, torch.tensor([True] * 3 + [False] * 4)], IMAGE),
    "index select": (lambda x: x.index_select(3, ROWS.relu()), IMAGE),
    "written parts": (_written_parts, IMAGE),
    "written twice": (_written_twice, IMAGE),
    "siblings in one memory": (_siblings, IMAGE),
    "part of what is written": (_part_of_what_is_written, IMAGE),
    "views in place": (_in_place_views, IMAGE),
    "flatten and back": (lambda x: x.flatten(2).unflatten(2, (7, 10)), IMAGE),
    "rows as channels": (lambda x: x.permute(0, 2, 3, 1).flatten(1, 2)[:, ::3], IMAGE),
}  # fmt: skip


class Plain(nn.Module):
    """A function between two convolutions of one pixel, so that channels are mixed at the end."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.result = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.result(self.function(x)) * 1.0


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", [*FUNCTIONS, *RESIZED, *PADDED, *CONVOLUTIONS])
def test_operators_equal_what_nan_probing_finds(name: str):
    if name in CONVOLUTIONS:
        assert_as_probed(*CONVOLUTIONS[name])
        return
    function, shape = (FUNCTIONS | RESIZED | PADDED)[name]
    assert_as_probed(Plain(function), shape)


@pytest.mark.parametrize("name", UNKNOWN)
def test_rare_operators_are_unknown_by_name(name: str):
    fields = receptive_field(Plain(UNKNOWN[name]), (1, 2, 7, 10))
    assert fields["result"].unknown.startswith("aten.")
