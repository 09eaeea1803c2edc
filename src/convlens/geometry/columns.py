"""The columns of a summary: what each is called, and how a row's cell reads."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from convlens.errors import ArgumentError
from convlens.execution import shapes
from convlens.geometry.rows import Row

INDENT = "  "


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: its heading.
        cell: what it says of a row; empty for nothing.
        words: whether it is set to the left; numbers stand to the right.
        total: the key of its sum in `Summary.totals`, or empty.
        usual: whether the table shows it without being asked, if any cell says something.
    """

    name: str
    cell: Callable[[Row], str]
    words: bool = False
    total: str = ""
    usual: bool = True

    def total_cell(self, totals: dict[str, int]) -> str:
        """Its sum, as the last row shows it."""
        if self.total not in totals:
            return ""
        value = totals[self.total]
        return n_bytes(value) if self.total in {"kept", "parameter_bytes"} else f"{value:,}"


def n_bytes(count: int) -> str:
    """Bytes with three digits: 1.57 kB, 102 MB."""
    if count < 1000:
        return f"{count} B"
    size, unit = float(count), ""
    for unit in ("kB", "MB", "GB", "TB", "PB"):  # noqa: B007 — the unit that was reached
        size /= 1000
        if size < 999.5:
            break
    return f"{size:.{max(0, 3 - len(str(int(size))))}f} {unit}"


def _layer(row: Row) -> str:
    return INDENT * max(0, row.depth - 1) + (row.name.rpartition(".")[2] or "(model)")


def _kind(row: Row) -> str:
    return row.kind + (f" ({row.calls} runs)" if row.calls > 1 else "")


def _output(row: Row) -> str:
    if row.output_shape:
        return shapes.times(row.output_shape)
    if row.parent and not row.calls:
        return ""  # such as a ModuleList: its children run without it
    return "several" if row.calls else "not run"


def _count(name: str) -> Callable[[Row], str]:
    """A number; nothing for a module whose children have rows of their own, if it is 0."""

    def cell(row: Row) -> str:
        value: int | None = getattr(row, name)
        return "" if value is None or (row.parent and not value) else f"{value:,}"

    return cell


def _some(name: str) -> Callable[[Row], str]:
    """A number where there is one, nothing for 0."""

    def cell(row: Row) -> str:
        value: int = getattr(row, name)
        return f"{value:,}" if value else ""

    return cell


def _memory(name: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        value: int | None = getattr(row, name)
        return n_bytes(value) if value else ""

    return cell


def _parameters(row: Row) -> str:
    if row.parameters or not row.shared:
        return _count("parameters")(row)
    return "shared"


def _inputs_per_output(row: Row) -> str:
    ratio = row.inputs_per_output
    return "" if ratio is None else f"{ratio:.2f}{'' if row.compresses else '!'}"


def _field(row: Row) -> str:
    if row.receptive_field and None not in row.receptive_field:
        return sizes(row.receptive_field)
    return row.receptive_field_note.split(":")[0]


def sizes(values: object) -> str:
    """All sizes: 3×3."""
    return shapes.times(values) if isinstance(values, tuple) else str(values or "")


def same_sizes(values: object) -> str:
    """One number where all axes have the same, else all of them."""
    if isinstance(values, tuple) and values and len(set(values)) == 1:
        return "" if values[0] is None else str(values[0])
    if isinstance(values, tuple):
        return "×".join("?" if size is None else str(size) for size in values)
    return str(values or "")


def _beyond_one(values: object) -> str:
    text = same_sizes(values)
    return "" if text == "1" else text


COLUMNS = (
    Column("layer", _layer, words=True),
    Column("kind", _kind, words=True),
    Column("channels", lambda r: "→".join(map(str, r.channels or ())), words=True),
    Column("output", _output, words=True),
    Column("kernel", lambda r: sizes(r.kernel_size), words=True),
    Column("stride", lambda r: same_sizes(r.stride), words=True),
    Column("padding", lambda r: same_sizes(r.padding), words=True),
    Column("dilation", lambda r: _beyond_one(r.dilation), words=True),
    Column("groups", lambda r: _beyond_one(r.groups), words=True),
    Column("parameters", _parameters, total="parameters"),
    Column("trainable", _count("trainable"), total="trainable", usual=False),
    Column("frozen", _some("frozen"), total="frozen"),
    Column("shared", _some("shared"), usual=False),
    Column("multiplications", _count("multiplications"), total="multiplications"),
    Column("activations", _count("activations"), total="activations"),
    Column("ratio", lambda r: "" if r.ratio is None else f"{r.ratio:.2f}"),
    Column("in/out", _inputs_per_output),
    Column("field", _field),
    Column("jump", lambda r: same_sizes(r.jump) if any(r.jump) else ""),
    Column("memory", _memory("parameter_bytes"), total="parameter_bytes", usual=False),
    Column("kept", _memory("kept"), total="kept"),
)
"""All columns in their order; ``layer`` is always shown."""

DROPPED_FIRST = (
    *("ratio", "padding", "stride", "dilation", "groups", "channels", "in/out", "kernel"),
    *("activations", "jump", "kept", "frozen", "kind"),
)
"""What a narrow terminal does without, the first first."""


def choose(names: Sequence[str] | str | None, rows: Sequence[Row]) -> tuple[Column, ...]:
    """The columns with these names in this order; None: the usual ones that say something.

    Raises:
        ArgumentError: if there is no such column.
    """
    if names is None:
        return tuple(c for c in COLUMNS if c.usual and any(map(c.cell, rows)))
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
                f"columns has {name!r}, which is no column; {hint}there are: {', '.join(by_name)}."
            )
    return tuple(by_name[name] for name in asked)
