"""Checks of what watchers are asked for, each a sentence that says what to do."""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import nn

from convlens.errors import ArgumentError

MODES = {"train": (True,), "eval": (False,), "both": (True, False)}
"""For each ``mode``, the values of ``module.training`` whose forwards are counted."""


def check_eps(eps: object) -> None:
    """Raise an `ArgumentError` unless ``eps`` is a bound of |x|."""
    if not isinstance(eps, Real) or not math.isfinite(eps):
        raise ArgumentError(f"eps={eps!r} is no bound of |x| for near zero; give a finite number.")
    if eps < 0:
        raise ArgumentError(f"eps={eps} is negative; give the bound of |x| for near zero.")


def check_every(every: object) -> None:
    """Raise an `ArgumentError` unless ``every`` is a number of steps."""
    if not isinstance(every, Integral) or every < 1:
        raise ArgumentError(f"every={every!r} is not a positive number of steps; use 1 for all.")


def check_model(model: object) -> None:
    """Raise an `ArgumentError` unless ``model`` is a module that takes hooks."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"model is a {type(model).__name__}, not a module; give the torch.nn.Module itself."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ArgumentError(
            f"model is a {type(model).__name__}, which takes no hooks; give the module that "
            "torch.jit made it from."
        )


def check_mode(mode: object) -> None:
    """Raise an `ArgumentError` unless ``mode`` says which forwards are counted."""
    if not isinstance(mode, str) or mode not in MODES:
        raise ArgumentError(
            f"mode={mode!r} is not known; use 'train', 'eval' or 'both' for the forwards in "
            "training mode, in evaluation mode, or all."
        )


def check_sample(sample: object) -> None:
    """Raise an `ArgumentError` unless ``sample`` is a fraction of a batch."""
    if not isinstance(sample, Real) or not 0 < float(sample) <= 1:
        raise ArgumentError(
            f"sample={sample!r} is no fraction of a batch's images; give a number above 0, at most "
            "1 (1 looks at all)."
        )
