"""Receptive fields against known values, and against what NaN in the real network finds."""

from __future__ import annotations

import geometry_models as models
import numpy as np
import pytest
import torch
from geometry_models import Parallel, ResNet
from geometry_probe import assert_as_probed
from torch import Tensor, nn

from convlens.errors import ArgumentError, LayerNotFoundError
from convlens.geometry import receptive_field
from convlens.models import simple_cnn


def test_two_stride_2_convolutions_see_seven_pixels():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1))
    fields = receptive_field(model, (1, 1, 28, 28))
    assert fields["1"].size == (7, 7)
    assert fields["1"].jump == (4, 4)
    assert fields["1"].start == (-3, -3)
    assert fields["0"].size == (3, 3)


def test_simple_cnn():
    fields = receptive_field(simple_cnn(1, 10), (1, 1, 28, 28))
    sizes = [fields[f"{i}.0"].size[0] for i in range(5)]
    jumps = [fields[f"{i}.0"].jump[0] for i in range(5)]
    assert sizes == [5, 9, 17, 33, 65]
    assert jumps == [2, 4, 8, 16, 32]
    assert fields["5"].whole
    assert fields["5"].size == (65, 65)
    assert fields["5"].jump == (None, None)
    assert fields[""].output_shape == (1, 10)


def test_resnet18_sees_435_pixels():
    fields = receptive_field(ResNet(models.BasicBlock, (2, 2, 2, 2)), (1, 3, 224, 224))
    assert fields["layer4.1.conv2"].size == (435, 435)
    assert fields["layer4.1.conv2"].jump == (32, 32)
    assert fields["layer4"].size == (435, 435)
    assert fields["maxpool"].size == (11, 11)
    assert fields["fc"].whole


def test_pixels_that_no_window_reads_are_not_seen():
    """8 pixels, 3 wide, stride 2: nobody reads pixel 7, also not through the next layer."""
    model = nn.Sequential(nn.Conv1d(1, 1, 3, 2), nn.Conv1d(1, 1, 3, 1, 1))
    fields = assert_as_probed(model, (1, 1, 8))
    np.testing.assert_array_equal(fields["1"].last[0], [4, 6, 6])
    assert fields["1"].size == (7,)
    assert fields.rectangle("1", 2) == ((2, 6),)


NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "simple_cnn": (simple_cnn(1, 10, norm="batch"), (1, 1, 28, 28)),
    "resnet": (ResNet(models.BasicBlock, (1, 1), 4, 3), (1, 3, 33, 40)),
    "bottleneck": (ResNet(models.Bottleneck, (1, 2), 4, 3), (1, 3, 32, 27)),
    "branches": (
        nn.Sequential(
            nn.Conv2d(1, 4, 3, 2),
            Parallel(
                nn.Conv2d(4, 4, 1),
                nn.Conv2d(4, 4, 3, padding=2, dilation=2),
                nn.MaxPool2d(3, 1, 1),
                join="cat",
            ),
            nn.Conv2d(12, 6, 3, groups=3),
            nn.AvgPool2d(2),
        ),
        (1, 1, 26, 31),
    ),
    "by channel": (models.Shuffled(4), (1, 4, 12, 13)),
    "squeeze": (nn.Sequential(nn.Conv2d(1, 4, 3), models.Squeeze(4)), (1, 1, 9, 10)),
    "flatten linear": (
        nn.Sequential(nn.Conv2d(1, 2, 3, 2), nn.Flatten(), nn.Dropout(), nn.Linear(18, 4)),
        (1, 1, 7, 8),
    ),
    "unflatten": (
        nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.Flatten(2), nn.Unflatten(2, (3, 3)), nn.PReLU()),
        (1, 1, 7, 7),
    ),
    "transposed": (
        nn.Sequential(
            nn.Conv2d(1, 2, 3, 2),
            nn.ConvTranspose2d(2, 2, 3, 2, output_padding=1),
            nn.Conv2d(2, 2, 3, 1, 1),
            nn.ConvTranspose2d(2, 2, (1, 4), (2, 3), dilation=2),
        ),
        (1, 1, 9, 8),
    ),
    "padding": (
        nn.Sequential(
            nn.ZeroPad2d((2, 0, 1, 3)), nn.Conv2d(1, 2, 4, padding="same"), nn.ZeroPad2d(-1)
        ),
        (1, 1, 6, 7),
    ),
    "padded away": (
        nn.Sequential(nn.Conv2d(1, 2, 1, padding=2), nn.ReLU(), nn.Conv2d(2, 1, 2, 2)),
        (1, 1, 5, 4),
    ),
    "adaptive": (
        nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d((3, 4)), nn.AdaptiveMaxPool2d((2, 1))
        ),
        (1, 1, 13, 10),
    ),
    "norms": (
        nn.Sequential(
            nn.Conv2d(1, 4, 3, 2),
            nn.Hardswish(),
            Parallel(nn.Identity(), nn.Conv2d(4, 4, 1, padding=1), join="cat"),
            nn.GroupNorm(2, 8),
        ),
        (1, 1, 9, 11),
    ),
    "instance norm": (nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2)), (1, 1, 7, 6)),
    "batch statistics": (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)),
        (1, 1, 7, 6),
    ),
    "softmax": (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Softmax(3), nn.Softmax(1)), (1, 1, 6, 7)),
    "lp pool": (nn.Sequential(nn.Conv2d(1, 2, 3), nn.LPPool2d(2, 2)), (1, 1, 9, 8)),
    "split": (models.Split(), (1, 4, 9, 9)),
    "products": (models.Products(), (1, 2, 7, 7)),
    "tokens": (models.Tokens(mix=False), (1, 1, 8, 12)),
    "attention": (models.Tokens(mix=True), (1, 1, 8, 12)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", NETWORKS)
def test_fields_equal_what_nan_probing_finds(name: str):
    torch.manual_seed(0)
    assert_as_probed(*NETWORKS[name])


def test_alternating_fields_have_no_size_until_they_agree_again():
    model = nn.Sequential(nn.Conv1d(1, 1, 3, 2), nn.ConvTranspose1d(1, 1, 3, 2), nn.MaxPool1d(2))
    fields = receptive_field(model, (1, 1, 41))
    assert fields["0"].size == (3,)
    assert fields["1"].size == (None,)
    assert fields["1"].start == (None,)
    assert fields["2"].size == (5,)
    assert fields["2"].jump == (2,)


def test_batchnorm_is_local_also_in_training_mode():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    assert receptive_field(model, (1, 1, 9, 9))["1"].size == (3, 3)


@pytest.mark.parametrize("rate", [1, 2, 3])
def test_branches_that_move_at_different_speeds_have_no_size(rate: int):
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :, :6] + x[:, :, ::rate][:, :, :6]

    layer = receptive_field(Net(), (1, 1, 18))[""]
    assert layer.size == ((1,) if rate == 1 else (None,))
    np.testing.assert_array_equal(layer.first[0], np.arange(6))
    np.testing.assert_array_equal(layer.last[0], np.arange(6) * rate)


class Strange(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(1, 2, 3)
        self.strange = nn.Identity()
        self.after = nn.Conv2d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.strange(self.before(x).renorm(2, 0, 1.0)))


def test_an_operator_that_is_not_known_is_named_and_spreads():
    fields = receptive_field(Strange(), (1, 1, 9, 9))
    assert fields["before"].size == (3, 3)
    assert not fields["before"].unknown
    for name in ("strange", "after", ""):
        assert fields[name].unknown == "aten.renorm.default"
        assert fields[name].size == (None, None)
        assert fields[name].first == ()
    with pytest.raises(
        ArgumentError, match=r"has an unknown receptive field, because of aten\.renorm"
    ):
        fields.rectangle("after", 0, 0)


