"""Files and arrays → `DataLoaders`: batches of images and labels on the device."""

from __future__ import annotations

from convlens.data.arrays import from_arrays
from convlens.data.embedded import mnist
from convlens.data.files import from_csv, from_files, from_folder
from convlens.data.from_dataset import from_dataset
from convlens.data.image_files import load_image
from convlens.data.loaders import Batches, DataLoaders, TensorLoader
from convlens.data.named import dataset
from convlens.data.pixels import PixelScale

__all__ = [
    "Batches",
    "DataLoaders",
    "PixelScale",
    "TensorLoader",
    "dataset",
    "from_arrays",
    "from_csv",
    "from_dataset",
    "from_files",
    "from_folder",
    "load_image",
    "mnist",
]
