"""Finds the model that a command names: one of ours, torchvision's, timm's, or a file's."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Callable
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from convlens.errors import ArgumentError
from convlens.models.blocks import Norm
from convlens.models.libraries import (
    LIBRARIES,
    check_name,
    image_size,
    installed,
    make_torchvision,
    names,
)
from convlens.models.resnets import resnet
from convlens.models.simple import simple_cnn
from convlens.models.small_vgg import small_vgg

if TYPE_CHECKING:
    from torch import nn

OURS = ("simple_cnn", "resnet", "small_vgg")
FILE = "file"
FORMS = "simple_cnn, resnet, small_vgg, torchvision:NAME, timm:NAME or file.py:object"


def find_model(
    spec: str, n_in: int | None = None, n_classes: int | None = None, norm: Norm | None = "batch"
) -> tuple[nn.Module, tuple[int, int, int] | None]:
    """The model that ``spec`` names, and the input (C, H, W) that it is made for, None if unknown.

    Models of torchvision and timm come without weights: their parameters are uninitialized. Nothing
    is downloaded. A bare name that is none of ours is looked up in both.

    Args:
        spec: one of ours, ``torchvision:NAME``, ``timm:NAME``, or ``file.py:object``, where the
            object is a module, or a callable without arguments that makes one.
        n_in: input channels of one of ours; 1 if None.
        n_classes: outputs, except of a file's model; None for 10 of ours, the default of others.
        norm: normalization of one of ours.

    Raises:
        ArgumentError: if there is no such model, its library is not installed, or the file does
            not make one.
    """
    for argument, given in (("channels", n_in), ("classes", n_classes)):
        if given is not None and given < 1:
            raise ArgumentError(f"{argument} must be at least 1, got {given}.")
    home, name = resolve(spec)
    if home == FILE:
        return model_of_file(name), None
    if home in LIBRARIES:
        return _from_library(home, name, n_classes)
    channels = n_in or 1
    if name == "resnet":
        return resnet(channels, n_classes or 10), (channels, 224, 224)
    if name == "small_vgg":
        return small_vgg(channels, n_classes or 10), (channels, 32, 32)
    return simple_cnn(channels, n_classes or 10, norm=norm), (channels, 28, 28)


def resolve(spec: str) -> tuple[str, str]:
    """Where the model that ``spec`` names comes from, and its name there.

    Returns:
        ("", one of ours), ("torchvision" or "timm", a name) or ("file", "file.py:object").

    Raises:
        ArgumentError: if there is no such model, or its library is not installed.
    """
    home, _, name = spec.rpartition(":")
    if home in LIBRARIES:
        check_name(home, name, spec)
        return home, name
    if home:
        return FILE, spec
    if spec in OURS:
        return "", spec
    for library in installed():
        if spec in names(library):
            return library, spec
    if spec.endswith(".py"):
        raise ArgumentError(
            f"model={spec!r} is a file; name the model in it: {spec}:NAME, a module or a callable "
            "that makes one."
        )
    known = {name: f"{library}:{name}" for library in installed()[::-1] for name in names(library)}
    known |= {name: name for name in OURS}
    close = [known[name] for name in difflib.get_close_matches(spec, known, n=3)]
    hint = f" Closest: {', '.join(close)}." if close else ""
    raise ArgumentError(f"model={spec!r} is not known; give {FORMS}.{hint}")


def input_shape(
    spec: str, made_for: tuple[int, int, int] | None, size: int | None, channels: int | None
) -> tuple[int, int, int]:
    """(C, H, W) for a model: what it is made for, with another size or number of channels if given.

    Raises:
        ArgumentError: if neither is known.
    """
    if made_for is None and size is None:
        raise ArgumentError(
            f"{spec!r} does not say what its input is; give --input, such as --input 3x224x224."
        )
    default, height, width = made_for or (3, 0, 0)
    height, width = (height, width) if size is None else (size, size)
    return default if channels is None else channels, height, width


# ---- torchvision and timm ------------------------------------------------------------------------


def _from_library(
    library: str, name: str, n_classes: int | None
) -> tuple[nn.Module, tuple[int, int, int]]:
    options: dict[str, Any] = {} if n_classes is None else {"num_classes": n_classes}
    if library == "torchvision":
        model = _without_weights(lambda: make_torchvision(name, **options))
    else:
        import timm

        model = _without_weights(lambda: timm.create_model(name, pretrained=False, **options))
    return model, image_size(library, name, model)


def _without_weights(make: Callable[[], nn.Module]) -> nn.Module:
    """Make a model without initializing its weights, which takes an instant."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about initialization
        try:
            with torch.device("meta"):
                return make().to_empty(device="cpu")
        except (RuntimeError, NotImplementedError):  # it computes with numbers when it is made
            return make()


# ---- a file's model ------------------------------------------------------------------------------


def model_of_file(spec: str) -> nn.Module:
    """The model that a Python file has or makes; all that the file does is done.

    Args:
        spec: ``file.py:object``, where the object is a module, or a callable without arguments
            that makes one.

    Raises:
        ArgumentError: if there is no such file, or it does not make one.
    """
    from torch import nn

    place, _, name = spec.rpartition(":")
    path = Path(place)
    if not path.is_file():
        raise ArgumentError(f"model={spec!r}: the file {str(path)!r} does not exist; give {FORMS}.")
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # the file may import its neighbours
    try:
        module = _run_file(path, spec)
        if not hasattr(module, name):
            raise ArgumentError(
                f"model={spec!r}: {str(path)!r} has no {name!r}; it has {_models_in(module, name)}."
            )
        made: Any = getattr(module, name)
        if not isinstance(made, nn.Module) and callable(made):
            made = _call(made, f"model={spec!r}: calling it without arguments")
    finally:
        sys.path.remove(folder)
    if not isinstance(made, nn.Module):
        raise ArgumentError(
            f"model={spec!r} must be a torch module, its class, or a function without arguments "
            f"that makes one; it is of type {type(made).__name__}."
        )
    return made


def _run_file(path: Path, spec: str) -> ModuleType:
    found = util.spec_from_file_location(path.stem, path)
    if found is None or found.loader is None:
        raise ArgumentError(f"model={spec!r}: {str(path)!r} is not a Python file; give {FORMS}.")
    module, loader = util.module_from_spec(found), found.loader
    sys.modules.setdefault(path.stem, module)
    _call(lambda: loader.exec_module(module), f"model={spec!r}: running {str(path)!r}")
    return module


def _call(make: Callable[[], Any], what: str) -> Any:  # noqa: ANN401
    """Run the file's code; an error becomes a sentence."""
    try:
        return make()
    except (Exception, SystemExit) as error:
        raise ArgumentError(f"{what} raised {type(error).__name__}: {error}.") from error


def _models_in(module: ModuleType, name: str) -> str:
    from torch import nn

    public = [
        key
        for key, value in vars(module).items()
        if not key.startswith("_")
        and (isinstance(value, nn.Module) or getattr(value, "__module__", "") == module.__name__)
    ]
    close = difflib.get_close_matches(name, public, n=3, cutoff=0.4) or public[:3]
    return ", ".join(close) or "no models"
