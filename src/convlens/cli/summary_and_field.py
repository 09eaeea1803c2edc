"""``convlens summary`` and ``convlens field``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from convlens.cli.options import (
    LARGEST_SIDE,
    Commands,
    Parser,
    add_command,
    image_shape,
    indices,
    whole_number,
    word_list,
)
from convlens.cli.output import check_out, print_line
from convlens.errors import ArgumentError

if TYPE_CHECKING:
    from torch import nn


def add_commands(commands: Commands) -> None:
    """Add the commands of this module to the parser."""
    command = add_command(commands, "summary", show_summary)
    _add_model(command)
    add = command.add_argument
    add("--columns", type=word_list, metavar="A,B",
        help="columns to show, such as kind,output,parameters")  # fmt: skip
    add("--depth", type=whole_number(0), help="show modules down to this depth")
    add("--fold", type=word_list, default=(), metavar="A,B",
        help="layers or kinds of layers to fold")  # fmt: skip
    add("--batch-size", type=whole_number(1), default=1,
        help="images in a batch, for the memory of training")  # fmt: skip
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print Markdown")

    command = add_command(commands, "field", show_field)
    _add_model(command)
    add = command.add_argument
    add("--layer", required=True, help="the layer's name, or its index among those that run")
    add(
        "--unit",
        required=True,
        type=indices,
        metavar="ROW,COLUMN",
        help="the unit's row and column on the layer's grid",
    )
    add("--image", required=True, type=Path,
        help="an image file, scaled to the input if that is given")  # fmt: skip
    add("--out", type=Path, default=Path("field.png"), metavar="FILE", help="output file")


def _add_model(command: Parser) -> None:
    add, side = command.add_argument, whole_number(1, LARGEST_SIDE)
    add("model", help="simple_cnn, resnet, small_vgg, torchvision:NAME, timm:NAME or "
        "file.py:object, which runs that Python file with all that it does")  # fmt: skip
    add("--input", type=image_shape, metavar="CxHxW",
        help="the image, such as 3x224x224, if not what the model is made for")  # fmt: skip
    add("--size", type=side, help="height and width of the image, instead of --input")
    add("--channels", type=side, help="channels of the image, instead of --input")
    add("--classes", type=whole_number(1), help="number of classes")
    add("--norm", choices=["batch", "none"], default="batch", help="normalization of simple_cnn")


def show_summary(arguments: argparse.Namespace) -> None:
    """Print shapes, parameters, multiplications, receptive field and memory of every layer."""
    from convlens.geometry import summary

    model, shape = _model(arguments)
    table = summary(
        model,
        (1, *shape),
        depth=arguments.depth,
        fold=arguments.fold,
        columns=arguments.columns,
        batch_size=arguments.batch_size,
    )
    if arguments.json:
        print_line(json.dumps(table.to_dict()))
    elif arguments.markdown:
        for line in table.to_markdown().split("\n"):
            print_line(line)
    else:
        table.print()


def show_field(arguments: argparse.Namespace) -> None:
    """Draw what one unit of a layer sees of an image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from convlens.data import load_image
    from convlens.geometry import show_field as draw

    model, shape = _model(arguments)
    if len(shape) != 3:
        raise ArgumentError(
            f"--input must be an image CxHxW, got {'x'.join(map(str, shape))}; for other inputs "
            "use convlens.receptive_field."
        )
    asked = arguments.input is not None or arguments.size is not None
    image = load_image(arguments.image, (shape[1], shape[2]) if asked else None)
    figure = Figure(figsize=(6, 6 * image.shape[1] / image.shape[2] + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    layer: str = arguments.layer
    is_index = layer.removeprefix("-").isdigit() and layer not in dict(model.named_modules())
    ax = draw(model, image, int(layer) if is_index else layer, arguments.unit, figure.subplots())
    kinds = sorted(figure.canvas.get_supported_filetypes())
    if arguments.out.suffix[1:].lower() not in kinds:
        raise ArgumentError(f"--out must end in one of {', '.join(kinds)}, got {arguments.out}.")
    check_out(arguments.out)
    figure.savefig(arguments.out, dpi=150)
    print_line(f"{' '.join(ax.get_title().split())}: {arguments.out}")


def _model(arguments: argparse.Namespace) -> tuple[nn.Module, tuple[int, ...]]:
    """The model that was named, and (C, H, W) of its input."""
    from convlens.models.by_name import find_model, input_shape

    size, channels = arguments.size, arguments.channels
    if arguments.input is not None and (size or channels) is not None:
        raise ArgumentError("--input says what --size and --channels say; give one or the other.")
    norm = None if arguments.norm == "none" else arguments.norm
    n_in = arguments.input[0] if arguments.input else channels
    model, made_for = find_model(arguments.model, n_in, arguments.classes, norm)
    if arguments.input is not None:
        return model, arguments.input
    return model, input_shape(arguments.model, made_for, size, channels)
