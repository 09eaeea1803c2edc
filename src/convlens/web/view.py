"""`View`: what the address of a page names besides the run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self
from urllib.parse import urlencode

MAX_TEXT = 1_000
"""Characters of a value, such as a layer's name; it stands in every link of the page."""

_WHOLE = re.compile(r"-?[0-9]{1,9}")


@dataclass(frozen=True)
class View:
    """The part of a run that a page or figure shows. Every field is a parameter of its URL.

    Attributes:
        layer: name of the watched layer, empty for the one with the worst finding.
        quantity: what colours the matrix of layers by steps.
        sort: order of the matrix's rows: ``"depth"`` or ``"severity"``.
        kinds: comma-separated module classes that the matrix shows, empty for all.
        block: the block whose layers the matrix shows, empty for all (folded where there are many).
        log: ``"on"`` or ``"off"`` for the loss axis, empty to decide by its values.
        smooth: how much of its weight the smoothed loss keeps from step to step, 0 to 0.999.
        metric: the metric drawn, empty for the first.
        logged: the number drawn that a loop logged besides its loss, empty for the first.
        epoch: the epoch of snapshots, -1 for before training, None for the newest.
        maps: the module whose feature maps are shown, empty for the layer.
        scale: ``"shared"`` colours the feature maps of all channels on one scale.
        probe: which probe image.
        channel: the chosen channel.
        row: row of the chosen unit of the feature map, with ``col``.
        col: its column.
        pixel_row: row of the chosen pixel of the probe image, with ``pixel_col``.
        pixel_col: its column.
        true: the class of the chosen cell of the confusion matrix, with ``predicted``.
        predicted: the class that was predicted.
        order: column by which the list of runs is sorted, with ``-`` before it for descending.
        filter: text that the names, models and statuses of the listed runs contain.
    """

    layer: str = ""
    quantity: str = "near_zero"
    sort: str = ""
    kinds: str = ""
    block: str = ""
    log: str = ""
    smooth: float | None = None
    metric: str = ""
    logged: str = ""
    epoch: int | None = None
    maps: str = ""
    scale: str = ""
    probe: int = 0
    channel: int | None = None
    row: int | None = None
    col: int | None = None
    pixel_row: int | None = None
    pixel_col: int | None = None
    true: int | None = None
    predicted: int | None = None
    order: str = ""
    filter: str = ""

    @classmethod
    def of(cls, arguments: Mapping[str, str]) -> Self:
        """The view that a URL's parameters name; a value that makes no sense is left out."""
        found: dict[str, Any] = {}
        for field in fields(cls):
            given = arguments.get(field.name)
            value = None if given is None else _parsed(given, str(field.type))
            if value is not None:
                found[field.name] = value
        return cls(**found)

    def but(self, **changes: Any) -> Self:  # noqa: ANN401 — fields of View
        """The same view with some fields changed."""
        return replace(self, **changes)

    @property
    def query(self) -> str:
        """The parameters of its URL; those that are as usual are left out."""
        usual = vars(View())
        return urlencode({k: v for k, v in vars(self).items() if v != usual[k] and v is not None})


def _parsed(text: str, kind: str) -> object:
    if kind.startswith("str"):
        return text if len(text) <= MAX_TEXT else None
    if kind.startswith("int"):
        return int(text) if _WHOLE.fullmatch(text) else None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and 0 <= number < 1 else None
