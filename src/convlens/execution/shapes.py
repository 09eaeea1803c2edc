"""Checks of arguments, and error sentences for shapes that do not fit a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from convlens.errors import ArgumentError

LETTERS = {2: "N, F", 3: "N, C, L", 4: "N, C, H, W", 5: "N, C, D, H, W"}
"""Names of the axes, by number of axes."""

Convolution = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def check_input(value: object, name: str = "input_shape") -> tuple[int, ...]:
    """The shape of an input, given as a shape or as a tensor.

    Raises:
        ArgumentError: for anything but two to five whole numbers of at least 1.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | Tensor | torch.Size):
        raise ArgumentError(
            f"{name} must be a tensor or a tuple such as (N, C, H, W) = (1, 3, 224, 224), got "
            f"{brief(value)}."
        )
    shape: tuple[Any, ...] = tuple(value.shape) if isinstance(value, Tensor) else tuple(value)
    if len(shape) not in LETTERS:
        raise ArgumentError(
            f"{name}={shape} has {len(shape)} axes; give 2 to 5, batch and channels first, "
            "such as (N, C, H, W) = (1, 3, 224, 224)."
        )
    for letter, size in zip(LETTERS[len(shape)].split(", "), shape, strict=True):
        if isinstance(size, bool) or not isinstance(size, Integral) or int(size) < 1:
            raise ArgumentError(
                f"{name}={shape} has {letter} = {size!r}; every size must be a whole number "
                "of at least 1."
            )
    return tuple(int(size) for size in shape)


def check_model(model: object) -> None:
    """Raise ArgumentError for anything but a module."""
    if not isinstance(model, nn.Module):
        hint = ""
        if isinstance(model, type) and issubclass(model, nn.Module):
            hint = f"; call the class first: {model.__name__}(…)"
        raise ArgumentError(f"model must be a torch.nn.Module, got {brief(model)}{hint}.")


def check_tensor(name: str, value: object) -> None:
    """Raise ArgumentError for anything but a tensor."""
    if not isinstance(value, Tensor):
        hint = "; convert it with torch.from_numpy" if hasattr(value, "__array__") else ""
        raise ArgumentError(f"{name} must be a torch.Tensor, got {brief(value)}{hint}.")


def check_count(name: str, value: object, least: int) -> None:
    """Raise ArgumentError for anything but a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"{name} must be a whole number of at least {least}, got {value!r}.")


def within(name: str, place: object, sizes: Sequence[int], grid: str) -> tuple[int, ...]:
    """The indices of a place on a grid.

    Args:
        name: the argument's name.
        place: its value.
        sizes: of the grid.
        grid: what the grid is called in the error, such as ``"input"``.

    Raises:
        ArgumentError: if the place lies outside the grid.
    """
    at: tuple[Any, ...] = tuple(place) if isinstance(place, Iterable) else (place,)
    if len(at) != len(sizes) or not all(
        isinstance(i, Integral) and 0 <= int(i) < n for i, n in zip(at, sizes, strict=True)
    ):
        raise ArgumentError(f"{name} must be inside the {times(sizes)} {grid}, got {place!r}.")
    return tuple(int(i) for i in at)


def brief(value: object) -> str:
    """A value for an error sentence; its kind and shape if it is long."""
    shown = repr(value)
    if len(shown) <= 60:
        return shown
    shape = getattr(value, "shape", None)
    kind = type(value).__name__
    return f"<{kind} of shape {tuple(shape)}>" if isinstance(shape, tuple) else f"<{kind}>"


def times(shape: Iterable[object]) -> str:
    """Sizes such as 8×14×14."""
    return "×".join(map(str, shape))


def named(shape: Sequence[int]) -> str:
    """A shape with its letters: (N, C, H, W) = (1, 8, 14, 14)."""
    letters = LETTERS.get(len(shape))
    return f"({letters}) = {tuple(shape)}" if letters else f"{tuple(shape)}"


def refuse_unbatched(name: str, module: nn.Module, shape: Sequence[int]) -> None:
    """Refuse (C, H, W) in place of (N, C, H, W), which torch takes as one image."""
    if not isinstance(module, Convolution) or len(shape) != len(module.kernel_size) + 1:
        return
    raise ArgumentError(
        f"input_shape leaves layer {name!r} ({type(module).__name__}) with {tuple(shape)}, which "
        f"has no batch axis; give ({LETTERS[len(shape) + 1]}), for one image (1, …)."
    )


def layer(name: str, module: nn.Module) -> str:
    """A module in a sentence: layer '0.1' (Conv2d), or the Net for the model itself."""
    kind = type(module).__name__
    return f"layer {name!r} ({kind})" if name else f"the {kind}"


def misfit(name: str, module: nn.Module, shapes: Sequence[Sequence[int]], error: Exception) -> str:
    """The sentence for a module that raised on its inputs."""
    got = " and ".join(_spelled(module, shape) for shape in shapes) or "no tensor"
    where = layer(name, module)
    expected = _expected(module, shapes[0]) if len(shapes) == 1 else None
    if expected is None:
        words = " ".join(str(error).split()) or type(error).__name__
        hint = ""
        if isinstance(error, TypeError) and "positional argument" in words:
            hint = "; give several inputs as a sequence, or by name as a mapping"
        return f"input_shape does not fit the model: {where} got {got} and raised: {words}{hint}"
    return f"input_shape does not fit the model: {where} got {got}, but {expected}."


def _spelled(module: nn.Module, shape: Sequence[int]) -> str:
    if isinstance(module, nn.Linear):
        letters = ", ".join(["N", *("…" for _ in shape[2:]), "F"])
        return f"({letters}) = {tuple(shape)}"
    return named(shape)


def _expected(module: nn.Module, shape: Sequence[int]) -> str | None:
    """What the module's weight expects; None if the input fits it."""
    if isinstance(module, Convolution):
        rank = len(module.kernel_size) + 2
        if len(shape) == rank and shape[1] == module.in_channels:
            return None
        ends = [("C_out", module.out_channels), ("C_in", module.in_channels)]
        (outer, n_outer), (inner, n_inner) = ends[::-1] if module.transposed else ends
        weight = (n_outer, n_inner // module.groups, *module.kernel_size)
        kernel = ", ".join(f"k{letter}" for letter in LETTERS[rank].split(", ")[2:])
        groups = f" and groups = {module.groups}" if module.groups > 1 else ""
        return (
            f"its weight ({outer}, {inner} / groups, {kernel}) = {weight}{groups} expects "
            f"({LETTERS[rank]}) with C = {module.in_channels}"
        )
    if isinstance(module, nn.Linear) and shape[-1] != module.in_features:
        weight = (module.out_features, module.in_features)
        return f"its weight (F_out, F_in) = {weight} expects F = {module.in_features}"
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        wrong = len(shape) < 2 or shape[1] != module.num_features
        expected = f"its weight has one number for each of C = {module.num_features} channels"
        return expected if wrong else None
    return None
