"""Models of several inputs, of several images, and of layers that are not torch's plain ones."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import convlens as cl


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, a: Tensor, b: Tensor, *, scale: float = 1.0) -> Tensor:
        return (self.conv(a) - self.conv(b)).abs().mean((1, 2, 3)) * scale


SHAPES: dict[str, Any] = {
    "two shapes": [(1, 3, 64, 64), (1, 3, 64, 64)],
    "two tensors": (torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)),
    "a batch of them": [(8, 3, 64, 64), (8, 3, 64, 64)],
    "by name": {"a": (1, 3, 64, 64), "b": torch.rand(1, 3, 64, 64), "scale": 2.0},
}


@pytest.mark.parametrize("name", SHAPES)
def test_several_inputs(name: str) -> None:
    table = cl.summary(Siamese(), SHAPES[name])
    assert table.totals["multiplications"] == 2 * 3 * 4 * 9 * 62 * 62
    assert table.inputs == ((1, 3, 64, 64), (1, 3, 64, 64))
    assert table["conv"].calls == 2
    assert "and (N, C, H, W) = (1, 3, 64, 64)" in table.title()
    assert table.to_dict()["inputs"] == [[1, 3, 64, 64]] * 2
    assert table.memory.input == 4 * 2 * 3 * 64 * 64
    fields = cl.receptive_field(Siamese(), SHAPES[name])
    assert [run.unknown for run in fields.calls["conv"]] == ["", "no dependence on the input"]
    assert fields[""].whole


def test_one_input_where_two_are_taken_says_how_to_give_them() -> None:
    with pytest.raises(cl.ArgumentError, match="missing 1 required positional argument: 'b'") as no:
        cl.summary(Siamese(), (1, 3, 8, 8))
    assert "give several inputs as a sequence, or by name as a mapping" in str(no.value)
    assert len(str(no.value)) < 400


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "input_shape=() has 0 axes"),
        (
            {},
            "a tensor or a tuple such as (N, C, H, W) = (1, 3, 224, 224), got {}",
        ),
        ([None, True], "has N = None"),
        ([(1, 3, 0, 8), (1, 3, 8, 8)], "has H = 0"),
        (["a", "b"], "has N = 'a'"),
    ],
)
def test_what_holds_no_shape_is_refused(given: Any, words: str) -> None:
    with pytest.raises(cl.ArgumentError, match="input_shape") as caught:
        cl.summary(Siamese(), given)
    assert words in str(caught.value)


class Shift(nn.Module):
    """Eight frames at a time: the batch means something."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.view(len(y) // 8, 8, *y.shape[1:]).mean(1)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Shift(), (8, 3, 16, 16)),
        (nn.Sequential(nn.Linear(10, 10), nn.BatchNorm1d(10, track_running_stats=False)), (4, 10)),
        (
            nn.Sequential(nn.Conv2d(3, 8, 8), nn.BatchNorm2d(8, track_running_stats=False)),
            (4, 3, 8, 8),
        ),
    ],
    ids=["frames", "1-D", "2-D"],
)
def test_a_model_that_takes_no_single_image_gets_all_that_were_given(
    model: nn.Module, shape: tuple[int, ...]
) -> None:
    table = cl.summary(model, shape)
    assert table.notes[0] == (
        f"numbers are for all {shape[0]} given: the model does not take one image alone."
    )
    assert table.input_shape == shape
    layer = next(module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(shape))
    assert table.totals["multiplications"] == counter.get_total_flops() // 2
    assert table.totals["parameters"] == sum(p.numel() for p in model.parameters())
    assert table.memory.kept is not None
    assert table.memory.peak(shape[0]) == table.memory.peak(1)
    if isinstance(layer, nn.Conv2d):
        assert cl.receptive_field(model, shape).notes == table.notes[:1]


def test_the_shape_is_blamed_only_if_it_is_wrong() -> None:
    with pytest.raises(cl.ArgumentError, match=r"got \(N, C, H, W\) = \(1, 1, 16, 16\), but its"):
        cl.summary(Shift(), (8, 1, 16, 16))


