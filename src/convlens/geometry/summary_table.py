"""The summary of a model: a table with one row for each layer, and totals."""

from __future__ import annotations

import html
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, TextIO, cast

from torch import nn

from convlens.core.layers import find_layer
from convlens.core.terminal import encodable, printable
from convlens.core.wording import n_bytes
from convlens.execution import Given, read_inputs, shapes, trace, unwrapped
from convlens.execution.modules import has_children
from convlens.geometry.costs import CostCounter
from convlens.geometry.fields import ReceptiveFields, fields_of
from convlens.geometry.summary_columns import COLUMNS, DROPPED_FIRST, Column, choose
from convlens.geometry.summary_rows import Fold, Row, fold_rows, make_rows
from convlens.geometry.tracker import FieldTracker
from convlens.geometry.training_memory import Memory, measure_memory

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table

TOTALS = (
    *("trainable", "frozen", "parameters", "parameter_bytes"),
    *("multiplications", "activations", "kept", "kept_fixed"),
)


@dataclass(frozen=True)
class Summary:
    """The table of a model's layers; print it, show it in a notebook, or read its `rows`.

    Attributes:
        model: class name of the model.
        rows: children after their parent, siblings in the order in which they first ran; those
            that do not run are last.
        totals: sums of the columns ``trainable``, ``frozen``, ``parameters``,
            ``parameter_bytes``, ``multiplications``, ``activations``, ``kept``, ``kept_fixed``.
        inputs: the shape of each input; all numbers are for one image, (1, C, …).
        batch_size: images in a training step, for the estimate of its memory.
        memory: what training holds.
        notes: what the numbers leave out, and what marks mean.
        columns: the columns that are shown.
        fields: the receptive fields of all modules.
    """

    model: str
    rows: tuple[Row, ...]
    totals: dict[str, int] = field(hash=False)
    inputs: tuple[tuple[int, ...], ...]
    batch_size: int
    memory: Memory
    notes: tuple[str, ...]
    columns: tuple[Column, ...] = field(repr=False, compare=False)
    fields: ReceptiveFields = field(repr=False, compare=False)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(1, C, …): the shape of the first input."""
        return self.inputs[0]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, layer: str | int) -> Row:
        """A row by the layer's name, index or kind, such as ``"last conv"``.

        Raises:
            LayerNotFoundError: with the closest names.
        """
        kinds = ["" if row.parent and row.channels is None else row.kind for row in self.rows]
        return self.rows[find_layer(layer, [row.name for row in self.rows], kinds)]

    def __str__(self) -> str:
        return self._plain("utf-8")

    def _plain(self, encoding: str) -> str:
        """Aligned text in the characters of an encoding."""
        lines = [[encodable(cell, encoding) for cell in line] for line in self.lines()]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]

        def aligned(cells: Sequence[str]) -> str:
            placed = [
                cell.ljust(width) if column.left else cell.rjust(width)
                for cell, width, column in zip(cells, widths, self.columns, strict=True)
            ]
            return "  ".join(placed).rstrip()

        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        head, *body, totals = map(aligned, lines)
        text = "\n".join([self.title(), head, rule, *body, rule, totals, *self.notes])
        return encodable(text, encoding)

    __repr__ = __str__

    def print(self) -> None:
        """Print a table that fits the terminal; plain text to a pipe or a file."""
        output = cast("TextIO | None", sys.stdout)
        if output is None:  # closed
            return
        if not output.isatty():
            output.write(self._plain(output.encoding or "utf-8") + "\n")
            return
        from rich.console import Console

        Console().print(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        """A table for `rich.print`; columns that do not fit are left out and named."""
        from rich.markup import escape

        lines = [[encodable(cell, options.encoding) for cell in line] for line in self.lines()]
        shown, dropped = _fitting(self.columns, lines, options.max_width)
        yield self._rich_table(lines, shown, encodable(self.title(), options.encoding))
        notes = [note for note in self.notes if _subject(note) not in dropped]
        if dropped:
            notes.append(f"left out for want of width: {', '.join(dropped)}.")
        yield f"[dim]{escape(encodable(chr(10).join(notes), options.encoding))}[/dim]"

    def _rich_table(
        self, lines: Sequence[Sequence[str]], shown: Sequence[int], title: str
    ) -> Table:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=title,
            title_style="bold",
            title_justify="left",
            box=SIMPLE_HEAD,
            show_footer=True,
            padding=(0, 1, 0, 0),
        )
        columns = [self.columns[i] for i in shown]
        for i, column in zip(shown, columns, strict=True):
            justify = "left" if column.left else "right"
            table.add_column(lines[0][i], lines[-1][i], justify=justify, overflow="fold")
        for row, cells in zip(self.rows, lines[1:-1], strict=True):
            style = "bold" if row.parent or row.folded else ""
            warned = "" if row.compresses else "in/out"
            styles = ["bold yellow" if column.name == warned else style for column in columns]
            table.add_row(*(Text(cells[i], s) for i, s in zip(shown, styles, strict=True)))
        return table

    def _repr_html_(self) -> str:
        """An HTML table that scrolls sideways."""

        def line(cells: Sequence[str], tag: str) -> str:
            return "".join(
                f'<{tag} style="text-align:{"left" if column.left else "right"};'
                'white-space:pre;padding:.1em .5em">'
                f"{html.escape(cell)}</{tag}>"
                for cell, column in zip(cells, self.columns, strict=True)
            )

        head, *rows, totals = self.lines()
        body = "".join(f"<tr>{line(cells, 'td')}</tr>" for cells in rows)
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return (
            '<div style="overflow-x:auto"><table>'
            f"<caption>{html.escape(self.title())}</caption>"
            f"<thead><tr>{line(head, 'th')}</tr></thead><tbody>{body}</tbody>"
            f"<tfoot><tr>{line(totals, 'th')}</tr></tfoot></table></div>{notes}"
        )

    def to_markdown(self) -> str:
        """A table in Markdown with full layer names, and the notes."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        head, *rows, totals = self.lines()
        named = [
            (printable(row.name) or cells[0], *cells[1:])
            for row, cells in zip(self.rows, rows, strict=True)
        ]
        sides = [":---" if column.left else "---:" for column in self.columns]
        table = [head, sides, *named, totals]
        return "\n".join([*map(line, table), "", *(f"{note}  " for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON.

        Keys: ``model``, ``rows`` (keys as in `Row`), ``totals``, ``input_shape``, ``inputs``,
        ``memory`` (bytes; keys as in `Memory`, ``batch_size`` and ``peak``), ``notes``.
        """
        names = ("parameters", "gradients", "buffers", "input", "kept", "kept_fixed")
        memory = {name: getattr(self.memory, name) for name in names}
        peak = self.memory.peak(self.batch_size)
        return {
            "model": self.model,
            "rows": [row.to_dict() for row in self.rows],
            "totals": dict(self.totals),
            "input_shape": list(self.input_shape),
            "inputs": [list(shape) for shape in self.inputs],
            "memory": memory | {"batch_size": self.batch_size, "peak": peak},
            "notes": list(self.notes),
        }

    def title(self) -> str:
        """The heading: the model and its inputs."""
        n = self.input_shape[0]
        what = "one image" if n == 1 else f"{n} images"
        given = " and ".join(map(shapes.named, self.inputs))
        return f"{printable(self.model)}, {what}, {given}"

    def lines(self) -> list[tuple[str, ...]]:
        """The cells: headings, rows, totals."""
        head = tuple(column.name for column in self.columns)
        body = [tuple(printable(column.cell(row)) for column in self.columns) for row in self.rows]
        sums = [column.total_cell(self.totals) for column in self.columns[1:]]
        return [head, *body, ("total", *sums)]


def summary(
    model: nn.Module,
    input_shape: Given,
    *,
    depth: int | None = None,
    fold: Sequence[Fold] | Fold = (),
    columns: Sequence[str] | str | None = None,
    batch_size: int | None = None,
) -> Summary:
    """Shapes, parameters, multiplications, receptive field and memory of every layer.

    Computed on shapes; the model does not run on numbers, and stays as it is. Numbers are for one
    image in evaluation, but for the memory of training. Multiplications are those of convolutions
    and matrix products, half of what `torch.utils.flop_counter` counts: a convolution 8 → 16, 3×3,
    with output 7×7 has 8·16·3·3·7·7 = 56,448. Biases add none.

    >>> table = cl.summary(cl.simple_cnn(1, 10), (1, 1, 28, 28))
    >>> table.totals["parameters"], table["1.0"].multiplications
    (30282, 56448)

    Args:
        model: any module.
        input_shape: (N, C, H, W), or with one or three axes in place of H, W, or (N, F); or a
            tensor. For several inputs a sequence of shapes or tensors, or a mapping by the names
            of ``forward``'s arguments.
        depth: fold modules at this depth; 0 leaves one row.
        fold: modules to show as one row each: names, class names, or classes.
        columns: names of the columns to show; None shows the default ones that are not empty.
        batch_size: images in a training step, for its memory; None takes N.

    Raises:
        ArgumentError: if an argument is not as above, or the input does not fit the model: with the
            layer's name, the shape it got and the shape it expects.
    """
    inputs = read_inputs(input_shape)
    batch_size = inputs.n if batch_size is None else batch_size
    shapes.check_count("batch_size", batch_size, 1)
    costs, tracker = CostCounter(), FieldTracker()
    traced = trace(model, inputs, [costs, tracker])
    fields = fields_of(tracker, model, traced.notes)
    model = unwrapped(model)
    memory = measure_memory(model, inputs, traced.n)
    layers = None if memory.problem else {layer.name: layer for layer in memory.layers}
    every = make_rows(model, costs, fields, layers)
    used = inputs.shapes_for(traced.n)
    rows = tuple(fold_rows(every, sum(map(prod, used)), depth, fold))
    totals = {name: sum(getattr(row, name) or 0 for row in rows) for name in TOTALS}
    chosen = choose(columns, rows)
    every_note = [*traced.notes, *_notes(every, rows, costs), *_memory_notes(memory, batch_size)]
    hidden = {column.name for column in COLUMNS} - {column.name for column in chosen}
    notes = tuple(printable(note) for note in every_note if _subject(note) not in hidden)
    name = type(model).__name__
    return Summary(name, rows, totals, used, batch_size, memory, notes, chosen, fields)


def _notes(every: Sequence[Row], rows: Sequence[Row], costs: CostCounter) -> Iterator[str]:
    busy = {row.kind for row in every if row.multiplications}
    ran = [row.kind for row in every if row.calls and not row.parent]
    left_out = ["biases", *dict.fromkeys(kind for kind in ran if kind not in busy)]
    between: set[str] = set()
    for usage in costs.usage.values():
        if has_children(usage.module):
            between |= usage.uncounted
    if between:
        left_out.append(f"between layers {', '.join(sorted(between))}")
    yield (
        "multiplications: of convolutions and matrix products, for one image; left out: "
        f"{', '.join(left_out)}."
    )
    yield "ratio: numbers in the output to those of the row before, for the first of the image."
    yield "field, jump: receptive field and its step in input pixels, beyond the edges too."
    field_notes = [row.receptive_field_note for row in rows]
    unknown = list(dict.fromkeys(n[9:] for n in field_notes if n.startswith("unknown")))
    if unknown:
        yield f"field unknown: after {', '.join(unknown)}."
    meanings = {
        "all": "every unit sees the whole image",
        "varies": "it differs from place to place",
        "none": "the output does not depend on the image",
    }
    said = [f"{note}: {what}" for note, what in meanings.items() if note in field_notes]
    if said:
        yield f"field {'; '.join(said)}."
    if any(not row.compresses for row in rows):
        yield "in/out !: a position makes as many numbers as it reads, or more."
    if any(row.shared for row in rows):
        yield "parameters: those that several layers share are counted at the first."
    if any(row.frozen for row in rows):
        yield f"parameters: {sum(row.frozen for row in rows):,} are frozen."


def _subject(note: str) -> str:
    """The column that a note is about: its first word."""
    return note.replace(":", " ").replace(",", " ").split(maxsplit=1)[0]


def _memory_notes(memory: Memory, batch_size: int) -> Iterator[str]:
    peak = memory.peak(batch_size)
    if memory.kept is None or peak is None:
        why = f"the model cannot be followed in training ({memory.problem})"
        yield f"training: what it keeps is not known, as {why}."
        return
    yield "kept: what training keeps of one image for backward, at the layer that does so first."
    kept = batch_size * memory.kept + memory.kept_fixed
    fixed = f" ({n_bytes(memory.kept_fixed)} of it for any batch size)" if memory.kept_fixed else ""
    yield (
        f"training with a batch of {batch_size}: parameters {n_bytes(memory.parameters)}, "
        f"gradients {n_bytes(memory.gradients)}, momentum {n_bytes(memory.gradients)}, "
        f"activations kept {n_bytes(kept)}{fixed}; at its peak about {n_bytes(peak)}."
    )


def _fitting(
    columns: Sequence[Column], lines: Sequence[Sequence[str]], width: int
) -> tuple[list[int], list[str]]:
    """Indices of the columns that fit into a width, and names of those that do not."""
    widths = {
        column.name: 2 + max(len(line[i]) for line in lines) for i, column in enumerate(columns)
    }
    room = width - 2 - sum(widths.values())  # two for the edges
    dropped: list[str] = []
    for name in DROPPED_FIRST:
        if room < 0 and name in widths:
            dropped.append(name)
            room += widths[name]
    for name in reversed(dropped):  # a narrow one may fit after all
        if widths[name] <= room:
            dropped.remove(name)
            room -= widths[name]
    return [i for i, column in enumerate(columns) if column.name not in dropped], dropped
