"""Output sizes, padding and positions of a kernel along one axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, product

from convlens.errors import ArgumentError
from convlens.execution.shapes import check_count

Padding = int | tuple[int, int]
"""Pixels added on both sides, or before and after."""


def output_size(
    size: int, kernel_size: int, stride: int = 1, padding: Padding = 0, dilation: int = 1
) -> int:
    """Number of positions of a kernel along an axis of ``size`` pixels.

    floor((size + before + after − dilation·(kernel_size − 1) − 1) / stride) + 1, as in
    `torch.nn.Conv2d`.

    >>> cl.geometry.output_size(28, kernel_size=3, stride=2, padding=1)
    14

    Args:
        size: pixels of the input.
        kernel_size: pixels of the kernel.
        stride: pixels that the kernel moves at a time.
        padding: pixels added on both sides, or (before, after).
        dilation: distance between the kernel's pixels.

    Raises:
        ArgumentError: for a size below 1, negative padding, or a kernel that does not fit.
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

    The least such padding, as TensorFlow's "SAME"; with stride 1 torch's ``padding="same"``.

    >>> cl.geometry.same_padding(28, kernel_size=5), cl.geometry.same_padding(28, kernel_size=4)
    ((2, 2), (1, 2))

    Raises:
        ArgumentError: for a size below 1.
    """
    _check(size, kernel_size, stride, 0, dilation)
    count = -(-size // stride)
    total = max(0, (count - 1) * stride + dilation * (kernel_size - 1) + 1 - size)
    return total // 2, total - total // 2


def positions(
    size: int, kernel_size: int, stride: int = 1, padding: Padding = 0, dilation: int = 1
) -> list[tuple[int, ...]]:
    """Pixels that the kernel reads at each position; below 0 or from ``size`` on is padding.

    Arguments and errors as in `output_size`.

    >>> cl.geometry.positions(6, kernel_size=3, stride=2)
    [(0, 1, 2), (2, 3, 4)]
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
    """Pixels of the input that the kernel reads at no position.

    Arguments and errors as in `output_size`.

    >>> cl.geometry.uncovered(8, kernel_size=3, stride=2)
    [7]
    """
    read = set(chain(*positions(size, kernel_size, stride, padding, dilation)))
    return [pixel for pixel in range(size) if pixel not in read]


def grid_positions(
    sizes: Sequence[int],
    kernel_size: int,
    stride: int = 1,
    padding: Padding = 0,
    dilation: int = 1,
) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Positions of a square kernel on a grid, row by row.

    Each is, for every axis, the pixels that the kernel reads.

    >>> next(cl.geometry.grid_positions((28, 28), kernel_size=3))
    ((0, 1, 2), (0, 1, 2))

    Args:
        sizes: pixels along each axis, (H, W) for an image.
        kernel_size: pixels of the kernel along each axis.
        stride: pixels that the kernel moves at a time.
        padding: pixels added on both sides, or (before, after).
        dilation: distance between the kernel's pixels.

    Raises:
        ArgumentError: as `output_size`.
    """
    if not isinstance(sizes, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(f"sizes={sizes!r} must be one number for each axis, such as (28, 28).")
    return product(*(positions(n, kernel_size, stride, padding, dilation) for n in sizes))


@dataclass(frozen=True, repr=False)
class Calculation:
    """A result and how it was calculated.

    Attributes:
        name: what was calculated.
        value: the result.
        formula: the formula, with the arguments' names.
        numbers: the formula with numbers.
        text: the result as text.
    """

    name: str
    value: object
    formula: str
    numbers: str
    text: str

    def __str__(self) -> str:
        return f"{self.name} = {self.formula}\n  = {self.numbers}\n  = {self.text}"

    __repr__ = __str__


@dataclass(frozen=True, repr=False)
class AxisArithmetic:
    """How a kernel lies along one axis; print it, or one of its results."""

    output_size: Calculation
    same_padding: Calculation
    positions: Calculation
    uncovered: Calculation

    def __str__(self) -> str:
        return "\n".join(map(str, vars(self).values()))

    __repr__ = __str__


def explain(
    size: int, kernel_size: int, stride: int = 1, padding: Padding = 0, dilation: int = 1
) -> AxisArithmetic:
    """Output size, "same" padding, positions and uncovered pixels, with formulas and numbers.

    Arguments and errors as in `output_size`.

    >>> print(cl.geometry.explain(28, kernel_size=5, stride=2, padding=2).output_size)
    output size = floor((size + before + after − dilation·(kernel_size − 1) − 1) / stride) + 1
      = floor((28 + 2 + 2 − 1·(5 − 1) − 1) / 2) + 1
      = 14
    """
    arguments = (size, kernel_size, stride, padding, dilation)
    count = output_size(*arguments)
    before, after = _check(*arguments)
    read, missed = positions(*arguments), uncovered(*arguments)
    same = same_padding(size, kernel_size, stride, dilation)
    wanted = -(-size // stride)
    pixel = f"place·{stride} − {before} + k·{dilation}"
    places = f"place = 0 … {count - 1}, k = 0 … {kernel_size - 1}"
    return AxisArithmetic(
        Calculation(
            "output size",
            count,
            "floor((size + before + after − dilation·(kernel_size − 1) − 1) / stride) + 1",
            f"floor(({size} + {before} + {after} − {dilation}·({kernel_size} − 1) − 1) / {stride})"
            " + 1",
            str(count),
        ),
        Calculation(
            "same padding",
            same,
            "max(0, (ceil(size / stride) − 1)·stride + dilation·(kernel_size − 1) + 1 − size), "
            "halved, an odd pixel after",
            f"max(0, ({wanted} − 1)·{stride} + {dilation}·({kernel_size} − 1) + 1 − {size}), "
            "halved",
            f"{same[0]} before, {same[1]} after",
        ),
        Calculation(
            "positions",
            read,
            "place·stride − before + k·dilation, for each place and each k of the kernel",
            f"{pixel}, {places}",
            _shortened([f"{min(p)} … {max(p)}" for p in read]),
        ),
        Calculation(
            "uncovered",
            missed,
            "pixels from 0 to size − 1 that no position reads",
            f"pixels from 0 to {size - 1} that are no {pixel}, {places}",
            _shortened([str(pixel) for pixel in missed]) or "none",
        ),
    )


def _shortened(texts: Sequence[str], most: int = 8) -> str:
    """A list, or its beginning and end."""
    if len(texts) <= most:
        return "; ".join(texts)
    return "; ".join([*texts[: most // 2], "…", *texts[-most // 4 :]])


def _check(
    size: int, kernel_size: int, stride: int, padding: Padding, dilation: int
) -> tuple[int, int]:
    sizes = {"size": size, "kernel_size": kernel_size, "stride": stride, "dilation": dilation}
    for name, value in sizes.items():
        check_count(name, value, 1)
    both = padding if isinstance(padding, Sequence) else (padding, padding)
    if len(both) != 2 or any(not isinstance(p, int) or p < 0 for p in both):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(
            f"padding={padding!r} must be a whole number from 0, or two of them: before and after."
        )
    return both[0], both[1]
