"""Every part of a page by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from convlens.web.panels import comparison
from convlens.web.panels.about import about
from convlens.web.panels.confusion import confusion
from convlens.web.panels.curves import curves
from convlens.web.panels.header import header
from convlens.web.panels.images import images
from convlens.web.panels.inside import inside
from convlens.web.panels.kernels import kernels
from convlens.web.panels.layer import layer
from convlens.web.panels.maps import maps
from convlens.web.panels.matrix import matrix
from convlens.web.panels.products import products
from convlens.web.panels.summary import summary
from convlens.web.panels.unit import unit
from convlens.web.panels.verdict import verdict

if TYPE_CHECKING:
    from convlens.web.pages import ComparePage, Page

PANELS: Mapping[str, Callable[[Page], Mapping[str, Any]]] = {
    "about": about,
    "confusion": confusion,
    "curves": curves,
    "header": header,
    "images": images,
    "inside": inside,
    "kernels": kernels,
    "layer": layer,
    "maps": maps,
    "matrix": matrix,
    "products": products,
    "summary": summary,
    "unit": unit,
    "verdict": verdict,
}
"""What each part's template is given besides ``page``, ``run`` and ``view``."""

COMPARED_PANELS: Mapping[str, Callable[[ComparePage], Mapping[str, Any]]] = {
    "outcome": comparison.outcome,
    "differences": comparison.differences,
    "losses": comparison.losses,
    "distances": comparison.distances,
}
"""The same for the parts of a comparison."""
