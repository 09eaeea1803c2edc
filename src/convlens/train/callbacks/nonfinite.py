"""`NonFiniteGuard`: ends the fit when the loss is not finite, and names the layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from convlens.errors import NonFiniteLossError, TrainingError
from convlens.execution import copy_of, hook_layers, preserved
from convlens.train.callbacks.base import Callback
from convlens.train.callbacks.stats import ActivationStats
from convlens.watching.outputs import first_tensor

if TYPE_CHECKING:
    from convlens.train.learner import Learner

EVERY = 32  # steps between two checks of a loss on a GPU, each of which waits for the device
RESTORE = "load a checkpoint (cl.load_checkpoint), or make the model and the Learner anew"


class NonFiniteGuard(Callback):
    """Stops the fit when the training loss is NaN or infinite.

    On the CPU every loss is checked before it can reach the weights. Elsewhere a check waits for
    the device, so the sum of the losses is checked every 32 steps and at the end of an epoch.
    """

    order = -5

    def before_fit(self, learn: Learner) -> None:
        """Start a new sum."""
        self._sum = torch.zeros((), device=learn.device)
        self._first_unchecked = 0

    def after_loss(self, learn: Learner) -> None:
        """Check the loss, or add it to the sum."""
        if not learn.training:
            return
        loss = learn.loss.detach()
        if loss.device.type == "cpu":
            if not math.isfinite(float(loss.float().numpy())):
                self._stop(learn, f"step {learn.step}")
            return
        self._sum += loss
        if learn.step + 1 - self._first_unchecked >= EVERY:
            self._check(learn, learn.step)

    def after_epoch(self, learn: Learner) -> None:
        """Check the remaining losses."""
        self._check(learn, learn.step - 1)

    def _check(self, learn: Learner, last: int) -> None:
        if not math.isfinite(float(self._sum)):
            self._stop(learn, f"one of the steps {self._first_unchecked} to {last}")
        self._first_unchecked = last + 1

    def _stop(self, learn: Learner, where: str) -> None:
        culprit = find_culprit(learn)
        lost = f" The weights are lost, too: {RESTORE}." if non_finite_state(learn.model) else ""
        raise NonFiniteLossError(
            f"The loss became {float(learn.loss.detach())} at {where} (epoch {learn.epoch}); "
            f"{culprit}. Lower the learning rate, warm up (fit_one_cycle), add "
            f"norm='batch', or look for values in the data that are not finite.{lost}"
        )


def check_finite(model: nn.Module, optimizer: Optimizer) -> None:
    """Check the weights and the optimizer's state before a fit.

    Raises:
        TrainingError: if a parameter is NaN or infinite, or a buffer or the optimizer's state NaN.
    """
    lost, whose = non_finite_state(model), "model"
    if lost is None:
        states: Iterable[object] = getattr(optimizer, "state", {}).values()
        named = (pair for state in states if isinstance(state, Mapping) for pair in state.items())
        lost, whose = _first_bad(named, infinite=False), "optimizer"
    if lost is not None:
        raise TrainingError(
            f"The {whose}'s {lost} is not finite before the first step, perhaps from an earlier "
            "training whose values became NaN. Lowering the learning rate does not help; "
            f"{RESTORE}."
        )


def non_finite_state(model: nn.Module) -> str | None:
    """The first parameter that is NaN or infinite, or buffer that is NaN; None if there is none.

    A buffer may be infinite: attention masks are.
    """
    return _first_bad(model.named_parameters(), infinite=True) or _first_bad(
        model.named_buffers(), infinite=False
    )


def _first_bad(values: Iterable[tuple[str, object]], *, infinite: bool) -> str | None:
    named = [
        (name, value.detach())
        for name, value in values
        if isinstance(value, Tensor) and not is_lazy(value) and not value.is_meta
        if (value.is_floating_point() or value.is_complex()) and value.itemsize > 1  # no float8
        if value.layout == torch.strided
    ]
    bad = [~value.isfinite().all() if infinite else value.isnan().any() for _, value in named]
    # One wait for the device in place of one for each tensor.
    found = torch.stack([b.to(bad[0].device) for b in bad]).tolist() if bad else []
    return next((repr(name) for (name, _), b in zip(named, found, strict=True) if b), None)


def find_culprit(learn: Learner) -> str:
    """The layer whose output for the current batch is the first that is not finite, in words."""
    for callback in learn.active:
        if isinstance(callback, ActivationStats):
            callback.watch.detach()  # what follows is no training step
    try:
        with learn.stepper.autocast():
            culprit = first_non_finite(learn.model, learn.x)
    except Exception as error:  # the model's own, which is run once more
        return f"which layer began cannot be said ({type(error).__name__}: {error})"
    if culprit is None:
        return "every layer's output was finite, so it is the loss function or the labels"
    return f"the first layer whose output was not finite is {culprit}"


def first_non_finite(model: nn.Module, x: Tensor) -> str | None:
    """The first layer in order of execution whose output for ``x`` is not finite.

    The model is run once more, in its mode, without gradients, and stays as it is.

    Returns:
        A description such as ``"'1.0' (Conv2d)"``, ``"the input itself"``, or None.
    """
    if not bool(x.isfinite().all()):
        return "the input itself"
    found: list[str] = []

    def make_hook(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: object) -> None:  # noqa: ARG001
            out = first_tensor(output)
            if not found and out is not None and not bool(out.isfinite().all()):
                found.append(f"{name or '(root)'!r} ({type(module).__name__})")

        return hook

    with preserved(model, copy_of, training=None), torch.no_grad():
        hook_layers(model, make_hook)
        model(x)
    return found[0] if found else None
