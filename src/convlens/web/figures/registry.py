"""Every figure by its name in addresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from bokeh.models import UIElement

from convlens.web.figures.comparison import distances, layer_of_both, losses
from convlens.web.figures.curves import curves
from convlens.web.figures.layer import layer
from convlens.web.figures.matrix import matrix

if TYPE_CHECKING:
    from convlens.web.pages import ComparePage, Page

FIGURES: Mapping[str, Callable[[Page], UIElement]] = {
    "curves": curves,
    "matrix": matrix,
    "layer": layer,
}
"""Every figure of one run, by its name in addresses."""

COMPARED: Mapping[str, Callable[[ComparePage], UIElement]] = {
    "losses": losses,
    "distances": distances,
    "layer-of-both": layer_of_both,
}
"""Every figure of several runs."""
