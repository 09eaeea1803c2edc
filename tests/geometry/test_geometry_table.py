"""The summary: its numbers, its forms, and that it leaves the model alone."""

from __future__ import annotations

import json
import re
import sys
from functools import cache
from io import StringIO

import geometry_models as models
import golden_tables
import pytest
import torch
from geometry_models import ResNet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convlens.errors import ArgumentError, LayerNotFoundError
from convlens.geometry import Summary, summary
from convlens.models import simple_cnn


def check_sums(table: Summary, model: nn.Module) -> None:
    for column, total in table.totals.items():
        assert total == sum(row.to_dict()[column] or 0 for row in table), column
    assert table.totals["parameters"] == sum(p.numel() for p in model.parameters())
    n_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    assert table.totals["parameter_bytes"] == table.memory.parameters == n_bytes
    assert table.totals["kept"] == table.memory.kept
    assert table.totals["kept_fixed"] == table.memory.kept_fixed


def check_multiplications(table: Summary, model: nn.Module, image: Tensor) -> None:
    """Half of what `torch.utils.flop_counter` counts, in all and module by module.

    On "meta", where attention is not fused: of CPU's fused attention torch counts nothing.
    """
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    assert table.totals["multiplications"] == counter.get_total_flops() // 2
    root, counts = type(model).__name__, counter.get_flop_counts()
    for row in table:
        if not row.calls:  # a ModuleList: its children run without it, and it is not counted
            continue
        inner = [r for r in table if not row.name or r.name.startswith(f"{row.name}.")]
        mine = row.multiplications + sum(r.multiplications for r in inner if r is not row)
        key = f"{root}.{row.name}".rstrip(".")
        assert mine == sum(counts.get(key, {}).values()) // 2, row.name


@pytest.fixture(scope="module")
def tables():
    """Each golden model's table, made once."""
    return cache(golden_tables.table)


@pytest.mark.parametrize("name", golden_tables.MODELS)
def test_golden_tables(tables, name: str):
    """Wanted changes: `python tests/geometry/golden_tables.py` writes the tables anew."""
    assert f"{tables(name)}\n" == (golden_tables.GOLDEN / f"{name}.txt").read_text("utf-8")


@pytest.mark.parametrize("name", golden_tables.MODELS)
def test_golden_totals_and_torchs_own_counts(tables, name: str):
    table, model = tables(name), golden_tables.build(name).eval()
    check_sums(table, model)
    check_multiplications(table, model, torch.empty(table.input_shape, device="meta"))


def test_the_chapters_second_convolution():
    row = summary(simple_cnn(1, 10), (1, 1, 28, 28))["1.0"]
    assert (row.parameters, row.multiplications) == (1168, 56_448)
    assert row.output_shape == (1, 16, 7, 7)
    assert (row.inputs, row.outputs, row.inputs_per_output) == (72, 16, 4.5)
    assert row.receptive_field == (9, 9)
    assert (row.channels, row.activations, row.ratio) == ((8, 16), 784, 0.5)


MODELS = {
    "simple_cnn": (lambda: simple_cnn(1, 10, norm="batch"), (1, 1, 28, 28)),
    "resnet": (lambda: ResNet(models.BasicBlock, (2, 1), 8, 5), (1, 3, 40, 32)),
    "bottleneck": (lambda: ResNet(models.Bottleneck, (1, 2), 8, 5), (1, 3, 32, 32)),
    "attention": (lambda: models.Tokens(mix=True), (1, 1, 8, 12)),
    "by channel": (lambda: nn.Sequential(models.Shuffled(4)), (1, 4, 9, 9)),
    "transposed": (lambda: nn.ConvTranspose1d(4, 6, 3, 2, groups=2), (1, 4, 9)),
    "transformer": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 16)),
        (1, 5, 6),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_totals_and_multiplications_layer_by_layer(name: str):
    make, shape = MODELS[name]
    model = make().eval()
    table = summary(model, shape)
    check_sums(table, model)
    check_multiplications(table, model.to("meta"), torch.empty(shape, device="meta"))


