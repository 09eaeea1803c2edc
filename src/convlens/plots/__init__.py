"""Records and arrays drawn with matplotlib: axes in, axes out, nothing shown and nothing saved.

The drawing functions know nothing of where the numbers came from; `LayerHistories`,
`TrainingCurves` and `Interpretation` are what live objects and opened runs share. Importing this
loads no matplotlib.
"""

from __future__ import annotations

from convlens.plots.curves import POINTS, plot_loss, plot_sched
from convlens.plots.geometry import show_effective_field, show_matrix
from convlens.plots.grids import show_mosaics, show_places, show_rectangle, show_tiles
from convlens.plots.layers import color_dim, plot_layer_stats
from convlens.plots.multiples import color_dim_all, plot_layer_stats_all
from convlens.plots.pictures import show_images
from convlens.plots.subjects import (
    Interpretation,
    LayerHistories,
    TrainingCurves,
    UpdateHistories,
)
from convlens.plots.validation import plot_confusion, plot_top_losses

__all__ = [
    "POINTS",
    "Interpretation",
    "LayerHistories",
    "TrainingCurves",
    "UpdateHistories",
    "color_dim",
    "color_dim_all",
    "plot_confusion",
    "plot_layer_stats",
    "plot_layer_stats_all",
    "plot_loss",
    "plot_sched",
    "plot_top_losses",
    "show_effective_field",
    "show_images",
    "show_matrix",
    "show_mosaics",
    "show_places",
    "show_rectangle",
    "show_tiles",
]
