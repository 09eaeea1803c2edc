"""The device that a name stands for."""

from __future__ import annotations

import torch

from convlens.errors import ArgumentError


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device of this name; None for cuda if available, else cpu.

    Raises:
        ArgumentError: if this machine has no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).cpu()  # a known kind of device may still be missing
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ArgumentError(
            f"device={str(device)!r} cannot be used here ({reason}); give 'cpu', 'cuda' or another "
            "device that torch has, or None for cuda if available, else cpu."
        ) from error
    return chosen
