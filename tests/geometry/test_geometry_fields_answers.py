"""What can be asked of receptive fields, and what models cannot be followed as they are."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest
import torch
from geometry_probe import assert_as_probed
from torch import Tensor, nn

from convlens.errors import ArgumentError, LayerNotFoundError
from convlens.geometry import receptive_field
from convlens.models import simple_cnn

ASKED: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "line": (nn.Sequential(nn.Conv1d(1, 1, 3, 2, 1), nn.MaxPool1d(2)), (1, 1, 15)),
    "image": (nn.Sequential(nn.Conv2d(1, 2, (3, 2), (2, 1), 1), nn.AvgPool2d(2, 1)), (1, 1, 9, 7)),
    "volume": (nn.Sequential(nn.Conv3d(1, 1, 2, 2, 1)), (1, 1, 4, 5, 3)),
    "by place": (nn.Sequential(nn.Conv2d(1, 1, 1, padding=2), nn.Conv2d(1, 1, 2)), (1, 1, 4, 5)),
    "tokens": (nn.Sequential(nn.Conv2d(1, 3, 2, 2), nn.Flatten(2)), (1, 1, 6, 4)),
}


@pytest.mark.parametrize("name", ASKED)
def test_units_seeing_is_the_reverse_of_rectangle(name: str):
    model, shape = ASKED[name]
    fields = receptive_field(model, shape)
    pixels = list(product(*map(range, shape[2:])))
    for layer in fields:
        grid = fields[layer].grid
        seeing = {pixel: fields.units_seeing(layer, *pixel) for pixel in pixels}
        assert all(units.shape == grid and units.dtype == bool for units in seeing.values())
        for unit in product(*map(range, grid)):
            sides = fields.rectangle(layer, *unit)
            mine = {pixel for pixel in pixels if seeing[pixel][unit]}
            inside = product(*(range(a, b + 1) for a, b in sides)) if sides else ()
            assert mine == set(inside), (layer, unit)


def test_units_seeing_of_a_strided_convolution():
    fields = receptive_field(nn.Conv2d(1, 1, 3, 2, 1), (1, 1, 9, 11))
    assert np.argwhere(fields.units_seeing("", 3, 4)).tolist() == [[1, 2], [2, 2]]
    with pytest.raises(ArgumentError, match=r"pixel must be inside the 9×11 input, got \(9, 0\)"):
        fields.units_seeing("", 9, 0)
    with pytest.raises(ArgumentError, match=r"inside the 9×11 input, got \(1,\)"):
        fields.units_seeing("", 1)
    assert repr(fields) == "ReceptiveFields(1 layers, input (N, C, H, W) = (1, 1, 9, 11))"
    assert repr(fields[""]) == "LayerField('', output 1×1×5×6, size 3×3, jump 2×2)"
    with pytest.raises(LayerNotFoundError, match=r"closest: ''"):
        fields.units_seeing("conv", 0, 0)


class Pyramid(nn.Module):
    """Several outputs, in a dictionary and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3, 2, 1)
        self.deep = nn.Conv2d(2, 2, 3, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor | list[Tensor]]:
        one = self.stem(x)
        two = self.deep(one)
        return {"maps": [one, two], "mean": two.mean((2, 3))}


def test_each_tensor_of_an_output_has_a_name():
    fields = receptive_field(Pyramid(), (1, 1, 16, 16))
    assert fields["['maps'][0]"].size == (3, 3)
    assert fields["['maps'][1]"].size == (7, 7)
    assert fields["['mean']"].whole
    assert fields[""].unknown == "an output of 3 tensors"
    with pytest.raises(ArgumentError, match=r"ask for one of its tensors, such as \"\['maps'\]\[0"):
        fields.rectangle("", 0, 0)


def test_tensors_between_modules_have_the_names_of_operators():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.max_pool2d(x + self.conv(x), 2) + 1

    model = nn.Sequential(Block())
    fields = receptive_field(model, (1, 1, 8, 8), operators=True)
    assert fields["0.conv:convolution"].size == (3, 3)
    assert [layer.size for layer in fields.calls["0:add"]] == [(3, 3), (4, 4)]
    assert fields["0:max_pool2d_with_indices"].jump == (2, 2)
    assert "0:add" not in receptive_field(model, (1, 1, 8, 8))


