"""Networks and their blocks."""

from __future__ import annotations

from convlens.models.blocks import conv
from convlens.models.for_data import model
from convlens.models.normalization import output_scaled
from convlens.models.resnets import resnet
from convlens.models.simple import simple_cnn
from convlens.models.small_vgg import small_vgg

__all__ = ["conv", "model", "output_scaled", "resnet", "simple_cnn", "small_vgg"]
