"""Finds the model that a command names: one of ours, torchvision's, timm's, or a file's."""

from __future__ import annotations

import difflib
import inspect
import sys
import warnings
from collections.abc import Callable
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from convlens.errors import ArgumentError
from convlens.models.blocks import Norm
from convlens.models.simple import simple_cnn

if TYPE_CHECKING:
    from torch import nn

OURS = ("simple_cnn",)
EXTRAS = ("torchvision", "timm")
FORMS = "simple_cnn, torchvision:NAME, timm:NAME or file.py:object"


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
    home, _, name = spec.rpartition(":")
    if home in EXTRAS:
        return _from_library(home, name, spec, n_classes)
    if home:
        return _from_file(Path(home), name, spec), None
    if spec in OURS:
        made = simple_cnn(n_in or 1, n_classes or 10, norm=norm)
        return made, (n_in or 1, 28, 28)
    for library in _installed():
        if spec in _names(library):
            return _from_library(library, spec, spec, n_classes)
    if spec.endswith(".py"):
        raise ArgumentError(
            f"model={spec!r} is a file; name the model in it: {spec}:NAME, a module or a callable "
            "that makes one."
        )
    known = {
        name: f"{library}:{name}" for library in _installed()[::-1] for name in _names(library)
    }
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


def _installed() -> list[str]:
    return [library for library in EXTRAS if util.find_spec(library) is not None]


def _names(library: str) -> list[str]:
    if library == "torchvision":
        from torchvision.models import list_models

        return list_models()
    import timm

    return timm.list_models()


def _from_library(
    library: str, name: str, spec: str, n_classes: int | None
) -> tuple[nn.Module, tuple[int, int, int] | None]:
    if library not in _installed():
        raise ArgumentError(
            f"model={spec!r} needs {library}, which is not installed; install it with: "
            f"pip install {library}"
        )
    known = _names(library)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"; closest: {', '.join(close)}" if close else f" (it has {len(known)})"
        raise ArgumentError(f"{library} has no model {name!r}{hint}.")
    options: dict[str, Any] = {} if n_classes is None else {"num_classes": n_classes}
    if library == "torchvision":
        return _from_torchvision(name, options)
    import timm

    model = _without_weights(lambda: timm.create_model(name, pretrained=False, **options))
    return model, tuple(getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224)))


def _from_torchvision(name: str, options: dict[str, Any]) -> tuple[nn.Module, tuple[int, int, int]]:
    from torchvision.models import get_model, get_model_builder, get_model_weights

    if "weights_backbone" in inspect.signature(get_model_builder(name)).parameters:
        options = {**options, "weights_backbone": None}  # or it downloads them
    crops = {
        getattr(weights.transforms, "keywords", {}).get("crop_size")
        for weights in get_model_weights(name)
    }
    sizes = sorted(size for size in crops if isinstance(size, int))
    size = 224 if 224 in sizes or not sizes else sizes[0]
    return _without_weights(lambda: get_model(name, weights=None, **options)), (3, size, size)


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


def _from_file(path: Path, name: str, spec: str) -> nn.Module:
    from torch import nn

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
