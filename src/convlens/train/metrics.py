"""Metrics: over the items of a batch, averaged, or accumulated over the whole validation set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convlens.errors import ArgumentError, TrainingError

Metric = str | Callable[[Any, Tensor], Any]
"""A name, a function of (output, y), or a torchmetrics object, which is called in the same way."""


def accuracy(output: Tensor, y: Tensor) -> Tensor:
    """Share of items whose largest output is that of their label.

        >>> output = torch.tensor([[0.1, 2.0], [0.3, 0.2]])
        >>> float(cl.accuracy(output, torch.tensor([1, 1])))
        0.5

    Args:
        output: (N, K), a score for each class; (N, K, H, W) for each pixel.
        y: (N,) int64 labels; (N, H, W).

    Returns:
        A scalar float32 tensor on the same device.

    Raises:
        ArgumentError: if the shapes do not fit, or there is only one class.
    """
    if output.ndim < 2 or output.shape[1] < 2 or y.shape != output.shape[:1] + output.shape[2:]:
        raise ArgumentError(
            f"accuracy needs outputs (N, K), K at least 2, and labels (N,); got output of shape "
            f"{tuple(output.shape)} and y of shape {tuple(y.shape)}."
        )
    return (output.argmax(dim=1) == y).float().mean()


@dataclass(frozen=True)
class BatchMean:
    """A metric that is the mean of the batches' values, weighted by their numbers of items.

    Exact for means over items, such as the accuracy.

    Attributes:
        name: in records and messages.
        function: of (output, y), returns the batch's mean.
    """

    name: str
    function: Callable[[Any, Tensor], Any]

    def start(self, device: torch.device) -> _Mean:
        """Begin a validation."""
        return _Mean(self, device)


@dataclass(frozen=True)
class Accumulated:
    """A torchmetrics object, which keeps what it needs of every item and is computed at the end.

    Each validation uses a copy, so that one that fails or is interrupted leaves nothing behind.

    Attributes:
        name: in records and messages.
        metric: the object, with its state as the user made it.
        inputs: turns (output, y) into what the object takes.
        classes: the names of the numbers of a result that has as many, else their indices.
        exact: whether its state is float64, where the device has such numbers.
    """

    name: str
    metric: Any
    inputs: Callable[[Any, Tensor], tuple[Any, Tensor]]
    classes: tuple[str, ...] = ()
    exact: bool = False

    def start(self, device: torch.device) -> _State:
        """Begin a validation."""
        return _State(self, device)


class Validation:
    """Accumulates the loss and the metrics of one validation.

    Args:
        metrics: what to measure besides the loss.
        device: where the outputs and labels lie.
        class_weights: (K,) of a loss that is the weighted mean over a batch; None for a plain mean.
    """

    def __init__(
        self,
        metrics: Sequence[BatchMean | Accumulated],
        device: torch.device,
        class_weights: Tensor | None = None,
    ) -> None:
        self.n_items, self._class_weights = 0, class_weights
        self._loss = _Mean(BatchMean("loss", _of_output), device)
        self._metrics = [metric.start(device) for metric in metrics]

    def update(self, loss: Tensor, output: Any, y: Tensor, n: int) -> None:  # noqa: ANN401
        """Add a batch of ``n`` items with its mean loss.

        Raises:
            TrainingError: if a metric gives anything but one number.
        """
        by_number = self._class_weights is None or y.is_floating_point()
        self._loss.update(loss, y, n if by_number else self._weight_of(y))
        for metric in self._metrics:
            metric.update(output, y, n)
        self.n_items += n

    def _weight_of(self, y: Tensor) -> Tensor:
        """The sum of the weights, by which the loss of a batch was divided."""
        assert self._class_weights is not None
        ignored = y < 0  # by the loss
        return self._class_weights[y.clamp(min=0)].masked_fill(ignored, 0).sum()

    def result(self) -> dict[str, float]:
        """The loss and each metric by name; several of one where it is computed for each class.

        Raises:
            TrainingError: if a metric computed something else than numbers.
        """
        found = self._loss.result()
        for metric in self._metrics:
            found |= metric.result()
        return found


def _of_output(output: Any, y: Tensor) -> Any:  # noqa: ANN401, ARG001
    return output


class _Mean:
    """The batches' values stay on the device until the end, so that no batch waits for them."""

    def __init__(self, metric: BatchMean, device: torch.device) -> None:
        self._metric, self._device = metric, device
        self._values: list[Tensor] = []
        self._sizes: list[int | Tensor] = []

    def update(self, output: Any, y: Tensor, n: int | Tensor) -> None:  # noqa: ANN401
        name = self._metric.name
        try:
            value = self._metric.function(output, y)
        except Exception as error:
            error.add_note(f"The metric {name!r} raised it.")
            raise
        try:
            number = torch.as_tensor(value, dtype=torch.float32, device=self._device)
            self._values.append(number.detach().reshape(()))
        except (TypeError, ValueError, RuntimeError):
            raise TrainingError(
                f"The metric {name!r} must give one number, the mean over the batch, got "
                f"{_described(value)}."
            ) from None
        self._sizes.append(n)

    def result(self) -> dict[str, float]:
        values = torch.stack(self._values).cpu().double().numpy()
        sizes = np.array([float(size) for size in self._sizes])
        counted = sizes > 0
        mean = np.average(values[counted], weights=sizes[counted]) if counted.any() else np.nan
        return {self._metric.name: float(mean)}


class _State:
    """A copy of a torchmetrics object on the device."""

    def __init__(self, metric: Accumulated, device: torch.device) -> None:
        self._metric = metric
        self._copy = metric.metric.clone().to(device)
        if metric.exact and device.type != "mps":
            self._copy.set_dtype(torch.float64)
        self._copy.reset()

    def update(self, output: Any, y: Tensor, n: int) -> None:  # noqa: ANN401, ARG002
        try:
            self._copy.update(*self._metric.inputs(output, y))
        except Exception as error:
            error.add_note(f"The metric {self._metric.name!r} raised it.")
            raise

    def result(self) -> dict[str, float]:
        try:
            value = self._copy.compute()
        except Exception as error:
            error.add_note(f"The metric {self._metric.name!r} raised it.")
            raise
        return dict(_entries(self._metric.name, value, self._metric.classes))


def _entries(name: str, value: Any, classes: tuple[str, ...]) -> list[tuple[str, float]]:  # noqa: ANN401
    """A computed value as numbers by name: one, one for each class, or a dictionary of these."""
    if isinstance(value, dict):
        return [pair for key, one in value.items() for pair in _entries(str(key), one, ())]
    if isinstance(value, Tensor) and value.numel() == 1:
        return [(name, float(value))]
    if isinstance(value, Tensor) and value.ndim == 1:
        named = classes if len(classes) == len(value) else tuple(map(str, range(len(value))))
        return [(f"{name}[{k}]", one) for k, one in zip(named, value.tolist(), strict=True)]
    if isinstance(value, int | float):
        return [(name, float(value))]
    raise TrainingError(
        f"The metric {name!r} must compute one number, or one for each class, got "
        f"{_described(value)}; it can be used in a callback's after_batch."
    )


def _described(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
