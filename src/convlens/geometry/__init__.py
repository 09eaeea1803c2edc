"""What is true before training: sizes, costs, receptive fields, classic kernels.

Nothing here runs a model on numbers: it computes on shapes.
"""

from __future__ import annotations

from convlens.geometry import kernels
from convlens.geometry.arithmetic import output_size, positions, same_padding, uncovered
from convlens.geometry.fields import LayerField, ReceptiveFields, receptive_field
from convlens.geometry.table import Row, Summary, summary

__all__ = [
    "LayerField",
    "ReceptiveFields",
    "Row",
    "Summary",
    "kernels",
    "output_size",
    "positions",
    "receptive_field",
    "same_padding",
    "summary",
    "uncovered",
]
