"""A layer found by index, name or kind."""

from __future__ import annotations

import pytest

from convlens.core.layers import find_layer
from convlens.errors import LayerNotFoundError

NAMES = ["0.0", "1.0", "head.linear", "head.norm"]


@pytest.mark.parametrize(
    ("layer", "position"), [(0, 0), (3, 3), (-1, 3), (-4, 0), ("0.0", 0), ("head.norm", 3)]
)
def test_a_layer_by_index_or_name(layer: int | str, position: int) -> None:
    assert find_layer(layer, NAMES) == position


def test_a_name_wins_over_what_looks_like_an_index() -> None:
    assert find_layer("1", ["0", "2", "1"]) == 2


def test_an_unknown_name_says_the_closest() -> None:
    with pytest.raises(
        LayerNotFoundError,
        match=r"layer='head.linaer' is not among the 4 layers; closest: 'head.linear'",
    ):
        find_layer("head.linaer", NAMES)


def test_a_name_unlike_any_says_the_first_three() -> None:
    with pytest.raises(LayerNotFoundError, match=r"closest: '0\.0', '1\.0', 'head\.linear'\.$"):
        find_layer("zzz", NAMES)


@pytest.mark.parametrize("layer", [4, -5])
def test_an_index_out_of_range_says_the_range(layer: int) -> None:
    with pytest.raises(
        LayerNotFoundError,
        match=rf"layer={layer} is out of range: there are 4 layers; use an index from -4 to 3",
    ):
        find_layer(layer, NAMES)


def test_without_layers_both_say_so() -> None:
    with pytest.raises(LayerNotFoundError, match="no layers are recorded; train with watching on"):
        find_layer(0, [])
    with pytest.raises(LayerNotFoundError, match="closest: none, there are no layers"):
        find_layer("a", [])


KINDS = ["Conv2d", "Conv2d", "Linear", "BatchNorm1d"]


@pytest.mark.parametrize(
    ("layer", "position"),
    [("first conv", 0), ("last conv", 1), ("last Linear", 2), ("first norm", 3), ("head.norm", 3)],
)
def test_a_layer_by_its_kind(layer: str, position: int) -> None:
    assert find_layer(layer, NAMES, KINDS) == position


def test_a_name_wins_over_a_kind() -> None:
    assert find_layer("last conv", ["last conv", "b"], ["Linear", "Conv2d"]) == 0


def test_a_kind_that_no_layer_has_says_the_kinds() -> None:
    with pytest.raises(
        LayerNotFoundError,
        match="'last pool': no layer's class name contains 'pool'; there are: BatchNorm1d, Conv2d",
    ):
        find_layer("last pool", NAMES, KINDS)
    with pytest.raises(LayerNotFoundError, match="'last conv' is not among the 4 layers; closest"):
        find_layer("last conv", NAMES)
