"""`Architecture`: how a network was built, as plain facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import nn

M = TypeVar("M", bound="nn.Module")

_ATTRIBUTE = "_convlens_architecture"


@dataclass(frozen=True)
class Architecture:
    """The name and the arguments that a network was built with.

    Attributes:
        name: one of ours, such as "simple_cnn", or "torchvision:NAME", "timm:NAME".
        arguments: plain JSON.
    """

    name: str
    arguments: Mapping[str, Any]


def remember(model: M, name: str, arguments: Mapping[str, Any]) -> M:
    """Note on a network how it was built, and return it."""
    setattr(model, _ATTRIBUTE, Architecture(name, dict(arguments)))
    return model


def architecture_of(model: nn.Module) -> Architecture | None:
    """How a network was built; None for one that convlens did not build by name."""
    return vars(model).get(_ATTRIBUTE)
