"""Networks and their blocks."""

from __future__ import annotations

from convlens.models.blocks import conv
from convlens.models.simple import simple_cnn

__all__ = ["conv", "simple_cnn"]