class Picky(nn.Module):
    """Goes one way or another by the values it gets, and counts how often it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(1)
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        y = nn.functional.dropout(self.norm(self.conv(x)), training=True)
        return (
            self.conv(self.conv(y))
            if y.sum() > 1000
            else self.conv(y).relu_()[..., y.isnan().sum() :]
        )


def test_a_model_that_decides_by_values_is_run_on_zeros():
    model = nn.Sequential(nn.Conv2d(1, 1, 3, 2, 1, bias=False), Picky())
    model[1].norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    fields = receptive_field(model, (4, 1, 16, 20))
    assert torch.equal(torch.get_rng_state(), state)
    assert modes == [module.training for module in model.modules()]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert [hook for module in model.modules() for hook in module._forward_hooks] == []
    assert fields.notes == (
        "run on an image of zeros, since layer '1' (Picky) decides by values "
        "(aten._local_scalar_dense.default): other images may go another way.",
    )
    assert fields["1"].output_shape == (1, 1, 8, 10)
    assert fields["1"].size == (11, 11)
    assert fields["1"].jump == (2, 2)
    assert len(fields.calls["1.conv"]) == 2
    assert receptive_field(model[0], (1, 1, 8, 8)).notes == ()


def test_the_way_on_zeros_is_followed_exactly():
    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, padding=1)
            self.norm = nn.GroupNorm(2, 4)
            self.end = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            if bool((y > 1e6).any()):
                y = y.flip(2)
            y = torch.cat([y[:, :2].roll(1, 3), self.norm(y)[:, 2:]], 1)
            return self.end(y[:, :, torch.tensor([3, 0, 1])])

    fields = assert_as_probed(Chooses(), (1, 1, 6, 7))
    assert "decides by values" in fields.notes[0]


def test_a_model_that_needs_numbers_is_run_on_zeros():
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flip(2)[:, :, : 3 + int(x.numpy().max())]

    layer = receptive_field(Counts(), (1, 1, 5, 4))
    assert layer.notes[0].startswith("run on an image of zeros, since the Counts needs values (")
    np.testing.assert_array_equal(layer[""].first[0], [4, 3, 2])


def test_a_model_that_fails_on_zeros_says_where():
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrong = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.wrong(x) if x.sum() == 0 else x

    words = "layer 'wrong' (Linear) got (N, …, …, F) = (1, 1, 4, 4), but its weight (F_out, F_in)"
    with pytest.raises(ArgumentError, match=re.escape(words)):
        receptive_field(Late(), (1, 1, 4, 4))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 28, 28), "has no batch axis; give (N, C, H, W), for one image (1, …)"),
        ((1, 8), "has no axes along which a unit could see a part"),
        ((1, 3, 28, 28), "layer '0.0' (Conv2d) got (N, C, H, W) = (1, 3, 28, 28), but its weight"),
    ],
)
def test_shapes_that_cannot_be_get_a_sentence(shape: object, words: str):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        receptive_field(simple_cnn(1, 10), shape)


def test_constants_that_an_index_needs_come_from_buffers_and_leave_them_alone():
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("rows", torch.tensor([4, 2, 0]))
            self.bias = nn.Parameter(torch.arange(9.0))

        def forward(self, x: Tensor) -> Tensor:
            rows = self.rows.clone()
            rows[1:] += 1  # written in place, by a view
            rows = torch.cat([rows, self.bias.argmax()[None]])
            return x[:, :, rows]

    model = Lookup()
    layer = assert_as_probed(model, (1, 1, 9, 3))[""]
    np.testing.assert_array_equal(layer.first[0], [4, 3, 1, 8])
    assert model.rows.tolist() == [4, 2, 0]


def test_an_index_whose_values_are_random_or_missing_is_unknown():
    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :, torch.randperm(4)]

    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("rows", torch.tensor([1, 0], device="meta"))

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :, self.rows]

    class ByValue(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.gather(3, x.argsort(3))

    for model in (Random(), Buffered(), ByValue()):
        unknown = receptive_field(model, (1, 1, 4, 4))[""].unknown
        assert unknown in ("aten.index.Tensor", "aten.gather.default")
