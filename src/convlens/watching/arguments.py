"""Checks of a watcher's arguments."""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import nn

from convlens.errors import ArgumentError

MODES = {"train": (True,), "eval": (False,), "both": (True, False)}
"""For each ``mode``, the values of ``module.training`` for which forwards are counted."""


def check_watch(
    model: object, eps: object, every: object, mode: object, sample: object, **flags: object
) -> None:
    """Raise an `ArgumentError` unless all arguments of `convlens.watch` but ``layers`` can work."""
    check_eps(eps)
    check_every(every)
    _check_mode(mode)
    check_sample(sample)
    _check_model(model)
    _check_flags(**flags)


def check_eps(eps: object) -> None:
    """Raise an `ArgumentError` unless ``eps`` is a bound of |x|."""
    if not isinstance(eps, Real) or not math.isfinite(eps):
        raise ArgumentError(f"eps must be a finite number, got {eps!r}; |x| ≤ eps is near zero.")
    if eps < 0:
        raise ArgumentError(f"eps must be at least 0, got {eps}; |x| ≤ eps is near zero.")


def check_every(every: object) -> None:
    """Raise an `ArgumentError` unless ``every`` is a number of steps."""
    if not isinstance(every, Integral) or every < 1:
        raise ArgumentError(f"every must be at least 1, got {every!r}; 1 records all steps.")


def _check_flags(**flags: object) -> None:
    """Raise an `ArgumentError` unless these arguments are bools."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ArgumentError(f"{name} must be True or False, got {value!r}.")


def _check_model(model: object) -> None:
    """Raise an `ArgumentError` unless ``model`` is a module that takes hooks."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module, got a {type(model).__name__}.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ArgumentError(
            f"model is a {type(model).__name__}, which takes no hooks; give the module that "
            "torch.jit made it from."
        )


def _check_mode(mode: object) -> None:
    """Raise an `ArgumentError` unless ``mode`` says which forwards are counted."""
    if not isinstance(mode, str) or mode not in MODES:
        raise ArgumentError(
            f"mode must be 'train', 'eval' or 'both', got {mode!r}; it says which forwards are "
            "counted."
        )


def check_sample(sample: object) -> None:
    """Raise an `ArgumentError` unless ``sample`` is a fraction of a batch."""
    if not isinstance(sample, Real) or not 0 < float(sample) <= 1:
        raise ArgumentError(
            f"sample must be above 0 and at most 1, got {sample!r}; it is the fraction of a "
            "batch's images that is sketched."
        )