def test_frozen_shared_and_idle_parameters():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = nn.Linear(4, 4)
            self.b.weight = self.a.weight
            self.b.bias.requires_grad_(False)
            self.idle = nn.Linear(2, 3)
            self.nothing = nn.Identity()
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(self.a(x))) * self.scale

    model = Net()
    table = summary(model, (1, 4))
    assert [row.name for row in table] == ["", "a", "b", "idle"]
    assert (table["a"].trainable, table["a"].calls, table["a"].multiplications) == (20, 2, 32)
    assert (table["b"].trainable, table["b"].frozen, table["b"].shared) == (0, 4, 16)
    assert (table["idle"].parameters, table["idle"].calls) == (9, 0)
    assert table[""].parameters == 4
    assert table.totals["parameters"] == sum(p.numel() for p in model.parameters()) == 37
    text = str(table)
    assert "Linear (2 runs)" in text
    assert "not run" in text
    assert "parameters: 4 are frozen." in text
    assert "those that several layers share are counted at the first" in text
    assert "between layers mul." in text
    assert table["a"].receptive_field == ()
    with pytest.raises(LayerNotFoundError, match="'idl'"):
        table["idl"]


def test_windows_are_said_for_each_axis():
    model = nn.Sequential(
        nn.Conv2d(2, 6, (3, 5), (1, 2), padding=(0, 1), dilation=2, groups=2),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 3, padding="same"),
        nn.AdaptiveAvgPool2d(1),
    )
    table = summary(model, (1, 2, 30, 30))
    row = table["0"].to_dict()
    assert row["kernel_size"] == [3, 5]
    assert (row["stride"], row["padding"], row["dilation"]) == ([1, 2], [0, 1], [2, 2])
    assert (row["groups"], row["inputs"], row["outputs"]) == (2, 15, 3)
    assert table["1"].stride == (2, 2)
    assert table["2"].padding == "same"
    assert table["3"].kernel_size is None
    lines = str(table).splitlines()
    assert re.search(r"2→6 +1×6×26×12 +3×5 +1×2 +0×1 +2 +2", lines[3])
    assert re.search(r"3×3 +1 +same", lines[5])
    assert "dilation" not in str(summary(simple_cnn(1, 10), (1, 1, 28, 28)))


def test_a_layer_that_does_not_compress_is_marked():
    table = summary(nn.Conv2d(1, 9, 3), (1, 1, 8, 8))
    assert not table[""].compresses
    assert "1.00!" in str(table)
    assert "in/out !: a position makes as many numbers as it reads, or more." in str(table)
    assert "in/out !" not in str(summary(simple_cnn(1, 10), (1, 1, 28, 28)))


def test_unknown_operators_are_named_under_the_table():
    class Renorm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.renorm(2, 0, 1.0)

    table = summary(nn.Sequential(Renorm(), nn.Conv2d(1, 2, 3)), (1, 1, 8, 8))
    assert table["1"].receptive_field_note == "unknown: aten.renorm.default"
    assert table["1"].receptive_field == (None, None)
    assert "field unknown: after aten.renorm.default." in str(table)
    assert re.search(r"^1 +Conv2d.* unknown( |$)", str(table), re.MULTILINE)


def test_it_is_plain_json():
    table = summary(simple_cnn(1, 10), (1, 1, 28, 28))
    plain = json.loads(json.dumps(table.to_dict()))
    assert plain == table.to_dict()
    assert list(plain) == ["model", "rows", "totals", "input_shape", "inputs", "memory", "notes"]
    assert plain["input_shape"] == [1, 1, 28, 28]
    assert plain["totals"]["multiplications"] == 248_864
    assert plain["memory"]["parameters"] == 4 * 30_282
    assert [row["depth"] for row in plain["rows"][:4]] == [1, 2, 2, 1]
    first = plain["rows"][1]
    assert first["ratio"] == 2.0
    assert first["output_shape"] == [1, 8, 14, 14]
    assert first["receptive_field"] == [5, 5]
    assert first["inputs_per_output"] == 25 / 8
    assert plain["rows"][2]["kernel_size"] is None


