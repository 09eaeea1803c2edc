"""Receptive fields: which input pixels take part in each unit of each layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import nn

from convlens.errors import ArgumentError, find_layer
from convlens.execution import Given, layer_kind, read_inputs, shapes, trace, unwrapped
from convlens.geometry.spans import Field, Ints, Known, Span, Unknown
from convlens.geometry.tracker import FieldTracker

INDEPENDENT = "no dependence on the input"
"""What is said of the field of an output that no pixel takes part in."""


@dataclass(frozen=True)
class LayerField:
    """What the units of one layer's output see, by spatial axis of the input (H, W for images).

    `size`, `jump` and `start` are those on an input without edges. An entry is None where it
    differs from position to position, and where it is not known to be the same for all channels.
    `first` and `last` are exact: they count no padding and no pixel that is never read.

    Attributes:
        name: the module's qualified name.
        output_shape: shape of the layer's output for one image; empty if it is not one tensor.
        grid: the output's axes on which units have a place: (H, W) after a convolution, all but
            the batch axis for an output that is not (N, C, …) with the input's axes.
        size: input pixels from the field's first to its last, the padding included.
        jump: input pixels between the fields of neighbouring units; None too without neighbours
            in order, as after `nn.Flatten`.
        start: first input pixel of the first unit's field, negative in the padding.
        first: for each axis the first input pixel seen, shape (grid[axis],); shape ``grid`` where
            it differs along other axes too. 0 with a ``last`` of −1 if the unit sees nothing.
        last: for each axis the last input pixel seen, like ``first``.
        unknown: what is not known about, as an operator's name; empty if all is known.
        whole: whether every unit's field goes from the first to the last pixel of each axis.
    """

    name: str
    output_shape: tuple[int, ...]
    grid: tuple[int, ...]
    size: tuple[int | None, ...]
    jump: tuple[int | None, ...]
    start: tuple[int | None, ...]
    first: tuple[Ints, ...] = ()
    last: tuple[Ints, ...] = ()
    unknown: str = ""
    whole: bool = False


@dataclass(frozen=True)
class ReceptiveFields(Mapping[str, LayerField]):
    """The receptive fields of a model's layers, by the modules' qualified names.

    A module that runs several times, such as a ReLU used twice in a block, has the field of its
    last run here, and those of all runs in ``calls``. The model itself has the name ``""``. Where a
    module returns several tensors, they are ``name[0]``, ``name[1]`` …, or ``name['key']``.

    A field holds what is read, also if it is then multiplied by zero: so NaN finds it too.

    Attributes:
        input_shape: (1, C, …) of the image that the fields are for.
        layers: the field of each module's last run, in the order in which they ended first.
        calls: the fields of all runs of each module.
        notes: what has to be said of the run; empty if nothing has.
        kinds: the class names of ``layers``, empty for containers and single tensors.
    """

    input_shape: tuple[int, ...]
    layers: Mapping[str, LayerField]
    calls: Mapping[str, Sequence[LayerField]] = field(repr=False)
    notes: tuple[str, ...] = ()
    kinds: Sequence[str] = field(default=(), repr=False)

    def __getitem__(self, layer: str | int) -> LayerField:
        """The field of a layer, by name, index or kind, such as ``"last conv"``.

        Raises:
            LayerNotFoundError: if there is no such layer, with the closest names.
        """
        return self.layers[self.find(layer)]

    def find(self, layer: str | int) -> str:
        """The name of a layer, given as to ``fields[layer]``."""
        names = list(self.layers)
        return names[find_layer(layer, names, self.kinds)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __contains__(self, layer: object) -> bool:
        return layer in self.layers

    def rectangle(self, layer: str | int, *unit: int) -> tuple[tuple[int, int], ...] | None:
        """Input pixels that one unit sees: (first, last) for each axis, both within the input.

        ``rectangle("0.0", row, col)`` is ((top, bottom), (left, right)), both inclusive.

        Args:
            layer: a module's name, or an index.
            unit: the unit's place on the layer's grid, as many numbers as that has axes.

        Returns:
            None if the unit sees nothing but padding.

        Raises:
            LayerNotFoundError: if there is no such layer.
            ArgumentError: if the field is unknown, or the unit lies outside the grid.
        """
        found = self._known(layer)
        place = shapes.within(
            unit, found.grid, f"unit={unit} is no place on the grid of layer {layer!r}"
        )
        edges: list[tuple[int, int]] = []
        for axis, (first, last) in enumerate(zip(found.first, found.last, strict=True)):
            at = place if first.shape == found.grid else place[axis]
            edges.append((int(first[at]), int(last[at])))
        return None if any(first > last for first, last in edges) else tuple(edges)

    def units_seeing(self, layer: str | int, *pixel: int) -> NDArray[np.bool_]:
        """Which units of a layer see one pixel of the input: the reverse of `rectangle`.

        ``np.argwhere(fields.units_seeing("0.0", row, col))`` lists their places. A unit sees a
        pixel that lies within its rectangle.

        Args:
            layer: a module's name, or an index.
            pixel: the pixel's place on the input, as many numbers as that has axes.

        Returns:
            True where a unit sees the pixel, in the shape of the layer's grid.

        Raises:
            LayerNotFoundError: if there is no such layer.
            ArgumentError: if the field is unknown, or the pixel lies outside the input.
        """
        found = self._known(layer)
        place = shapes.within(
            pixel, self.input_shape[2:], f"pixel={pixel} is no place on the input"
        )
        seeing = np.ones(found.grid, dtype=np.bool_)
        for axis, (first, last) in enumerate(zip(found.first, found.last, strict=True)):
            line = (first <= place[axis]) & (place[axis] <= last)
            if line.shape != found.grid:
                line = line.reshape([-1 if a == axis else 1 for a in range(len(found.grid))])
            seeing &= line
        return seeing

    def _known(self, layer: str | int) -> LayerField:
        """The field of a layer that has one."""
        found = self[layer]
        if not found.unknown:
            return found
        parts = [name for name in self.layers if name.startswith(f"{found.name}[")]
        hint = f"one of its tensors, such as {parts[0]!r}" if parts else "a layer before it"
        raise ArgumentError(
            f"layer={layer!r} has an unknown receptive field, because of {found.unknown}; "
            f"ask for {hint}."
        )


def receptive_field(
    model: nn.Module, input_shape: Given, *, operators: bool = False
) -> ReceptiveFields:
    """Find which input pixels each unit of each layer sees, without running the model.

    The rule for convolutions and pooling is r ← r + (k − 1)·dilation·jump, jump ← jump·stride; it
    is followed for every position through every branch. Batch normalization is that of evaluation.
    What a layer sees after an operator that is not known here is said to be unknown. A model whose
    way depends on values is run on an image of zeros; `ReceptiveFields.notes` says so.

    Args:
        model: any module. Everything about it stays as it is.
        input_shape: (N, C, L), (N, C, H, W) or (N, C, D, H, W), or a tensor of that shape. For
            several inputs a sequence of them, or a mapping by the names of ``forward``'s
            arguments; the fields are those in the first that has axes to see along.
        operators: whether to have the tensors between modules too, as ``module:operator``, such
            as ``"layer1.0:add_"``; several of one name are in `ReceptiveFields.calls`.

    Raises:
        ArgumentError: if ``model`` is no module, or the shape is none or does not fit it.
    """
    inputs = read_inputs(input_shape)
    if all(len(shape) < 3 for shape in inputs.shapes):
        raise ArgumentError(
            f"input_shape={inputs.shapes[0]} has no axes along which a unit could see a part; give "
            "(N, C, L), (N, C, H, W) or (N, C, D, H, W)."
        )
    tracker = FieldTracker(operators=operators)
    traced = trace(model, inputs, [tracker])
    return fields_of(tracker, model, traced.notes)


def fields_of(
    tracker: FieldTracker, model: nn.Module, notes: tuple[str, ...] = ()
) -> ReceptiveFields:
    """The receptive fields that a tracker has found in a model."""
    shape, calls = tracker.input_shape, dict[str, list[LayerField]]()
    for name, output_shape, known in tracker.found:
        calls.setdefault(name, []).append(layer_field(name, shape, output_shape or (), known))
    layers = {name: runs[-1] for name, runs in calls.items()}
    modules = dict(unwrapped(model).named_modules(remove_duplicate=False))
    kinds = [layer_kind(modules[name]) if name in modules else "" for name in layers]
    return ReceptiveFields(shape, layers, calls, notes, kinds)


def layer_field(
    name: str, input_shape: tuple[int, ...], shape: tuple[int, ...], known: Known
) -> LayerField:
    """What a layer's output of a given shape sees, for people."""
    n_axes = len(input_shape) - 2
    if not isinstance(known, tuple):
        grid = shape[2:] if len(shape) == len(input_shape) else shape[1:]
        nothing: tuple[int | None, ...] = (None,) * n_axes
        reason = known.operator if isinstance(known, Unknown) else INDEPENDENT
        return LayerField(name, shape, grid, nothing, nothing, nothing, unknown=reason)
    like_input = _has_grid(known, shape, len(input_shape))
    grid, drop = (shape[2:], (0, 1)) if like_input else (shape[1:], (0,))
    arrays = [_edges(r, drop, grid, a if like_input else None) for a, r in enumerate(known)]
    n_pixels = input_shape[2:]
    return LayerField(
        name,
        shape,
        grid,
        size=tuple(_size(r) for r in known),
        jump=tuple(r.rule.jump if r.rule and r.dim is not None else None for r in known),
        start=tuple(r.rule.start if r.rule else None for r in known),
        first=tuple(first for first, _ in arrays),
        last=tuple(last for _, last in arrays),
        whole=all(
            bool((first == 0).all() and (last == n - 1).all())
            for (first, last), n in zip(arrays, n_pixels, strict=True)
        ),
    )


