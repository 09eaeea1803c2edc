"""`build`: the network that an `Architecture` describes."""

from __future__ import annotations

from torch import nn

from convlens.errors import ArgumentError
from convlens.execution import same_random
from convlens.models.built_from import Architecture, architecture_of, remember
from convlens.models.libraries import LIBRARIES, library_network
from convlens.models.normalization import normalized, output_scaled
from convlens.models.resnets import resnet
from convlens.models.simple import simple_cnn
from convlens.models.small_vgg import small_vgg

__all__ = ["Architecture", "architecture_of", "build", "remember"]

OURS = {"simple_cnn": simple_cnn, "resnet": resnet, "small_vgg": small_vgg}
"""Our own networks by name: functions of ``n_in``, ``n_classes`` and more."""


def build(architecture: Architecture) -> nn.Module:
    """Build a network again; its weights are initial ones, to be replaced by loaded ones.

    No random number is drawn from torch's generators.

        >>> from convlens.models.architecture import architecture_of, build
        >>> model = cl.simple_cnn(1, 10, norm="batch")
        >>> _ = build(architecture_of(model)).load_state_dict(model.state_dict())

    Raises:
        ArgumentError: if no installed library has a network of this name, or it does not take these
            arguments.
    """
    arguments = dict(architecture.arguments)
    has_normalization = arguments.pop("normalization", False)
    has_output_scale = arguments.pop("output_scale", False)
    library, _, name = architecture.name.rpartition(":")
    try:
        with same_random():
            if library in LIBRARIES:
                network = library_network(library, name, **arguments)
            else:
                network = OURS[architecture.name](**arguments)
            network = output_scaled(network) if has_output_scale else network
            return normalized(network, arguments["n_in"]) if has_normalization else network
    except (KeyError, TypeError) as error:
        raise ArgumentError(
            f"The network {architecture.name!r} with the arguments {arguments} cannot be built "
            f"({type(error).__name__}: {error}); it was made by another version of convlens or "
            f"of {library or 'its code'}."
        ) from error
