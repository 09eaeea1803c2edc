"""Receptive fields: which input pixels take part in each unit of each layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from convlens.core.layers import find_layer
from convlens.errors import ArgumentError
from convlens.execution import Given, layer_kind, read_inputs, shapes, trace, unwrapped
from convlens.geometry.spans import Field, Ints, Known, Span, Unknown
from convlens.geometry.tracker import FieldTracker

INDEPENDENT = "no dependence on the input"
"""`LayerField.unknown` of an output that no pixel takes part in."""


@dataclass(frozen=True, repr=False)
class LayerField:
    """The receptive fields of one layer's units, by spatial axis of the input (H, W for images).

    `size`, `jump` and `start` are those on an input without edges; None along an axis where units
    or channels differ. `first` and `last` are exact: without padding and without pixels that are
    never read.

    >>> fields = cl.receptive_field(torch.nn.Conv2d(1, 8, 3, stride=2, padding=1), (1, 1, 28, 28))
    >>> fields[""]
    LayerField('', output 1×8×14×14, size 3×3, jump 2×2)

    Attributes:
        name: the module's qualified name.
        output_shape: shape of the layer's output for one image; empty for several tensors.
        grid: the output's axes along which units have a place: (H, W) after a convolution, all but
            the batch axis for an output that is not (N, C, …) with the input's axes.
        size: input pixels from the field's first to its last, the padding included.
        jump: input pixels between the fields of neighbouring units; also None without neighbours,
            as after `nn.Flatten`.
        start: first input pixel of the first unit's field, negative in the padding.
        first: for each axis the first input pixel seen, shape (grid[axis],); shape ``grid`` if it
            differs along other axes too. 0 with a ``last`` of −1 if the unit sees nothing.
        last: for each axis the last input pixel seen, like ``first``.
        unknown: why the field is unknown, such as an operator's name; empty if it is known.
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

    def __repr__(self) -> str:
        parts = [repr(self.name), f"output {shapes.times(self.output_shape)}"]
        if self.unknown:
            parts.append(f"unknown: {self.unknown}")
        else:
            parts += [f"size {shapes.times(self.size)}", f"jump {shapes.times(self.jump)}"]
        return f"LayerField({', '.join(parts)})"


