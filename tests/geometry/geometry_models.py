"""Networks for the tests of geometry, and the probe that finds what their units really see."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from convlens.geometry import ReceptiveFields, receptive_field


class Parallel(nn.Module):
    """Branches of one input, added or concatenated along the channels."""

    def __init__(self, *branches: nn.Module, join: str = "add") -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        outs = [branch(x) for branch in self.branches]
        rank = x.dim() - 2
        n = [min(o.shape[2 + a] for o in outs) for a in range(rank)]
        outs = [o[(slice(None), slice(None), *(slice(0, k) for k in n))] for o in outs]
        if self.join == "cat":
            return torch.cat(outs, 1)
        total = outs[0]
        for out in outs[1:]:
            total = total + out
        return total


class BasicBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.downsample = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    def __init__(self, n_in: int, n_mid: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_mid, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_mid)
        self.conv2 = nn.Conv2d(n_mid, n_mid, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_mid)
        self.conv3 = nn.Conv2d(n_mid, 4 * n_mid, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * n_mid)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or n_in != 4 * n_mid:
            self.downsample = nn.Sequential(
                nn.Conv2d(n_in, 4 * n_mid, 1, stride, bias=False), nn.BatchNorm2d(4 * n_mid)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    """He et al., "Deep Residual Learning", 2015, in torchvision's shape."""

    def __init__(
        self, block: type[nn.Module], depths: tuple[int, ...], width: int = 64, classes: int = 1000
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        grow = 4 if block is Bottleneck else 1
        n_in = width
        for i, depth in enumerate(depths):
            layers = []
            for j in range(depth):
                n_mid = width * 2**i
                layers.append(block(n_in, n_mid, 2 if i and not j else 1))
                n_in = grow * n_mid
            setattr(self, f"layer{i + 1}", nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(n_in, classes)
        self.n_stages = len(depths)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for i in range(self.n_stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Squeeze(nn.Module):
    """Squeeze and excitation (Hu et al., 2018)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Conv2d(n, 2, 1), nn.ReLU(), nn.Conv2d(2, n, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True))


class Shuffled(nn.Module):
    """Channels halved, one half convolved, both joined, halved again: fields differ by channel."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n // 2, n // 2, 3, 1, 1)
        self.left = nn.Conv2d(n // 2, 3, 1)
        self.right = nn.Conv2d(n // 2, 3, 3, 2)
        self.grouped = nn.Conv2d(n, 2, 3, groups=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b = x.chunk(2, 1)
        joined = torch.cat([self.conv(a), b], 1)
        a, b = joined.chunk(2, 1)
        return self.left(a), self.right(b), self.grouped(joined)


class Tokens(nn.Module):
    """Patches, attention over them, and a head; as in a vision transformer."""

    def __init__(self, mix: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, 4)
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.mix = mix
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        n, t, e = x.shape
        if self.mix:
            q, k, v = self.qkv(x).reshape(n, t, 3, 2, e // 2).permute(2, 0, 3, 1, 4).unbind(0)
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            x = x + y.transpose(1, 2).reshape(n, t, e)
        return self.head(x)


class Pieces(nn.Module):
    """Channels in pieces, among constants, and convolved one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, 2)
        self.single = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.end = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split(3, 1)  # 3 and 1 channels
        ones = torch.empty_like(b).fill_(1.0)
        y = torch.cat([b * ones, torch.zeros_like(b), nn.functional.pad(a, (0,) * 4 + (1, 0))], 1)
        wide = self.conv(x.mean(1, keepdim=True)).expand(-1, 2, -1, -1)
        y = self.single(y)[:, 1:, 1::2, :-1:2]
        return self.end(y[:, :2, :3, :3] * wide[:, :, :3, :3])


class Products(nn.Module):
    """Products of matrices that all depend on a square image."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Identity()
        self.batched = nn.Identity()
        self.picked = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        m = x[0, 0, 1:, 1:]
        y = self.plain(torch.addmm(m, m[:, :2], m[2:4]))
        z = self.batched(torch.baddbmm(x[0], x[0][:, :, :1], x[0][:, -1:]))
        return self.picked(y[-1]).sum() + z.amax((1, 2)).mean()


def assigned(x: Tensor, rows: Tensor) -> Tensor:
    """Some rows overwritten by others, by index."""
    y = x.clone()
    y[:, :, rows] = x[:, :, 3:6] * 2
    return y


def probe(model: nn.Module, shape: tuple[int, ...]) -> dict[str, tuple[np.ndarray, ...]]:
    """What the units of each module see, found by NaN in one line of the input at a time.

    Returns for each module and axis first and last line seen, an array (2, *output.shape[1:]);
    first is larger than last where nothing is seen.
    """
    model = model.double().eval()
    seen: dict[str, list[np.ndarray]] = {}
    hooks = []
    last_run: dict[str, np.ndarray] = {}

    def merge(axis: int, line: int) -> None:
        for name, spoiled in last_run.items():
            found = seen.setdefault(name, [])
            if len(found) <= axis:
                found.append(np.stack([np.full(spoiled.shape, 10**6), np.full(spoiled.shape, -1)]))
            first, last = found[axis]
            found[axis][0] = np.where(spoiled, np.minimum(first, line), first)
            found[axis][1] = np.where(spoiled, np.maximum(last, line), last)

    def watch(name: str):
        def look(_: nn.Module, __: object, out: object) -> None:
            if not isinstance(out, Tensor):
                return
            last_run[name] = out.isnan().any(0).numpy()  # as it is now: it may be changed in place

        return look

    for name, module in model.named_modules():
        hooks.append(module.register_forward_hook(watch(name)))
    generator = torch.Generator().manual_seed(0)
    # the fused kernels of attention lose NaN in queries
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for axis in range(len(shape) - 2):
            for line in range(shape[2 + axis]):
                x = torch.rand(shape, generator=generator, dtype=torch.float64)
                x.select(2 + axis, line).fill_(float("nan"))
                model(x)
                merge(axis, line)
    for hook in hooks:
        hook.remove()
    return {name: tuple(found) for name, found in seen.items()}


def assert_as_probed(model: nn.Module, shape: tuple[int, ...]) -> ReceptiveFields:
    """Every module's first and last equal what NaN probing of the real network finds."""
    found = probe(model, shape)
    fields = receptive_field(model, torch.zeros(shape, dtype=torch.float64))
    compared = 0
    for name, axes in found.items():
        layer = fields[name]
        assert not layer.unknown, (name, layer.unknown)
        channels = () if layer.grid == layer.output_shape[1:] else (0,)
        for axis, real in enumerate(axes):
            first, last = real[0].min(axis=channels), real[1].max(axis=channels)
            first = np.where(first > last, 0, first)
            for given, probed in ((layer.first[axis], first), (layer.last[axis], last)):
                line = [n if a == axis else 1 for a, n in enumerate(layer.grid)]
                whole = given.shape == layer.grid
                mine = given if whole else np.broadcast_to(given.reshape(line), layer.grid)
                np.testing.assert_array_equal(mine, probed, err_msg=f"{name} axis {axis}")
                compared += 1
    assert compared
    return fields


def random_network(seed: int, axes: int) -> nn.Module:
    """A stack of random operations with branches, 2 channels in, for about 20 pixels an axis."""
    rng = random.Random(seed)
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
    transposed = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[axes]
    max_pool = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}[axes]
    avg_pool = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}[axes]
    adaptive = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[axes]
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[axes]

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randint(low, high) for _ in range(axes))

    def layer(n: int) -> tuple[nn.Module, int]:  # noqa: PLR0911
        kind = rng.randrange(9)
        if kind <= 2:
            groups = rng.choice([g for g in (1, 2, 4) if n % g == 0])
            made = conv(n, 4, each(1, 3), each(1, 2), each(0, 2), each(1, 2), groups=groups)
            return made, 4
        if kind == 3:
            stride = each(1, 3)
            return transposed(n, 4, each(1, 4), stride, each(0, 1), 0, dilation=1), 4
        if kind == 4:
            return max_pool(3, rng.randint(1, 2), 1, ceil_mode=rng.random() < 0.5), n
        if kind == 5:
            return avg_pool(2, rng.randint(1, 2), ceil_mode=rng.random() < 0.5), n
        if kind == 6:
            return nn.Sequential(norm(n), rng.choice([nn.ReLU(inplace=True), nn.SiLU()])), n
        if kind == 7:
            return adaptive(rng.randint(2, 6)), n
        join = rng.choice(["add", "cat"])
        a, n_a = layer(n)
        b, n_b = (nn.Identity(), n) if rng.random() < 0.5 else layer(n)
        if n_a != n_b:
            join = "cat"
        return Parallel(a, b, join=join), n_a + n_b if join == "cat" else n_a

    layers: list[nn.Module] = []
    n = 2
    for _ in range(rng.randint(3, 6)):
        made, n = layer(n)
        layers.append(made)
    return nn.Sequential(*layers)
