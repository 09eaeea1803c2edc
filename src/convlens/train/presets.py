"""Presets: settings of a whole training that were measured (see docs/log.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from convlens.core.wording import closest
from convlens.data import DataLoaders
from convlens.errors import ArgumentError
from convlens.models.architecture import Architecture, build


@dataclass(frozen=True)
class Preset:
    """The settings of one training; the options of ``convlens train`` of the same names.

        >>> from convlens.train.presets import preset_of
        >>> preset = preset_of("fast", "mnist")
        >>> preset.model, preset.augment
        ('simple_cnn', None)

    Attributes:
        model: one of our own networks, such as "resnet".
        epochs: passes over the training images.
        lr: the highest learning rate.
        batch_size: images of each step.
        model_arguments: arguments of the network, apart from ``n_in`` and ``n_classes``.
        schedule: the schedule's name.
        optimizer: the optimizer's name.
        weight_decay: of weights, not of biases and norms.
        label_smoothing: the share of each label that is spread over all classes.
        augment: an augmentation by name; None for none.
        ema: the decay of the moving average of the weights; None for none.
        precision: "fp32" or "bf16".
        channels_last: whether images and weights are laid out with the channels last.
        tta: "flip" to validate at the end on each image and its mirror image; None for the image.
    """

    model: str
    epochs: int
    lr: float
    batch_size: int
    model_arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    schedule: str = "one-cycle"
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    augment: str | None = None
    ema: float | None = None
    precision: str = "fp32"
    channels_last: bool = False
    tta: str | None = None

    def network(self, dls: DataLoaders) -> nn.Module:
        """The network for this data, with initial weights from torch's random numbers.

        >>> from convlens.train.presets import preset_of
        >>> dls = cl.from_arrays(torch.rand(8, 28, 28), [0, 1] * 4, layout="NHW")
        >>> preset_of("fast", "mnist").network(dls)(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 2])

        Raises:
            ArgumentError: if the data does not say its channels or its classes.
        """
        shape = dls.facts()["input_shape"]
        if shape is None or not dls.classes:
            raise ArgumentError(
                "A preset's network is for classes with names, of images of a known shape; the "
                f"data has {dls.kind}, {len(dls.classes)} names and images of shape {shape}; name "
                "a model instead."
            )
        size = {"n_in": shape[0], "n_classes": len(dls.classes)}
        return build(Architecture(self.model, {**size, **self.model_arguments}))


def preset_of(name: str, data: str) -> Preset:
    """The preset of a name for some data.

        >>> from convlens.train.presets import preset_of
        >>> preset_of("small", "photos/").augment
        'small'

    Args:
        name: "fast" (99 % of MNIST in seconds), "best" (99.6 % in minutes), or "small", for small
            color images such as those of CIFAR-10 (32×32).
        data: the data's name, or the path of a folder.

    Raises:
        ArgumentError: if there is no such preset, or it is for other data.
    """
    known = _presets()
    if name not in known:
        raise ArgumentError(
            f"preset must be one of {', '.join(known)}, got {name!r}.{closest(name, known)}"
        )
    if name != "small" and data not in GREY:
        raise ArgumentError(
            f"preset {name!r} is for {' and '.join(GREY)}, not for {data!r}; small is for 32×32 "
            "color images, also from a folder."
        )
    return known[name]


GREY = ("mnist", "fashion-mnist")


def _presets() -> dict[str, Preset]:
    return {
        "fast": Preset("simple_cnn", epochs=1, lr=0.02, batch_size=128,
            model_arguments={"norm": "batch", "widths": [16, 32, 64, 128]},
            label_smoothing=0.1, precision="bf16", channels_last=True),
        "best": Preset("resnet", epochs=8, lr=0.01, batch_size=256,
            model_arguments={"blocks": [1, 1, 1], "widths": [24, 48, 96], "downsampling": 2},
            weight_decay=0.05, label_smoothing=0.1, augment="digits", ema=0.998,
            precision="bf16", channels_last=True),
        "small": Preset("small_vgg", epochs=9, lr=0.01, batch_size=256, weight_decay=0.05,
            label_smoothing=0.1, augment="small", precision="bf16", channels_last=True,
            tta="flip"),
    }  # fmt: skip