@dataclass(frozen=True, repr=False)
class ReceptiveFields(Mapping[str, LayerField]):
    """The receptive fields of a model's layers, by the modules' qualified names.

    A module that runs several times has the field of its last run here, and those of all runs in
    ``calls``. The model itself has the name ``""``. Several output tensors of a module are
    ``name[0]``, ``name[1]`` …, or ``name['key']``. A field includes pixels that are read and then
    multiplied by zero.

    >>> fields = cl.receptive_field(cl.simple_cnn(1, 10), (1, 1, 28, 28))
    >>> fields
    ReceptiveFields(16 layers, input (N, C, H, W) = (1, 1, 28, 28))
    >>> fields["1.0"].size, fields.rectangle("1.0", 2, 3)
    ((9, 9), ((4, 12), (8, 16)))

    Attributes:
        input_shape: (1, C, …) of the image.
        layers: the field of each module's last run, in the order in which they ended first.
        calls: the fields of all runs of each module.
        notes: remarks on the forward pass; usually empty.
        kinds: the class names of ``layers``, empty for containers and single tensors.
    """

    input_shape: tuple[int, ...]
    layers: Mapping[str, LayerField]
    calls: Mapping[str, Sequence[LayerField]]
    notes: tuple[str, ...] = ()
    kinds: Sequence[str] = ()

    def __repr__(self) -> str:
        given = shapes.named(self.input_shape)
        return f"ReceptiveFields({len(self.layers)} layers, input {given})"

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
        """Input pixels that one unit sees: (first, last) for each axis, both inclusive.

        Args:
            layer: a module's name, or an index.
            unit: the unit's place on the layer's grid, one number for each axis.

        Returns:
            ((top, bottom), (left, right)) for an image; None if the unit sees only padding.

        Raises:
            LayerNotFoundError: if there is no such layer.
            ArgumentError: if the field is unknown, or the unit lies outside the grid.
        """
        found = self._known(layer)
        place = shapes.within("unit", unit, found.grid, f"grid of layer {layer!r}")
        edges: list[tuple[int, int]] = []
        for axis, (first, last) in enumerate(zip(found.first, found.last, strict=True)):
            at = place if first.shape == found.grid else place[axis]
            edges.append((int(first[at]), int(last[at])))
        return None if any(first > last for first, last in edges) else tuple(edges)

    def units_seeing(self, layer: str | int, *pixel: int) -> NDArray[np.bool_]:
        """Which units of a layer see one pixel of the input: the reverse of `rectangle`.

        Args:
            layer: a module's name, or an index.
            pixel: the pixel's place on the input, one number for each axis.

        Returns:
            True where a unit's rectangle holds the pixel, in the shape of the layer's grid;
            ``np.argwhere`` lists the places.

        Raises:
            LayerNotFoundError: if there is no such layer.
            ArgumentError: if the field is unknown, or the pixel lies outside the input.
        """
        found = self._known(layer)
        place = shapes.within("pixel", pixel, self.input_shape[2:], "input")
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

    For convolutions and pooling, r ← r + (k − 1)·dilation·jump and jump ← jump·stride; every
    position is followed through every branch, in evaluation mode. After an operator that is not
    followed the field is unknown. A model that decides by values is run on an image of zeros;
    `ReceptiveFields.notes` says so.

    >>> fields = cl.receptive_field(cl.simple_cnn(1, 10), (1, 1, 28, 28))
    >>> fields["1.0"].size, fields["1.0"].jump
    ((9, 9), (4, 4))

    Args:
        model: any module; it stays as it is.
        input_shape: (N, C, L), (N, C, H, W) or (N, C, D, H, W), or a tensor. For several inputs a
            sequence of them, or a mapping by the names of ``forward``'s arguments; the fields are
            those in the first with spatial axes.
        operators: whether to include the tensors between modules, as ``module:operator``, such
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
    """The receptive fields of a model's modules, from a tracker."""
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
    """The field of a layer with an output of some shape."""
    if not isinstance(known, tuple):
        grid = shape[2:] if len(shape) == len(input_shape) else shape[1:]
        nothing: tuple[int | None, ...] = (None,) * (len(input_shape) - 2)
        reason = known.operator if isinstance(known, Unknown) else INDEPENDENT
        return LayerField(name, shape, grid, nothing, nothing, nothing, unknown=reason)
    like_input = _has_grid(known, shape, len(input_shape))
    grid, drop = (shape[2:], (0, 1)) if like_input else (shape[1:], (0,))
    arrays = [_edges(r, drop, grid, a if like_input else None) for a, r in enumerate(known)]
    return LayerField(
        name,
        shape,
        grid,
        size=tuple(span.rule.size if span.rule else None for span in known),
        jump=tuple(s.rule.jump if s.rule and s.dim is not None else None for s in known),
        start=tuple(span.rule.start if span.rule else None for span in known),
        first=tuple(first for first, _ in arrays),
        last=tuple(last for _, last in arrays),
        whole=all(
            bool((first == 0).all() and (last == n - 1).all())
            for (first, last), n in zip(arrays, input_shape[2:], strict=True)
        ),
    )


def _has_grid(known: Field, shape: tuple[int, ...], rank: int) -> bool:
    """Whether the output is (N, C, …) with the input's axes in their places."""
    return len(shape) == rank and all(
        span.dim == axis + 2 or (span.dim is None and (span.mixed or span.first.shape[1] == 1))
        for axis, span in enumerate(known)
    )


def _edges(
    span: Span, drop: tuple[int, ...], grid: tuple[int, ...], axis: int | None
) -> tuple[Ints, Ints]:
    """First and last pixel by place, for all channels together: one line if that says it all."""
    if not span.first.ndim:
        return span.first, span.last
    drop = tuple(d for d in drop if d < span.first.ndim)
    first, last = span.first.min(axis=drop), span.last.max(axis=drop)
    first, last = np.where(first > last, 0, first), np.where(first > last, -1, last)
    if axis is not None:
        others = tuple(a for a in range(len(grid)) if a != axis)
        if all(bool((x.min(axis=others) == x.max(axis=others)).all()) for x in (first, last)):
            first, last = first.min(axis=others), last.min(axis=others)
            grid = (grid[axis],)
    return np.broadcast_to(first, grid), np.broadcast_to(last, grid)
