"""Training: the `Learner`, its callbacks and schedules."""

from __future__ import annotations

from convlens.inference import Prediction
from convlens.train.callbacks.base import (
    Callback,
    CancelBatchError,
    CancelEpochError,
    CancelFitError,
)
from convlens.train.callbacks.best_checkpoint import BestCheckpoint
from convlens.train.callbacks.early_stopping import EarlyStopping
from convlens.train.callbacks.ema import EMA
from convlens.train.callbacks.pictures import Pictures
from convlens.train.callbacks.progress import Progress
from convlens.train.callbacks.recorder import Recorder
from convlens.train.callbacks.stats import ActivationStats, GradientStats, UpdateStats
from convlens.train.learner import Learner
from convlens.train.lr_finding import LRFinding
from convlens.train.metrics import accuracy
from convlens.train.schedules import (
    Constant,
    Exponential,
    FlatCosine,
    OneCycle,
    Schedule,
    WarmupCosine,
)

__all__ = [
    "EMA",
    "ActivationStats",
    "BestCheckpoint",
    "Callback",
    "CancelBatchError",
    "CancelEpochError",
    "CancelFitError",
    "Constant",
    "EarlyStopping",
    "Exponential",
    "FlatCosine",
    "GradientStats",
    "LRFinding",
    "Learner",
    "OneCycle",
    "Pictures",
    "Prediction",
    "Progress",
    "Recorder",
    "Schedule",
    "UpdateStats",
    "WarmupCosine",
    "accuracy",
]
