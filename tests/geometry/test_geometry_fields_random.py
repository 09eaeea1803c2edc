"""Random stacks of all operations that fields are followed through, with branches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from geometry_models import assert_as_probed
from geometry_random import LOCAL, networks, operations_of
from hypothesis import HealthCheck, given, settings
from torch import nn

from convlens.geometry import receptive_field

SHAPES = {1: (1, 4, 13), 2: (1, 4, 8, 11), 3: (1, 2, 6, 5, 7)}

EACH = [(axes, name) for axes, shape in SHAPES.items() for name in operations_of(shape)]

bounded = settings(
    max_examples=10,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.parametrize(("axes", "first"), EACH)
def test_random_stacks_equal_what_nan_probing_finds(axes: int, first: str):
    """Each operation under others, of all kinds."""
    shape = SHAPES[axes]
    met: set[str] = set()

    @bounded
    @given(networks(shape, operations_of(shape), first))
    def check(model: nn.Module) -> None:
        torch.manual_seed(0)
        assert_as_probed(model, shape)
        met.update(vars(layer).get("operation", "") for layer in model.modules())

    check()
    assert first in met


def test_random_sizes_are_those_far_from_the_edges():
    """Where there is a size, a jump or a start, the units in the middle have it."""
    compared = {"size": 0, "jump": 0}

    @settings(bounded, max_examples=200)
    @given(networks((1, 2, 360), LOCAL, most=40_000))
    def check(model: nn.Module) -> None:
        fields = receptive_field(model.double(), (1, 2, 360))
        for layer in fields.values():
            first, last = layer.first[0], layer.last[0]
            at = len(first) // 2
            middle = slice(at - 5, at + 5)
            far = first[middle].min() > 30 and last[middle].max() < 329
            if layer.grid[0] < 40 or not far:
                continue
            if layer.size[0] is not None:
                assert set((last - first + 1)[middle]) == {layer.size[0]}
                compared["size"] += 1
            if layer.jump[0] is not None:
                assert set(np.diff(first[middle])) == {layer.jump[0]}
                assert set(np.diff(last[middle])) == {layer.jump[0]}
                assert layer.start[0] + layer.jump[0] * at == first[at]
                compared["jump"] += 1

    check()
    assert min(compared.values()) > 300
