"""The table of a model's layers: plain numbers, and the four ways in which it is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

Number = int | float


@dataclass(frozen=True)
class Row:
    """One call of one layer. Where a thing does not apply or is not known, it is None.

    Attributes:
        name: the module's qualified name; ``""`` is the model itself.
        kind: the module's class name.
        call: 0 for the module's first call, 1 for its second, …
        executed: False for a module with parameters that was never called.
        output_shape: (N, C, H, W) or what it is, of the first tensor it returns.
        in_channels: channels of the input, or numbers for a linear layer.
        out_channels: channels of the output, or numbers for a linear layer.
        kernel_size: pixels along each axis.
        stride: pixels along each axis.
        padding: pixels along each axis, or ``"same"`` or ``"valid"``.
        dilation: pixels between neighbours of the kernel, along each axis.
        groups: groups of channels of a convolution.
        parameters: trainable and frozen together; what an earlier row counted is not counted again.
        trainable: parameters with ``requires_grad``.
        frozen: parameters without.
        multiplications: per image, of convolutions and matrix products.
        activations: numbers in the output, per image.
        inputs_per_output: numbers that a convolution reads at one position for each that it writes
            there: C_in · kH · kW / C_out. At most 1: it compresses nothing.
        receptive_field: input positions seen, along each axis of the input, unclipped by its edge;
            None for an axis where it differs from position to position.
        jump: input positions between the fields of neighbours, along each axis; 0 where all see
            the same.
        receptive_field_unknown: the operator that is not understood, where one came before.
    """

    name: str
    kind: str
    call: int
    executed: bool
    output_shape: list[int] | None
    in_channels: int | None
    out_channels: int | None
    kernel_size: list[int] | None
    stride: list[int] | None
    padding: list[int] | str | None
    dilation: list[int] | None
    groups: int | None
    parameters: int
    trainable: int
    frozen: int
    multiplications: Number
    activations: Number
    inputs_per_output: float | None
    receptive_field: list[int | None] | None
    jump: list[int | None] | None
    receptive_field_unknown: str | None

    @property
    def label(self) -> str:
        """The name as it is printed."""
        return (self.name or "(model)") + (f" (call {self.call + 1})" if self.call else "")


@dataclass(frozen=True)
class Totals:
    """Sums of the rows' columns of the same names."""

    parameters: int
    trainable: int
    frozen: int
    multiplications: Number
    activations: Number


