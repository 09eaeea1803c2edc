"""Records and arrays drawn with matplotlib: axes in, axes out, nothing shown and nothing saved.

The drawing functions know nothing of where the numbers came from; `LayerHistories` and
`TrainingCurves` are what live objects and opened runs share. Importing this loads no matplotlib.
"""

from __future__ import annotations

from convlens.plots.curves import POINTS, plot_loss, plot_sched
from convlens.plots.geometry import show_effective_field, show_matrix
from convlens.plots.grids import show_places, show_rectangle, show_tiles
from convlens.plots.layers import color_dim, plot_layer_stats
from convlens.plots.pictures import show_images
from convlens.plots.subjects import LayerHistories, TrainingCurves, UpdateHistories

__all__ = [
    "POINTS",
    "LayerHistories",
    "TrainingCurves",
    "UpdateHistories",
    "color_dim",
    "plot_layer_stats",
    "plot_loss",
    "plot_sched",
    "show_effective_field",
    "show_images",
    "show_matrix",
    "show_places",
    "show_rectangle",
    "show_tiles",
]
