"""Every exception that convlens raises on purpose.

    ConvlensError
    ├── ArgumentError (also ValueError)         an argument has a value that cannot work
    ├── LayerNotFoundError (also LookupError)   no layer has this name or index
    ├── MissingLibraryError (also ImportError)  an optional library is not installed
    ├── DataError                               a data file is damaged or of another kind
    ├── RunError                                a run directory cannot be made, read or written
    │   └── CheckpointError                     a checkpoint is damaged or fits another model
    └── TrainingError                           training cannot go on
        └── NonFiniteLossError                  the loss became NaN or infinite

Every message is one sentence that names the argument or the file, its value, what was expected and
what to do. What a user has to know and what ends nothing is a `ConvlensWarning`, issued by `warn`.
"""

from __future__ import annotations

import warnings
from contextlib import suppress


class ConvlensError(Exception):
    """Base of every error that convlens raises on purpose.

    >>> try:
    ...     cl.open_run("nowhere")
    ... except cl.ConvlensError as error:
    ...     print(type(error).__name__)
    RunError
    """


class ArgumentError(ConvlensError, ValueError):
    """An argument has a value that cannot work.

    >>> cl.watch(torch.nn.Linear(2, 2), every=0)
    Traceback (most recent call last):
    convlens.errors.ArgumentError: ...every...
    """


class LayerNotFoundError(ConvlensError, LookupError):
    """No layer has this name or index.

    >>> with cl.watch(torch.nn.Conv2d(1, 4, 3), layers="all") as stats:
    ...     stats["last linear"]
    Traceback (most recent call last):
    convlens.errors.LayerNotFoundError: ...'last linear'...
    """


class MissingLibraryError(ConvlensError, ImportError):
    """An optional library is not installed; the message says how to install it."""


class DataError(ConvlensError):
    """A data file is damaged or is not what it should be.

    >>> from pathlib import Path
    >>> _ = Path("photo.jpg").write_text("no image")
    >>> cl.load_image("photo.jpg")
    Traceback (most recent call last):
    convlens.errors.DataError: ...photo.jpg...
    """


class RunError(ConvlensError):
    """A run directory cannot be made, read or written.

    >>> cl.open_run("nowhere")
    Traceback (most recent call last):
    convlens.errors.RunError: ...nowhere...
    """


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
    with suppress(Exception):
        warnings.warn(message, ConvlensWarning, stacklevel=3)
