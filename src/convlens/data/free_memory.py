"""How much memory is free on a device, and on the host."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch

UNKNOWN = 2_000_000_000
"""Bytes that are taken to be free where the system does not say."""

CONTAINER = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device: of cuda its own memory, of others the host's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_of_machine(), _of_container())


def _of_machine() -> int:
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        line = next(one for one in lines if one.startswith("MemAvailable:"))
        return 1024 * int(line.split()[1])
    with suppress(AttributeError, OSError, ValueError):  # macOS says how much there is, not free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return UNKNOWN


def _of_container() -> int:
    """What is left of the limit of this container (cgroup version 2), where it has one."""
    with suppress(OSError, ValueError):
        limit = int((CONTAINER / "memory.max").read_text())
        used = int((CONTAINER / "memory.current").read_text())
        facts = dict(line.split() for line in (CONTAINER / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(facts["inactive_file"]))
    return 2**63 - 1
