"""Random stacks of all operations that fields are followed through, with branches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from geometry_probe import assert_as_probed
from geometry_random import LOCAL, networks, operations_of
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

from convlens.execution import read_inputs, trace
from convlens.geometry import receptive_field
from convlens.geometry.spans import Known
from convlens.geometry.tracker import FieldTracker

SHAPES = {1: (1, 4, 13), 2: (1, 4, 8, 11), 3: (1, 2, 6, 5, 7)}

EACH = [
    pytest.param(axes, name, marks=() if axes == 2 else pytest.mark.slow)
    for axes, shape in SHAPES.items()
    for name in operations_of(shape)
]

bounded = settings(
    max_examples=5,
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


def test_random_rules_are_those_far_from_the_edges():
    """The rule on an input without edges gives the exact fields of units in the middle."""
    shape, compared, sized = (1, 2, 360), set[int](), 0

    @settings(bounded, max_examples=120)
    @given(networks(shape, LOCAL, most=40_000))
    def check(model: nn.Module) -> None:
        nonlocal sized
        tracker = FieldTracker()
        trace(model, read_inputs(shape), [tracker])
        known: dict[str, Known] = {name: field for name, _, field in tracker.found}
        fields = receptive_field(model, shape)
        for name, layer in fields.items():
            first, last = layer.first[0], layer.last[0]
            rule, at = known[name][0].rule, len(first) // 2
            middle = range(at - 6, at + 6)
            far = at > 20 and first[middle].min() > 30 and last[middle].max() < 329
            if rule is None or not far:
                continue
            assert [rule.at(o) for o in middle] == list(
                zip(first[middle], last[middle], strict=True)
            )
            compared.add(rule.period)
            if layer.jump[0] is not None:
                assert set(np.diff(first[middle])) == {layer.jump[0]}
                assert layer.start[0] + layer.jump[0] * at == first[at]
                sized += layer.size[0] == last[at] - first[at] + 1

    check()
    assert sized > 50
    assert {1, 2, 3} <= compared


@pytest.mark.parametrize("factor", [0.5, 1.5, 2])
@pytest.mark.parametrize(
    "how",
    [
        {"mode": "nearest"},
        {"mode": "nearest-exact"},
        {"mode": "area"},
        {"mode": "bilinear"},
        {"mode": "bilinear", "align_corners": True},
        {"mode": "bicubic"},
    ],
)
def test_rules_of_resizing_are_those_far_from_the_edges(how: dict[str, Any], factor: float):
    class Resize(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.interpolate(x, scale_factor=factor, **how)

    shape, tracker = (1, 1, 40, 60), FieldTracker()
    trace(Resize(), read_inputs(shape), [tracker])
    known: list[Known] = [field for _, _, field in tracker.found]
    layer = receptive_field(Resize(), shape)[""]
    for axis, span in enumerate(known[0]):
        at = layer.grid[axis] // 2
        for o in range(at - 8, at + 8):
            assert span.rule.at(o) == (layer.first[axis][o], layer.last[axis][o])
