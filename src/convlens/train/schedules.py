"""Learning rate and momentum as functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

from convlens.errors import ArgumentError


@dataclass(frozen=True)
class OneCycle:
    """The 1cycle policy: warm up to a high learning rate, then anneal far below its start.

    Momentum moves against the learning rate; both halves are cosines. At step s of S, with the
    warm-up ending at step w = pct_start·S − 1, the values are those of
    `torch.optim.lr_scheduler.OneCycleLR` with ``final_div_factor=div_final / div``.

    Source: L. N. Smith, A disciplined approach to neural network hyper-parameters, 2018
    (arXiv:1803.09820); L. N. Smith, N. Topin, Super-Convergence, 2017 (arXiv:1708.07120); the
    cosines are fast.ai's.

        >>> lr, momentum = cl.OneCycle(0.1)(step=0, n_steps=100)
        >>> round(lr, 4), momentum
        (0.004, 0.95)

    Attributes:
        lr_max: learning rate at the end of the warm-up.
        div: the first learning rate is ``lr_max / div``.
        div_final: the last learning rate is ``lr_max / div_final``.
        pct_start: share of the steps that warm up, between 0 and 1.
        moms: momentum at the start, at the peak and at the end.

    Raises:
        ArgumentError: if a value is out of its range.
    """

    lr_max: float
    div: float = 25.0
    div_final: float = 1e5
    pct_start: float = 0.25
    moms: tuple[float, float, float] = (0.95, 0.85, 0.95)

    def __post_init__(self) -> None:
        for name in ("lr_max", "div", "div_final"):
            _check_positive(name, getattr(self, name))
        if not 0 < self.pct_start < 1:
            raise ArgumentError(f"pct_start must be between 0 and 1, got {self.pct_start}.")
        if len(self.moms) != 3 or not all(0 <= m < 1 for m in self.moms):
            raise ArgumentError(
                "moms must be three momenta (start, peak, end), each at least 0 and below 1, "
                f"got {self.moms}."
            )

    @property
    def peak(self) -> float:
        """The highest learning rate: that with which the optimizer is made."""
        return self.lr_max

    def __call__(self, step: int, n_steps: int) -> tuple[float, float]:
        """(learning rate, momentum) at ``step`` of ``n_steps``, counted from 0."""
        warm_up = max(self.pct_start * n_steps - 1, 0.0)
        first, peak, last = self.moms
        if step <= warm_up and warm_up > 0:
            share = step / warm_up
            return _cosine(self.lr_max / self.div, self.lr_max, share), _cosine(first, peak, share)
        share = min((step - warm_up) / max(n_steps - 1 - warm_up, 1e-9), 1.0)
        return _cosine(self.lr_max, self.lr_max / self.div_final, share), _cosine(peak, last, share)


@dataclass(frozen=True)
class Constant:
    """The same learning rate at every step; momentum is left as the optimizer has it."""

    lr: float

    def __post_init__(self) -> None:
        _check_positive("lr", self.lr)

    @property
    def peak(self) -> float:
        """The learning rate."""
        return self.lr

    def __call__(self, step: int, n_steps: int) -> tuple[float, None]:  # noqa: ARG002
        """(learning rate, None) at any step."""
        return self.lr, None


Schedule = OneCycle | Constant


def read_hypers(group: dict[str, Any]) -> dict[str, float]:
    """All numeric hyperparameters of one parameter group by name; β₁ is called momentum."""
    hypers: dict[str, float] = {}
    for name, value in group.items():
        if name == "betas":
            hypers["momentum"], hypers["beta2"] = float(value[0]), float(value[1])
        elif isinstance(value, int | float) and not isinstance(value, bool):
            hypers[name] = float(value)
    return hypers


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def _check_positive(name: str, value: float) -> None:
    if not (isinstance(value, Real) and value > 0 and math.isfinite(value)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(f"{name} must be a positive number, such as 0.01, got {value!r}.")
