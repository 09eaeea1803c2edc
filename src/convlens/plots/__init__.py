"""Records and arrays drawn with matplotlib: axes in, axes out, nothing shown and nothing saved.

The drawing functions do not know where the numbers came from; `LayerPlots`, `CurvePlots` and
`ValidationPlots` give the same plot methods to live objects and opened runs. Importing this loads
no matplotlib.
"""

from __future__ import annotations

from convlens.plots.convolutions import (
    show_effective_field,
    show_matrix,
    show_places,
    show_rectangle,
)
from convlens.plots.curves import plot_loss, plot_sched
from convlens.plots.grids import show_images, show_mosaics, show_overlays, show_tiles
from convlens.plots.interpretation import Interpretation
from convlens.plots.lr_finding import plot_lr_finding
from convlens.plots.many_layers import color_dim_all, plot_layer_stats_all
from convlens.plots.one_layer import color_dim, plot_layer_stats
from convlens.plots.plot_methods import CurvePlots, LayerPlots, ValidationPlots
from convlens.plots.validation import plot_confusion, plot_reliability, plot_top_losses

__all__ = [
    "CurvePlots",
    "Interpretation",
    "LayerPlots",
    "ValidationPlots",
    "color_dim",
    "color_dim_all",
    "plot_confusion",
    "plot_layer_stats",
    "plot_layer_stats_all",
    "plot_loss",
    "plot_lr_finding",
    "plot_reliability",
    "plot_sched",
    "plot_top_losses",
    "show_effective_field",
    "show_images",
    "show_matrix",
    "show_mosaics",
    "show_overlays",
    "show_places",
    "show_rectangle",
    "show_tiles",
]
