"""The columns of a summary: headings, and the text of each cell."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from convlens.core.wording import n_bytes
from convlens.errors import ArgumentError
from convlens.execution.shapes import times
from convlens.geometry.summary_rows import Row

INDENT = "  "


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: the heading.
        cell: the text for a row; may be empty.
        left: whether cells are aligned to the left; numbers are aligned to the right.
        total: key of the sum in `Summary.totals`, or empty.
        default: whether the column is shown, if any cell has a text, without being named.
    """

    name: str
    cell: Callable[[Row], str]
    left: bool = False
    total: str = ""
    default: bool = True

    def total_cell(self, totals: dict[str, int]) -> str:
        """The sum, for the last line."""
        if self.total not in totals:
            return ""
        value = totals[self.total]
        return n_bytes(value) if self.total in {"kept", "parameter_bytes"} else f"{value:,}"


def _layer(row: Row) -> str:
    return INDENT * max(0, row.depth - 1) + (row.name.rpartition(".")[2] or "(model)")


def _kind(row: Row) -> str:
    return row.kind + (f" ({row.calls} runs)" if row.calls > 1 else "")


def _output(row: Row) -> str:
    if row.output_shape:
        return times(row.output_shape)
    if row.parent and not row.calls:
        return ""  # such as a ModuleList: only its children run
    return "several" if row.calls else "not run"


def _count(name: str) -> Callable[[Row], str]:
    """A number; no 0 for a module whose children have rows."""

    def cell(row: Row) -> str:
        value: int | None = getattr(row, name)
        return "" if value is None or (row.parent and not value) else f"{value:,}"

    return cell


def _positive(name: str, write: Callable[[int], str] = "{:,}".format) -> Callable[[Row], str]:
    """A number above 0."""
    return lambda row: write(getattr(row, name)) if getattr(row, name) else ""


def _parameters(row: Row) -> str:
    if row.parameters or not row.shared:
        return _count("parameters")(row)
    return "shared"


def _inputs_per_output(row: Row) -> str:
    ratio = row.inputs_per_output
    return "" if ratio is None else f"{ratio:.2f}{'' if row.compresses else '!'}"


def _field(row: Row) -> str:
    if row.receptive_field and None not in row.receptive_field:
        return times(row.receptive_field)
    return row.receptive_field_note.split(":")[0]


def _sizes(name: str, usual: int | None = None) -> Callable[[Row], str]:
    """One number if all axes have the same; nothing if it is the usual one."""

    def cell(row: Row) -> str:
        value: object = getattr(row, name)
        if not isinstance(value, tuple):
            return "" if value in {None, usual} else str(value)
        distinct = set(value)
        if distinct <= {None} or distinct == {usual}:
            return ""
        each = ["?" if size is None else str(size) for size in value]
        return each[0] if len(distinct) == 1 else "×".join(each)

    return cell


COLUMNS = (
    Column("layer", _layer, left=True),
    Column("kind", _kind, left=True),
    Column("channels", lambda row: "→".join(map(str, row.channels or ())), left=True),
    Column("output", _output, left=True),
    Column("kernel", lambda row: times(row.kernel_size or ()), left=True),
    Column("stride", _sizes("stride"), left=True),
    Column("padding", _sizes("padding"), left=True),
    Column("dilation", _sizes("dilation", usual=1), left=True),
    Column("groups", _sizes("groups", usual=1), left=True),
    Column("parameters", _parameters, total="parameters"),
    Column("trainable", _count("trainable"), total="trainable", default=False),
    Column("frozen", _positive("frozen"), total="frozen"),
    Column("shared", _positive("shared"), default=False),
    Column("multiplications", _count("multiplications"), total="multiplications"),
    Column("activations", _count("activations"), total="activations"),
    Column("ratio", lambda row: "" if row.ratio is None else f"{row.ratio:.2f}"),
    Column("in/out", _inputs_per_output),
    Column("field", _field),
    Column("jump", _sizes("jump", usual=0)),
    Column("memory", _positive("parameter_bytes", n_bytes), total="parameter_bytes", default=False),
    Column("kept", _positive("kept", n_bytes), total="kept"),
)
"""All columns in their order; ``layer`` is always shown."""

DROPPED_FIRST = (
    *("ratio", "padding", "stride", "dilation", "groups", "channels", "in/out", "kernel"),
    *("activations", "jump", "kept", "frozen", "kind"),
)
"""The columns that a narrow terminal leaves out, the first first."""


def choose(names: Sequence[str] | str | None, rows: Sequence[Row]) -> tuple[Column, ...]:
    """The columns with these names in this order; None: the default ones with any text.

    Raises:
        ArgumentError: if there is no such column.
    """
    if names is None:
        return tuple(c for c in COLUMNS if c.default and any(map(c.cell, rows)))
    by_name = {column.name: column for column in COLUMNS}
    if not isinstance(names, str | Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(
            f"columns={names!r} must be a name or several; there are: {', '.join(by_name)}."
        )
    asked = dict.fromkeys(["layer", *([names] if isinstance(names, str) else names)])
    for name in asked:
        if name not in by_name:
            close = difflib.get_close_matches(name, by_name, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ArgumentError(
                f"columns has the unknown name {name!r}; {hint}there are: {', '.join(by_name)}."
            )
    return tuple(by_name[name] for name in asked)
