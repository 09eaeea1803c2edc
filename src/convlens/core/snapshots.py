"""What a run keeps beside its numbers: feature maps, kernels, fields, mistakes, calibration.

Each kind is a frozen dataclass of NumPy arrays and plain values, which a run keeps in one table by
kind, layer and epoch. Epoch −1 is before training. Shapes: N probe images, C channels, H, W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from convlens.core.encoding import unpack

Bytes = NDArray[np.uint8]
Reals = NDArray[np.float32]
Ints = NDArray[np.int64]

BEFORE = -1
"""The epoch of what was kept before training."""

ALIKE = 0.5
"""A mean rank correlation of maps with those of random weights above this means that
the maps depend little on the weights."""

BINS = 15
"""Bins of the probability in a `Calibration`."""

N_WORST = 32
"""`Mistakes` hold so many images of the largest loss."""


@dataclass(frozen=True)
class Snapshot:
    """One thing that was kept.

    Attributes:
        epoch: the epoch after which it was taken, from 0; −1 for before training.
        layer: the module's qualified name; empty where it is about the whole network.
    """

    KIND: ClassVar[str] = ""
    AXES: ClassVar[Mapping[str, str]] = {}
    """The axes of its arrays by name: equal letters are equal lengths, "3?" is an optional axis."""

    epoch: int
    layer: str


@dataclass(frozen=True)
class Probes(Snapshot):
    """The probe images: the same few of the validation, followed through the whole training.

    Attributes:
        images: (N, H, W) grey or (N, H, W, 3), as people see them.
        inputs: (N, C, H, W) float32, as the network gets them.
        captions: N texts, the true classes.
    """

    KIND: ClassVar[str] = "probes"
    AXES: ClassVar[Mapping[str, str]] = {"images": "N h w 3?", "inputs": "N C H W"}

    images: Bytes
    inputs: Reals
    captions: tuple[str, ...]


@dataclass(frozen=True)
class FeatureMaps(Snapshot):
    """A layer's output for the probe images. Of a larger grid, h × w cells hold the mean of theirs.

    Cell i of h along an axis of H units covers the units ``i * H // h`` to
    ``-(-(i + 1) * H // h) - 1``.

    Attributes:
        maps: (N, C', h, w), at most 16 channels and 32 × 32 cells; 0 is ``low``, 255 is ``high``.
        low: (C',) value of 0 in each channel.
        high: (C',) value of 255.
        channels: (C',) which of the layer's channels these are.
        n_channels: how many the layer has.
        grid: (H, W) units of its output.
    """

    KIND: ClassVar[str] = "maps"
    AXES: ClassVar[Mapping[str, str]] = {
        "maps": "N C h w",
        **dict.fromkeys(("low", "high", "channels"), "C"),
    }

    maps: Bytes
    low: Reals
    high: Reals
    channels: Ints
    n_channels: int
    grid: tuple[int, int]


@dataclass(frozen=True)
class Kernels(Snapshot):
    """A convolution's weights, the first of them.

    Attributes:
        weight: (C_out', C_in', kH, kW), float32.
        bias: (C_out',), or (0,) if there is none.
        shape: (C_out, C_in / groups, kH, kW) of the whole weight.
        stride: (rows, columns).
        padding: (rows, columns) before the first pixel.
        dilation: (rows, columns).
        groups: groups of the convolution.
        reads_input: whether its input is the network's own, so that a unit's products can be
            worked out from `Probes.inputs`.
        zero_padding: whether the padding is zeros.
    """

    KIND: ClassVar[str] = "kernels"
    AXES: ClassVar[Mapping[str, str]] = {"weight": "O I H W", "bias": "B"}

    weight: Reals
    bias: Reals
    shape: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    reads_input: bool
    zero_padding: bool


@dataclass(frozen=True)
class FieldIntervals(Snapshot):
    """The theoretical receptive field of every unit of a layer, clipped to the image.

    Attributes:
        grid: (H, W) units of the layer's output.
        first_row: (H,) first row of pixels that the units of a row see.
        last_row: (H,) the last one, inclusive; below ``first_row`` if they see padding only.
        first_column: (W,) the same of the columns.
        last_column: (W,).
        size: (rows, columns) of the field before it is clipped; None where that differs.
    """

    KIND: ClassVar[str] = "fields"
    AXES: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("first_row", "last_row"), "H"),
        **dict.fromkeys(("first_column", "last_column"), "W"),
    }

    grid: tuple[int, int]
    first_row: Ints
    last_row: Ints
    first_column: Ints
    last_column: Ints
    size: tuple[int | None, int | None]


@dataclass(frozen=True)
class EffectiveFieldMap(Snapshot):
    """How much each pixel moves a layer's centre unit, averaged over the probe images.

    Attributes:
        share: (h, w) float32, share of the gradient's magnitude on each pixel; sums to 1.
        corner: (row, column) of the image's pixel that ``share[0, 0]`` is.
        center: (row, column) of the middle of that unit's field, which may lie between two pixels.
        unit: (row, column) of the centre unit on the layer's grid.
        radius: by percentage ("50", "90", "99"), half the side of the square around the field's
            centre that holds so much, in pixels.
    """

    KIND: ClassVar[str] = "effective"
    AXES: ClassVar[Mapping[str, str]] = {"share": "H W"}

    share: Reals
    corner: tuple[int, int]
    center: tuple[float, float]
    unit: tuple[int, int]
    radius: Mapping[str, float]


@dataclass(frozen=True)
class Confusion(Snapshot):
    """How often each class was taken for which, over the whole validation of an epoch.

    Attributes:
        counts: (K, K), rows the true class, columns the predicted one.
        classes: K names.
    """

    KIND: ClassVar[str] = "confusion"
    AXES: ClassVar[Mapping[str, str]] = {"counts": "K K"}

    counts: Ints
    classes: tuple[str, ...]

    @property
    def recall(self) -> NDArray[np.float64]:
        """(K,) share of each class's images that were recognized; see `recall_of`."""
        return recall_of(self.counts)


def recall_of(counts: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """(K,) the diagonal's share of each row of a confusion matrix; NaN for a class without images.

    Args:
        counts: (K, K), rows the true class, columns the predicted one.
    """
    n = counts.sum(axis=1)
    right = counts.diagonal().astype(np.float64)
    return np.divide(right, n, out=np.full(len(n), np.nan), where=n > 0)


def precision_of(counts: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """(K,) the diagonal's share of each column; NaN for a class that was never predicted.

    Args:
        counts: (K, K), rows the true class, columns the predicted one.
    """
    return recall_of(counts.T)


def frequent_mistakes(
    counts: NDArray[np.integer[Any]], most: int = 10
) -> list[tuple[int, int, int]]:
    """(true, predicted, how often) of the mistakes, the most frequent first.

    Args:
        counts: (K, K), rows the true class, columns the predicted one.
        most: pairs of classes to name at most.
    """
    off = counts.copy()
    np.fill_diagonal(off, 0)
    flat: list[int] = np.argpartition(-off, min(most, off.size - 1), axis=None).tolist()
    found = [(*divmod(i, len(off)), int(off.flat[i])) for i in flat[:most]]
    return sorted((one for one in found if one[2] > 0), key=lambda one: (-one[2], *one))


@dataclass(frozen=True)
class Calibration(Snapshot):
    """How well the probabilities of an epoch's validation agree with what was right.

    Bin i of B holds the images whose predicted class has a probability in (i / B, (i + 1) / B].

    Attributes:
        counts: (B,) images in each bin.
        confidence: (B,) sum of the predicted classes' probabilities.
        correct: (B,) images that were classified correctly.
        nll: mean negative log-likelihood of the true class (natural logarithm).
        temperature: the number T by which the model's outputs have to be divided so that the
            negative log-likelihood is lowest (Guo et al. 2017, arXiv:1706.04599), within 1 %; one
            of the ends of the range from 1/8 to 16 where it lies outside.
        nll_scaled: the negative log-likelihood with that temperature.
    """

    KIND: ClassVar[str] = "calibration"
    AXES: ClassVar[Mapping[str, str]] = dict.fromkeys(("counts", "confidence", "correct"), "B")

    counts: Ints
    confidence: Reals
    correct: Ints
    nll: float
    temperature: float
    nll_scaled: float

    @property
    def ece(self) -> float:
        """Expected calibration error: mean of |confidence − accuracy| over all images, by bin."""
        total = int(self.counts.sum())
        gap = np.abs(self.confidence.astype(np.float64) - self.correct).sum()
        return float(gap / total) if total else float("nan")

    @property
    def rates(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(B,) mean confidence and (B,) accuracy of each bin; NaN in empty ones."""
        n = self.counts.astype(np.float64)
        empty = np.full(len(n), np.nan)
        confidence, accuracy = (
            np.divide(total, n, out=empty.copy(), where=n > 0)
            for total in (self.confidence.astype(np.float64), self.correct.astype(np.float64))
        )
        return confidence, accuracy


@dataclass(frozen=True)
class ClassActivationMaps(Snapshot):
    """Grad-CAM: which places of some images speak for the class that the network predicts.

    ``layer`` is empty, since the layer may change from epoch to epoch; `explained` names it.

    Attributes:
        maps: (M, h, w) of validation images, at most 32 × 32 cells; 255 is each map's highest
            value, 0 nothing.
        item: (M,) their positions in the validation.
        correlation: (M,) rank correlation of each map with that of random weights; NaN where one
            of the two is constant.
        probe_maps: (P, h, w) of the probe images.
        probe_correlation: (P,).
        explained: the module whose output was weighted.
    """

    KIND: ClassVar[str] = "cams"
    AXES: ClassVar[Mapping[str, str]] = {
        "maps": "M h w",
        "probe_maps": "P h w",
        **dict.fromkeys(("item", "correlation"), "M"),
        "probe_correlation": "P",
    }

    maps: Bytes
    item: Ints
    correlation: Reals
    probe_maps: Bytes
    probe_correlation: Reals
    explained: str


@dataclass(frozen=True)
class Mistakes(Snapshot):
    """Validation images that the network was most wrong about, the greatest loss first.

    Those of the largest loss of all, and of each confusion of two classes its worst.

    Attributes:
        images: (M, H, W) or (M, H, W, 3).
        true: (M,) the true class.
        predicted: (M,) the predicted class; the true one where the loss is large all the same.
        probability: (M,) float32, what the predicted class was given.
        loss: (M,) float32, cross-entropy.
        item: (M,) position in the validation.
        classes: K names.
        files: M names of the images' files; empty where they are not known.
    """

    KIND: ClassVar[str] = "mistakes"
    AXES: ClassVar[Mapping[str, str]] = {
        "images": "M H W 3?",
        **dict.fromkeys(("true", "predicted", "probability", "loss", "item"), "M"),
    }

    images: Bytes
    true: Ints
    predicted: Ints
    probability: Reals
    loss: Reals
    item: Ints
    classes: tuple[str, ...]
    files: tuple[str, ...] = ()


S = TypeVar("S", bound=Snapshot)


def facts_of(snapshot: Snapshot) -> str:
    """A snapshot's plain values as JSON; its epoch and layer are kept beside them.

    Raises:
        TypeError, ValueError: if a value is not plain JSON.
    """
    values = {f.name: getattr(snapshot, f.name) for f in fields(snapshot)}
    arrays = arrays_of(snapshot)
    return json.dumps(
        {n: v for n, v in values.items() if n not in arrays and n not in ("epoch", "layer")}
    )


def arrays_of(snapshot: Snapshot) -> dict[str, NDArray[Any]]:
    """A snapshot's arrays by name."""
    values = {f.name: getattr(snapshot, f.name) for f in fields(snapshot)}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def decode(kind: type[S], epoch: int, layer: str, facts: str, payload: bytes) -> S:
    """The snapshot of plain values as `facts_of` writes them, and packed arrays.

    Raises:
        RunError: if the arrays are damaged.
        TypeError, ValueError: if the facts are, or if a value has another type than its field.
    """
    found = json.loads(facts)
    if not isinstance(found, dict):
        raise ValueError(f"the facts of {kind.KIND!r} are no object")
    plain: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in found.items()
    }
    snapshot = kind(epoch=epoch, layer=layer, **plain, **unpack(payload))
    for f in fields(kind):
        value = getattr(snapshot, f.name)
        if not _FITS[str(f.type)](value):
            found = value.dtype if isinstance(value, np.ndarray) else repr(value)[:80]
            raise ValueError(f"{f.name} of {kind.KIND!r} is {found}, expected {f.type}")
    _check_axes(snapshot)
    return snapshot


def _check_axes(snapshot: Snapshot) -> None:
    """Raise a ValueError unless its arrays have the shapes that they should have."""
    lengths = {"3?": 3}
    for name, axes in snapshot.AXES.items():
        shape = getattr(snapshot, name).shape
        letters = axes.split()
        letters = letters[: len(shape)] if letters[-1] == "3?" else letters
        fits = len(shape) == len(letters) >= axes.count(" ")
        if not fits or any(
            n != lengths.setdefault(x, n) for x, n in zip(letters, shape, strict=True)
        ):
            raise ValueError(f"{name} of {snapshot.KIND!r} has shape {shape}, expected {axes}")


def _is_array(value: object, dtype: type) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == dtype


def _all(values: object, types: tuple[type, ...], length: int | None = None) -> bool:
    if not isinstance(values, tuple) or length not in (None, len(values)):
        return False
    return all(type(value) in types for value in values)


_FITS: Mapping[str, Callable[[Any], bool]] = {
    "int": lambda value: type(value) is int,
    "float": lambda value: type(value) in (float, int),
    "str": lambda value: type(value) is str,
    "bool": lambda value: type(value) is bool,
    "Bytes": lambda value: _is_array(value, np.uint8),
    "Reals": lambda value: _is_array(value, np.float32),
    "Ints": lambda value: _is_array(value, np.int64),
    "tuple[str, ...]": lambda value: _all(value, (str,)),
    "tuple[int, ...]": lambda value: _all(value, (int,)),
    "tuple[int, int]": lambda value: _all(value, (int,), 2),
    "tuple[float, float]": lambda value: _all(value, (float, int), 2),
    "tuple[int | None, int | None]": lambda value: _all(value, (int, type(None)), 2),
    "Mapping[str, float]": lambda value: (
        isinstance(value, dict) and _all(tuple(value.values()), (float, int))
    ),
}
"""Whether a value fits a field, by the type that is written there."""