class Writes(nn.Module):
    """Writes into a part of a tensor, and reads the whole."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole = whole
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        if self.whole:
            y.copy_(self.conv(x))
            y.detach().add_(self.conv(self.conv(x)))  # the same memory, as a whole
        else:
            y[:, :, :2] = x[:, :, 1:3]
        return y.relu_()


def test_writing_into_a_part_or_the_whole_is_followed():
    layer = receptive_field(Writes(whole=False), (1, 1, 8))[""]
    np.testing.assert_array_equal(layer.first[0], [1, 2, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(layer.last[0], [1, 2, -1, -1, -1, -1, -1, -1])
    assert receptive_field(Writes(whole=True), (1, 1, 8))[""].size == (5,)


def test_attention_sees_all_rows_under_a_mask_that_hides_none():
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.ones(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, attn_mask=self.bias[None] * 2)

    assert receptive_field(Attends(), (1, 2, 6, 4))[""].whole


def test_sorting_an_axis_sees_all_of_it():
    class Sorts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sort(3).values

    layer = receptive_field(Sorts(), (1, 1, 3, 5))[""]
    assert (layer.first[1].min(), layer.last[1].max()) == (0, 4)


def _each_more(x: Tensor) -> Tensor:
    y = x.clone()
    torch._foreach_add_([y], 1.0)  # changes y, and returns nothing
    return y


def test_one_row_broadcast_to_several():
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.zeros(1, 1, 4, 1, dtype=x.dtype)

    layer = assert_as_probed(Net(), (1, 1, 1, 6))[""]
    assert layer.size == (1, 1)
    assert layer.jump == (None, 1)


F = nn.functional


@pytest.mark.parametrize(
    ("make", "operator"),
    [
        (lambda x: F.conv2d(x, x[:, :, :3, :3]), "aten.convolution.default"),
        (lambda x: F.layer_norm(x, (6,), x[0, 0, 0]), "aten.native_layer_norm.default"),
        (lambda x: F.group_norm(x, 1, x[0, 0, 0, :1]), "aten.native_group_norm.default"),
        (
            lambda x: F.batch_norm(x, x[0, 0, 0, :1], torch.ones(1)),
            "aten._native_batch_norm_legit_no_training.default",
        ),
        (lambda x: x.clone().fill_(1.0), "no dependence on the input"),
        (lambda x: x.clone().zero_(), "no dependence on the input"),
        (lambda x: x.clone().copy_(torch.ones_like(x)), "no dependence on the input"),
        (lambda x: torch.chunk(_each_more(x), 2, 3)[1], "aten._foreach_add_.Scalar"),
        (lambda x: x.view(torch.int32), "aten.view.dtype"),
        (lambda x: torch.add(x, x, out=torch.zeros(1, 1, 6, 6)), "aten.add.out"),
        (lambda x: x[:, :, :0], "aten.slice.Tensor"),
        (lambda x: x.bernoulli(), "aten.bernoulli.default"),
    ],
)
def test_what_is_not_followed_is_unknown(make, operator: str):
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return make(x)

    assert receptive_field(Net(), (1, 1, 6, 6))[""].unknown == operator


def test_outputs_that_do_not_depend_on_the_input_or_are_several():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.constant = Constant()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, self.constant(x)

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.rand_like(x)

    fields = receptive_field(Two(), (1, 1, 4, 4))
    assert fields["constant"].unknown == "no dependence on the input"
    assert fields[""].unknown == "an output of 2 tensors"


def test_channels_last_layouts_keep_their_axes():
    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(0, 2, 3, 1)

    fields = assert_as_probed(nn.Sequential(nn.Conv2d(1, 2, 3), Last()), (1, 1, 6, 8))
    assert fields["1"].grid == (4, 6, 2)
    assert fields["1"].size == (3, 3)
    assert fields.rectangle("1", 1, 2, 0) == ((1, 3), (2, 4))


def test_a_module_that_runs_twice_has_all_its_fields():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(1, 1, 3), relu, nn.Conv2d(1, 1, 3), relu)
    fields = receptive_field(model, (1, 1, 9, 9))
    assert [layer.size for layer in fields.calls["1"]] == [(3, 3), (5, 5)]
    assert fields["1"].size == (5, 5)
    assert list(fields) == ["0", "1", "2", ""]
    assert len(fields) == 4


def test_rectangles_are_within_the_input():
    fields = receptive_field(nn.Conv2d(1, 1, 3, 2, 1), (1, 1, 9, 11))
    assert fields.rectangle("", 0, 0) == ((0, 1), (0, 1))
    assert fields.rectangle("", 2, 3) == ((3, 5), (5, 7))
    assert fields.rectangle("", 4, 5) == ((7, 8), (9, 10))
    empty = receptive_field(nn.Conv2d(1, 1, 1, padding=1), (1, 1, 3, 3))
    assert empty.rectangle("", 0, 1) is None
    assert empty.rectangle("", 1, 1) == ((0, 0), (0, 0))
    with pytest.raises(ArgumentError, match=r"unit must be inside the 5×6 grid of .* got \(5, 0\)"):
        fields.rectangle("", 5, 0)
    with pytest.raises(ArgumentError, match="unit must be inside the 5×6 grid"):
        fields.rectangle("", 1)


def test_an_unknown_layer_gets_the_closest_names():
    fields = receptive_field(simple_cnn(1, 10), (1, 1, 28, 28))
    with pytest.raises(LayerNotFoundError, match=r"layer='0.00' .* closest: '0.0'"):
        fields["0.00"]
    assert "0.0" in fields
    assert "0.00" not in fields