def test_rich_html_and_markdown_show_the_same_cells():
    from rich.console import Console

    table = summary(simple_cnn(1, 10), (1, 1, 28, 28))
    out = StringIO()
    Console(file=out, width=200).print(table)
    page, markdown = table._repr_html_(), table.to_markdown()
    for row, cells in zip(table, table.lines()[1:-1], strict=True):
        assert f"| {row.name} | {cells[1]} |" in markdown  # there, layers have their whole names
        assert cells[0].strip() == row.name.rpartition(".")[2]
        for cell in filter(None, cells):
            assert cell in out.getvalue()
            assert f">{cell}</td>" in page
            assert f"| {cell} |" in markdown or cell == cells[0]
    for text in (out.getvalue(), page, markdown):
        assert "248,864" in text
        assert "left out: biases, ReLU, Flatten." in text
    assert page.count("<tr>") == len(table) + 2
    assert len({line.count("|") for line in markdown.splitlines() if line.startswith("|")}) == 1


@pytest.mark.parametrize("width", [80, 120])
def test_a_narrow_terminal_leaves_columns_out_and_says_so(width):
    from rich.console import Console

    table = summary(simple_cnn(1, 10, norm="batch"), (1, 1, 28, 28))
    out = StringIO()
    Console(file=out, width=width).print(table)
    text = out.getvalue()
    assert "multiplications" in text
    assert all(f"{row.multiplications:,} " in text for row in table)
    assert max(len(line) for line in text.splitlines()) <= width
    assert re.search("left out for want of width: .*padding, stride", text)
    assert ("ratio: " in text) == (" ratio " in text)  # what is not there needs no explanation


def test_numbers_are_for_one_image_whatever_the_batch():
    one = summary(simple_cnn(1, 10), (1, 1, 28, 28))
    many = summary(simple_cnn(1, 10), torch.zeros(64, 1, 28, 28))
    assert (many.rows, many.totals) == (one.rows, one.totals)
    assert many.memory == one.memory
    assert many.input_shape == (1, 1, 28, 28)
    assert (one.batch_size, many.batch_size) == (1, 64)
    assert summary(simple_cnn(1, 10), (1, 1, 28, 28), batch_size=64).to_dict() == many.to_dict()


def test_integer_tensors_can_be_the_input():
    table = summary(nn.Sequential(nn.Embedding(5, 3), nn.Flatten()), torch.zeros(2, 4).long())
    assert table["1"].output_shape == (1, 12)


