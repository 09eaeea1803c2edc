"""Every exception that convlens raises on purpose.

    ConvlensError
    ├── ArgumentError (also ValueError)     an argument has a value that cannot work
    ├── LayerNotFoundError (also LookupError)  no layer has this name or index
    ├── MissingLibraryError (also ImportError)  an optional library is not installed
    ├── DataError                           a data file is damaged or is not what it should be
    ├── RunError                            a run directory cannot be made, read or written
    │   └── CheckpointError                 a checkpoint is damaged or fits another model
    └── TrainingError                       training cannot go on
        └── NonFiniteLossError              the loss became NaN or infinite

Every message is one sentence that names the argument or the file, its value, what was expected and
what to do. Whoever wants them all writes ``except convlens.ConvlensError``.

What a user has to know and what ends nothing is a `ConvlensWarning`, issued by `warn`.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence
from contextlib import suppress
from numbers import Integral


class ConvlensError(Exception):
    """Base of every error that convlens raises on purpose."""


class ArgumentError(ConvlensError, ValueError):
    """An argument has a value that cannot work."""


class LayerNotFoundError(ConvlensError, LookupError):
    """No layer has this name or index."""


class MissingLibraryError(ConvlensError, ImportError):
    """An optional library is not installed; the message says how to install it."""


class DataError(ConvlensError):
    """A data file is damaged or is not what it should be."""


class RunError(ConvlensError):
    """A run directory cannot be made, read or written."""


class CheckpointError(RunError):
    """A checkpoint is damaged or belongs to another model."""


class TrainingError(ConvlensError):
    """Training cannot go on."""


class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite."""


class ConvlensWarning(UserWarning):
    """Something could not be seen or written; the training goes on."""


def warn(message: str) -> None:
    """Issue a `ConvlensWarning`.

    It never raises, also where a filter makes warnings errors or where standard error is closed: it
    is called in the middle of a user's training step, which must not end because of it.

    Args:
        message: one sentence.
    """
    with suppress(Exception):  # also where standard error is closed
        warnings.warn(message, ConvlensWarning, stacklevel=3)


def find_layer(layer: int | str, names: Sequence[str], kinds: Sequence[str] = ()) -> int:
    """Position of ``layer`` in ``names``: an index (negative from the end), a name or a kind.

    A kind is ``"first conv"``, ``"last norm"``: the first or last layer whose class name contains
    the word, in any case.

    Args:
        layer: what to find.
        names: the layers' names.
        kinds: their class names, empty for what is not to be found by its kind; none if not known.

    Raises:
        LayerNotFoundError: with the closest names, the kinds, or the range of indices.
    """
    if isinstance(layer, str):
        if layer in names:
            return list(names).index(layer)
        end, _, kind = layer.partition(" ")
        if kinds and kind and end in ("first", "last"):
            return _find_kind(layer, end, kind, kinds)
        close = difflib.get_close_matches(layer, names, n=3, cutoff=0.4) or list(names)[:3]
        known = ", ".join(repr(name) for name in close) or "none, there are no layers"
        raise LayerNotFoundError(
            f"layer={layer!r} is not among the {len(names)} layers; closest: {known}."
        )
    if not isinstance(layer, Integral):
        raise LayerNotFoundError(
            f"layer={layer!r} is neither a module's name nor an index; give one of them."
        )
    layer = int(layer)
    if -len(names) <= layer < len(names):
        return layer % len(names)
    raise LayerNotFoundError(
        f"layer={layer} is out of range: there are {len(names)} layers; "
        f"use an index from {-len(names)} to {len(names) - 1} or a module's name."
        if names
        else f"layer={layer} was asked for, but no layers are recorded; train with watching on."
    )


def _find_kind(layer: str, end: str, kind: str, kinds: Sequence[str]) -> int:
    found = [i for i, known in enumerate(kinds) if kind.lower() in known.lower()]
    if not found:
        known = ", ".join(sorted({known for known in kinds if known}))
        raise LayerNotFoundError(
            f"layer={layer!r}: no layer's class name contains {kind!r}; there are: {known}."
        )
    return found[0 if end == "first" else -1]
