"""`GradientResets`: whether a parameter's gradient is reset between two steps of its optimizer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from convlens.watching.outputs import is_plain

PLACES = 16
"""Places along each axis of a tensor that are looked at, where only a few values are needed."""


class GradientResets:
    """Follows the gradient of one parameter from step to step.

    An in-place addition raises the version of the gradient's tensor by one: as long as nothing else
    has, it was not reset. ``p.grad.data.zero_()`` raises no version; `look` finds it, on a GPU by a
    flag that stays there.

    Args:
        parameter: a leaf that needs a gradient.

    Attributes:
        backwards: how many backward passes have added to the gradient, or set it in another way.
        found_zeros: whether `look` has found a gradient on the CPU that was reset to zeros.
    """

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter
        self.backwards = 0
        self._first: Tensor | None = None  # a few values as they were before training
        self._has_changed = False
        self._grad: int | None = None
        self._version = -1
        self._unbroken = self._added = False
        self.found_zeros = False
        self._zeroed: Tensor | None = None  # on the parameter's device, if that is not the CPU

    def attach(self, added: Callable[[GradientResets], None]) -> RemovableHandle:
        """Call this function after each backward pass that adds to the gradient."""
        hook = self.parameter.register_post_accumulate_grad_hook

        def call(parameter: Tensor) -> None:  # noqa: ARG001
            added(self)

        return hook(call)

    def added(self) -> None:
        """A backward pass has added to the gradient."""
        self.backwards += 1
        self._added = True
        grad = self.parameter.grad
        if grad is None or grad.is_inference():
            self._unbroken = False
            return
        same = id(grad) == self._grad and grad._version == self._version + 1
        self._unbroken = self._unbroken and same
        self._grad, self._version = id(grad), grad._version

    def was_kept(self) -> bool:
        """Whether it has not been reset since the last step, though a backward pass added to it."""
        return self._unbroken and self._added

    def stepped(self) -> None:
        """Its optimizer has made a step, after clipping and whatever else."""
        grad = self.parameter.grad
        if grad is not None and not self._added:
            self.backwards += 1  # assigned, as of torch.autograd.grad, or by a wrapper's own hooks
        self._added = False
        self._unbroken = grad is not None and not grad.is_inference()
        if grad is not None and self._unbroken:
            self._grad, self._version = id(grad), grad._version

    def look(self) -> None:
        """Before a backward pass: a gradient of zeros was reset without raising its version."""
        grad = self.parameter.grad
        if not self._unbroken or grad is None or not is_plain(grad):
            return
        with torch.no_grad():
            zero = few_values(grad).any().logical_not()
        if grad.is_cpu:
            self._unbroken = not zero
            self.found_zeros = self.found_zeros or bool(zero)
        else:
            self._zeroed = zero if self._zeroed is None else self._zeroed | zero

    @property
    def was_zeroed(self) -> bool:
        """Whether a gradient on another device was seen to be zeros; waits for the device."""
        return self._zeroed is not None and bool(self._zeroed)

    def keep_values(self) -> None:
        """Remember a few of the parameter's values, the first time."""
        if self._first is None and is_plain(self.parameter):
            self._first = few_values(self.parameter).clone()

    def has_changed(self) -> bool | None:
        """Whether any of them is another one now, None if that is not known; may wait."""
        if self._first is None or not is_plain(self.parameter):
            return None
        if not self._has_changed:
            now = few_values(self.parameter)
            if now.device != self._first.device or now.shape != self._first.shape:
                return None
            self._has_changed = not torch.equal(now, self._first)
        return self._has_changed


def few_values(x: Tensor) -> Tensor:
    """A view of at most `PLACES` evenly spaced places along each axis."""
    x = x.detach()
    return x[tuple(slice(None, None, -(-n // PLACES) or 1) for n in x.shape)]
