"""convlens trains convolutional networks and lets you see inside them while they train.

    import convlens as cl

    dls = cl.mnist(batch_size=512)
    learn = cl.Learner(dls, cl.simple_cnn(1, 10, norm="batch"), metrics=[cl.accuracy],
                       callbacks=[cl.ActivationStats()])
    learn.fit_one_cycle(5, lr_max=0.1)
    learn.activation_stats.color_dim(-2)

Importing it loads nothing else: torch, matplotlib and Bokeh come with the first name that needs
them. Where each name lives is listed in ``docs/architecture.md``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convlens import geometry, nets
    from convlens._facade import diagnose, report, watch
    from convlens.errors import (
        ArgumentError,
        CheckpointError,
        ConvlensError,
        ConvlensWarning,
        DataError,
        LayerNotFoundError,
        MissingLibraryError,
        NonFiniteLossError,
        RunError,
        TrainingError,
    )
    from convlens.geometry import (
        conv_matrix,
        effective_receptive_field,
        receptive_field,
        show_features,
        show_field,
        show_kernels,
        show_planes,
        summary,
    )
    from convlens.images import DataLoaders, from_arrays, load_image, mnist
    from convlens.nets import simple_cnn
    from convlens.runs import list_runs, open_run
    from convlens.runs.checkpoints import load_checkpoint
    from convlens.train import (
        ActivationStats,
        Callback,
        CancelBatchError,
        CancelEpochError,
        CancelFitError,
        GradientStats,
        Learner,
        OneCycle,
        Pictures,
        Recorder,
        UpdateStats,
        accuracy,
    )

_HOMES = {
    "convlens": ["geometry", "nets"],
    "convlens._facade": ["diagnose", "report", "watch"],
    "convlens.errors": [
        "ArgumentError",
        "CheckpointError",
        "ConvlensError",
        "ConvlensWarning",
        "DataError",
        "LayerNotFoundError",
        "MissingLibraryError",
        "NonFiniteLossError",
        "RunError",
        "TrainingError",
    ],
    "convlens.geometry": [
        "conv_matrix",
        "effective_receptive_field",
        "receptive_field",
        "show_features",
        "show_field",
        "show_kernels",
        "show_planes",
        "summary",
    ],
    "convlens.images": ["DataLoaders", "from_arrays", "load_image", "mnist"],
    "convlens.nets": ["simple_cnn"],
    "convlens.runs": ["list_runs", "open_run"],
    "convlens.runs.checkpoints": ["load_checkpoint"],
    "convlens.train": [
        "ActivationStats",
        "Callback",
        "CancelBatchError",
        "CancelEpochError",
        "CancelFitError",
        "GradientStats",
        "Learner",
        "OneCycle",
        "Pictures",
        "Recorder",
        "UpdateStats",
        "accuracy",
    ],
}

__all__ = [
    "ActivationStats",
    "ArgumentError",
    "Callback",
    "CancelBatchError",
    "CancelEpochError",
    "CancelFitError",
    "CheckpointError",
    "ConvlensError",
    "ConvlensWarning",
    "DataError",
    "DataLoaders",
    "GradientStats",
    "LayerNotFoundError",
    "Learner",
    "MissingLibraryError",
    "NonFiniteLossError",
    "OneCycle",
    "Pictures",
    "Recorder",
    "RunError",
    "TrainingError",
    "UpdateStats",
    "accuracy",
    "conv_matrix",
    "diagnose",
    "effective_receptive_field",
    "from_arrays",
    "geometry",
    "list_runs",
    "load_checkpoint",
    "load_image",
    "mnist",
    "nets",
    "open_run",
    "receptive_field",
    "report",
    "show_features",
    "show_field",
    "show_kernels",
    "show_planes",
    "simple_cnn",
    "summary",
    "watch",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name == "__version__":
        from importlib.metadata import version

        return version("convlens")
    for home, names in _HOMES.items():
        if name in names:
            if home == "convlens":
                return import_module(f"convlens.{name}")
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'convlens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