def test_inside_inference_mode_and_for_other_types():
    with torch.inference_mode():
        table = summary(simple_cnn(1, 10).double(), (1, 1, 28, 28))
    assert table.totals["multiplications"] == 248_864


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((28,), r"input_shape=\(28,\) has 1 axes; give 2 to 5"),
        ((1, 1, 1, 1, 1, 1), "has 6 axes"),
        ((1, 1, 0, 28), r"input_shape=\(1, 1, 0, 28\) has H = 0; every size must be a whole"),
        ((1, -3, 28, 28), "has C = -3"),
        ((1, 1, 28.0, 28), r"has H = 28\.0"),
        ((True, 1, 28, 28), "has N = True"),
        (28, "input_shape must be a tensor or a tuple such as .* got 28"),
        ("1x28x28", "input_shape must be a tensor or a tuple .* got '1x28x28'"),
        (torch.zeros(0, 1, 28, 28), "has N = 0"),
        (
            (1, 28, 28),
            r"leaves layer '0\.0' \(Conv2d\) with \(1, 28, 28\), which has no batch axis; "
            r"give \(N, C, H, W\)",
        ),
    ],
)
def test_bad_shapes_get_a_sentence(shape: object, words: str):
    with pytest.raises(ArgumentError, match=words):
        summary(simple_cnn(1, 10), shape)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        (
            simple_cnn(1, 10),
            (1, 3, 28, 28),
            "layer '0.0' (Conv2d) got (N, C, H, W) = (1, 3, 28, 28), but its weight (C_out, C_in / "
            "groups, kH, kW) = (8, 1, 5, 5) expects (N, C, H, W) with C = 1.",
        ),
        (
            nn.Sequential(nn.Conv2d(4, 8, 3, groups=2)),
            (1, 2, 8, 8),
            "= (8, 2, 3, 3) and groups = 2 expects (N, C, H, W) with C = 4.",
        ),
        (
            nn.Sequential(nn.ConvTranspose1d(4, 8, 3)),
            (1, 2, 8),
            "its weight (C_in, C_out / groups, kL) = (4, 8, 3) expects (N, C, L) with C = 4.",
        ),
        (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 4)),
            (1, 1, 5, 5),
            "layer '2' (Linear) got (N, F) = (1, 18), but its weight (F_out, F_in) = (4, 8) "
            "expects F = 8.",
        ),
        (
            nn.Sequential(nn.BatchNorm2d(3)),
            (1, 2, 4, 4),
            "layer '0' (BatchNorm2d) got (N, C, H, W) = (1, 2, 4, 4), but its weight has one "
            "number for each of C = 3 channels.",
        ),
        (
            nn.Sequential(nn.Conv2d(1, 2, 5)),
            (1, 1, 4, 4),
            "layer '0' (Conv2d) got (N, C, H, W) = (1, 1, 4, 4) and raised: ",
        ),
        (
            nn.Sequential(nn.ConvTranspose2d(1, 2, 1, padding=1)),
            (1, 1, 2, 2),
            "layer '0' (ConvTranspose2d) got (N, C, H, W) = (1, 1, 2, 2) and raised: ",
        ),
        (nn.Bilinear(2, 2, 2), (1, 2), "the Bilinear got (N, F) = (1, 2) and raised: "),
    ],
)
def test_a_model_that_does_not_fit_gets_a_sentence(
    model: nn.Module, shape: tuple[int, ...], words: str
):
    with pytest.raises(ArgumentError, match=re.escape(words)) as caught:
        summary(model, shape)
    assert str(caught.value).startswith("input_shape does not fit the model: ")


@pytest.mark.parametrize("way", [lambda x: x if x.sum() > 0 else -x, lambda x: x[x > 0]])
def test_ways_that_depend_on_values_are_said_to(way):
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return way(x)

    table = summary(nn.Sequential(nn.Conv2d(1, 2, 3), Picky()), (1, 1, 6, 6))
    assert re.match(
        r"run on an image of zeros, since layer '1' \(Picky\) decides by values", table.notes[0]
    )
    assert table["0"].multiplications == 2 * 9 * 16
    assert table["0"].calls == 1
    with pytest.raises(ArgumentError, match=r"'1' \(Picky\) decides by values .* meta device"):
        summary(nn.Sequential(nn.Conv2d(1, 2, 3), Picky()).to("meta"), (1, 1, 6, 6))


def test_lazy_parameters_are_refused():
    with pytest.raises(ArgumentError, match=r"without a shape yet \('0.weight' is the first\)"):
        summary(nn.Sequential(nn.LazyConv2d(2, 3)), (1, 1, 8, 8))


def test_a_model_may_catch_what_its_layers_raise():
    class Tries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrong = nn.Linear(3, 3)
            self.right = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.wrong(x)
            except RuntimeError:
                return self.right(x)

    table = summary(nn.Sequential(Tries(), nn.Linear(2, 1)), (1, 4))
    assert table["0.right"].multiplications == 8
    assert table["1"].multiplications == 2


def test_compiled_models_show_the_model_that_was_compiled():
    table = summary(torch.compile(simple_cnn(1, 10)), (1, 1, 28, 28))
    assert (table.model, table[0].name, table["0.0"].kind) == ("Sequential", "0", "Conv2d")


def test_rows_are_nested_as_the_modules_are():
    table = golden_tables.table("unet")
    names = [row.name for row in table]
    assert names[:4] == ["down", "down.0", "down.0.0", "down.0.1"]
    assert names.index("up.0") < names.index("join.0")
    assert [row.name for row in table if row.depth == 1] == [
        "down", "pool", "bottom", "up", "join", "head",
    ]  # fmt: skip
    for i, row in enumerate(table):
        below = [r for r in table if r.name.startswith(f"{row.name}.")]
        assert [r.name for r in table][i + 1 : i + 1 + len(below)] == [r.name for r in below]
        assert row.parent == bool(below)
    assert (table["down"].calls, table["down"].output_shape) == (0, ())
    assert "not run" not in str(table)


