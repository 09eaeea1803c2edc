"""Finds the model that a command names: one of ours, torchvision's, timm's, or a file's."""

from __future__ import annotations

import difflib
import inspect
import sys
import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from importlib import util
from pathlib import Path
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
    """The model that ``spec`` names, and the input (C, H, W) that it is made for, if that is known.

    Models of torchvision and timm come without weights; their parameters hold no numbers that mean
    anything. Nothing is downloaded. A bare name that is none of ours is looked for in both.

    Args:
        spec: one of ours, ``torchvision:NAME``, ``timm:NAME``, or ``file.py:object``, where the
            object is a module, or is called without arguments to make one.
        n_in: channels of the input, for one of ours; None is 1.
        n_classes: numbers in the output, but for a file's; None is 10 for ours, theirs for others.
        norm: normalization of one of ours.

    Raises:
        ArgumentError: if there is no such model, its library is not installed, or the file does
            not make one.
    """
    for argument, given in (("channels", n_in), ("classes", n_classes)):
        if given is not None and given < 1:
            raise ArgumentError(f"{argument}={given} must be a whole number of at least 1.")
    home, _, name = spec.rpartition(":")
    if home in EXTRAS:
        return _from_library(home, name, spec, n_classes)
    if home:
        return _from_file(Path(home), name, spec), None
    if spec in OURS:
        made = simple_cnn(n_in or 1, n_classes or 10, norm=norm)
        return made, (n_in or 1, 28, 28)
    for library in EXTRAS:
        if util.find_spec(library) is not None and spec in _names(library):
            return _from_library(library, spec, spec, n_classes)
    if spec.endswith(".py"):
        raise ArgumentError(
            f"model={spec!r} is a file; say which model of it: {spec}:NAME, a module or what makes "
            "one."
        )
    raise ArgumentError(f"model={spec!r} is not known; give {FORMS}.{_closest(spec)}")


def _from_library(
    library: str, name: str, spec: str, n_classes: int | None
) -> tuple[nn.Module, tuple[int, int, int] | None]:
    if util.find_spec(library) is None:
        raise ArgumentError(
            f"model={spec!r} needs {library}, which is not installed; install it with: "
            f"pip install {library}"
        )
    known = _names(library)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"closest: {', '.join(close)}" if close else f"it has {len(known)} others"
        raise ArgumentError(f"model={spec!r} is not among {library}'s models; {hint}.")
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


def _names(library: str) -> list[str]:
    """The library's models, without those that need more than an image."""
    if library == "torchvision":
        from torchvision.models import list_models

        return list_models()
    import timm

    return timm.list_models()


def _without_weights(make: Callable[[], nn.Module]) -> nn.Module:
    """Make a model in an instant: its memory is taken, and never written."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of how weights are initialized
        try:
            with torch.device("meta"):
                return make().to_empty(device="cpu")
        except (RuntimeError, NotImplementedError):  # it computes with numbers when it is made
            return make()


def _from_file(path: Path, name: str, spec: str) -> nn.Module:
    from torch import nn

    if not path.is_file():
        raise ArgumentError(f"model={spec!r}: the file {str(path)!r} does not exist; give {FORMS}.")
    with _beside(path):
        loader = util.spec_from_file_location(path.stem, path)
        if loader is None or loader.loader is None:
            raise ArgumentError(f"model={spec!r}: {str(path)!r} is no Python file; give {FORMS}.")
        module = util.module_from_spec(loader)
        sys.modules.setdefault(path.stem, module)
        try:
            loader.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise ArgumentError(
                f"model={spec!r}: running {str(path)!r} raised {type(error).__name__}: {error}; "
                "mend the file."
            ) from error
        if not hasattr(module, name):
            public = [
                key
                for key, value in vars(module).items()
                if not key.startswith("_")
                and (isinstance(value, nn.Module) or getattr(value, "__module__", "") == path.stem)
            ]
            close = difflib.get_close_matches(name, public, n=3, cutoff=0.4) or public[:3]
            raise ArgumentError(
                f"model={spec!r}: {str(path)!r} has no {name!r}; it has "
                f"{', '.join(close) or 'no models'}."
            )
        made: Any = getattr(module, name)
        if not isinstance(made, nn.Module) and callable(made):
            made = _made_by(made, spec)
    if not isinstance(made, nn.Module):
        raise ArgumentError(
            f"model={spec!r} is of type {type(made).__name__}; give a torch module, its class, or "
            "a function without arguments that makes one."
        )
    return made


def _made_by(make: Callable[[], Any], spec: str) -> object:
    try:
        return make()
    except (Exception, SystemExit) as error:
        raise ArgumentError(
            f"model={spec!r}: calling it without arguments raised {type(error).__name__}: {error}; "
            "give a torch module, or what makes one without arguments."
        ) from error


@contextmanager
def _beside(path: Path) -> Generator[None]:
    """Let a file import its neighbours, as if it were run."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _closest(name: str) -> str:
    known: Iterable[str] = [*OURS]
    for library in EXTRAS:
        if util.find_spec(library) is not None:
            known = [*known, *(f"{library}:{n}" for n in _names(library))]
    bare = {entry.rpartition(":")[2]: entry for entry in reversed(list(known))}
    close = difflib.get_close_matches(name, bare, n=3, cutoff=0.6)
    return f" Closest: {', '.join(bare[c] for c in close)}." if close else ""
