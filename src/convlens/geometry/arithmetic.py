"""Arithmetic of kernels on a grid, for one axis: sizes, padding, positions, pixels left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from convlens.errors import ArgumentError

Padding = int | tuple[int, int]
"""Pixels added on both sides, or before and after."""


def output_size(
    size: int, kernel_size: int, stride: int = 1, padding: Padding = 0, dilation: int = 1
) -> int:
    """Positions that a kernel takes along an axis of ``size`` pixels.

    floor((size + before + after − dilation·(kernel_size − 1) − 1) / stride) + 1, as in
    `torch.nn.Conv2d`.

    Args:
        size: pixels of the input.
        kernel_size: pixels of the kernel.
        stride: pixels that the kernel moves at a time.
        padding: pixels added on both sides, or (before, after).
        dilation: distance between the kernel's pixels.

    Raises:
        ArgumentError: for sizes below 1, negative padding, or a kernel that does not fit.
    """
    before, after = _check(size, kernel_size, stride, padding, dilation)
    room = size + before + after - (dilation * (kernel_size - 1) + 1)
    if room < 0:
        raise ArgumentError(
            f"kernel_size={kernel_size} with dilation={dilation} spans "
            f"{dilation * (kernel_size - 1) + 1} pixels, but size={size} with padding={padding} "
            f"has {size + before + after}; give a smaller kernel or more padding."
        )
    return room // stride + 1


def same_padding(
    size: int, kernel_size: int, stride: int = 1, dilation: int = 1
) -> tuple[int, int]:
    """Padding (before, after) that gives ceil(size / stride) positions; the odd pixel goes after.

    The least padding that does so, as TensorFlow's "SAME" has it; with stride 1 it is that of
    ``padding="same"`` in torch.

    Raises:
        ArgumentError: for sizes below 1.
    """
    _check(size, kernel_size, stride, 0, dilation)
    count = -(-size // stride)
    total = max(0, (count - 1) * stride + dilation * (kernel_size - 1) + 1 - size)
    return total // 2, total - total // 2


def positions(
    size: int, kernel_size: int, stride: int = 1, padding: Padding = 0, dilation: int = 1
) -> list[tuple[int, ...]]:
    """Pixels that the kernel reads at each of its positions; below 0 or from ``size`` on: padding.

    Raises:
        ArgumentError: as `output_size`.
    """
    count = output_size(size, kernel_size, stride, padding, dilation)
    before = padding if isinstance(padding, int) else padding[0]
    return [
        tuple(place * stride - before + k * dilation for k in range(kernel_size))
        for place in range(count)
    ]


def uncovered(
    size: int, kernel_size: int, stride: int = 1, padding: Padding = 0, dilation: int = 1
) -> list[int]:
    """Pixels of the input that no position of the kernel reads, because sizes are rounded down.

    Raises:
        ArgumentError: as `output_size`.
    """
    read = {
        pixel
        for pixels in positions(size, kernel_size, stride, padding, dilation)
        for pixel in pixels
    }
    return [pixel for pixel in range(size) if pixel not in read]


def grid_positions(
    sizes: Sequence[int],
    kernel_size: int,
    stride: int = 1,
    padding: Padding = 0,
    dilation: int = 1,
) -> Iterator[tuple[tuple[int, ...], ...]]:
    """The places that a square kernel takes on a grid, row by row: the chapter's nested loops.

    Each is, for every axis, the pixels that the kernel reads: ``((0, 1, 2), (4, 5, 6))`` for rows
    and columns. The first pixel of each is where the kernel's corner lies.

    Args:
        sizes: pixels along each axis, (H, W) for an image.
        kernel_size: as in `output_size`, like the rest, the same along each axis.
        stride: pixels that the kernel moves at a time.
        padding: pixels added on both sides, or (before, after).
        dilation: distance between the kernel's pixels.

    Raises:
        ArgumentError: as `output_size`.
    """
    if not isinstance(sizes, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(f"sizes={sizes!r} must be one number for each axis, such as (28, 28).")
    return product(*(positions(n, kernel_size, stride, padding, dilation) for n in sizes))


@dataclass(frozen=True)
class Worked:
    """A result with the way to it.

    Attributes:
        name: what it is.
        value: the result.
        formula: the formula, in words of the arguments.
        numbers: the same with the numbers put in.
        text: the result as people read it.
    """

    name: str
    value: object
    formula: str
    numbers: str
    text: str

    def __str__(self) -> str:
        return f"{self.name} = {self.formula}\n  = {self.numbers}\n  = {self.text}"


@dataclass(frozen=True)
class AxisArithmetic:
    """How a kernel lies along one axis, each result with its formula; print it."""

    output_size: Worked
    same_padding: Worked
    positions: Worked
    uncovered: Worked

    def __str__(self) -> str:
        parts = (self.output_size, self.same_padding, self.positions, self.uncovered)
        return "\n".join(map(str, parts))


def explain(
    size: int, kernel_size: int, stride: int = 1, padding: Padding = 0, dilation: int = 1
) -> AxisArithmetic:
    """Output size, "same" padding, positions and uncovered pixels, with formulas and numbers.

    Args:
        size: pixels of the input.
        kernel_size: pixels of the kernel.
        stride: pixels that the kernel moves at a time.
        padding: pixels added on both sides, or (before, after).
        dilation: distance between the kernel's pixels.

    Raises:
        ArgumentError: as `output_size`.
    """
    arguments = (size, kernel_size, stride, padding, dilation)
    count = output_size(*arguments)
    before, after = _check(*arguments)
    read, missed = positions(*arguments), uncovered(*arguments)
    same = same_padding(size, kernel_size, stride, dilation)
    wanted = -(-size // stride)
    reach = f"place·{stride} − {before} + k·{dilation}"
    places = f"place = 0 … {count - 1}, k = 0 … {kernel_size - 1}"
    return AxisArithmetic(
        Worked(
            "output size",
            count,
            "floor((size + before + after − dilation·(kernel_size − 1) − 1) / stride) + 1",
            f"floor(({size} + {before} + {after} − {dilation}·({kernel_size} − 1) − 1) / {stride})"
            " + 1",
            str(count),
        ),
        Worked(
            "same padding",
            same,
            "max(0, (ceil(size / stride) − 1)·stride + dilation·(kernel_size − 1) + 1 − size), "
            "halved, an odd pixel after",
            f"max(0, ({wanted} − 1)·{stride} + {dilation}·({kernel_size} − 1) + 1 − {size}), "
            "halved",
            f"{same[0]} before, {same[1]} after",
        ),
        Worked(
            "positions",
            read,
            "place·stride − before + k·dilation, for each place and each k of the kernel",
            f"{reach}, {places}",
            _few([f"{min(p)} … {max(p)}" for p in read]),
        ),
        Worked(
            "uncovered",
            missed,
            "pixels from 0 to size − 1 that no position reads",
            f"pixels from 0 to {size - 1} that no {reach} reaches, {places}",
            _few([str(pixel) for pixel in missed]) or "none",
        ),
    )


def _few(texts: Sequence[str], most: int = 8) -> str:
    """All of a list, or its beginning and end."""
    if len(texts) <= most:
        return "; ".join(texts)
    return "; ".join([*texts[: most // 2], "…", *texts[-most // 4 :]])


def _check(
    size: int, kernel_size: int, stride: int, padding: Padding, dilation: int
) -> tuple[int, int]:
    sizes = {"size": size, "kernel_size": kernel_size, "stride": stride, "dilation": dilation}
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ArgumentError(f"{name}={value!r} must be a whole number of at least 1.")
    both = padding if isinstance(padding, Sequence) else (padding, padding)
    if len(both) != 2 or any(not isinstance(p, int) or p < 0 for p in both):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(
            f"padding={padding!r} must be a whole number from 0, or two of them: before and after."
        )
    return both[0], both[1]
