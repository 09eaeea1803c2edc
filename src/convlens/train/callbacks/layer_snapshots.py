"""Takes snapshots of a model on probe images: feature maps, kernels, receptive fields.

The model runs in evaluation mode, without autocast, and is left as it was (`execution.preserved`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import activation
from torch.nn.parameter import is_lazy

from convlens.core.snapshots import (
    BEFORE,
    EffectiveFieldMap,
    FeatureMaps,
    FieldIntervals,
    Kernels,
    Snapshot,
)
from convlens.execution import copy_of, hook_layers, preserved, unwrapped
from convlens.geometry import EffectiveField, LayerField, ReceptiveFields, receptive_field
from convlens.geometry.effective import center_fields
from convlens.train.callbacks import snapshot_limits as limits
from convlens.watching.layer_selection import BatchNorm
from convlens.watching.outputs import first_tensor

CONVS = (nn.Conv2d, nn.ConvTranspose2d)
NORMS = (
    BatchNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.LayerNorm, nn.RMSNorm,
    nn.InstanceNorm2d,
)  # fmt: skip
POOLINGS = (
    nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.FractionalMaxPool2d, nn.MaxUnpool2d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
ACTIVATIONS = tuple(
    getattr(activation, name) for name in activation.__all__ if name != "MultiheadAttention"
)


@dataclass(frozen=True)
class _Layer:
    """A layer with feature maps: its output's (H, W) and its channels."""

    name: str
    module: nn.Module
    grid: tuple[int, int]
    channels: int


