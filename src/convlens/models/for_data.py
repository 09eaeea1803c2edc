"""`model`: a network by name for some data, with pretrained weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from convlens.core.wording import type_name
from convlens.errors import ArgumentError, warn
from convlens.execution import Observer, read_inputs, same_random, trace
from convlens.models.built_from import architecture_of
from convlens.models.by_name import FILE, FORMS, LIBRARIES, model_of_file, resolve
from convlens.models.libraries import Published, image_size, library_network, published
from convlens.models.normalization import (
    Expected,
    convert,
    expected,
    inner_network,
    output_scaled,
)
from convlens.models.pretrained import (
    download_weights,
    head_size,
    load_weights,
    own_names,
    read_weights,
)
from convlens.models.resnets import resnet
from convlens.models.simple import simple_cnn, widths_for
from convlens.models.small_vgg import small_vgg

Weights = str | os.PathLike[str] | bool | None
MeanAndDeviation = tuple[Sequence[float], Sequence[float]]


class Scale(Protocol):
    """How pixels were normalized: ``(raw − mean) / std``; see `PixelScale`."""

    @property
    def mean(self) -> Tensor: ...  # noqa: D102
    @property
    def std(self) -> Tensor: ...  # noqa: D102
    @property
    def black(self) -> float: ...  # noqa: D102
    @property
    def white(self) -> float: ...  # noqa: D102
    @property
    def is_known(self) -> bool: ...  # noqa: D102


class Data(Protocol):
    """What a network has to know of `DataLoaders`."""

    @property
    def train(self) -> Iterable[Any]: ...  # noqa: D102
    @property
    def classes(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def scale(self) -> Scale | None: ...  # noqa: D102
    def facts(self) -> Mapping[str, Any]: ...  # noqa: D102


def model(
    spec: str | nn.Module,
    dls: Data,
    pretrained: Weights = None,
    *,
    normalization: MeanAndDeviation | Literal["data"] | None = None,
) -> nn.Module:
    """A network for this data: its channels in, and as many outputs as it has classes.

        >>> dls = cl.from_arrays(torch.rand(8, 32, 32), [0, 1] * 4, layout="NHW")
        >>> cl.model("resnet", dls)(torch.zeros(1, 1, 32, 32)).shape
        torch.Size([1, 2])

    With ``pretrained``, all layers but the head, the last one, get weights. The head stays new
    unless it has as many outputs as that of the weights. For grey images the weights of the first
    convolution are summed over their three channels. Weights expect images with the mean and
    deviation that they were trained on; if the data is normalized otherwise, the network is
    returned behind a layer ``normalization`` that converts, exact in float32.

    For numbers, a network by name is returned before a layer ``output_scale``, which
    multiplies by the deviation of the numbers to train on and adds their mean, where the loaders
    know them, as those of `from_csv` do.

    Args:
        spec: "simple_cnn", "resnet", "small_vgg", "torchvision:NAME", "timm:NAME" or the
            bare name of a network of these libraries, "file.py:object" (which runs the file), or a
            module, which is returned as it is.
        dls: `DataLoaders`.
        pretrained: True for the weights that the library publishes, from its cache or the internet;
            or a .safetensors or .pth file of weights. Nothing in a file is run.
        normalization: what the weights expect: None for that of the library's own weights, where
            the file's head is theirs; "data" for that of the data; or (mean, deviation) per
            channel, of pixels from 0 to 1.

    Raises:
        ArgumentError: if there is no such network or file, or it does not fit the data.
        CheckpointError: if the weights cannot be had, or are those of another network.
    """
    shape, n_outputs = _image_shape(dls), _n_outputs(dls)
    library, name, network = _network(spec, dls, shape, n_outputs)
    _check_output(network, shape, n_outputs, spec, _hint(library, name, network, shape))
    if normalization is not None and pretrained in (None, False):
        raise ArgumentError(
            "normalization says what pretrained weights expect; give pretrained too."
        )
    if pretrained in (None, False):
        return network
    known = published(library, name, inner_network(network)) if library in LIBRARIES else None
    wanted = _load(library, name, network, pretrained, known)
    if normalization is not None:
        wanted = None if normalization == "data" else _given(normalization)
    return network if wanted is None else _converted(network, dls, wanted, shape[0])


def _network(
    spec: str | nn.Module, dls: Data, shape: tuple[int, int, int], n_outputs: int
) -> tuple[str, str, nn.Module]:
    """Where it comes from, its name there, and the network."""
    if isinstance(spec, nn.Module):
        known = architecture_of(spec)
        return "", type(spec).__name__ if known is None else known.name, spec
    if not isinstance(spec, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(f"spec must be a module or one of {FORMS}; got {type_name(spec)}.")
    library, name = resolve(spec)
    if library == FILE:
        return "", spec, model_of_file(spec)
    network = _named(library, name, shape, n_outputs)
    return library, name, in_units_of(dls, network)


def in_units_of(dls: Data, network: nn.Module) -> nn.Module:
    """The network with outputs in the units of the data's numbers, where it knows them."""
    targets = getattr(dls.train, "labels", None)
    if dls.kind != "numbers" or not isinstance(targets, Tensor) or targets.ndim != 1:
        return network
    return output_scaled(network, targets)


