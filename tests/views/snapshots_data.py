"""Snapshots of real networks on real images, made with plain torch, and HTML as a tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convlens.core.snapshots import (
    Confusion,
    EffectiveFieldMap,
    FeatureMaps,
    FieldIntervals,
    Kernels,
    Mistakes,
    Probes,
)
from convlens.data import mnist
from convlens.geometry import effective_receptive_field, receptive_field
from convlens.models import simple_cnn

MOST_CHANNELS, MOST_CELLS, N_PROBES = 16, 32, 8


@dataclass
class Kept:
    """What was kept of a training, by kind and by layer."""

    probes: Probes
    maps: dict[str, list[FeatureMaps]] = field(default_factory=dict)
    kernels: dict[str, list[Kernels]] = field(default_factory=dict)
    fields: dict[str, FieldIntervals] = field(default_factory=dict)
    effective: dict[str, EffectiveFieldMap] = field(default_factory=dict)
    confusion: list[Confusion] = field(default_factory=list)
    mistakes: list[Mistakes] = field(default_factory=list)


def outputs_of(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What each convolution gives, in evaluation."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, _input, output: found.__setitem__(name, output.detach().clone())

    convs = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    hooks = [module.register_forward_hook(keep(name)) for name, module in convs]
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(x)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return found


def feature_maps(output: Tensor, layer: str, epoch: int) -> FeatureMaps:
    """A layer's output (N, C, H, W) as a run keeps it."""
    grid = output.shape[2:]
    cells = output[:, :MOST_CHANNELS].double().numpy()
    for axis in (2, 3):
        n = cells.shape[axis]
        h = min(n, MOST_CELLS)
        spans = [(i * n // h, -(-(i + 1) * n // h)) for i in range(h)]
        parts = [cells.take(range(a, b), axis).mean(axis, keepdims=True) for a, b in spans]
        cells = np.concatenate(parts, axis)
    low, high = cells.min((0, 2, 3)), cells.max((0, 2, 3))
    shares = (cells - low[:, None, None]) / np.maximum(high - low, 1e-30)[:, None, None]
    return FeatureMaps(
        epoch,
        layer,
        maps=np.round(255 * shares).astype(np.uint8),
        low=low.astype(np.float32),
        high=high.astype(np.float32),
        channels=np.arange(cells.shape[1]),
        n_channels=output.shape[1],
        grid=(grid[0], grid[1]),
    )


def kernels_of(conv: nn.Conv2d, layer: str, epoch: int, reads_input: bool) -> Kernels:
    """A convolution's weights, of wide ones the first."""
    weight = conv.weight.detach()[:MOST_CHANNELS, :MOST_CHANNELS].numpy().copy()
    bias = np.zeros(0, np.float32)
    if conv.bias is not None:
        bias = conv.bias.detach()[:MOST_CHANNELS].numpy().copy()
    padding = conv.padding
    assert not isinstance(padding, str)
    return Kernels(
        epoch,
        layer,
        weight=weight,
        bias=bias,
        shape=tuple(conv.weight.shape),
        stride=(conv.stride[0], conv.stride[1]),
        padding=(padding[0], padding[1]),
        dilation=(conv.dilation[0], conv.dilation[1]),
        groups=conv.groups,
        reads_input=reads_input,
        zero_padding=conv.padding_mode == "zeros",
    )


def field_intervals(model: nn.Module, x: Tensor) -> dict[str, FieldIntervals]:
    """Of every layer whose intervals are lines."""
    kept: dict[str, FieldIntervals] = {}
    for name, found in receptive_field(model, x[:1]).layers.items():
        if len(found.grid) == 2 and all(line.ndim == 1 for line in found.first):
            kept[name] = FieldIntervals(
                -1,
                name,
                grid=(found.grid[0], found.grid[1]),
                first_row=np.asarray(found.first[0], np.int64),
                last_row=np.asarray(found.last[0], np.int64),
                first_column=np.asarray(found.first[1], np.int64),
                last_column=np.asarray(found.last[1], np.int64),
                size=(found.size[0], found.size[1]),
            )
    return kept


def effective_field(model: nn.Module, x: Tensor, layer: str, epoch: int) -> EffectiveFieldMap:
    """Of the layer's centre unit."""
    grid = receptive_field(model, x[:1]).layers[layer].grid
    at = (grid[0] // 2, grid[1] // 2)
    found = effective_receptive_field(model, x, layer, at)
    return EffectiveFieldMap(
        epoch,
        layer,
        share=found.share.astype(np.float32),
        corner=(0, 0),
        center=(found.center[0], found.center[1]),
        unit=at,
        radius={str(key): float(value) for key, value in found.radius.items()},
    )


def judged(
    model: nn.Module, x: Tensor, y: Tensor, images: np.ndarray, classes: tuple[str, ...], epoch: int
) -> tuple[Confusion, Mistakes]:
    """The confusion matrix, and the worst of each confusion."""
    with torch.no_grad():
        shares = model.eval()(x).softmax(1)
    model.train()
    said = shares.argmax(1)
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (y.numpy(), said.numpy()), 1)
    loss = -shares[torch.arange(len(y)), y].clamp_min(1e-12).log()
    order = loss.argsort(descending=True).tolist()
    pairs: set[tuple[int, int]] = set()
    chosen = [
        i
        for at, i in enumerate(order)
        if at < 16 or not ((p := (int(y[i]), int(said[i]))) in pairs or p[0] == p[1])
        if not pairs.add((int(y[i]), int(said[i])))
    ]
    i = torch.tensor(chosen)
    mistakes = Mistakes(
        epoch,
        "",
        images=images[i.numpy()],
        true=y[i].numpy(),
        predicted=said[i].numpy(),
        probability=shares[i, said[i]].numpy(),
        loss=loss[i].numpy(),
        item=i.numpy(),
        classes=classes,
    )
    return Confusion(epoch, "", counts, classes), mistakes


def look(kept: Kept, model: nn.Module, epoch: int, first: str) -> None:
    """Keep maps and kernels of all convolutions."""
    x = torch.from_numpy(kept.probes.inputs)
    for name, output in outputs_of(model, x).items():
        kept.maps.setdefault(name, []).append(feature_maps(output, name, epoch))
        conv = model.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        kept.kernels.setdefault(name, []).append(kernels_of(conv, name, epoch, name == first))


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    images: np.ndarray,
    classes: tuple[str, ...],
    first: str,
    n_epochs: int,
    n_steps: int,
    batch: int = 128,
    lr: float = 3e-3,
) -> Kept:
    """Train for some steps an epoch and keep what a run keeps; the last 2,000 images are unseen."""
    valid = slice(-2000, None)
    at = [int((y[valid] == k % len(classes)).nonzero()[3 + k // len(classes)]) for k in range(8)]
    inputs, seen = x[valid][at].numpy(), images[valid][at]
    captions = tuple(classes[int(y[valid][i])] for i in at)
    kept = Kept(Probes(-1, "", seen, inputs, captions))
    look(kept, model, -1, first)
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    order = torch.randperm(len(x) - 2000, generator=torch.Generator().manual_seed(0))
    for epoch in range(n_epochs):
        for step in range(n_steps):
            chosen = order[
                torch.arange(batch) + (epoch * n_steps + step) * batch % (len(order) - batch)
            ]
            loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        look(kept, model, epoch, first)
        confusion, mistakes = judged(model, x[valid], y[valid], images[valid], classes, epoch)
        kept.confusion.append(confusion)
        kept.mistakes.append(mistakes)
    kept.fields = field_intervals(model, x[:1])
    for name in kept.maps:
        kept.effective[name] = effective_field(model, torch.from_numpy(inputs), name, n_epochs - 1)
    return kept


@cache
def digits() -> Kept:
    """A short training of the chapter's network on MNIST."""
    torch.manual_seed(0)
    dls = mnist(batch_size=6000, device="cpu")
    x, y = next(iter(dls.train))
    images = dls.to_uint8(x)
    classes = tuple(dls.label(k) for k in range(10))
    return train(simple_cnn(1, 10, norm="batch"), x, y, images, classes, "0.0", 2, 30)


@dataclass
class Element:
    """An element of parsed HTML."""

    tag: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    def all(self, tag: str = "", **wanted: str) -> list[Element]:
        """Every element below with a tag and attributes; ``_`` stands for ``-``, class for one."""
        return [one for one in self.walk() if one.tag == (tag or one.tag) and one.has(**wanted)]

    def one(self, tag: str = "", **wanted: str) -> Element:
        found = self.all(tag, **wanted)
        assert len(found) == 1, (tag, wanted, len(found))
        return found[0]

    def has(self, **wanted: str) -> bool:
        for key, value in wanted.items():
            held = self.attributes.get(key.strip("_").replace("_", "-"))
            if held is None or (value not in held.split() if key == "class_" else held != value):
                return False
        return True

    def walk(self) -> Iterator[Element]:
        for child in self.children:
            if isinstance(child, Element):
                yield child
                yield from child.walk()


VOID = {"img", "input", "br", "hr"}
CLOSED = {"rect"}


class Tree(HTMLParser):
    """Parses a fragment and refuses what is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice in {attrs}"
        one = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(one)
        if tag not in VOID:
            self.open.append(one)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in CLOSED, f"<{tag}/> is no element that closes itself"
        self.open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, f"</{tag}> closes nothing that is open"

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parsed(html: str) -> Element:
    """A fragment as a tree; every element is closed in its place."""
    tree = Tree()
    tree.feed(html)
    tree.close()
    assert len(tree.open) == 1, f"<{tree.open[-1].tag}> is not closed"
    return tree.root
