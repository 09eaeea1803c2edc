"""`Stepper`: from the losses of batches to optimizer steps: precision, accumulation, clipping."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from convlens.core.argument_checks import check_whole
from convlens.core.wording import closest
from convlens.errors import ArgumentError, TrainingError

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepSettings:
    """The arguments of a `Learner` that say how it computes and makes its steps.

    Attributes:
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        accumulate: batches for each optimizer step.
        clip: the largest norm of all gradients together; None for no limit.
        channels_last: whether images and weights are laid out with the channels last.
        compile: whether the fit runs the model through `torch.compile`.

    Raises:
        ArgumentError: if a value cannot work.
    """

    precision: str = "fp32"
    accumulate: int = 1
    clip: float | None = None
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            known = ", ".join(map(repr, PRECISIONS))
            close = closest(str(self.precision), PRECISIONS)
            raise ArgumentError(f"precision must be one of {known}, got {self.precision!r}.{close}")
        check_whole("accumulate", self.accumulate, 1)
        if self.clip is not None and not (isinstance(self.clip, Real) and 0 < self.clip < math.inf):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ArgumentError(
                "clip must be the largest norm of the gradients, a positive number such as 1.0, "
                f"or None, got {self.clip!r}."
            )
        for name in ("channels_last", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise ArgumentError(f"{name} must be True or False, got {getattr(self, name)!r}.")

    def facts(self) -> dict[str, Any]:
        """For the run's metadata, plain JSON."""
        return asdict(self)


class Stepper:
    """Turns the losses of one or more batches into one optimizer step.

    Each batch's loss is weighted by its number of items, so that the gradient of a group is that of
    the mean over all its items, whatever the sizes of its batches.

    Args:
        settings: precision, number of batches for each step, limit of the norm.
        device: where the model is.

    Attributes:
        loss: the mean loss of the items of the current group, or of the last one; on the device.
        n_items: how many these are.
        weight: what the last batch's loss was multiplied with before its backward pass.
        skipped: whether the last step was skipped because a gradient overflowed in fp16.
        scale: the scale of the losses in fp16, 1.0 otherwise.
        grad_norm: the norm of all gradients at the last step, before clipping, on the device; None
            without ``clip``.

    Raises:
        ArgumentError: if the device cannot compute in the precision.
    """

    def __init__(self, settings: StepSettings, device: torch.device) -> None:
        self._n_batches, self._clip = int(settings.accumulate), settings.clip
        self._dtype, self._device = PRECISIONS[settings.precision], device.type
        if self._dtype is not None and not torch.amp.is_autocast_available(device.type):
            raise ArgumentError(
                f"precision={settings.precision!r} cannot be used on the device {str(device)!r}; "
                "give precision='fp32'."
            )
        self._scaler = GradScaler(device.type) if settings.precision == "fp16" else None
        self.scale = 1.0 if self._scaler is None else self._scaler.get_scale()
        self.loss, self.n_items = torch.zeros(()), 0
        self.weight, self.skipped = 1.0, False
        self.grad_norm: Tensor | None = None
        self._batches_in_group = self._first_size = 0

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass or a loss."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._device, self._dtype)

    # ---- the gradient of a group ----------------------------------------------------------------

    def backward(self, loss: Tensor, n_items: int) -> None:
        """Add the gradient of a batch's mean loss over ``n_items``."""
        if self._n_batches == 1:
            self.loss, self.n_items = loss.detach(), n_items
        else:
            loss = self._weighted(loss, n_items)
        if self._scaler is None:
            loss.backward()
        else:
            self.weight = self.scale * (1.0 if self._n_batches == 1 else self.weight)
            self._scaler.scale(loss).backward()

    def _weighted(self, loss: Tensor, n_items: int) -> Tensor:
        """The loss as it is added to those of its group, a share of one batch of the first's size.

        What is missing to the mean over the items of a smaller or uneven group is made up for in
        `step`: how large a group becomes is not known before.
        """
        if not self._batches_in_group:
            self._first_size, self.n_items = n_items, 0
            self.loss = torch.zeros_like(loss, dtype=torch.float32, requires_grad=False)
        self._batches_in_group += 1
        total = self.n_items + n_items
        self.loss = self.loss + (loss.detach() - self.loss) * (n_items / total)
        self.n_items = total
        self.weight = n_items / (self._first_size * self._n_batches)
        return loss * self.weight

    @property
    def is_due(self) -> bool:
        """Whether the group is complete, and its step is to be made."""
        return self._n_batches == 1 or self._batches_in_group >= self._n_batches

    @property
    def is_waiting(self) -> bool:
        """Whether a group has begun that is smaller than the others, as at an epoch's end."""
        return self._batches_in_group > 0

    def clear(self) -> None:
        """Forget the group."""
        self._batches_in_group = 0

    # ---- the step -------------------------------------------------------------------------------

    def step(self, optimizer: Optimizer) -> None:
        """Make the step: gradients without the scale, averaged, clipped.

        In fp16 a step whose gradients overflowed is not made, and the scale is lowered.
        """
        if self._scaler is None and self._clip is None and self._n_batches == 1:
            optimizer.step()
            return
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
        self._average(optimizer)
        if self._clip is not None:
            self.grad_norm = nn.utils.clip_grad_norm_(list(_parameters(optimizer)), self._clip)
        if self._scaler is None:
            optimizer.step()
            return
        self._scaler.step(optimizer)
        self._scaler.update()
        before, self.scale = self.scale, self._scaler.get_scale()
        self.skipped = self.scale < before

    def _average(self, optimizer: Optimizer) -> None:
        if not self._batches_in_group:
            return
        factor = self._first_size * self._n_batches / self.n_items
        if factor != 1.0:
            for parameter in _parameters(optimizer):
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)


def explain_compiling(error: Exception) -> None:
    """Explain an error of `torch.compile`; any other is left alone.

    Raises:
        TrainingError: if the compiler raised it.
    """
    compilers = "torch._dynamo", "torch._inductor"
    if type(error).__module__.startswith(compilers):
        first = next(iter(str(error).strip().splitlines()), "")
        raise TrainingError(
            f"compile=True: torch.compile failed on the model or its batch ({type(error).__name__}:"
            f" {first[:200]}); give compile=False, which also says what does not fit."
        ) from error


def _parameters(optimizer: Optimizer) -> Any:  # noqa: ANN401
    groups: list[dict[str, Any]] = optimizer.param_groups
    return (parameter for group in groups for parameter in group["params"])
