"""Learning rate and momentum as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from numbers import Real
from typing import Any, Protocol, cast

from convlens.core.wording import closest, function_name
from convlens.errors import ArgumentError

ANNEALS = ("cos", "linear")


class Schedule(Protocol):
    """Learning rate and momentum as a function of the step: what `Learner.fit` takes.

    Any object that has ``peak`` and can be called so is a schedule. It is called again and again
    for the same step, and must give the same values.

    The values are those of a parameter group that trains at the optimizer's own rate. Other groups
    keep the ratio of their rates to it (see `Learner`). Schedules of a different shape for each
    group are not supported.

        >>> class Halved:
        ...     peak = 0.1
        ...     def __call__(self, step, n_steps):
        ...         return (0.1 if step < n_steps // 2 else 0.05), None
        >>> dls = cl.DataLoaders([(torch.randn(8, 1, 4, 4), torch.tensor([0, 1] * 4))] * 2)
        >>> learn = cl.Learner(dls, cl.simple_cnn(1, 2), run=None, progress=False)
        >>> learn.fit(2, Halved())
        >>> learn.recorder.steps.hypers["lr"][:, 0].tolist()
        [0.1, 0.1, 0.05, 0.05]
    """

    @property
    def peak(self) -> float:
        """The highest learning rate: that with which the optimizer is made."""
        ...

    def __call__(self, step: int, n_steps: int, /) -> tuple[float, float | None]:
        """(learning rate, momentum) at ``step`` of ``n_steps`` optimizer steps, counted from 0.

        With None for the momentum the optimizer keeps its own.
        """
        ...


@dataclass(frozen=True)
class OneCycle:
    """The 1cycle policy: warm up to a high learning rate, then anneal far below its start.

    Momentum moves against the learning rate. At step s of S, with the warm-up ending at step
    w = pct_start·S − 1, the values are those of `torch.optim.lr_scheduler.OneCycleLR` with
    ``final_div_factor=div_final / div`` and ``anneal_strategy=anneal``.

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
        anneal: the shape of both halves, ``"cos"`` or ``"linear"``.

    Raises:
        ArgumentError: if a value is out of its range.
    """

    lr_max: float
    div: float = 25.0
    div_final: float = 1e5
    pct_start: float = 0.25
    moms: tuple[float, float, float] = (0.95, 0.85, 0.95)
    anneal: str = "cos"

    def __post_init__(self) -> None:
        for name in ("lr_max", "div", "div_final"):
            check_positive(name, getattr(self, name))
        if not 0 < self.pct_start < 1:
            raise ArgumentError(f"pct_start must be between 0 and 1, got {self.pct_start}.")
        if len(self.moms) != 3 or not all(0 <= m < 1 for m in self.moms):
            raise ArgumentError(
                "moms must be three momenta (start, peak, end), each at least 0 and below 1, "
                f"got {self.moms}."
            )
        if self.anneal not in ANNEALS:
            raise ArgumentError(f"anneal must be 'cos' or 'linear', got {self.anneal!r}.")

    @property
    def peak(self) -> float:
        """The highest learning rate: that with which the optimizer is made."""
        return self.lr_max

    def __call__(self, step: int, n_steps: int) -> tuple[float, float]:
        """(learning rate, momentum) at ``step`` of ``n_steps``, counted from 0."""
        between = _cosine if self.anneal == "cos" else _line
        warm_up = max(self.pct_start * n_steps - 1, 0.0)
        first, peak, last = self.moms
        if step <= warm_up and warm_up > 0:
            share = step / warm_up
            return between(self.lr_max / self.div, self.lr_max, share), between(first, peak, share)
        share = _share(step, warm_up, n_steps - 1)
        return between(self.lr_max, self.lr_max / self.div_final, share), between(peak, last, share)


@dataclass(frozen=True)
class Constant:
    """The same learning rate at every step; momentum is left as the optimizer has it.

    >>> cl.Constant(0.1)(step=17, n_steps=100)
    (0.1, None)

    Attributes:
        lr: the learning rate.

    Raises:
        ArgumentError: if it is not a positive number.
    """

    lr: float

    def __post_init__(self) -> None:
        check_positive("lr", self.lr)

    @property
    def peak(self) -> float:
        """The learning rate."""
        return self.lr

    def __call__(self, step: int, n_steps: int) -> tuple[float, None]:  # noqa: ARG002
        """(learning rate, None) at any step."""
        return self.lr, None


@dataclass(frozen=True)
class FlatCosine:
    """A constant learning rate, then a cosine down to nearly 0; momentum is not changed.

    The rate is flat for ``pct_start·S`` of S steps. What follows is
    `torch.optim.lr_scheduler.CosineAnnealingLR` with ``eta_min=lr / div_final``.

        >>> schedule = cl.FlatCosine(0.1)
        >>> [round(schedule(step, 100)[0], 3) for step in (0, 74, 87, 99)]
        [0.1, 0.1, 0.047, 0.0]

    Attributes:
        lr: the constant learning rate.
        pct_start: share of the steps that it lasts, at least 0 and below 1.
        div_final: the last learning rate is ``lr / div_final``.

    Raises:
        ArgumentError: if a value is out of its range.
    """

    lr: float
    pct_start: float = 0.75
    div_final: float = 1e5

    def __post_init__(self) -> None:
        check_positive("lr", self.lr)
        check_positive("div_final", self.div_final)
        _check_share("pct_start", self.pct_start)

    @property
    def peak(self) -> float:
        """The constant learning rate."""
        return self.lr

    def __call__(self, step: int, n_steps: int) -> tuple[float, None]:
        """(learning rate, None) at ``step`` of ``n_steps``, counted from 0."""
        flat = max(self.pct_start * n_steps - 1, 0.0)
        return _cosine(self.lr, self.lr / self.div_final, _share(step, flat, n_steps - 1)), None


@dataclass(frozen=True)
class WarmupCosine:
    """A linear warm-up, then a cosine down to nearly 0; momentum is not changed.

    With the warm-up ending at step w = warmup·S − 1 of S, the values are those of
    `torch.optim.lr_scheduler.LinearLR` with ``start_factor=1 / div``, followed by
    ``CosineAnnealingLR`` with ``eta_min=lr / div_final``.

        >>> schedule = cl.WarmupCosine(0.1)
        >>> [round(schedule(step, 100)[0], 3) for step in (0, 4, 50, 99)]
        [0.004, 0.1, 0.052, 0.0]

    Attributes:
        lr: learning rate at the end of the warm-up.
        warmup: share of the steps that warm up, at least 0 and below 1.
        div: the first learning rate is ``lr / div``.
        div_final: the last learning rate is ``lr / div_final``.

    Raises:
        ArgumentError: if a value is out of its range.
    """

    lr: float
    warmup: float = 0.05
    div: float = 25.0
    div_final: float = 1e5

    def __post_init__(self) -> None:
        for name in ("lr", "div", "div_final"):
            check_positive(name, getattr(self, name))
        _check_share("warmup", self.warmup)

    @property
    def peak(self) -> float:
        """The highest learning rate."""
        return self.lr

    def __call__(self, step: int, n_steps: int) -> tuple[float, None]:
        """(learning rate, None) at ``step`` of ``n_steps``, counted from 0."""
        warm_up = max(self.warmup * n_steps - 1, 0.0)
        if step < warm_up:
            return _line(self.lr / self.div, self.lr, step / warm_up), None
        return _cosine(self.lr, self.lr / self.div_final, _share(step, warm_up, n_steps - 1)), None


@dataclass(frozen=True)
class Exponential:
    """The same factor from each step to the next; momentum is not changed.

    The values are those of `torch.optim.lr_scheduler.ExponentialLR`, with the factor that reaches
    ``lr_end`` at the last step.

        >>> schedule = cl.Exponential(0.1, 0.001)
        >>> [round(schedule(step, 101)[0], 4) for step in (0, 50, 100)]
        [0.1, 0.01, 0.001]

    Attributes:
        lr: learning rate at the first step.
        lr_end: learning rate at the last step; it may be the higher one.

    Raises:
        ArgumentError: if a rate is not a positive number.
    """

    lr: float
    lr_end: float

    def __post_init__(self) -> None:
        check_positive("lr", self.lr)
        check_positive("lr_end", self.lr_end)

    @property
    def peak(self) -> float:
        """The higher one of both rates."""
        return max(self.lr, self.lr_end)

    def __call__(self, step: int, n_steps: int) -> tuple[float, None]:
        """(learning rate, None) at ``step`` of ``n_steps``, counted from 0."""
        return self.lr * (self.lr_end / self.lr) ** _share(step, 0.0, n_steps - 1), None


def _decay(lr: float) -> Exponential:
    return Exponential(lr, lr / 100)


NAMED: Mapping[str, Callable[[float], Schedule]] = {
    "one-cycle": OneCycle,
    "one-cycle-linear": partial(OneCycle, anneal="linear"),
    "flat-cosine": FlatCosine,
    "warmup-cosine": WarmupCosine,
    "constant": Constant,
    "exponential": _decay,
}
"""The schedules that have a name, as functions of their highest learning rate."""


def schedule_of(name: str, lr: float) -> Schedule:
    """The schedule of a name, such as "flat-cosine"; "exponential" ends at ``lr / 100``.

    >>> from convlens.train.schedules import schedule_of
    >>> schedule_of("flat-cosine", 0.1)
    FlatCosine(lr=0.1, pct_start=0.75, div_final=100000.0)

    Raises:
        ArgumentError: if the name is unknown, or ``lr`` not a positive number.
    """
    if name not in NAMED:
        raise ArgumentError(
            f"schedule must be one of {', '.join(NAMED)}, got {name!r}.{closest(name, NAMED)}"
        )
    return NAMED[name](lr)


def as_schedule(lr: float | Schedule) -> Schedule:
    """A learning rate as `Constant`; a schedule as it is.

    Raises:
        ArgumentError: if it is neither, or what the schedule gives is not (rate, momentum).
    """
    if isinstance(lr, Real):
        return Constant(float(lr))
    given = cast("Any", lr)
    is_class, is_callable = isinstance(given, type), callable(given)
    if is_class or not is_callable or not hasattr(given, "peak"):
        hint = f"; give an object, {function_name(given)}(0.01)" if is_class else ""
        raise ArgumentError(
            "lr must be a learning rate, such as 0.01, or a schedule, such as cl.OneCycle(0.01): "
            f"an object with .peak that is called with (step, n_steps); got {given!r:.60}{hint}."
        )
    check_positive(f"{function_name(given)}.peak", given.peak)
    values = given(0, 1)
    if not isinstance(values, tuple) or len(values) != 2 or not isinstance(values[0], Real):
        raise ArgumentError(
            f"{function_name(given)}(step, n_steps) must return a pair (learning rate, momentum), "
            f"with None to leave momentum alone; got {values!r:.60}."
        )
    return given


def schedule_facts(schedule: Schedule) -> dict[str, Any]:
    """What a run's record says of a schedule, as plain JSON: its class and its values."""
    found: dict[str, Any] = {"class": type(schedule).__name__}
    if not is_dataclass(schedule):
        return {**found, "peak": float(schedule.peak)}
    values: dict[str, Any] = {f.name: getattr(schedule, f.name) for f in fields(schedule)}
    values |= {n: schedule_facts(v) for n, v in values.items() if is_dataclass(v)}  # pyright: ignore[reportArgumentType]
    plain = (bool, int, float, str, tuple, list, dict, type(None))
    return found | {name: value for name, value in values.items() if isinstance(value, plain)}


def read_hypers(group: dict[str, Any]) -> dict[str, float]:
    """All numeric hyperparameters of one parameter group by name; β₁ is called momentum."""
    hypers: dict[str, float] = {}
    for name, value in group.items():
        if name == "betas":
            hypers["momentum"], hypers["beta2"] = float(value[0]), float(value[1])
        elif isinstance(value, int | float) and not isinstance(value, bool):
            hypers[name] = float(value)
    return hypers


def _share(step: float, first: float, last: float) -> float:
    """How far a step is from the first to the last, from 0 to 1."""
    return min(max((step - first) / max(last - first, 1e-9), 0.0), 1.0)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def _line(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


def check_positive(name: str, value: float) -> None:
    """Raises ArgumentError if a value is not a positive number."""
    if not (isinstance(value, Real) and value > 0 and math.isfinite(value)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(f"{name} must be a positive number, such as 0.01, got {value!r}.")


def _check_share(name: str, value: float) -> None:
    if not (isinstance(value, Real) and 0 <= value < 1):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(
            f"{name} is a share of the steps, at least 0 and below 1; got {value!r}."
        )
