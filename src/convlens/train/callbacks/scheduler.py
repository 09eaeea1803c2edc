"""`Scheduler`: sets learning rate and momentum of every parameter group before each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convlens.train.callbacks.base import Callback
from convlens.train.schedules import Schedule

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import Optimizer

    from convlens.train.learner import Learner


class Scheduler(Callback):
    """Sets a schedule's learning rate and momentum before each training batch."""

    order = -20

    def __init__(self, schedule: Schedule, groups: GroupSettings) -> None:
        self._schedule, self._groups = schedule, groups

    def before_batch(self, learn: Learner) -> None:
        """Set the values of this step."""
        if learn.training:
            self._groups.apply(learn.optimizer, *self._schedule(learn.step, learn.n_steps))


class GroupSettings:
    """The settings of an optimizer's parameter groups that no schedule overwrites.

    A group keeps the ratio of its learning rate to the optimizer's, as it was when the group was
    first seen: a group made with ``lr / 10`` trains at a tenth of the schedule's rate, in every
    fit. A group made with another momentum than the optimizer's default keeps its momentum. For
    Adam and its variants momentum is β₁.

    Args:
        lr: the rate that the optimizer was made with.

    Attributes:
        shares: the rate of a layer group as a share of the schedule's; 1 for others.
    """

    def __init__(self, lr: float) -> None:
        self._lr = lr
        self.shares: Mapping[str, float] = {}
        self._ratios: list[float] = []
        self._keeps_momentum: list[bool] = []

    def apply(self, optimizer: Optimizer, lr: float, momentum: float | None) -> None:
        """Set a schedule's values in all groups; None leaves momentum alone."""
        self._see(optimizer)
        settings = zip(optimizer.param_groups, self._ratios, self._keeps_momentum, strict=False)
        for group, ratio, keeps_momentum in settings:
            group["lr"] = lr * ratio * self.shares.get(group.get("layers", ""), 1.0)
            if momentum is None or keeps_momentum:
                continue
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif "momentum" in group:
                group["momentum"] = momentum

    def split(self, optimizer: Optimizer, layers: Mapping[str, Sequence[Parameter]]) -> None:
        """Split the optimizer's groups so that each is of one layer group, which it says it is.

        Each part keeps the settings of its group, and each parameter its state. Parameters that are
        not the network's stay in a group that belongs to none.
        """
        self._see(optimizer)
        layer_of = {id(p): name for name, parameters in layers.items() for p in parameters}
        found: list[tuple[dict[str, Any], float, bool]] = []
        settings = zip(optimizer.param_groups, self._ratios, self._keeps_momentum, strict=False)
        for group, ratio, keeps_momentum in settings:
            for name in (*layers, None):
                members = [p for p in group["params"] if layer_of.get(id(p)) == name]
                if members:
                    part = {**group, "params": members} | ({"layers": name} if name else {})
                    found.append((part, ratio, keeps_momentum))
        optimizer.param_groups[:] = [part for part, _, _ in found]
        self._ratios = [ratio for _, ratio, _ in found]
        self._keeps_momentum = [keeps for _, _, keeps in found]

    def _see(self, optimizer: Optimizer) -> None:
        """Keep what the groups were made with that were added since the last call."""
        for group in optimizer.param_groups[len(self._ratios) :]:
            self._ratios.append(float(group.get("lr", self._lr)) / self._lr)
            defaults = getattr(optimizer, "defaults", group)
            self._keeps_momentum.append(_momentum(group) != _momentum(defaults))


def _momentum(settings: dict[str, Any]) -> float | None:
    betas = settings.get("betas")
    return settings.get("momentum") if betas is None else betas[0]
