"""Networks of torchvision and timm by name, and what is known of their published weights."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from importlib import util
from typing import TYPE_CHECKING, Any, cast

from convlens.core.wording import closest
from convlens.errors import ArgumentError
from convlens.models.built_from import remember
from convlens.models.normalization import Expected, expected

if TYPE_CHECKING:
    from torch import Tensor, nn

LIBRARIES = ("torchvision", "timm")

ONE_OUTPUT = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
"""Options with which these networks of torchvision return one output, not several, in training."""


@dataclass(frozen=True)
class Published:
    """What is known of a library's own weights.

    Attributes:
        expected: the mean and deviation of the images that they were trained on.
        n_classes: their number of outputs.
    """

    expected: Expected
    n_classes: int


def installed() -> list[str]:
    """The libraries that are installed."""
    return [library for library in LIBRARIES if util.find_spec(library) is not None]


def names(library: str) -> list[str]:
    """The networks that a library has."""
    if library == "torchvision":
        from torchvision.models import list_models

        return list_models()
    import timm

    return timm.list_models()


def check_name(library: str, name: str, spec: str) -> None:
    """Raises ArgumentError if the library is not installed or has no network of this name."""
    if library not in installed():
        raise ArgumentError(
            f"model={spec!r} needs {library}, which is not installed; install it with: "
            f"pip install {library}"
        )
    known = names(library)
    if name in known or (library == "timm" and _is_tagged(name)):
        return
    raise ArgumentError(
        f"{library} has no model {name!r} among its {len(known):,}.{closest(name, known)}"
    )


def _is_tagged(name: str) -> bool:
    """Whether it names one of timm's networks and its weights: resnet10t.c3_in1k."""
    import timm

    return name in timm.list_pretrained()


def library_network(library: str, name: str, n_in: int = 3, n_classes: int = 1000) -> nn.Module:
    """A network with its library's initial weights, for other channels and another output.

    Raises:
        ArgumentError: if the library does not have it, or it takes images of three channels only.
    """
    check_name(library, name, f"{library}:{name}")
    if library == "timm":
        import timm

        network = timm.create_model(name, pretrained=False, in_chans=n_in, num_classes=n_classes)
    else:
        network = make_torchvision(name, num_classes=n_classes, **ONE_OUTPUT.get(name, {}))
        if n_in != 3:
            _adapt(network, n_in, name)
    return remember(network, f"{library}:{name}", {"n_in": n_in, "n_classes": n_classes})


def make_torchvision(name: str, **options: Any) -> nn.Module:  # noqa: ANN401
    """One of torchvision's networks; nothing is downloaded."""
    from torchvision.models import get_model, get_model_builder

    if "weights_backbone" in inspect.signature(get_model_builder(name)).parameters:
        options["weights_backbone"] = None  # or it downloads them
    return get_model(name, weights=None, **options)


def image_size(library: str, name: str, network: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) that a network's published weights are made for."""
    if library == "timm":
        return tuple(getattr(network, "default_cfg", {}).get("input_size", (3, 224, 224)))  # pyright: ignore[reportReturnType]
    from torchvision.models import get_model_weights

    crops = {
        getattr(weights.transforms, "keywords", {}).get("crop_size")
        for weights in get_model_weights(name)
    }
    sizes = sorted(size for size in crops if isinstance(size, int))
    size = 224 if 224 in sizes or not sizes else sizes[0]
    return 3, size, size


def published(library: str, name: str, network: nn.Module) -> Published | None:
    """What is known of the weights that the library publishes; None if it publishes none."""
    if library == "timm":
        facts: dict[str, Any] = getattr(network, "pretrained_cfg", {})
        if not facts.get("mean"):
            return None
        return Published(expected(facts["mean"], facts["std"]), int(facts["num_classes"]))
    weights = torchvision_weights(name)
    if weights is None:
        return None
    transforms = weights.transforms()
    if not hasattr(transforms, "mean"):
        return None
    n_classes = len(weights.meta.get("categories", ()))
    if name in ONE_OUTPUT:  # these convert the usual normalization to their own, with an option
        return Published(Expected((0.5,) * 3, (0.5,) * 3), n_classes)
    return Published(expected(transforms.mean, transforms.std), n_classes)


def torchvision_weights(name: str) -> Any:  # noqa: ANN401 — a WeightsEnum, if installed
    """The default weights of one of torchvision's networks; None if there are none."""
    from torchvision.models import get_model_weights

    return getattr(get_model_weights(name), "DEFAULT", None)


def download(library: str, name: str) -> dict[str, Tensor]:
    """The library's own weights, from its cache or the internet.

    Args:
        library: "torchvision" or "timm".
        name: the network's.

    Raises:
        OSError, RuntimeError, ValueError: whatever the library raises.
    """
    if library == "timm":
        import timm

        return timm.create_model(name, pretrained=True).state_dict()
    weights = torchvision_weights(name)
    if weights is None:
        raise ValueError("torchvision publishes none")
    return cast("dict[str, Tensor]", weights.get_state_dict(check_hash=True, weights_only=True))


def plain_names(library: str, name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of torchvision's published files under the names that its networks have now."""
    if library != "torchvision":
        return state
    if name in ONE_OUTPUT:
        state = {key: value for key, value in state.items() if not re.match(r"(?i)aux", key)}
    if not name.startswith("densenet"):
        return state
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", k): v for k, v in state.items()
    }


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """The convolution that gets the images, and its name; None if there is none."""
    from torch import nn

    found = ((name, one) for name, one in network.named_modules() if isinstance(one, nn.Conv2d))
    return next(found, None)


def for_channels(weight: Tensor, n_in: int) -> Tensor:
    """Weights (F, 3, h, w) of a convolution for images of ``n_in`` channels.

    Of one channel: the sum, which gives what three equal channels give. Of more: the three again
    and again, times 3 / n_in, so that the outputs keep their size.
    """
    if n_in == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, [i % 3 for i in range(n_in)]] * (3 / n_in)


def _adapt(network: nn.Module, n_in: int, name: str) -> None:
    """Make the first convolution one for other channels."""
    from torch import nn

    found = first_convolution(network)
    if found is None or found[1].in_channels != 3 or found[1].groups != 1:
        raise ArgumentError(
            f"torchvision:{name} takes images of 3 channels only, the data's have {n_in}."
        )
    convolution = found[1]
    convolution.in_channels = n_in
    convolution.weight = nn.Parameter(for_channels(convolution.weight.detach(), n_in))
