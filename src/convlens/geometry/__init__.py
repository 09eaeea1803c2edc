"""What is true before training: sizes, costs, receptive fields, kernels, convolution as a matrix.

Summaries and receptive fields are computed on shapes. Feature maps and the effective receptive
field need images.

>>> cl.geometry.output_size(28, kernel_size=3, stride=2, padding=1)
14
"""

from __future__ import annotations

from convlens.geometry import kernels
from convlens.geometry.arithmetic import (
    AxisArithmetic,
    Calculation,
    explain,
    grid_positions,
    output_size,
    positions,
    same_padding,
    uncovered,
)
from convlens.geometry.effective import EffectiveField, effective_receptive_field
from convlens.geometry.fields import LayerField, ReceptiveFields, receptive_field
from convlens.geometry.matrix import ConvMatrix, conv_matrix
from convlens.geometry.pictures import (
    show_features,
    show_field,
    show_kernels,
    show_planes,
    show_positions,
)
from convlens.geometry.summary_rows import Row
from convlens.geometry.summary_table import Summary, summary
from convlens.geometry.training_memory import LayerMemory, Memory

__all__ = [
    "AxisArithmetic",
    "Calculation",
    "ConvMatrix",
    "EffectiveField",
    "LayerField",
    "LayerMemory",
    "Memory",
    "ReceptiveFields",
    "Row",
    "Summary",
    "conv_matrix",
    "effective_receptive_field",
    "explain",
    "grid_positions",
    "kernels",
    "output_size",
    "positions",
    "receptive_field",
    "same_padding",
    "show_features",
    "show_field",
    "show_kernels",
    "show_planes",
    "show_positions",
    "summary",
    "uncovered",
]