class LayerSnapshots:
    """Takes snapshots of a model at given epochs.

    Feature maps and fields are those of convolutions, normalizations, activations and poolings
    (torch's own, or derived from them) whose output is (N, C, H, W); for a module that runs several
    times, of its last run. Of more than ``n_layers``, so many are chosen at even distances.

    Args:
        model: any module that takes one tensor; of a compiled one, the module it was made from.
        inputs: (N, C, H, W), the probe images, on the model's device.
        n_layers: how many layers to keep.
        kept: the epochs at which `take` will be called, besides the one before training.

    Attributes:
        notes: what could not be taken, and why.
    """

    def __init__(
        self, model: nn.Module, inputs: Tensor, n_layers: int, kept: Sequence[int]
    ) -> None:
        self._model = unwrapped(model)
        self._inputs, self._kept = inputs, kept
        self.notes: list[str] = []
        self._layers: list[_Layer] = []
        self._first_convs: set[str] = set()
        self._effective: list[str] = []
        self._effective_epochs: set[int] = set()
        self._side, self._n_candidates = limits.CELLS[0], 0
        self._fields: ReceptiveFields | None = None
        self._run("feature maps", self._find_layers)
        self._layers = limits.evenly(self._layers, n_layers)
        self._convs = {
            name: module
            for name, module in self._model.named_modules()
            if isinstance(module, nn.Conv2d)
            and not any(map(is_lazy, module.parameters()))
            and max(module.kernel_size) <= limits.KERNEL_SIDE
        }
        self._planes = limits.choose_planes(
            [
                (c.out_channels, c.in_channels // c.groups, *c.kernel_size)
                for name, c in self._convs.items()
                if name not in self._first_convs
            ]
        )
        self._run("receptive fields", self._find_fields)

    def facts(self) -> dict[str, object]:
        """What the run's metadata says of the snapshots, as plain JSON."""
        return {
            "n_layers": len(self._layers),
            "n_layers_in_all": self._n_candidates,
            "cells": self._side,
            "planes": list(self._planes),
            "effective_layers": len(self._effective),
            "effective_epochs": sorted(self._effective_epochs),
            "notes": list(self.notes),
        }

    def take(self, epoch: int) -> list[Snapshot]:
        """The snapshots of this epoch, layer by layer in the model's order.

        What fails is left out, and `notes` says why.
        """
        taken: list[Snapshot] = []
        if epoch == BEFORE:
            self._run("field intervals", lambda: taken.extend(self._intervals()))
        if self._layers and not self._run("feature maps", lambda: taken.extend(self._maps(epoch))):
            self._layers = []
        self._run("kernels", lambda: taken.extend(self._kernels(epoch)))
        if epoch in self._effective_epochs or epoch == self._kept[-1]:
            self._run("effective fields", lambda: taken.extend(self._effective_maps(epoch)))
        return taken

    def _run(self, what: str, work: Callable[[], None]) -> bool:
        """Run the model; any error it raises becomes a note."""
        try:
            work()
        except Exception as error:
            note = f"No {what}: {type(error).__name__}: {error}".strip()
            if note not in self.notes:
                self.notes.append(note)
            return False
        return True

    def _forward(
        self, modules: dict[str, nn.Module], make: Callable[[str], Callable[..., None]]
    ) -> None:
        """Run the model in evaluation with hooks on some modules."""
        if any(is_lazy(tensor) for tensor in self._model.parameters()):
            raise ValueError("parameters have no shape before the first batch")
        with preserved(self._model, copy_of), torch.no_grad():
            hook_layers(self._model, make, modules)
            self._model(self._inputs.clone())

    # ---- once -----------------------------------------------------------------------------------

    def _find_layers(self) -> None:
        """Find the layers whose output is (N, C, H, W), and the convolutions of the images."""
        shapes: dict[str, torch.Size] = {}

        def make_hook(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[object, ...], output: object) -> None:
                out = first_tensor(output)
                if out is not None:
                    shapes[name] = out.shape
                if isinstance(module, nn.Conv2d):
                    given = args[0] if args else None
                    same = (
                        isinstance(given, Tensor)
                        and given.dtype == self._inputs.dtype
                        and torch.equal(given, self._inputs)
                    )
                    (self._first_convs.add if same else self._first_convs.discard)(name)

            return hook

        kinds = (*CONVS, *NORMS, *POOLINGS, *ACTIVATIONS)
        candidates = {
            name: module
            for name, module in self._model.named_modules()
            if isinstance(module, kinds) and "parametrizations" not in name.split(".")
        }
        self._forward(candidates, make_hook)
        for name, module in candidates.items():
            shape = shapes.get(name, torch.Size())
            if len(shape) == 4 and 0 not in shape:
                grid = (int(shape[2]), int(shape[3]))
                self._layers.append(_Layer(name, module, grid, int(shape[1])))
        self._n_candidates = len(self._layers)

    def _find_fields(self) -> None:
        """The theoretical fields, on fake tensors, and the layers whose effective field is kept."""
        self._side = limits.choose_cells(
            [layer.grid for layer in self._layers],
            [len(self._inputs) * min(layer.channels, limits.CHANNELS) for layer in self._layers],
        )
        if not self._layers:
            return
        self._fields = receptive_field(self._model, self._inputs[:1])
        self.notes += self._fields.notes
        # An output whose axes are not the image's, such as (N, H, W, C), is no feature map.
        self._layers = [
            layer for layer in self._layers if (f := self._field(layer.name)) is None
            or f.unknown or f.grid == layer.grid
        ]  # fmt: skip
        unknown = {f.unknown for x in self._layers if (f := self._field(x.name)) and f.unknown}
        self.notes += [f"No receptive fields after {operator}." for operator in sorted(unknown)]
        self._choose_effective()

    def _choose_effective(self) -> None:
        """Choose every layer, or those that enlarge fields, or those at even distances."""
        layers = self._layers
        if len(layers) > limits.EFFECTIVE_LAYERS:
            layers = [x for x in layers if isinstance(x.module, (*CONVS, *POOLINGS))] or layers
        if not self._inputs.is_floating_point():
            layers = []
        self._effective = [x.name for x in limits.evenly(layers, limits.EFFECTIVE_LAYERS)]
        middles = {x.name: (x.grid[0] // 2, x.grid[1] // 2) for x in layers}
        sides = [self._box(name, middles[name])[1] for name in self._effective]
        n_bytes = 2 * sum(h * w for h, w in sides)  # of each pixel's four, two are zeros
        self._effective_epochs = limits.effective_epochs(self._kept, n_bytes)

    def _field(self, name: str) -> LayerField | None:
        assert self._fields is not None
        layers = self._fields.layers
        return layers.get(f"{name}[0]") or layers.get(name)  # of several tensors, the first

    # ---- at every kept epoch ---------------------------------------------------------------------

    def _maps(self, epoch: int) -> Iterator[Snapshot]:
        pooled: dict[str, Tensor] = {}

        def make_hook(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: object, output: object) -> None:  # noqa: ARG001
                out = first_tensor(output)
                if out is not None and out.ndim == 4:
                    some = out.detach()[:, : limits.CHANNELS].float()
                    shape = limits.cells_of((out.shape[2], out.shape[3]), self._side)
                    # .cpu() before an in-place operation changes the output
                    pooled[name] = F.adaptive_avg_pool2d(some, shape).cpu()

            return hook

        self._forward({x.name: x.module for x in self._layers}, make_hook)
        for layer in self._layers:
            if layer.name in pooled:
                values = pooled[layer.name].numpy()
                maps, low, high = quantize(values)
                channels = np.arange(values.shape[1])
                yield FeatureMaps(
                    epoch, layer.name, maps, low, high, channels, layer.channels, layer.grid
                )

    def _kernels(self, epoch: int) -> Iterator[Snapshot]:
        for name, conv in self._convs.items():
            first = name in self._first_convs
            n_out, n_in = limits.PLANES[0] if first else self._planes
            with preserved(conv, copy_of), torch.no_grad():  # it may be computed when it is read
                weight = conv.weight.detach()
                bias = torch.zeros(0) if conv.bias is None else conv.bias.detach()
            yield Kernels(
                epoch,
                name,
                weight=_reals(weight[:n_out, :n_in]),
                bias=_reals(bias),
                shape=tuple(weight.shape),
                stride=(int(conv.stride[0]), int(conv.stride[1])),
                padding=padding_before(conv),
                dilation=(int(conv.dilation[0]), int(conv.dilation[1])),
                groups=int(conv.groups),
                reads_input=first,
                zero_padding=conv.padding_mode == "zeros",
            )

    def _intervals(self) -> Iterator[Snapshot]:
        for layer in self._layers if self._fields is not None else ():
            field = self._field(layer.name)
            if field is not None and not field.unknown and len(field.first) == 2:
                rows, columns = (_line(field, axis) for axis in (0, 1))
                size = (field.size[0], field.size[1])
                yield FieldIntervals(BEFORE, layer.name, layer.grid, *rows, *columns, size)

    def _effective_maps(self, epoch: int) -> Iterator[Snapshot]:
        if self._fields is None or not self._effective:
            return
        found = center_fields(self._model, self._inputs, self._fields, self._effective)
        for name, effective in found.items():
            yield self._effective_map(epoch, name, effective)

    def _effective_map(self, epoch: int, name: str, effective: EffectiveField) -> Snapshot:
        unit = effective.units[0]
        (top, left), (height, width) = self._box(name, unit)
        share = effective.share[top : top + height, left : left + width]
        return EffectiveFieldMap(
            epoch,
            name,
            share=rounded(share / share.sum()),
            corner=(top, left),
            center=(effective.center[0], effective.center[1]),
            unit=(unit[0], unit[1]),
            radius={str(percent): radius for percent, radius in effective.radius.items()},
        )

    def _box(self, name: str, unit: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Corner and sides, in pixels, of what a unit sees; of the whole image if unknown."""
        field, image = self._field(name), self._inputs.shape[2:]
        seen = None
        if field is not None and not field.unknown and self._fields is not None:
            seen = self._fields.rectangle(field.name, *unit)
        if seen is None:
            return (0, 0), (image[0], image[1])
        (top, bottom), (left, right) = seen
        return (top, left), (bottom - top + 1, right - left + 1)


def quantize(
    values: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Values (N, C, h, w) in 256 steps from each channel's lowest to its highest finite value.

    Returns:
        The steps, the lowest values (C,) and the highest (C,), NaN in a channel without a finite
        value. NaN becomes the lowest, as does everything in a channel of one value or none.
    """
    exact = values.astype(np.float64)
    finite = np.isfinite(exact)
    low = np.where(finite, exact, np.inf).min(axis=(0, 2, 3))
    high = np.where(finite, exact, -np.inf).max(axis=(0, 2, 3))
    low, high = np.where(low > high, np.nan, low), np.where(low > high, np.nan, high)
    span = np.where(high > low, high - low, 1.0)
    with np.errstate(invalid="ignore"):  # an infinity less an infinity
        steps = (exact - low[:, None, None]) * (255.0 / span)[:, None, None]
    steps = np.nan_to_num(steps, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255).round()
    return steps.astype(np.uint8), low.astype(np.float32), high.astype(np.float32)


def rounded(share: NDArray[np.float64]) -> NDArray[np.float32]:
    """Within 0.2 %, in two bytes of four: the others are zeros, which take no room when packed."""
    bits = np.ascontiguousarray(share, np.float32).view(np.uint32)
    return ((bits + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def padding_before(conv: nn.Conv2d) -> tuple[int, int]:
    """Rows and columns before the first pixel; "same" puts an odd one behind the last."""
    if conv.padding == "valid":
        return (0, 0)
    if conv.padding == "same":
        down, across = zip(conv.dilation, conv.kernel_size, strict=True)
        return (down[0] * (down[1] - 1) // 2, across[0] * (across[1] - 1) // 2)
    rows, columns = conv.padding
    return (int(rows), int(columns))


def _line(field: LayerField, axis: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last pixel by row, or column; where others matter too, what any of them sees."""
    first, last = (np.asarray(a[axis], np.int64) for a in (field.first, field.last))
    if first.ndim == 1:
        return first.copy(), last.copy()
    first = np.where(first > last, np.iinfo(np.int64).max, first).min(axis=1 - axis)
    last = last.max(axis=1 - axis)
    return np.where(last < 0, 0, first), last


def _reals(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.float().cpu().numpy().copy()
