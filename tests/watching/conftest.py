"""How many threads torch has, for the tests in which that matters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    yield from _threads(1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """However many the process was given: the kernel uses no more threads than torch has."""
    yield from _threads(2)
