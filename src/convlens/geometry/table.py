"""The summary of a model: one row for each layer, and totals."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from convlens.geometry import shapes
from convlens.geometry.costs import CostCounter, Usage, inputs_per_output, own_parameters, window
from convlens.geometry.fields import FieldCollector, LayerField, ReceptiveFields
from convlens.geometry.tracing import trace
from convlens.geometry.tracker import FieldTracker

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table

COLUMNS = (
    "layer",
    "kind",
    "output",
    "kernel",
    "stride",
    "padding",
    "parameters",
    "multiplications",
    "activations",
    "in/out",
    "field",
    "jump",
)
"""Headings of the table. The first three and the windows are words, the rest are numbers."""

N_WORDS = 6
"""How many of the columns are set to the left."""

DROPPED_FIRST = ("padding", "stride", "in/out", "kernel", "activations", "jump")
"""What a narrow terminal does without, the first first."""


@dataclass(frozen=True)
class Row:
    """What the table says of one module, for one image.

    A module has a row if it runs and has no children, or owns parameters or multiplications
    itself. Numbers of a module that runs several times are those of all its runs together; its
    output and field are those of the last.

    Attributes:
        name: qualified name; empty for the model itself.
        kind: class name.
        calls: how often it ran; 0 for a module with parameters that did not run.
        output_shape: N, C, … with N = 1; empty if it ran not or its output is not one tensor.
        kernel_size: pixels of its kernel along each axis; None for a layer without one.
        stride: pixels that the kernel moves at a time, along each axis.
        padding: pixels added along each axis, or torch's word for it.
        dilation: distance between the kernel's pixels, along each axis.
        groups: groups of channels that do not mix.
        trainable: numbers of its parameters that the optimizer changes.
        frozen: numbers of its parameters that it does not.
        shared: numbers of its parameters that another row has counted already.
        multiplications: of its convolutions and matrix products.
        activations: numbers in its outputs; None for a module with children, which count theirs.
        inputs: numbers that one position of a convolution, or a linear layer, reads.
        outputs: numbers that it makes of them.
        receptive_field: its size along each axis, in pixels, the padding included; None
            along an axis where it differs from position to position.
        jump: pixels between the fields of neighbouring units, along each axis.
        receptive_field_note: "all" if every unit sees the whole image, "varies",
            "unknown: OPERATOR", or empty.
    """

    name: str
    kind: str
    calls: int
    output_shape: tuple[int, ...]
    kernel_size: tuple[int, ...] | None
    stride: tuple[int, ...] | None
    padding: tuple[int, ...] | str | None
    dilation: tuple[int, ...] | None
    groups: int | None
    trainable: int
    frozen: int
    shared: int
    multiplications: int
    activations: int | None
    inputs: int | None
    outputs: int | None
    receptive_field: tuple[int | None, ...]
    jump: tuple[int | None, ...]
    receptive_field_note: str

    @property
    def parameters(self) -> int:
        """Trainable and frozen numbers together."""
        return self.trainable + self.frozen

    @property
    def inputs_per_output(self) -> float | None:
        """Inputs for each output; at 1 or below the layer does not compress (statement 22)."""
        return self.inputs / self.outputs if self.inputs and self.outputs else None

    @property
    def compresses(self) -> bool:
        """False if a position makes as many numbers as it reads, or more."""
        return self.inputs_per_output is None or self.inputs_per_output > 1

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: the attributes by name, ``parameters`` and ``inputs_per_output``.

        Tuples are lists; what is None stays so.
        """
        plain = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
        }
        ratio = self.inputs_per_output
        return plain | {"parameters": self.parameters, "inputs_per_output": ratio}

    def cells(self) -> tuple[str, ...]:
        """The row as the table shows it."""
        ratio = self.inputs_per_output
        return (
            self.name or "(model)",
            self.kind + (f" ({self.calls} runs)" if self.calls > 1 else ""),
            shapes.times(self.output_shape) if self.output_shape else _no_shape(self.calls),
            _sizes(self.kernel_size),
            _same_sizes(self.stride),
            _same_sizes(self.padding),
            f"{self.parameters:,}" if self.parameters or not self.shared else "shared",
            f"{self.multiplications:,}",
            "" if self.activations is None else f"{self.activations:,}",
            "" if ratio is None else f"{ratio:.2f}{'' if self.compresses else '!'}",
            self._field_cell(),
            _same_sizes(self.jump) if any(self.jump) else "",
        )

    def _field_cell(self) -> str:
        if self.receptive_field and None not in self.receptive_field:
            return _sizes(self.receptive_field)
        return self.receptive_field_note.split(":")[0]


