"""The public names, listed once: `lazy_loader` reads them from here too."""

from . import geometry, models
from ._api import diagnose, report, view, watch
from .checking import CheckResult, check
from .data import (
    DataLoaders,
    dataset,
    from_arrays,
    from_csv,
    from_dataset,
    from_files,
    from_folder,
    load_image,
    mnist,
)
from .errors import (
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
from .geometry import (
    conv_matrix,
    effective_receptive_field,
    receptive_field,
    show_features,
    show_field,
    show_kernels,
    show_planes,
    summary,
)
from .inference import load_classifier
from .models import model, simple_cnn
from .runs import list_runs, open_run
from .runs.checkpoints import load_checkpoint
from .train import (
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

__all__ = [
    "ActivationStats",
    "ArgumentError",
    "Callback",
    "CancelBatchError",
    "CancelEpochError",
    "CancelFitError",
    "CheckResult",
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
    "check",
    "conv_matrix",
    "dataset",
    "diagnose",
    "effective_receptive_field",
    "from_arrays",
    "from_csv",
    "from_dataset",
    "from_files",
    "from_folder",
    "geometry",
    "list_runs",
    "load_checkpoint",
    "load_classifier",
    "load_image",
    "mnist",
    "model",
    "models",
    "open_run",
    "receptive_field",
    "report",
    "show_features",
    "show_field",
    "show_kernels",
    "show_planes",
    "simple_cnn",
    "summary",
    "view",
    "watch",
]

__version__: str