@dataclass(frozen=True)
class Summary:
    """What is true of a model before training; ``print`` it, or show it in a notebook.

    Attributes:
        model: the model's class name.
        input_shape: (N, C, *spatial).
        rows: one per call of a layer, in the order of execution.
        totals: the columns' sums.
        notes: what the numbers leave out, in sentences.
    """

    model: str
    input_shape: tuple[int, ...]
    rows: tuple[Row, ...]
    totals: Totals
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: ``model``, ``input_shape``, ``rows``, ``totals``, ``notes``.

        The keys of a row are the attributes of `Row`, those of the totals the ones of `Totals`.
        """
        return {
            "model": self.model,
            "input_shape": list(self.input_shape),
            "rows": [asdict(row) for row in self.rows],
            "totals": asdict(self.totals),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [self._headings(), *self._body(), self._sums()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
        rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
        text = [_aligned(line, widths) for line in lines]
        body = [text[0], rule, *text[1:-1], rule, text[-1]]
        return "\n".join([self._title(), "", *body, "", *self.notes])

    def to_markdown(self) -> str:
        """A table in GitHub's Markdown, the notes under it."""
        marks = ["--:" if right else ":--" for _, right, _ in COLUMNS]
        lines = [self._headings(), marks, *self._body(), self._sums()]
        table = ["| " + " | ".join(_escape_pipes(cell) for cell in line) + " |" for line in lines]
        return "\n".join([self._title(), "", *table, "", *(f"- {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        def cells(line: Sequence[str], tag: str) -> str:
            sides = ["right" if right else "left" for _, right, _ in COLUMNS]
            pairs = zip(line, sides, strict=True)
            return "".join(
                f'<{tag} style="text-align:{side}">{escape(text)}</{tag}>' for text, side in pairs
            )

        body = "".join(f"<tr>{cells(line, 'td')}</tr>" for line in self._body())
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return (
            f"<table><caption>{escape(self._title())}</caption>"
            f"<thead><tr>{cells(self._headings(), 'th')}</tr></thead><tbody>{body}</tbody>"
            f"<tfoot><tr>{cells(self._sums(), 'th')}</tr></tfoot></table><ul>{notes}</ul>"
        )

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self._title()), title_justify="left", show_footer=True)
        for (heading, right, _), total in zip(COLUMNS, self._sums(), strict=True):
            justify = "right" if right else "left"
            table.add_column(Text(heading), footer=Text(total), justify=justify)
        for line in self._body():
            table.add_row(*(Text(cell) for cell in line))
        return Group(table, *(Text(note) for note in self.notes))

    def _title(self) -> str:
        return f"{self.model}, input {shape_text(self.input_shape)}"

    def _headings(self) -> list[str]:
        return [heading for heading, _, _ in COLUMNS]

    def _body(self) -> list[list[str]]:
        return [[show(row) for _, _, show in COLUMNS] for row in self.rows]

    def _sums(self) -> list[str]:
        sums = {
            "layer": "total",
            "parameters": count_text(self.totals.parameters),
            "multiplications": count_text(self.totals.multiplications),
            "activations": count_text(self.totals.activations),
        }
        return [sums.get(heading, "") for heading in self._headings()]


def shape_text(shape: Sequence[int]) -> str:
    """``1×8×14×14``."""
    return "×".join(str(size) for size in shape) or "one number"


def count_text(value: Number) -> str:
    """``56,448``; one decimal for what is no whole number."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    cells = zip(line, widths, COLUMNS, strict=True)
    placed = [c.rjust(width) if right else c.ljust(width) for c, width, (_, right, _) in cells]
    return "  ".join(placed).rstrip()


def _escape_pipes(text: str) -> str:
    return text.replace("|", "\\|")


def _sizes(values: Sequence[int] | str | None) -> str:
    if values is None or isinstance(values, str):
        return values or ""
    return str(values[0]) if len(set(values)) == 1 else shape_text(values)


def _kernel(row: Row) -> str:
    if row.kernel_size is None:
        return ""
    extra = [f"dilation {_sizes(row.dilation)}"] if set(row.dilation or [1]) != {1} else []
    extra += [f"groups {row.groups}"] if (row.groups or 1) > 1 else []
    return ", ".join([shape_text(row.kernel_size), *extra])


def _field(row: Row, values: list[int | None] | None) -> str:
    if row.receptive_field_unknown is not None:
        return "unknown"
    if not values:
        return ""
    return "×".join("varies" if value is None else str(value) for value in values)


def _ratio(row: Row) -> str:
    if row.inputs_per_output is None:
        return ""
    text = (
        f"{row.inputs_per_output:.3g}"
        if row.inputs_per_output < 100
        else (f"{row.inputs_per_output:,.0f}")
    )
    return f"{text} *" if row.inputs_per_output <= 1 else text


def _count_if_any(value: Number) -> str:
    return count_text(value) if value else ""


COLUMNS: tuple[tuple[str, bool, Callable[[Row], str]], ...] = (
    ("layer", False, lambda row: row.label),
    ("kind", False, lambda row: row.kind),
    ("output", False, lambda row: "" if row.output_shape is None else shape_text(row.output_shape)),
    ("kernel", False, _kernel),
    ("stride", True, lambda row: _sizes(row.stride)),
    ("padding", True, lambda row: _sizes(row.padding)),
    ("parameters", True, lambda row: _count_if_any(row.parameters)),
    ("multiplications", True, lambda row: _count_if_any(row.multiplications)),
    ("activations", True, lambda row: _count_if_any(row.activations)),
    ("inputs/output", True, _ratio),
    ("field", True, lambda row: _field(row, row.receptive_field)),
    ("jump", True, lambda row: _field(row, row.jump)),
)
