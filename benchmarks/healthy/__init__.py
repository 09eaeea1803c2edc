"""Healthy training programs: what a doctor must not call sick.

Every public function of the modules here, called with a seed, makes one. They are written for this
benchmark, need no download, and train for a few seconds on one core.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from healthy import (
    freezing,
    learners,
    networks,
    optimizing,
    sequences,
    structures,
    unusual_data,
    unusual_losses,
)
from healthy.common import LearnerProgram, Program

__all__ = ["LearnerProgram", "Program", "programs"]

MODULES = (
    optimizing,
    unusual_losses,
    sequences,
    structures,
    freezing,
    unusual_data,
    learners,
    networks,
)


def programs() -> Mapping[str, Callable[[int], Program | LearnerProgram]]:
    """The programs by name."""
    return {
        name: make
        for module in MODULES
        for name, make in vars(module).items()
        if getattr(make, "__module__", None) == module.__name__
        and callable(make)
        and not isinstance(make, type)
        and not name.startswith("_")
    }
