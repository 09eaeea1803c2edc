"""Layer groups: which layers are frozen, and which learn at lower rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from convlens.errors import ArgumentError
from convlens.execution import Observer, read_inputs, trace, unwrapped
from convlens.models.architecture import architecture_of
from convlens.models.heads import head_of
from convlens.models.normalization import inner_network
from convlens.train.callbacks.base import Callback
from convlens.train.callbacks.scheduler import GroupSettings
from convlens.train.schedules import OneCycle, Schedule
from convlens.watching.layer_selection import BatchNorm

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from convlens.train.learner import Learner
    from convlens.train.loop import TrainingLoop

FIRST, SECOND, HEAD = "first layers", "middle layers", "head"
"""The layer groups, in the order of the layers."""

Rate = float | tuple[float, float]
"""A learning rate, or two: that of the first layers and that of the head."""


def layer_groups(
    model: nn.Module, input_shape: Sequence[int] | None = None
) -> dict[str, list[nn.Parameter]]:
    """The parameters of a network in up to three groups: "first layers", "middle layers", "head".

    The head is that of `head_of`. The other layers are split in two halves of as many convolutions
    and linear layers. A parameter that several layers share belongs to the last of them. Groups
    without parameters are left out.

        >>> from convlens.train.layer_groups import layer_groups
        >>> groups = layer_groups(cl.simple_cnn(1, 10))
        >>> {name: len(parameters) for name, parameters in groups.items()}
        {'first layers': 4, 'middle layers': 4, 'head': 2}

    Args:
        model: any network.
        input_shape: (C, H, W), so that the layers of a network that convlens does not know are
            taken in the order in which they run; else in the order in which they were made.
    """
    model = unwrapped(model)
    layers = _layers_in_order(model, input_shape)
    head = {id(module) for module in _head(model, layers)}
    body = [module for module in layers if id(module) not in head]
    n, at = sum(map(_is_large, body)), 0
    group_of: dict[int, str] = {}
    for module in body:
        at += _is_large(module)
        for parameter in module.parameters(recurse=False):
            group_of[id(parameter)] = FIRST if 2 * at <= n else SECOND
    for module in layers:
        if id(module) in head:
            group_of |= {id(p): HEAD for p in module.parameters(recurse=False)}
    found: dict[str, list[nn.Parameter]] = {FIRST: [], SECOND: [], HEAD: []}
    for parameter in model.parameters():
        found[group_of[id(parameter)]].append(parameter)
    return {name: parameters for name, parameters in found.items() if parameters}


def _is_large(module: nn.Module) -> bool:
    return any(p.ndim > 1 for p in module.parameters(recurse=False))


def _head(model: nn.Module, layers: Sequence[nn.Module]) -> list[nn.Module]:
    if _is_known(model):
        return head_of(model)
    last = max((i for i, module in enumerate(layers) if _is_large(module)), default=-1)
    return list(layers[last:])


def _is_known(model: nn.Module) -> bool:
    """Whether its layers run in the order in which they were made."""
    return architecture_of(model) is not None or hasattr(inner_network(model), "get_classifier")


class _Order(Observer):
    """Keeps when each module began to run for the last time."""

    def __init__(self) -> None:
        self.last: dict[str, int] = {}
        self._n = 0

    def enter(self, name: str, module: nn.Module, given: Sequence[Any]) -> None:  # noqa: ARG002
        """A module is about to run on some tensors."""
        self._n += 1
        self.last[name] = self._n


def _layers_in_order(model: nn.Module, input_shape: Sequence[int] | None) -> list[nn.Module]:
    """The modules that own parameters."""
    named = dict(model.named_modules())
    owners = [n for n, m in named.items() if next(m.parameters(recurse=False), None) is not None]
    if input_shape is not None and not _is_known(model):
        order = _Order()
        try:
            trace(model, read_inputs((1, *input_shape)), [order])
        except ArgumentError:  # what does not fit is said when it is trained
            order.last.clear()
        owners.sort(key=lambda name: _when(name, order.last))
    return [named[name] for name in owners]


def _when(name: str, last: dict[str, int]) -> int:
    """When a module ran, or what contains it if its own forward did not."""
    while name and name not in last:
        name = name.rpartition(".")[0]
    return last.get(name, 0)


# ---- freezing ------------------------------------------------------------------------------------


class Frozen:
    """What `freeze` has frozen: parameters, and batch norms, which stay in evaluation mode."""

    def __init__(self) -> None:
        self._parameters: list[nn.Parameter] = []
        self._norms: list[tuple[nn.Module, bool]] = []

    def __bool__(self) -> bool:
        return bool(self._parameters or self._norms)

    def freeze(self, model: nn.Module, trained: Sequence[nn.Parameter]) -> None:
        """Freeze all parameters but ``trained``, and the batch norms that have none of them."""
        kept = set(map(id, trained))
        for parameter in model.parameters():
            if id(parameter) not in kept and parameter.requires_grad:
                parameter.requires_grad_(False)
                parameter.grad = None
                self._parameters.append(parameter)
        known = {id(module) for module, _ in self._norms}
        for module in model.modules():
            own = set(map(id, module.parameters(recurse=False)))
            if isinstance(module, BatchNorm) and not own & kept and id(module) not in known:
                # In evaluation with the whole model, it is trained when the model is.
                self._norms.append((module, module.training or not model.training))
        self.keep_modes()

    def keep_modes(self) -> None:
        """Put the frozen batch norms into evaluation mode, after the model was put into training.

        Then they normalize with the statistics that they were trained with, and do not update them.
        """
        for module, _ in self._norms:
            module.training = False

    def unfreeze(self, model: nn.Module) -> None:
        """Restore what `freeze` has changed, and nothing else; a model in evaluation stays so."""
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        for module, training in self._norms:
            module.training = training and model.training
        self._parameters, self._norms = [], []


# ---- rates ---------------------------------------------------------------------------------------


def highest(lr: object, name: str) -> float:
    """The learning rate of the head.

    Raises:
        ArgumentError: if two rates are not positive and ascending.
    """
    if not isinstance(lr, tuple | list):
        return lr  # pyright: ignore[reportReturnType] - checked by the schedule
    good = len(lr) == 2 and all(isinstance(one, int | float) and one > 0 for one in lr)
    if not good or lr[0] > lr[1]:
        raise ArgumentError(
            f"{name} must be a learning rate or two, (low, high): that of the first layers and "
            f"that of the head, such as (1e-5, 1e-3); got {lr!r}."
        )
    return float(lr[1])


@dataclass(frozen=True)
class Discriminative:
    """A schedule for the head; the other layer groups have lower rates, in a geometric series.

    Attributes:
        schedule: of the head.
        lowest: the rate of the first layers, as a share of the head's.
    """

    schedule: Schedule
    lowest: float

    @property
    def peak(self) -> float:
        """The head's highest learning rate."""
        return self.schedule.peak

    def __call__(self, step: int, n_steps: int) -> tuple[float, float | None]:
        """(learning rate of the head, momentum) at ``step`` of ``n_steps``, counted from 0."""
        return self.schedule(step, n_steps)

    def shares(self, groups: Sequence[str]) -> dict[str, float]:
        """By layer group, its rate as a share of the head's."""
        n = max(len(groups) - 1, 1)
        return {name: self.lowest ** ((n - i) / n) for i, name in enumerate(groups)}


