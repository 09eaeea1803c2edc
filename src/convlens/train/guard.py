"""`NonFiniteGuard`: a loss that is not finite ends the fit with a sentence that says where."""

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
from convlens.train.callbacks import Callback
from convlens.train.stats import ActivationStats
from convlens.watching.outputs import first_tensor

if TYPE_CHECKING:
    from convlens.train.learner import Learner

EVERY = 32  # steps between two looks at a loss on a GPU, each of which waits for it


class NonFiniteGuard(Callback):
    """Stops the fit when the training loss is NaN or infinite.

    On the CPU every loss is looked at before it can reach the weights. On another device looking
    means waiting, so the sum of the losses is looked at every 32 steps and at the end of an epoch.
    """

    order = -5

    def before_fit(self, learn: Learner) -> None:
        """Nothing has been seen yet."""
        self._sum = torch.zeros((), device=learn.device)
        self._first_unseen = 0

    def after_loss(self, learn: Learner) -> None:
        """Look at the loss, or remember it."""
        if not learn.training:
            return
        loss = learn.loss.detach()
        if loss.device.type == "cpu":
            if not math.isfinite(float(loss.float().numpy())):
                self._stop(learn, f"step {learn.step}")
            return
        self._sum += loss
        if learn.step + 1 - self._first_unseen >= EVERY:
            self._look(learn, learn.step)

    def after_epoch(self, learn: Learner) -> None:
        """Look at what has not been looked at."""
        self._look(learn, learn.step - 1)

    def _look(self, learn: Learner, last: int) -> None:
        if not math.isfinite(float(self._sum)):
            self._stop(learn, f"one of the steps {self._first_unseen} to {last}")
        self._first_unseen = last + 1

    def _stop(self, learn: Learner, where: str) -> None:
        for callback in learn.callbacks:
            if isinstance(callback, ActivationStats):
                callback.watch.detach()  # the search below is no step
        loss = float(learn.loss.detach())
        lost = f" The weights are lost, too: {_AGAIN}." if non_finite_state(learn.model) else ""
        raise NonFiniteLossError(
            f"The loss became {loss} at {where} (epoch {learn.epoch}); {_culprit(learn)}. "
            "Lower the learning rate, warm up (fit_one_cycle), add norm='batch', or look for "
            f"values in the data that are not finite.{lost}"
        )


_FLOATS = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.complex128),
}
_AGAIN = "load a checkpoint (cl.load_checkpoint), or make the model and the Learner anew"


def check_finite(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse to train weights that are lost: a lower learning rate would not help.

    Raises:
        TrainingError: if a parameter is NaN or infinite, or a buffer or the optimizer's state NaN.
    """
    lost = non_finite_state(model)
    whose = "model"
    if lost is None:
        states: Iterable[object] = getattr(optimizer, "state", {}).values()
        named = (pair for state in states if isinstance(state, Mapping) for pair in state.items())
        lost, whose = _first_bad(named, infinite=False), "optimizer"
    if lost is not None:
        raise TrainingError(
            f"The {whose}'s {lost} is not finite before the first step: a training whose values "
            f"became NaN has left it so, or whatever made the {whose}. Lowering the learning rate "
            f"does not help; {_AGAIN}."
        )


def non_finite_state(model: nn.Module) -> str | None:
    """The first parameter that is NaN or infinite, or buffer that is NaN; None if all is well.

    A buffer may well be infinite: attention masks are.
    """
    return _first_bad(model.named_parameters(), infinite=True) or _first_bad(
        model.named_buffers(), infinite=False
    )


def _first_bad(values: Iterable[tuple[str, object]], *, infinite: bool) -> str | None:
    named = [
        (name, value.detach())
        for name, value in values
        if isinstance(value, Tensor) and value.dtype in _FLOATS and not is_lazy(value)
        if value.layout == torch.strided and not value.is_meta
    ]
    bad = [~value.isfinite().all() if infinite else value.isnan().any() for _, value in named]
    # One wait for the device in place of one for each tensor.
    found = torch.stack([b.to(bad[0].device) for b in bad]).tolist() if bad else []
    return next((repr(name) for (name, _), b in zip(named, found, strict=True) if b), None)


def _culprit(learn: Learner) -> str:
    try:
        culprit = first_non_finite(learn.model, learn.x)
    except Exception as error:  # of a model, which is run once more
        return f"which layer began cannot be said ({type(error).__name__}: {error})"
    if culprit is None:
        return "every layer's output was finite, so it is the loss function or the labels"
    return f"the first layer whose output was not finite is {culprit}"


def first_non_finite(model: nn.Module, x: Tensor) -> str | None:
    """The first layer in order of execution whose output for ``x`` is not finite.

    Args:
        model: run once more, in its mode, without gradients; it stays as it is.
        x: (N, C, H, W), the batch.

    Returns:
        A description such as ``"'1.0' (Conv2d)"``, ``"the input itself"``, or None.
    """
    if not bool(x.isfinite().all()):
        return "the input itself"
    found: list[str] = []

    def looking(name: str) -> Callable[..., None]:
        def look(module: nn.Module, args: object, output: object) -> None:  # noqa: ARG001
            out = first_tensor(output)
            if not found and out is not None and not bool(out.isfinite().all()):
                found.append(f"{name or '(root)'!r} ({type(module).__name__})")

        return look

    with preserved(model, copy_of, training=None), torch.no_grad():
        hook_layers(model, looking)
        model(x)
    return found[0] if found else None
