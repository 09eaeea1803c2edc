"""Networks for the tests of geometry."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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


class Split(nn.Module):
    """Channels split, joined with constants, and convolved one by one."""

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