def discriminative(lr: object, schedule: Schedule) -> Schedule:
    """The schedule for the rates that ``lr`` says: a `Discriminative` one if it is (low, high)."""
    if isinstance(lr, tuple | list) and lr[0] < lr[1]:
        return Discriminative(schedule, lr[0] / lr[1])
    return schedule


@dataclass(frozen=True)
class FineTune:
    """Two 1cycles, one after the other: that of the head alone, and that of all layers.

    Attributes:
        frozen: the first.
        unfrozen: the second.
        share: of the steps, that of the first.
    """

    frozen: OneCycle
    unfrozen: OneCycle
    share: float

    @property
    def peak(self) -> float:
        """The highest learning rate of both."""
        return max(self.frozen.peak, self.unfrozen.peak)

    def __call__(self, step: int, n_steps: int) -> tuple[float, float]:
        """(learning rate, momentum) at ``step`` of ``n_steps``, counted from 0."""
        first = round(n_steps * self.share)
        if step < first:
            return self.frozen(step, first)
        return self.unfrozen(step - first, n_steps - first)


def prepare_groups(
    groups: GroupSettings, optimizer: Optimizer, schedule: Schedule, learn: TrainingLoop
) -> None:
    """Give each layer group its share of the rate, if the schedule is `Discriminative`."""
    groups.shares = {}
    if isinstance(schedule, Discriminative):
        layers = layer_groups(learn.model, learn.dls.facts()["input_shape"])
        groups.split(optimizer, layers)
        groups.shares = schedule.shares(list(layers))


class FreezeFirst(Callback):
    """Trains the head alone in the first epochs of a fit.

    Args:
        n_epochs: how many.
    """

    order = -50  # before callbacks that look at what is trained

    def __init__(self, n_epochs: int) -> None:
        self.n_epochs = n_epochs

    def before_fit(self, learn: Learner) -> None:
        """Freeze all but the head."""
        if self.n_epochs:
            learn.freeze()

    def before_epoch(self, learn: Learner) -> None:
        """Unfreeze when it is time."""
        if learn.epoch == self.n_epochs:
            learn.unfreeze()

    def after_fit(self, learn: Learner) -> None:
        """Also where the fit has ended before."""
        learn.unfreeze()