def _named(library: str, name: str, shape: tuple[int, int, int], n_outputs: int) -> nn.Module:
    """A network of a library, or one of ours in the size that fits the images."""
    n_in, height, width = shape
    if library:
        return library_network(library, name, n_in, n_outputs)
    if name == "simple_cnn":
        return simple_cnn(n_in, n_outputs, norm="batch", widths=widths_for(height, width))
    if name == "small_vgg":
        return small_vgg(n_in, n_outputs)
    side = min(height, width)
    downsampling = 4 if side >= 128 else 2 if side >= 64 else 1
    return resnet(n_in, n_outputs, downsampling=downsampling)


# ---- what the data needs -------------------------------------------------------------------------


def _image_shape(dls: Data) -> tuple[int, int, int]:
    """(C, H, W) of the images: known, or that of a first batch."""
    if not callable(getattr(dls, "facts", None)) or not hasattr(dls, "train"):
        raise ArgumentError(f"dls must be DataLoaders, such as cl.mnist(), got {type_name(dls)}.")
    shape = dls.facts()["input_shape"]
    if shape is None:
        with same_random():
            batch = next(iter(dls.train), None)
        x: Any = batch[0] if isinstance(batch, tuple | list) and batch else None
        if not isinstance(x, Tensor) or x.ndim != 4:
            raise ArgumentError(
                "dls.train must give batches (x, y) with images x (N, C, H, W), its first is of "
                f"type {type_name(batch)}."
            )
        shape = x.shape[1:]
    return shape[0], shape[1], shape[2]


def _n_outputs(dls: Data) -> int:
    if dls.kind == "numbers":
        return 1
    if not dls.classes:
        raise ArgumentError(
            "dls.classes is empty, so the number of outputs is not known; name them: "
            "cl.DataLoaders(train, valid, classes=[…])."
        )
    return len(dls.classes)


class _OutputShape(Observer):
    """Keeps the shape of what the model returns."""

    found: object = None

    def leave(self, name: str, module: nn.Module, output: object) -> None:  # noqa: ARG002
        """A module has run."""
        if name == "":
            self.found = tuple(output.shape) if isinstance(output, Tensor) else type_name(output)


def _check_output(
    network: nn.Module, shape: tuple[int, int, int], n_outputs: int, spec: object, hint: str
) -> None:
    """Raise ArgumentError if the network cannot take the images, or its output does not fit."""
    name = repr(spec) if isinstance(spec, str) else type_name(network)
    images, seen = "×".join(map(str, shape)), _OutputShape()
    try:
        trace(network, read_inputs((1, *shape)), [seen])
    except ArgumentError as error:
        raise ArgumentError(
            f"model={name} cannot take the data's images of {images}{hint}: {error}"
        ) from error
    found = seen.found
    good = isinstance(found, tuple) and found[:1] == (1,) and prod(found) == n_outputs
    if not good or (n_outputs > 1 and found != (1, n_outputs)):
        raise ArgumentError(
            f"model={name} must return (N, {n_outputs}) for the data's images of {images}, got "
            f"{found} for one image{hint}."
        )


def _hint(library: str, name: str, network: nn.Module, shape: tuple[int, int, int]) -> str:
    if library not in LIBRARIES:
        return ""
    _, height, width = image_size(library, name, inner_network(network))
    return "" if (height, width) == shape[1:] else f" (it is made for {height}×{width} pixels)"


# ---- pretrained weights --------------------------------------------------------------------------


def _load(
    library: str, name: str, network: nn.Module, pretrained: Weights, known: Published | None
) -> Expected | None:
    """Load the weights; returns what they expect, None for the data's normalization."""
    inner = inner_network(network)
    if pretrained is True:
        if library not in LIBRARIES:
            raise ArgumentError(
                f"pretrained=True: there are no published weights of {name}; give the path of a "
                ".safetensors or .pth file."
            )
        load_weights(inner, download_weights(library, name), "True")
        return known.expected if known else None
    if not isinstance(pretrained, str | os.PathLike):
        raise ArgumentError(f"pretrained must be True, a path or None, got {pretrained!r}.")
    state, had_normalization = own_names(inner, read_weights(Path(pretrained)))
    load_weights(inner, state, repr(os.fspath(pretrained)))
    if known is None:
        return None
    if had_normalization or head_size(inner, state) in (None, known.n_classes):
        return known.expected
    warn(
        f"pretrained={os.fspath(pretrained)!r} has a head of its own, so it is not known which "
        "normalization its weights expect; that of the data is taken. Give normalization='data' "
        "or normalization=(mean, deviation)."
    )
    return None


def _given(normalization: object) -> Expected:
    try:
        mean, std = normalization  # pyright: ignore[reportGeneralTypeIssues]
        found = expected(mean, std)
        if not found.mean or len(found.mean) != len(found.std) or min(found.std) <= 0:
            raise ValueError
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            "normalization must be 'data' or (mean, deviation) with a number for each channel, "
            f"deviations above 0, got {normalization!r}."
        ) from error
    return found


def _converted(network: nn.Module, dls: Data, wanted: Expected, n_in: int) -> nn.Module:
    """The network for the data's images, which may be normalized otherwise than it expects."""
    own = wanted.for_channels(n_in)
    scale = dls.scale
    if own is None or scale is None or not scale.is_known:
        why = "is for other channels" if own is None else "may be another than the data's"
        warn(
            f"The normalization that the pretrained weights expect {why}; the loader must give "
            f"{wanted}."
        )
        return network
    unit = scale.white - scale.black
    given = expected(
        ((scale.mean.double().cpu() - scale.black) / unit).tolist(),
        (scale.std.double().cpu() / unit).tolist(),
    )
    return convert(network, given, own)
