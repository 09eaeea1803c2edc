"""``convlens data``, ``convlens show`` and ``convlens cache``."""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path

from convlens.cli.data_options import add_data_options, load_data
from convlens.cli.options import Commands, add_command, whole_number
from convlens.cli.output import check_out, print_line
from convlens.errors import ArgumentError


def add_commands(commands: Commands) -> None:
    """Add the commands of this module to the parser."""
    command = add_command(commands, "data", describe)
    add_data_options(command.add_argument)
    command.add_argument("--json", action="store_true", help="print JSON")

    command = add_command(commands, "show", show)
    add_data_options(command.add_argument)
    command.add_argument("--out", type=Path, default=Path("batch.png"), metavar="FILE",
                         help="output file")  # fmt: skip
    command.add_argument("--images", type=whole_number(1, 10_000), default=32, help="how many")

    command = add_command(commands, "cache", cache)
    command.add_argument("--clear", action="store_true", help="remove what is in it")


def describe(arguments: argparse.Namespace) -> None:
    """Say what is in the data: classes, sizes, skipped files, duplicates, imbalance."""
    # The lines that reading prints are part of the description.
    with nullcontext() if arguments.json else redirect_stdout(StringIO()):
        dls = load_data(arguments, device="cpu", quiet=arguments.json)
    found = dls.describe()
    if arguments.json:
        print_line(json.dumps(found.to_dict()))
        return
    for line in str(found).split("\n"):
        print_line(line)


def show(arguments: argparse.Namespace) -> None:
    """Draw the first training images with their labels, as the network gets them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = sorted(FigureCanvasAgg(Figure()).get_supported_filetypes())
    if arguments.out.suffix[1:].lower() not in kinds:
        raise ArgumentError(f"--out must end in one of {', '.join(kinds)}, got {arguments.out}.")
    check_out(arguments.out)
    dls = load_data(arguments, device="cpu")
    ax = dls.show_batch(arguments.images)
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.savefig(arguments.out, dpi=150, bbox_inches="tight")
    print_line(f"{len(ax.images)} training images of {dls.name}: {arguments.out}")


def cache(arguments: argparse.Namespace) -> None:
    """List the decoded images that are kept on the disk, or remove them."""
    from datetime import datetime

    from convlens.core.wording import n_bytes
    from convlens.data.image_cache import cache_entries, cache_folder, clear_cache

    entries = clear_cache() if arguments.clear else cache_entries()
    for entry in entries:
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        print_line(f"{n_bytes(entry.n_bytes):>8}  used {used}  {entry.what}")
    total = n_bytes(sum(entry.n_bytes for entry in entries))
    done = "removed from" if arguments.clear else "in"
    print_line(f"{total} {done} {cache_folder()}")
