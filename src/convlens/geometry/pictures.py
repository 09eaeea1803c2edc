"""Pictures of kernels, feature maps and receptive fields, from models and images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convlens.core.layers import find_layer
from convlens.errors import ArgumentError, LayerNotFoundError
from convlens.execution import copy_of, keep_outputs, layer_kind, preserved, shapes, unwrapped
from convlens.geometry import arithmetic
from convlens.geometry.fields import ReceptiveFields, receptive_field
from convlens.geometry.kernels import CHANNEL_NAMES
from convlens.plots import show_mosaics, show_places, show_rectangle, show_tiles
from convlens.plots.grids import MOST_LAYERS, panel_axes, say_left_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def show_planes(image: Tensor, figure: Figure | None = None) -> list[Axes]:
    """Draw an image and each of its planes.

    >>> len(cl.show_planes(torch.rand(3, 8, 8)))
    4

    Args:
        image: (1, H, W) grey or (3, H, W) colour, from 0 to 1, as `load_image` gives it.
        figure: where to draw; a new one if None.

    Raises:
        ArgumentError: for any other image.
    """
    picture = _picture(image)
    planes = image.detach().float().cpu().numpy()
    if len(planes) == 1:
        return show_tiles(planes, ["grey"], signed=False, numbers=False, figure=figure)
    grey = np.stack([picture, *(np.repeat(p[..., None], 3, 2) for p in planes)])
    captions = ["all three", *CHANNEL_NAMES[3]]
    return show_tiles(grey, captions, columns=4, figure=figure)


def show_kernels(
    model: nn.Module | Tensor,
    layer: str | int = 0,
    *,
    most: int = 64,
    columns: int | None = None,
    figure: Figure | None = None,
) -> list[Axes]:
    """Draw the kernels of a convolution.

    With three channels a kernel is a colour patch, where 0 is mid-grey; otherwise each channel has
    a tile, red above 0 and blue below. All tiles share one scale.

    >>> len(cl.show_kernels(torch.nn.Conv2d(3, 8, 5)))
    8

    Args:
        model: any module with a two-dimensional convolution, or a weight (C_out, C_in, kH, kW).
        layer: a convolution's name, or an index among them.
        most: tiles to draw at most, the first.
        columns: tiles in a row; None for a grid about twice as wide as high.
        figure: where to draw; a new one if None.

    Raises:
        LayerNotFoundError: if no convolution has this name or index.
        ArgumentError: if there is no two-dimensional convolution, the weight has other axes, or
            ``most`` is below 1.
    """
    shapes.check_count("most", most, 1)
    weight = model.detach() if isinstance(model, Tensor) else _weight(model, layer)
    if weight.dim() == 2:
        weight = weight[None, None]
    if weight.dim() != 4:
        raise ArgumentError(
            "model must be a module, or the weight (C_out, C_in / groups, kH, kW) of a "
            f"two-dimensional convolution, got shape {tuple(weight.shape)}."
        )
    values = weight.float().cpu().numpy()
    n_out, n_in = values.shape[:2]
    if n_in == 3:
        largest = float(np.abs(values).max()) or 1.0
        tiles = values[:most].transpose(0, 2, 3, 1) / (2 * largest) + 0.5
    else:
        tiles = values.reshape(n_out * n_in, *values.shape[2:])[:most]
    single = n_in in {1, 3}
    names = [f"{i}" if single else f"{i // n_in}, {i % n_in}" for i in range(len(tiles))]
    return show_tiles(tiles, names, columns=columns, figure=figure)


def show_features(
    model: nn.Module,
    image: Tensor,
    layer: str | int | None = None,
    *,
    most: int = 32,
    columns: int | None = None,
    figure: Figure | None = None,
) -> list[Axes]:
    """Draw a layer's feature maps for an image: what it finds, and where.

    Red is above 0, blue below. The model runs in evaluation, and stays as it was.

    >>> len(cl.show_features(cl.simple_cnn(1, 10), torch.rand(1, 28, 28), "1.0"))
    16

    Args:
        model: any module that takes one tensor (N, C, H, W).
        image: (C, H, W), or (1, C, H, W), as the model gets it (normalized, that is).
        layer: a module's name, or an index among the modules that run; None draws a panel, with its
            own scale, for each module without children that gives feature maps.
        most: maps to draw at most, the first of each layer.
        columns: maps in a row, or panels; None for a grid about twice as wide as high.
        figure: where to draw; a new one if None.

    Returns:
        The maps' axes, or the layers' in the order in which they run.

    Raises:
        LayerNotFoundError: if no module that runs has this name or index, or none gives maps.
        ArgumentError: if the layer's output is not (N, C, H, W), the image is not one, or ``most``
            is below 1.
    """
    shapes.check_count("most", most, 1)
    outputs = _outputs(model, _batch_of_one(image))
    if layer is None:
        leaves = _leaves(model)
        panels = {
            f"{name}, {shapes.times(maps.shape[1:])}": maps[0, :most].float().cpu().numpy()
            for name, maps in outputs.items()
            if name in leaves and maps.dim() == 4
        }
        if not panels:
            raise LayerNotFoundError("model has no layer that gives feature maps (N, C, H, W).")
        return show_mosaics(panels, columns=columns, figure=figure)
    modules = dict(unwrapped(model).named_modules(remove_duplicate=False))
    kinds = [layer_kind(modules[name]) if name in modules else "" for name in outputs]
    name = list(outputs)[find_layer(layer, list(outputs), kinds)]
    maps = outputs[name]
    if maps.dim() != 4:
        raise ArgumentError(
            f"layer={name!r} must give feature maps (N, C, H, W), but gives "
            f"{shapes.named(maps.shape)}; take a layer before it."
        )
    values = maps[0, :most].float().cpu().numpy()
    return show_tiles(
        values,
        [str(i) for i in range(len(values))],
        columns=columns,
        numbers=False,
        title=f"layer {name}, {shapes.times(maps.shape[1:])}",
        figure=figure,
    )


@overload
def show_field(
    model: nn.Module,
    image: Tensor,
    layer: str | int,
    unit: Sequence[int] | None = None,
    ax: Axes | None = None,
) -> Axes: ...


@overload
def show_field(
    model: nn.Module,
    image: Tensor,
    layer: None = None,
    unit: None = None,
    ax: None = None,
    *,
    figure: Figure | None = None,
) -> list[Axes]: ...


def show_field(
    model: nn.Module,
    image: Tensor,
    layer: str | int | None = None,
    unit: Sequence[int] | None = None,
    ax: Axes | None = None,
    *,
    figure: Figure | None = None,
) -> Axes | list[Axes]:
    """Draw the part of an image that a unit sees.

    >>> axes = cl.show_field(cl.simple_cnn(1, 10), torch.rand(1, 28, 28), "1.0", unit=(2, 3))
    >>> print(axes.get_title())
    1.0, unit 2, 3 of 7×7
    sees rows 4–12, columns 8–16: 9×9

    Args:
        model: any module that takes one tensor (N, C, H, W).
        image: (1, H, W) or (3, H, W), from 0 to 1, of the input's size; grey or colour, whatever
            the model takes.
        layer: a module's name, or an index among the modules that run; None draws a panel for each
            layer where the field or the grid changes.
        unit: (row, column) on the layer's grid; None for the middle one.
        ax: where to draw one layer; a new figure if None.
        figure: where to draw all layers; a new one if None.

    Returns:
        The axes of one layer, or a list with those of each, in the order in which they run.

    Raises:
        LayerNotFoundError: if there is no such layer, with the closest names.
        ArgumentError: if the image does not fit, the field is unknown, the unit lies outside, or
            ``unit`` or ``ax`` is given without a layer.
    """
    picture = _picture(image)
    shapes.check_model(model)
    first = next(iter(_convolutions(model).values()), None)
    n_in = len(image) if first is None else first.in_channels
    fields = receptive_field(model, (1, n_in, *image.shape[1:]))
    if layer is not None:
        return _draw_field(picture, fields, layer, unit, ax)
    if unit is not None or ax is not None:
        raise ArgumentError(
            "unit and ax are for one layer; name it, or give figure= for a panel of each."
        )
    chosen = _growing(model, fields)
    if not chosen:
        raise LayerNotFoundError("model has no layer with a receptive field in two dimensions.")
    shown = chosen[:MOST_LAYERS]
    grid = panel_axes(len(shown), image.shape[1] / image.shape[2], figure)
    say_left_out(grid, len(chosen))
    for panel, name in zip(grid, shown, strict=True):
        _draw_field(picture, fields, name, None, panel)
        seen = panel.get_title().rpartition(": ")[2]  # its size, or that it sees padding only
        panel.set_title(f"{name}\n{seen}", fontsize=8, parse_math=False)
        panel.set_axis_off()
    return grid


def _draw_field(
    picture: NDArray[np.floating],
    fields: ReceptiveFields,
    layer: str | int,
    unit: Sequence[int] | None,
    ax: Axes | None,
) -> Axes:
    field = fields[layer]
    if unit is None:
        unit = tuple(n // 2 for n in field.grid)
    place = tuple(unit) if isinstance(unit, Sequence) else (unit,)  # pyright: ignore[reportUnnecessaryIsInstance]
    rectangle = fields.rectangle(layer, *place)
    if rectangle is None:
        seen = "sees padding only"
    else:
        (top, bottom), (left, right) = rectangle
        size = shapes.times((bottom - top + 1, right - left + 1))
        seen = f"sees rows {top}–{bottom}, columns {left}–{right}: {size}"
        whole = [n for n in field.size if n is not None]
        if len(whole) == 2 and tuple(whole) != (bottom - top + 1, right - left + 1):
            seen += f" of {shapes.times(whole)}"
    box = None if rectangle is None else (rectangle[0], rectangle[1])
    where = f"unit {', '.join(map(str, place))} of {shapes.times(field.grid)}"
    return show_rectangle(picture, box, f"{field.name or 'the model'}, {where}\n{seen}", ax)


def _growing(model: nn.Module, fields: ReceptiveFields) -> list[str]:
    """The layers whose units see something else than those of the layer before."""
    leaves = _leaves(model)
    chosen: list[str] = []
    before: object = None
    for name, field in fields.items():
        if name not in leaves or len(field.grid) != 2 or field.unknown:
            continue
        if (now := (field.size, field.grid)) != before:
            chosen.append(name)
        before = now
    return chosen


def _leaves(model: nn.Module) -> set[str]:
    """The names of the modules without children."""
    named = unwrapped(model).named_modules()
    return {name for name, module in named if not any(module.children())}


def show_positions(
    sizes: tuple[int, int],
    kernel_size: int,
    stride: int = 1,
    padding: arithmetic.Padding = 0,
    dilation: int = 1,
    ax: Axes | None = None,
) -> Axes:
    """Draw the places of a square kernel on a padded grid; hatched pixels are never read.

    >>> axes = cl.geometry.show_positions((7, 7), kernel_size=3, stride=2, padding=1)

    Args:
        sizes: (H, W), pixels of the image.
        kernel_size: pixels of the kernel along each axis.
        stride: pixels that it moves at a time.
        padding: pixels added on each side, or (before, after).
        dilation: distance between its pixels.
        ax: where to draw; a new figure if None.

    Raises:
        ArgumentError: as `output_size`.
    """
    rows, columns = (arithmetic.positions(n, kernel_size, stride, padding, dilation) for n in sizes)
    return show_places(sizes, rows, columns, ax)


def _picture(image: Tensor) -> NDArray[np.floating]:
    """(H, W) or (H, W, 3)."""
    shapes.check_tensor("image", image)
    if image.dim() != 3 or len(image) not in {1, 3}:
        raise ArgumentError(
            f"image has shape {tuple(image.shape)}; expected (1, H, W) grey or (3, H, W) colour."
        )
    values = image.detach().float().cpu().numpy()
    return values[0] if len(values) == 1 else values.transpose(1, 2, 0)


def _batch_of_one(image: Tensor) -> Tensor:
    shapes.check_tensor("image", image)
    batch = image[None] if image.dim() == 3 else image
    if batch.dim() != 4 or len(batch) != 1:
        raise ArgumentError(
            f"image has shape {tuple(image.shape)}; expected one image (C, H, W) as the model gets "
            "it."
        )
    return batch


def _convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    named = unwrapped(model).named_modules()
    return {name: module for name, module in named if isinstance(module, nn.Conv2d)}


def _weight(model: nn.Module, layer: str | int) -> Tensor:
    shapes.check_model(model)
    found = _convolutions(model)
    if not found:
        raise ArgumentError(
            f"model={type(model).__name__} has no two-dimensional convolution, so no kernels to "
            "show."
        )
    kinds = [type(module).__name__ for module in found.values()]
    chosen = found[list(found)[find_layer(layer, list(found), kinds)]]
    with preserved(chosen, copy_of), torch.no_grad():  # a weight may be computed when it is read
        return chosen.weight.detach()


def _outputs(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Every tensor that a module gives, in the order in which the modules end."""
    shapes.check_model(model)
    model = unwrapped(model)
    outputs: dict[str, Tensor] = {}
    try:
        with preserved(model, copy_of), torch.no_grad():
            keep_outputs(model, outputs)
            model(batch)
    except RuntimeError as error:
        raise ArgumentError(
            f"image {shapes.named(batch.shape)} does not fit the model: {error}"
        ) from error
    if not outputs:
        raise LayerNotFoundError("model has no module that gives a tensor.")
    return outputs
