"""What the units of real networks see, found by NaN, and compared with what was computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from convlens.geometry import LayerField, ReceptiveFields, receptive_field

NAN = float("nan")


class Probe:
    """Puts NaN into one line of the input at a time, and keeps which units turn NaN.

    Each image of a batch has another line, which is the same as one run for each: in evaluation no
    image of a batch depends on another.
    """

    def __init__(self, model: nn.Module, fields: ReceptiveFields, per_batch: int = 16) -> None:
        self.model = model.double().eval()
        self.fields = fields
        self.per_batch = per_batch
        self.wrong: list[str] = []
        self.compared = 0

    def run(self) -> None:
        """Probe all lines of all axes, and compare all calls of all modules."""
        for axis in range(len(self.fields.input_shape) - 2):
            spoiled: dict[tuple[str, int], list[np.ndarray]] = {}
            for lines in self._batches(self.fields.input_shape[2 + axis]):
                for key, found in self.spoiled(axis, lines).items():
                    spoiled.setdefault(key, []).append(found)
            for (name, call), found in spoiled.items():
                self._compare(axis, name, call, np.concatenate(found))

    def _batches(self, n: int) -> Iterator[range]:
        for start in range(0, n, self.per_batch):
            yield range(start, min(start + self.per_batch, n))

    def spoiled(self, axis: int, lines: range | list[int]) -> dict[tuple[str, int], np.ndarray]:
        """By module and call: (lines, *grid), True where a unit turns NaN by a line."""
        found: dict[tuple[str, int], np.ndarray] = {}
        calls: dict[str, int] = {}

        def watch(name: str):
            def look(_: nn.Module, __: object, out: object) -> None:
                call = calls[name] = calls.get(name, -1) + 1
                if isinstance(out, Tensor):
                    found[name, call] = _by_place(out, len(lines), self.fields.calls[name][call])

            return look

        generator = torch.Generator().manual_seed(0)
        shape = (len(lines), *self.fields.input_shape[1:])
        x = torch.rand(shape, generator=generator, dtype=torch.float64)
        for image, line in zip(x, lines, strict=True):
            image.select(1 + axis, line).fill_(NAN)
        # the fused kernels of attention lose NaN in queries
        with ExitStack() as stack, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            for name, module in self.model.named_modules():
                stack.callback(module.register_forward_hook(watch(name)).remove)
            self.model(x)
        return found

    def edges(self, name: str) -> tuple[int, int, list[bool]]:
        """The first and last column of a unit far from the edges, and what NaN finds of them.

        That is whether the unit turns NaN by the columns first − 1, first, last and last + 1.
        """
        layer = self.fields[name]
        size = layer.size[1]
        n = self.fields.input_shape[3]
        first, last = layer.first[1], layer.last[1]
        assert size is not None
        inside = (first > 0) & (last < n - 1)
        unit = int(np.argwhere(inside & (last - first + 1 == size))[0, 0])
        ends = int(first[unit]), int(last[unit])
        columns = [ends[0] - 1, ends[0], ends[1], ends[1] + 1]
        call = len(self.fields.calls[name]) - 1
        spoiled = self.spoiled(1, columns)[name, call]
        return *ends, [bool(each) for each in spoiled[:, :, unit].any(1)]

    def _compare(self, axis: int, name: str, call: int, spoiled: np.ndarray) -> None:
        """Hold first and last line of each unit to what the layer's field says."""
        layer = self.fields.calls[name][call]
        if layer.unknown:
            self.wrong.append(f"{name}: unknown because of {layer.unknown}")
            return
        seen = spoiled.any(axis=0)
        first = np.where(seen, spoiled.argmax(axis=0), 0)
        last = np.where(seen, len(spoiled) - 1 - spoiled[::-1].argmax(axis=0), -1)
        for given, probed in ((layer.first[axis], first), (layer.last[axis], last)):
            if not np.array_equal(_on_grid(given, axis, layer.grid), probed):
                self.wrong.append(f"{name} call {call} axis {axis}: {given} is not {probed}")
        self.compared += 1


def _by_place(out: Tensor, n_images: int, layer: LayerField) -> np.ndarray:
    """(images, *grid): whether a unit is NaN in any channel, also where windows are images."""
    spoiled = out.isnan().reshape(n_images, -1, *out.shape[1:]).any(1)
    if len(layer.grid) < spoiled.dim() - 1:
        spoiled = spoiled.any(1)
    return spoiled.numpy()


def _on_grid(line: np.ndarray, axis: int, grid: tuple[int, ...]) -> np.ndarray:
    if line.shape == grid:
        return line
    return np.broadcast_to(line.reshape([-1 if a == axis else 1 for a in range(len(grid))]), grid)


def assert_as_probed(model: nn.Module, shape: tuple[int, ...]) -> ReceptiveFields:
    """Every module's first and last equal what NaN probing of the real network finds."""
    model = model.double().eval()
    probe = Probe(model, receptive_field(model, torch.zeros(shape, dtype=torch.float64)), 1)
    probe.run()
    assert not probe.wrong
    assert probe.compared
    return probe.fields
