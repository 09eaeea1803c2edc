"""Pretrained weights: read from a file or a library, and loaded into a network."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from convlens.core.wording import type_name
from convlens.errors import ArgumentError, CheckpointError
from convlens.models.heads import head_names
from convlens.models.libraries import download, first_convolution, for_channels, plain_names

WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Names under which files keep the weights beside other things."""

UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, KeyError, AttributeError)
"""What `torch.load` raises for files that are damaged or of another kind."""

NORMALIZATION = ("normalization.factor", "normalization.shift")
OUTPUT_SCALE = ("output_scale.mean", "output_scale.std")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights by name: safetensors, or what `torch.save` has written.

    Nothing in the file is run.

    Raises:
        ArgumentError: if there is no such file.
        CheckpointError: if it is damaged, or it has more than tensors.
    """
    if not path.is_file():
        raise ArgumentError(
            f"pretrained={str(path)!r} is not a file; give a .safetensors or .pth file of weights."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())
        what = (
            "it holds Python objects, which could run code; save its state_dict() as safetensors"
            if "unsupported global" in reason.lower() or "unsupported class" in reason.lower()
            else "it is damaged or no file of weights; get it again"
        )
        raise CheckpointError(f"pretrained={str(path)!r} cannot be read: {what}.") from error
    except (*UNREADABLE, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"pretrained={str(path)!r} is damaged or no file of weights ({reason}); get it again."
        ) from error
    return _tensors(found, path)


def _tensors(found: Any, path: Path) -> dict[str, Tensor]:  # noqa: ANN401
    for name in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not found:
        raise CheckpointError(
            f"pretrained={str(path)!r} holds {type_name(found)}, expected weights by name; save "
            "model.state_dict()."
        )
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"pretrained={str(path)!r} has {name!r} of type {type_name(value)}, expected "
                "weights, which are tensors; save model.state_dict()."
            )
    return dict(found)


def download_weights(library: str, name: str) -> dict[str, Tensor]:
    """The weights that a library publishes, from its cache or the internet.

    Raises:
        CheckpointError: if there are none, or they cannot be downloaded.
    """
    try:
        return plain_names(library, name, download(library, name))
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"pretrained=True: {library} cannot give its weights of {name} ({reason}); check the "
            "connection, or give the path of a .safetensors or .pth file."
        ) from error


def load_weights(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load weights into a network whose head and number of input channels may be others.

    Nothing is loaded if anything else differs.

    Args:
        network: keeps its own head where the file's has other shapes or is missing.
        state: the weights by the network's own names.
        source: for messages.

    Raises:
        CheckpointError: if they are those of another network.
    """
    wanted = network.state_dict()
    state = _for_channels(network, state, wanted)
    head = head_names(network)
    if all(name in state and state[name].shape == wanted[name].shape for name in head):
        head = []
    state = {name: value for name, value in state.items() if name not in head}
    counters = [name for name in wanted if name.endswith(".num_batches_tracked")]
    optional = {*head, *(name for name in counters if name not in state)}  # old files have none
    _check_fit(state, {k: v for k, v in wanted.items() if k not in optional}, source)
    network.load_state_dict(state, strict=False)


def own_names(network: nn.Module, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """The weights by the network's names: "module.network.fc.bias" of a file is its "fc.bias".

    Returns:
        The weights, and whether there were those of a `Normalization` among them.
    """
    own = {name.partition(".")[0] for name in network.state_dict()}
    had_normalization = False
    while True:
        had_normalization |= not state.keys().isdisjoint(NORMALIZATION)
        state = {k: v for k, v in state.items() if k not in (*NORMALIZATION, *OUTPUT_SCALE)}
        prefixes = {name.partition(".")[0] for name in state}
        prefix = f"{next(iter(prefixes), '')}."
        shared = len(prefixes) == 1 and all(name.startswith(prefix) for name in state)
        if not shared or prefixes <= own:
            return state, had_normalization
        state = {name.removeprefix(prefix): value for name, value in state.items()}


def head_size(network: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """The number of outputs of the weights' head; None if they have none."""
    return next((len(state[name]) for name in head_names(network) if name in state), None)


def _for_channels(
    network: nn.Module, state: dict[str, Tensor], wanted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    found = first_convolution(network)
    name = "" if found is None else f"{found[0]}.weight"
    weight = state.get(name)
    if found is None or weight is None or weight.ndim != 4 or weight.shape[1] != 3:
        return state
    n_in = wanted[name].shape[1]
    return state if n_in == 3 else {**state, name: for_channels(weight, n_in)}


def _check_fit(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    """Raise CheckpointError that names the first layer that differs, and both shapes."""
    for name, tensor in wanted.items():
        if name not in state:
            fault = f"it has no {name}, which is {tuple(tensor.shape)} in the network"
        elif state[name].shape != tensor.shape:
            fault = (
                f"its {name} is {tuple(state[name].shape)}, the network's is {tuple(tensor.shape)}"
            )
        else:
            continue
        break
    else:
        extra = next((name for name in state if name not in wanted), None)
        if extra is None:
            return
        fault = f"the network has no {extra}, which is {tuple(state[extra].shape)} in the file"
    raise CheckpointError(
        f"pretrained={source} is of another network: {fault}; name the network that the weights "
        "belong to."
    )