@dataclass(frozen=True)
class Summary:
    """The table of a model's layers; print it, show it in a notebook, or take its `rows`.

    Attributes:
        rows: in the order in which the modules run first; those that do not run are last.
        totals: sums of the columns ``trainable``, ``frozen``, ``parameters``,
            ``multiplications``, ``activations``.
        input_shape: (1, C, …), the one image that all numbers are for.
        notes: what is left out of the numbers, and what marks mean.
        fields: the receptive fields of all modules.
    """

    rows: tuple[Row, ...]
    totals: dict[str, int] = field(hash=False)
    input_shape: tuple[int, ...]
    notes: tuple[str, ...]
    fields: ReceptiveFields = field(repr=False, compare=False)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, layer: str | int) -> Row:
        """A row by the layer's name or by its place.

        Raises:
            LayerNotFoundError: with the closest names.
        """
        from convlens.errors import find_layer

        return self.rows[find_layer(layer, [row.name for row in self.rows])]

    def __str__(self) -> str:
        """Aligned plain text."""
        lines = [self.headings(), *(row.cells() for row in self.rows), self.total_cells()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]

        def aligned(cells: Sequence[str]) -> str:
            words = (c.ljust(w) for c, w in zip(cells[:N_WORDS], widths, strict=False))
            numbers = (c.rjust(w) for c, w in zip(cells[N_WORDS:], widths[N_WORDS:], strict=True))
            return "  ".join([*words, *numbers]).rstrip()

        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        head, *body, totals = map(aligned, lines)
        return "\n".join([self.title(), head, rule, *body, rule, totals, *self.notes])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """A table for `rich.print`; columns that do not fit are left out, and named below."""
        from rich.box import SIMPLE_HEAD
        from rich.markup import escape
        from rich.table import Table

        lines = [self.headings(), *(row.cells() for row in self.rows), self.total_cells()]
        shown, dropped = _fitting(lines, options.max_width)
        left_out = f"left out for want of width: {', '.join(dropped)}." if dropped else ""
        table = Table(
            title=self.title(),
            caption="\n".join(map(escape, [*self.notes, *filter(None, [left_out])])),
            box=SIMPLE_HEAD,
            show_footer=True,
            pad_edge=False,
            title_justify="left",
            caption_justify="left",
        )
        for i in shown:
            justify = "left" if i < N_WORDS else "right"
            table.add_column(lines[0][i], lines[-1][i], justify=justify, overflow="fold")
        for cells in lines[1:-1]:
            table.add_row(*(escape(cells[i]) for i in shown))
        yield table

    def _repr_html_(self) -> str:
        """An HTML table, without styles of its own but for the alignment."""

        def line(cells: Sequence[str], tag: str) -> str:
            sides = ("left" if i < N_WORDS else "right" for i in range(len(cells)))
            return "".join(
                f'<{tag} style="text-align:{side}">{html.escape(cell)}</{tag}>'
                for cell, side in zip(cells, sides, strict=True)
            )

        body = "".join(f"<tr>{line(row.cells(), 'td')}</tr>" for row in self.rows)
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return (
            f"<table><caption>{html.escape(self.title())}</caption>"
            f"<thead><tr>{line(self.headings(), 'th')}</tr></thead><tbody>{body}</tbody>"
            f"<tfoot><tr>{line(self.total_cells(), 'th')}</tr></tfoot></table>{notes}"
        )

    def to_markdown(self) -> str:
        """A table in Markdown, the notes under it."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        sides = [":---" if i < N_WORDS else "---:" for i in range(len(COLUMNS))]
        body = [row.cells() for row in self.rows]
        table = [self.headings(), sides, *body, self.total_cells()]
        return "\n".join([*map(line, table), "", *(f"{note}  " for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: ``rows`` (keys as in `Row`), ``totals``, ``input_shape``, ``notes``."""
        return {
            "rows": [row.to_dict() for row in self.rows],
            "totals": dict(self.totals),
            "input_shape": list(self.input_shape),
            "notes": list(self.notes),
        }

    def title(self) -> str:
        """What the numbers are for."""
        return f"One image, {shapes.named(self.input_shape)}"

    def headings(self) -> tuple[str, ...]:
        """The columns' names."""
        return COLUMNS

    def total_cells(self) -> tuple[str, ...]:
        """The last row."""
        sums = (f"{self.totals[name]:,}" for name in COLUMNS[N_WORDS : N_WORDS + 3])
        return ("total", *("" for _ in range(N_WORDS - 1)), *sums, "", "", "")


