"""Random stacks of everything that fields are followed through, drawn by Hypothesis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from geometry_models import Parallel, Squeeze
from hypothesis import strategies as st
from torch import Tensor, nn

F = nn.functional
Draw = Callable[[st.SearchStrategy], object]
Shape = tuple[int, ...]
Made = nn.Module | Callable[[Tensor], Tensor]
Operation = Callable[[Draw, Shape], Made]

MOST = 6_000
"""Numbers in a tensor at most, so that a forward pass takes a millisecond."""


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, name: str, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.name, self.function = name, function

    def extra_repr(self) -> str:
        return self.name

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def number(draw: Draw, low: int, high: int) -> int:
    return draw(st.integers(low, max(low, high)))


def numbers(draw: Draw, shape: Shape, low: int, high: int) -> tuple[int, ...]:
    return tuple(number(draw, low, high) for _ in shape[2:])


def axis(draw: Draw, shape: Shape) -> int:
    return number(draw, 2, len(shape) - 1)


def of_rank(name: str, shape: Shape) -> type[nn.Module]:
    return getattr(nn, f"{name}{len(shape) - 2}d")


def divisor(draw: Draw, n: int) -> int:
    return draw(st.sampled_from([g for g in range(1, n + 1) if n % g == 0]))


def convolution(draw: Draw, shape: Shape) -> Made:
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    groups = divisor(draw, shape[1])
    sizes = [numbers(draw, shape, *low_high) for low_high in ((1, 3), (1, 2), (0, 2), (1, 2))]
    return of_rank("Conv", shape)(
        shape[1], groups * number(draw, 1, 2), *sizes, groups, padding_mode=mode
    )


def transposed(draw: Draw, shape: Shape) -> Made:
    stride, groups = numbers(draw, shape, 1, 3), divisor(draw, shape[1])
    more = tuple(number(draw, 0, s - 1) for s in stride)
    kernel, padding = numbers(draw, shape, 1, 4), numbers(draw, shape, 0, 1)
    return of_rank("ConvTranspose", shape)(
        shape[1], groups, kernel, stride, padding, more, groups, dilation=number(draw, 1, 2)
    )


def max_pool(draw: Draw, shape: Shape) -> Made:
    stride, ceil = number(draw, 1, 3), draw(st.booleans())
    return of_rank("MaxPool", shape)(3, stride, 1, number(draw, 1, 2), ceil_mode=ceil)


def average_pool(draw: Draw, shape: Shape) -> Made:
    return of_rank("AvgPool", shape)(2, number(draw, 1, 3), ceil_mode=draw(st.booleans()))


def lp_pool(draw: Draw, shape: Shape) -> Made:
    return of_rank("LPPool", shape)(2, 2, number(draw, 1, 2))


def adaptive(draw: Draw, shape: Shape) -> Made:
    kind = draw(st.sampled_from(["AdaptiveAvgPool", "AdaptiveMaxPool"]))
    return of_rank(kind, shape)(numbers(draw, shape, 1, 6))


def resize(draw: Draw, shape: Shape) -> Made:
    linear = {3: "linear", 4: "bilinear", 5: "trilinear"}[len(shape)]
    mode = draw(st.sampled_from(["nearest", "nearest-exact", "area", linear]))
    more = {"align_corners": draw(st.booleans())} if mode == linear else {}
    if draw(st.booleans()):
        return nn.Upsample(scale_factor=draw(st.sampled_from([0.5, 1.5, 2.0])), mode=mode, **more)
    return nn.Upsample(numbers(draw, shape, 2, 15), mode=mode, **more)


def cubic(draw: Draw, shape: Shape) -> Made:
    factor = draw(st.sampled_from([0.5, 2.0]))
    return lambda x: F.interpolate(x, scale_factor=factor, mode="bicubic")


def padding(draw: Draw, shape: Shape) -> Made:
    mode = draw(st.sampled_from(["constant", "reflect", "replicate", "circular"]))
    low = -1 if mode == "constant" else 0
    pad = numbers(draw, shape, low, 3) + numbers(draw, shape, low, 3)
    return lambda x: F.pad(x, pad, mode)


def norm(draw: Draw, shape: Shape) -> Made:
    kinds: list[Callable[[], nn.Module]] = [
        lambda: of_rank("BatchNorm", shape)(shape[1]),
        lambda: of_rank("InstanceNorm", shape)(shape[1]),
        lambda: nn.GroupNorm(divisor(draw, shape[1]), shape[1]),
        lambda: nn.LayerNorm(shape[number(draw, 2, len(shape) - 1) :]),
    ]
    return draw(st.sampled_from(kinds))()


def activation(draw: Draw, shape: Shape) -> Made:
    kinds = [nn.ReLU(inplace=True), nn.SiLU(), nn.Hardswish(inplace=True), nn.GELU(), nn.PReLU()]
    return draw(st.sampled_from(kinds))


def squeeze(draw: Draw, shape: Shape) -> Made:
    return Squeeze(shape[1])


def shuffle(draw: Draw, shape: Shape) -> Made:
    return nn.ChannelShuffle(divisor(draw, shape[1]))


def slices(draw: Draw, shape: Shape) -> Made:
    at = axis(draw, shape)
    start, step = number(draw, 0, shape[at] // 3), number(draw, 1, 2)
    part = slice(start, shape[at] - number(draw, 0, 1), step)
    return lambda x: x[(slice(None),) * at + (part,)]


def flip(draw: Draw, shape: Shape) -> Made:
    at = axis(draw, shape)
    return lambda x: x.flip(at)


def roll(draw: Draw, shape: Shape) -> Made:
    at, by = axis(draw, shape), number(draw, -3, 3)
    return lambda x: x.roll(by, at)


def turn(draw: Draw, shape: Shape) -> Made:
    return lambda x: x.transpose(2, len(shape) - 1).contiguous()


def parts(draw: Draw, shape: Shape) -> Made:
    """Halves of one axis, the channels among them, the other way round."""
    at = number(draw, 1, len(shape) - 1)
    return lambda x: torch.cat(x.chunk(2, at)[::-1], at)


def stacked(draw: Draw, shape: Shape) -> Made:
    at = axis(draw, shape)
    return lambda x: torch.stack([x, x.flip(at)], 2).amax(2)


def average(draw: Draw, shape: Shape) -> Made:
    at = axis(draw, shape)
    return lambda x: x - x.mean(at, keepdim=True)


def linear(draw: Draw, shape: Shape) -> Made:
    return nn.Linear(shape[-1], number(draw, 2, 6))


def attention(draw: Draw, shape: Shape) -> Made:
    """Over all positions, or over those of one axis by itself."""
    at = axis(draw, shape)

    def over_one(x: Tensor) -> Tensor:
        rows = x.movedim(1, -1).movedim(at - 1, -2)
        return F.scaled_dot_product_attention(rows, rows, rows).movedim(-2, at - 1).movedim(-1, 1)

    def over_all(x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        weights = (tokens @ tokens.transpose(1, 2)).softmax(-1)
        return torch.einsum("nts,nsc->nct", weights, tokens).reshape(x.shape)

    return draw(st.sampled_from([over_one, over_all]))


def indexed(draw: Draw, shape: Shape) -> Made:
    at = axis(draw, shape)
    rows = torch.tensor([number(draw, 0, shape[at] - 1) for _ in range(number(draw, 2, 8))])
    return lambda x: x.index_select(at, rows)


def unfolded(draw: Draw, shape: Shape) -> Made:
    at, size, step = axis(draw, shape), number(draw, 1, 3), number(draw, 1, 2)
    return lambda x: x.unfold(at, size, step).mean(-1)


def folded(draw: Draw, shape: Shape) -> Made:
    kernel, step = number(draw, 1, 3), number(draw, 1, 2)
    return lambda x: F.fold(F.unfold(x, kernel, 1, 1, step), x.shape[2:], kernel, 1, 1, step)


def written(draw: Draw, shape: Shape) -> Made:
    """Some channels moved along an axis by writing into a part (Lin et al., 2019)."""
    at, channels, to = axis(draw, shape), number(draw, 1, shape[1]), number(draw, 0, 1)
    empty = draw(st.booleans())

    def write(x: Tensor) -> Tensor:
        y = torch.zeros_like(x) if empty and x.shape[at] > 1 else x.clone()
        n = x.shape[at] - 1
        y[:, :channels].narrow(at, to, n).copy_(x[:, :channels].narrow(at, 1 - to, n))
        return y

    return write


LOCAL: Mapping[str, Operation] = {
    "convolution": convolution,
    "transposed": transposed,
    "max pool": max_pool,
    "average pool": average_pool,
    "lp pool": lp_pool,
    "resize": resize,
    "padding": padding,
    "activation": activation,
    "slices": slices,
    "flip": flip,
    "unfolded": unfolded,
    "written": written,
    "shuffle": shuffle,
}
"""Operations that see a neighbourhood of each place."""

OPERATIONS: Mapping[str, Operation] = LOCAL | {
    "adaptive": adaptive,
    "norm": norm,
    "roll": roll,
    "turn": turn,
    "parts": parts,
    "stacked": stacked,
    "average": average,
    "linear": linear,
    "attention": attention,
    "indexed": indexed,
}

IMAGES_ONLY: Mapping[str, Operation] = {"squeeze": squeeze, "cubic": cubic, "folded": folded}


def operations_of(shape: Shape) -> Mapping[str, Operation]:
    """All operations on inputs of this rank."""
    return OPERATIONS | (IMAGES_ONLY if len(shape) == 4 else {})


@st.composite
def networks(
    draw: Draw,
    shape: Shape,
    operations: Mapping[str, Operation],
    first: str | None = None,
    most: int = MOST,
) -> nn.Sequential:
    """Up to six operations one after the other, some of them in two branches.

    Those that do not take what the ones before them make are left out.
    """
    layers: list[nn.Module] = []
    for i in range(number(draw, 2, 6)):
        some = {first: operations[first]} if first and not i else operations
        made = [_made(draw, shape, some) for _ in range(draw(st.sampled_from([1, 1, 2])))]
        layer = made[0]
        if len(made) == 2:
            layer = Parallel(*made, join=draw(st.sampled_from(["add", "cat"])))
        after = _shape_after(layer, shape)
        if after and after[2:] and min(after) > 0 and torch.Size(after).numel() <= most:
            layers.append(layer)
            shape = after
    return nn.Sequential(*layers, nn.Identity())


def _made(draw: Draw, shape: Shape, operations: Mapping[str, Operation]) -> nn.Module:
    name = draw(st.sampled_from(sorted(operations)))
    made = operations[name](draw, shape)
    layer = made if isinstance(made, nn.Module) else Of(name, made)
    layer.operation = name
    return layer


def _shape_after(layer: nn.Module, shape: Sequence[int]) -> Shape | None:
    """The shape of a layer's output, None if it does not take the input."""
    try:
        with torch.no_grad():
            return tuple(layer.eval()(torch.zeros(shape)).shape)
    except (RuntimeError, ValueError):  # too small for a kernel, or branches that do not fit
        return None
