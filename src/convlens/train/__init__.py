"""Training: the `Learner`, its callbacks and schedules."""

from __future__ import annotations

from convlens.train.callbacks import (
    Callback,
    CancelBatchError,
    CancelEpochError,
    CancelFitError,
)
from convlens.train.learner import Learner, Prediction, adamw
from convlens.train.metrics import accuracy
from convlens.train.pictures import Pictures
from convlens.train.progress import Progress
from convlens.train.recorder import Recorder
from convlens.train.schedules import Constant, OneCycle
from convlens.train.stats import ActivationStats, GradientStats, UpdateStats

__all__ = [
    "ActivationStats",
    "Callback",
    "CancelBatchError",
    "CancelEpochError",
    "CancelFitError",
    "Constant",
    "GradientStats",
    "Learner",
    "OneCycle",
    "Pictures",
    "Prediction",
    "Progress",
    "Recorder",
    "UpdateStats",
    "accuracy",
    "adamw",
]