def summary(model: nn.Module, input_shape: Sequence[int] | Tensor) -> Summary:
    """Shapes, parameters, multiplications and receptive field of every layer, without running it.

    All numbers are for one image in evaluation. Multiplications are those of convolutions and
    matrix products, half of what `torch.utils.flop_counter` counts: the second convolution of the
    chapter's network, 8 → 16 channels, 3×3, output 7×7, has 8·16·3·3·7·7 = 56,448. Biases add none.

    Args:
        model: any module that takes one tensor. Its weights, buffers, modes, and the random state
            stay as they are.
        input_shape: (N, C, H, W), or with one or three axes in place of H, W, or (N, F); or a
            tensor of that shape. Of N images one is used.

    Raises:
        ArgumentError: if the shape is none; if it does not fit the model, with the layer's name,
            the shape it got and what its weight expects.
    """
    shape = (1, *shapes.check_input(input_shape)[1:])
    costs, collector = CostCounter(), FieldCollector(shape)
    trace(model, input_shape, [costs, FieldTracker(collector.seen)])
    fields = collector.result()
    rows = tuple(_rows(getattr(model, "_orig_mod", model), costs, fields))
    totals = {
        name: sum(getattr(row, name) or 0 for row in rows)
        for name in ("trainable", "frozen", "parameters", "multiplications", "activations")
    }
    return Summary(rows, totals, shape, tuple(_notes(rows, costs)), fields)


def _rows(model: nn.Module, costs: CostCounter, fields: ReceptiveFields) -> Iterator[Row]:
    met: set[int] = set()
    idle = [Usage(n, m) for n, m in model.named_modules() if n not in costs.usage]
    for usage in [*costs.usage.values(), *idle]:
        parent = any(True for _ in usage.module.children())
        owned = own_parameters(usage.module, met)
        owns = owned.trainable or owned.frozen or owned.shared or usage.multiplications
        if not owns and (parent or not usage.calls):
            continue
        inputs, outputs = inputs_per_output(usage.module) or (None, None)
        seen = fields.layers.get(usage.name)
        yield Row(
            name=usage.name,
            kind=type(usage.module).__name__,
            calls=usage.calls,
            output_shape=usage.output_shape,
            **window(usage.module)._asdict(),
            trainable=owned.trainable,
            frozen=owned.frozen,
            shared=owned.shared,
            multiplications=usage.multiplications,
            activations=None if parent else usage.activations,
            inputs=inputs,
            outputs=outputs,
            receptive_field=seen.size if seen else (),
            jump=seen.jump if seen else (),
            receptive_field_note=_field_note(seen),
        )


def _field_note(seen: LayerField | None) -> str:
    if seen is None or not seen.size:
        return ""
    if seen.unknown:
        return f"unknown: {seen.unknown}"
    if seen.whole:
        return "all"
    return "varies" if None in seen.size else ""


def _notes(rows: Sequence[Row], costs: CostCounter) -> Iterator[str]:
    idle = dict.fromkeys(r.kind for r in rows if r.calls and not r.multiplications)
    left_out = ["biases", *idle]
    between = {
        name
        for usage in costs.usage.values()
        if any(usage.module.children())
        for name in usage.uncounted
    }
    if between:
        left_out.append(f"between layers {', '.join(sorted(between))}")
    yield (
        "multiplications: of convolutions and matrix products, for one image; left out: "
        f"{', '.join(left_out)}."
    )
    yield "field, jump: receptive field and its step in input pixels, beyond the edges too."
    field_notes = [row.receptive_field_note for row in rows]
    unknown = list(dict.fromkeys(n[9:] for n in field_notes if n.startswith("unknown")))
    if unknown:
        yield f"field unknown: after {', '.join(unknown)}."
    if any(row.receptive_field_note and None in row.receptive_field for row in rows):
        yield "field all: every unit sees the whole image; varies: it differs from place to place."
    if any(not row.compresses for row in rows):
        yield "in/out !: a position makes as many numbers as it reads, or more."
    if any(row.shared for row in rows):
        yield "parameters: those that several layers share are counted at the first."
    if any(row.frozen for row in rows):
        yield f"parameters: {sum(row.frozen for row in rows):,} are frozen."


def _no_shape(calls: int) -> str:
    return "several" if calls else "not run"


def _sizes(sizes: object) -> str:
    return shapes.times(sizes) if isinstance(sizes, tuple) else str(sizes or "")


def _same_sizes(sizes: object) -> str:
    """One number where all axes have the same, else all of them."""
    if isinstance(sizes, tuple) and sizes and len(set(sizes)) == 1:
        return "" if sizes[0] is None else str(sizes[0])
    if isinstance(sizes, tuple):
        return "×".join("?" if size is None else str(size) for size in sizes)
    return str(sizes or "")


def _fitting(lines: Sequence[Sequence[str]], width: int) -> tuple[list[int], list[str]]:
    """Which columns fit into a width of so many characters, and the names of those that do not."""
    shown = {i: 3 + max(len(line[i]) for line in lines) for i in range(len(COLUMNS))}
    dropped: list[str] = []
    for name in DROPPED_FIRST:
        if sum(shown.values()) <= width:
            break
        del shown[COLUMNS.index(name)]
        dropped.append(name)
    return list(shown), dropped