FOLDS = (
    {"depth": 0},
    {"depth": 1},
    {"depth": 2},
    {"fold": "BasicBlock"},
    {"fold": models.BasicBlock},
    {"fold": ["layer1", nn.BatchNorm2d]},
)


@pytest.mark.parametrize("arguments", FOLDS)
def test_folding_keeps_the_totals(arguments: dict):
    model = ResNet(models.BasicBlock, (2, 1), 8, 5)
    whole = summary(model, (1, 3, 40, 32))
    folded = summary(model, (1, 3, 40, 32), **arguments)
    assert folded.totals == whole.totals
    check_sums(folded, model)
    assert len(folded) < len(whole)


def test_a_folded_row_speaks_for_all_inside():
    model = ResNet(models.BasicBlock, (2, 1), 8, 5)
    whole = summary(model, (1, 3, 40, 32))
    (only,) = summary(model, (1, 3, 40, 32), depth=0)
    assert (only.name, only.kind, only.parameters) == ("", "ResNet", whole.totals["parameters"])
    one = summary(model, (1, 3, 40, 32), depth=1)
    assert [row.name for row in one] == [
        "conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "avgpool", "fc",
    ]  # fmt: skip
    inside = [row for row in whole if row.name.startswith("layer2")]
    assert one["layer2"].multiplications == sum(row.multiplications for row in inside)
    assert one["layer2"].activations == sum(row.activations or 0 for row in inside)
    assert one["layer2"].receptive_field == whole["layer2"].receptive_field
    assert (one["layer2"].folded, one["fc"].folded) == (True, False)
    blocks = [row.name for row in summary(model, (1, 3, 40, 32), fold="BasicBlock")]
    assert "layer1.0" in blocks
    assert "layer1.0.conv1" not in blocks


def test_columns_are_chosen_by_name():
    table = summary(simple_cnn(1, 10), (1, 1, 28, 28), columns=["kept", "shared", "memory"])
    head, first, conv = table.lines()[:3]
    assert head == ("layer", "kept", "shared", "memory")
    assert (first, conv) == (("0", "", "", ""), ("  0", "", "", "832 B"))
    assert table.lines()[-1] == ("total", "12.5 kB", "", "121 kB")
    kinds = summary(simple_cnn(1, 10), (1, 1, 28, 28), columns="kind")
    assert kinds.lines()[0] == ("layer", "kind")
    assert "ratio:" not in str(table)
    assert "kept: what training keeps" in str(table)
    assert "kept: what training keeps" not in str(kinds)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"columns": ["kind", "paramters"]},
            r"columns has the unknown name 'paramters'; did you mean 'parameters'\? there are: "
            "layer, kind, channels, output, kernel,",
        ),
        ({"columns": "xyzzy"}, "columns has the unknown name 'xyzzy'; there are: layer"),
        (
            {"fold": "Conv2D"},
            "fold='Conv2D' is neither a layer nor a kind of layer of this model; closest: 'Conv2d'",
        ),
        ({"fold": [nn.LSTM]}, "fold='LSTM' is neither a layer nor"),
        ({"depth": -1}, r"depth must be a whole number from 0 \(one row .* got -1"),
        ({"depth": True}, "depth must be .* got True"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.0}, r"batch_size must be .*, got 2\.0"),
    ],
)
def test_arguments_that_cannot_work_get_a_sentence(arguments: dict, words: str):
    with pytest.raises(ArgumentError, match=words):
        summary(simple_cnn(1, 10), (1, 1, 28, 28), **arguments)


def test_print_chooses_by_where_it_goes(capsys, monkeypatch):
    table = summary(simple_cnn(1, 10), (1, 1, 28, 28))
    table.print()
    assert capsys.readouterr().out == f"{table}\n"
    assert repr(table) == str(table)
    assert repr(table["1.0"]).startswith("Row('1.0', Conv2d, output 1×16×7×7, 1,168 parameters, ")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    table.print()
    assert "left out for want of width" in capsys.readouterr().out