def _has_grid(known: Field, shape: tuple[int, ...], rank: int) -> bool:
    """Whether the output is (N, C, …) with the input's axes in their places."""
    return len(shape) == rank and all(
        span.dim == axis + 2 or (span.dim is None and (span.mixed or span.first.shape[1] == 1))
        for axis, span in enumerate(known)
    )


def _size(span: Span) -> int | None:
    return span.rule.size if span.rule else None


def _edges(
    span: Span, drop: tuple[int, ...], grid: tuple[int, ...], axis: int | None
) -> tuple[Ints, Ints]:
    """First and last pixel by place, for all channels together: one line if that says it all."""
    if not span.first.ndim:
        return span.first, span.last
    drop = tuple(d for d in drop if d < span.first.ndim)
    first, last = span.first.min(axis=drop), span.last.max(axis=drop)
    first, last = np.where(first > last, 0, first), np.where(first > last, -1, last)
    if axis is None:
        return np.broadcast_to(first, grid), np.broadcast_to(last, grid)
    others = tuple(a for a in range(len(grid)) if a != axis)

    def line(array: Ints) -> Ints | None:
        least = array.min(axis=others)
        if bool((least == array.max(axis=others)).all()):
            return np.broadcast_to(least, (grid[axis],))
        return None

    lines = line(first), line(last)
    if lines[0] is not None and lines[1] is not None:
        return lines[0], lines[1]
    return np.broadcast_to(first, grid), np.broadcast_to(last, grid)