class Codebook(nn.Module):
    """A constant table, indexed by what the input says."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1)
        self.table, self.how = nn.Embedding(8, 4), how

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x).permute(0, 2, 3, 1)
        nearest = (z.unsqueeze(-2) - self.table.weight).square().sum(-1).argmin(-1)
        if self.how == "index":
            found = self.table.weight[nearest]
        elif self.how == "embedding":
            found = self.table(nearest)
        else:
            found = self.table.weight.index_select(0, nearest.flatten()).view(*nearest.shape, 4)
        return self.decoder(found.permute(0, 3, 1, 2))


@pytest.mark.parametrize("how", ["index", "embedding", "index_select"])
def test_a_constant_table_at_places_that_the_input_says(how: str) -> None:
    table = cl.summary(Codebook(how), (1, 3, 8, 8))
    assert table.totals["multiplications"] == 3 * 4 * 9 * 64 + 4 * 3 * 64
    field = cl.receptive_field(Codebook(how), (1, 3, 8, 8))["decoder"]
    if how == "index_select":  # of which the places are not followed: said, and no error
        assert field.unknown
    else:
        assert field.size == (3, 3)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recurrent_layers_count_what_they_multiply(
    kind: type[nn.RNNBase], dtype: torch.dtype
) -> None:
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    model, x = kind(30, 64, batch_first=True, dtype=dtype), torch.rand(16, 10, 30, dtype=dtype)
    table = cl.summary(model, x)
    assert table.totals["multiplications"] == 10 * gates * 64 * (30 + 64)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(x)
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), x]}
    real = sum(n_bytes for memory, n_bytes in kept.items() if memory not in own)
    assert 16 * table.totals["kept"] + table.totals["kept_fixed"] == pytest.approx(real, rel=0.01)
    del output


@pytest.mark.parametrize("wrap", [spectral_norm, weight_norm])
def test_a_parametrized_layer_is_one_layer(wrap: Any) -> None:
    model = nn.Sequential(wrap(nn.Conv2d(3, 8, 3, bias=False)), nn.ReLU(), nn.Conv2d(8, 2, 1))
    table = cl.summary(model, (1, 3, 10, 10))
    assert [row.name for row in table] == ["0", "1", "2"]
    assert table.totals["activations"] == 8 * 64 + 8 * 64 + 2 * 64
    assert table["0"].parameters == sum(p.numel() for p in model[0].parameters())
    assert not table["0"].parent


@pytest.fixture
def quantized() -> tuple[nn.Module, nn.Module]:
    """Two linear layers with weights of 8 bits, by calls and before training."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantization by torch.ao is on its way out
        plain = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        dynamic = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8)
        static = nn.Sequential(
            torch.ao.quantization.QuantStub(), nn.Conv2d(3, 8, 3), nn.ReLU(),
            torch.ao.quantization.DeQuantStub(),
        ).eval()  # fmt: skip
        static.qconfig = torch.ao.quantization.get_default_qconfig("x86")
        torch.ao.quantization.prepare(static, inplace=True)
        static(torch.rand(4, 3, 8, 8))
        torch.ao.quantization.convert(static, inplace=True)
    return dynamic, static


@pytest.mark.filterwarnings("ignore:torch.ao", "ignore:.*quantize", "ignore:.*TypedStorage")
def test_quantized_layers_are_counted(quantized: tuple[nn.Module, nn.Module]) -> None:
    dynamic, static = quantized
    for _ in range(2):  # torch's cache of fake results cannot compare their weights
        table = cl.summary(dynamic, (1, 8))
        assert [row.name for row in table] == ["0", "1", "2"]
        assert table["0"].kind == "DynamicQuantizedLinear"
        assert (table.totals["parameters"], table.totals["multiplications"]) == (212, 192)
    table = cl.summary(static, (1, 3, 8, 8))
    assert table["1"].multiplications == 3 * 8 * 9 * 36
    assert table["1"].parameters == 3 * 8 * 9 + 8
    assert "run on an image of zeros" in table.notes[0]


def test_a_deformable_convolution_multiplies() -> None:
    from torchvision.ops import DeformConv2d

    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset, self.conv = nn.Conv2d(3, 18, 3), DeformConv2d(3, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x, self.offset(x))

    table = cl.summary(Deformed(), (1, 3, 10, 10))
    assert table["conv"].multiplications == 3 * 5 * 9 * 64
    assert table["offset"].multiplications == 3 * 18 * 9 * 64


def test_data_parallel_shows_the_module_inside() -> None:
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    table = cl.summary(nn.DataParallel(inner), (1, 3, 8, 8))
    assert str(table) == str(cl.summary(inner, (1, 3, 8, 8)))
    assert cl.receptive_field(nn.DataParallel(inner), (1, 3, 8, 8))["0"].size == (3, 3)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript_is_counted_as_a_whole() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5))
    scripted = torch.jit.script(plain)
    for model in (scripted, nn.Sequential(scripted)):
        table = cl.summary(model, (1, 3, 8, 8))
        assert table.totals["multiplications"] == 3 * 4 * 9 * 36
        assert table.totals["parameters"] == 3 * 4 * 9 + 4
        assert all(module.training for module in model.modules())
    assert cl.receptive_field(scripted, (1, 3, 8, 8))[""].size == (3, 3)


def test_a_batch_that_does_not_fit_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """The memory estimate takes 127 images at a time; torch logged a traceback where it failed."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).view(4, -1)[:, :36].expand(4, 36)

    table = cl.summary(nn.Sequential(One(), nn.Linear(36, 2)), (1, 3, 8, 8))
    assert table.totals["multiplications"] == 3 * 4 * 9 * 36 + 4 * 36 * 2
    assert capfd.readouterr() == ("", "")


def test_a_field_that_is_none_or_unknown_is_said_plainly() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.ones_like(self.conv(x)).mean((2, 3)))

    table = cl.summary(Constant(), (1, 3, 8, 8))
    assert table["head"].receptive_field_note == "none"
    assert "field none: the output does not depend on the image." in table.notes
    assert not any("varies" in note or "unknown" in note for note in table.notes)
