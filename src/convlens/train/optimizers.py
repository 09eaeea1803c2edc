"""Optimizers by name, with weight decay where it belongs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from numbers import Real
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RAdam, RMSprop

from convlens.core.wording import closest
from convlens.errors import ArgumentError

NAMED: dict[str, Callable[..., Optimizer]] = {
    "adamw": partial(AdamW, betas=(0.9, 0.99), eps=1e-5, weight_decay=0.01),
    "adam": Adam,
    "sgd": partial(SGD, momentum=0.9, nesterov=True),
    "rmsprop": RMSprop,
    "nadam": NAdam,
    "radam": RAdam,
}
"""The optimizers that have a name: AdamW with the chapter's settings, the others with torch's; SGD
with Nesterov's momentum."""

DECAYED, NOT_DECAYED = "weights", "biases and norms"
"""The names of the parameter groups."""


class NamedOptimizer:
    """Makes an optimizer of a name: called with the parameters and ``lr=``.

    Biases and the parameters of norms, all that have one axis, get no weight decay: they are a
    parameter group of their own.

        >>> from convlens.train.optimizers import NamedOptimizer
        >>> optimizer = NamedOptimizer("sgd", 5e-4)(torch.nn.Linear(2, 1).parameters(), lr=0.1)
        >>> [(group["name"], group["weight_decay"]) for group in optimizer.param_groups]
        [('weights', 0.0005), ('biases and norms', 0.0)]

    Args:
        name: "adamw", "adam", "sgd", "rmsprop", "nadam" or "radam".
        weight_decay: None for the optimizer's own, 0.01 of "adamw" and none of the others.

    Raises:
        ArgumentError: for an unknown name, or a weight decay below 0.
    """

    def __init__(self, name: str, weight_decay: float | None = None) -> None:
        if name not in NAMED:
            raise ArgumentError(
                f"optimizer={name!r} is not known; give one of {', '.join(NAMED)}, or a function "
                f"of (parameters, lr).{closest(name, NAMED)}"
            )
        good = isinstance(weight_decay, Real) and 0 <= weight_decay < math.inf
        if weight_decay is not None and not good:
            raise ArgumentError(
                f"weight_decay must be a number of at least 0, such as 0.01, got {weight_decay!r}."
            )
        self.__name__ = name
        self._options = {} if weight_decay is None else {"weight_decay": float(weight_decay)}

    def __call__(self, parameters: Iterable[nn.Parameter], lr: float) -> Optimizer:
        """An optimizer with the parameters in one group or two."""
        make, given = NAMED[self.__name__], list(parameters)
        optimizer = make(given, lr=lr, **self._options)
        if optimizer.defaults["weight_decay"] == 0:
            return optimizer
        groups: list[dict[str, Any]] = [
            {"params": [p for p in given if p.ndim > 1], "name": DECAYED},
            {"params": [p for p in given if p.ndim <= 1], "name": NOT_DECAYED, "weight_decay": 0.0},
        ]
        return make([group for group in groups if group["params"]], lr=lr, **self._options)


def optimizer_factory(
    optimizer: str | Callable[..., Optimizer], weight_decay: float | None
) -> Callable[..., Optimizer]:
    """What makes the optimizer of a Learner: a `NamedOptimizer`, or the function that was given.

    Raises:
        ArgumentError: for an unknown name, or a weight decay beside a function.
    """
    if isinstance(optimizer, str):
        return NamedOptimizer(optimizer, weight_decay)
    if weight_decay is not None:
        raise ArgumentError(
            f"weight_decay={weight_decay!r} is for an optimizer by name, such as 'adamw'; give it "
            "to the function: partial(torch.optim.AdamW, weight_decay=…)."
        )
    return optimizer
