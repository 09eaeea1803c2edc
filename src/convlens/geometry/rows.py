"""The rows of a summary: one for each module, nested as the modules are, or folded together."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import Tensor, nn

from convlens.errors import ArgumentError
from convlens.execution.modules import has_children, named_layers
from convlens.geometry.costs import (
    CostCounter,
    Usage,
    channels,
    count_parameters,
    inputs_per_output,
    window,
)
from convlens.geometry.fields import INDEPENDENT, LayerField, ReceptiveFields
from convlens.geometry.training_memory import LayerMemory

Fold = str | type[nn.Module]
"""A layer's name, the name of its class, or the class."""


@dataclass(frozen=True)
class Row:
    """What the table says of one module, for one image.

    Numbers of a module that runs several times are those of all its runs together; its output and
    field are those of the last. Numbers of a module with children are its own alone, unless it is
    folded: then they are those of everything inside it. So each column's sum is its total.

    Attributes:
        name: qualified name; empty for the model itself.
        kind: class name.
        depth: how many modules it lies in; 0 for the model itself.
        parent: whether the rows of its children follow.
        folded: whether it stands for its children too.
        calls: how often it ran; 0 for a module with parameters that did not run.
        channels: of its input and output, for a layer with a weight.
        output_shape: N, C, … with N = 1; empty if it ran not or its output is not one tensor.
        kernel_size: pixels of its kernel along each axis; None for a layer without one.
        stride: pixels that the kernel moves at a time, along each axis.
        padding: pixels added along each axis, or torch's word for it.
        dilation: distance between the kernel's pixels, along each axis.
        groups: groups of channels that do not mix.
        trainable: numbers of its parameters that the optimizer changes.
        frozen: numbers of its parameters that it does not.
        shared: numbers of its parameters that another row has counted already.
        parameter_bytes: memory of its trainable and frozen parameters.
        multiplications: of its convolutions and matrix products.
        activations: numbers in its outputs; None for a module with children, which count theirs.
        outputs_before: numbers in the output of the row before, or in the input.
        kept: bytes that training keeps for its backward pass, and that no row before keeps;
            None where it could not be found.
        kept_fixed: the same, for what does not grow with the batch.
        inputs: numbers that one position of a convolution, or a linear layer, reads.
        outputs: numbers that it makes of them.
        receptive_field: its size along each axis, in pixels, the padding included; None
            along an axis where it differs from position to position.
        jump: pixels between the fields of neighbouring units, along each axis.
        receptive_field_note: "all" if every unit sees the whole image, "varies", "none" if the
            output does not depend on the image, "unknown: OPERATOR", or empty.
    """

    name: str
    kind: str
    depth: int
    parent: bool
    folded: bool
    calls: int
    channels: tuple[int, int] | None
    output_shape: tuple[int, ...]
    kernel_size: tuple[int, ...] | None
    stride: tuple[int, ...] | None
    padding: tuple[int, ...] | str | None
    dilation: tuple[int, ...] | None
    groups: int | None
    trainable: int
    frozen: int
    shared: int
    parameter_bytes: int
    multiplications: int
    activations: int | None
    outputs_before: int | None
    kept: int | None
    kept_fixed: int | None
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

    @property
    def ratio(self) -> float | None:
        """Numbers in its output, to those of the row before (the image, for the first)."""
        if self.parent or not self.output_shape or not self.outputs_before:
            return None
        return prod(self.output_shape) / self.outputs_before

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: the attributes by name, and the properties that are numbers.

        Tuples are lists; what is None stays so.
        """
        plain = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
        }
        return plain | {
            "parameters": self.parameters,
            "inputs_per_output": self.inputs_per_output,
            "ratio": self.ratio,
        }


def make_rows(
    model: nn.Module,
    costs: CostCounter,
    fields: ReceptiveFields,
    memory: Mapping[str, LayerMemory] | None,
) -> list[Row]:
    """A row for each module that runs or owns parameters, in the order in which they run first.

    The model itself is first, and a module's children follow it; a module that does nothing has
    no row.

    Args:
        model: the model that was followed.
        costs: what was counted.
        fields: what its layers see.
        memory: what training keeps, by layer; None if it could not be found.
    """
    modules = dict(named_layers(model))
    met: dict[int, Tensor] = {}
    made: dict[str, Row] = {}
    for name in [*costs.usage, *(n for n in modules if n not in costs.usage)]:
        usage = costs.usage.get(name) or Usage(name, modules[name])
        seen = fields.layers.get(name)
        kept = None if memory is None else memory.get(name, LayerMemory(name))
        made[name] = _row(usage, seen, kept, met)
    return _worth_showing(_as_tree(made))


def _row(
    usage: Usage, seen: LayerField | None, kept: LayerMemory | None, met: dict[int, Tensor]
) -> Row:
    module = usage.module
    parent = has_children(module)
    owned = count_parameters(module, met)
    inputs, outputs = inputs_per_output(module) or (None, None)
    return Row(
        name=usage.name,
        kind=module._get_name(),  # pyright: ignore[reportPrivateUsage] — as torch prints it
        depth=_depth(usage.name),
        parent=parent,
        folded=False,
        calls=usage.calls,
        channels=channels(module),
        output_shape=usage.output_shape,
        **window(module)._asdict(),
        trainable=owned.trainable,
        frozen=owned.frozen,
        shared=owned.shared,
        parameter_bytes=owned.n_bytes,
        multiplications=usage.multiplications,
        activations=None if parent else usage.activations,
        outputs_before=None,
        kept=None if kept is None else kept.kept,
        kept_fixed=None if kept is None else kept.kept_fixed,
        inputs=inputs,
        outputs=outputs,
        receptive_field=seen.size if seen else (),
        jump=seen.jump if seen else (),
        receptive_field_note=_field_note(seen),
    )


def _depth(name: str) -> int:
    return name.count(".") + 1 if name else 0


def _field_note(seen: LayerField | None) -> str:
    if seen is None or not seen.size:
        return ""
    if seen.unknown:
        return "none" if seen.unknown == INDEPENDENT else f"unknown: {seen.unknown}"
    if seen.whole:
        return "all"
    return "varies" if None in seen.size else ""


def _as_tree(rows: Mapping[str, Row]) -> list[Row]:
    """Children after their parents; a parent that never runs itself stands by its first child."""
    children: dict[str, dict[str, None]] = {}
    for name in rows:
        while name:
            above = name.rpartition(".")[0]
            children.setdefault(above, {}).setdefault(name)
            name = above  # noqa: PLW2901 — up to the model itself
    ordered: list[Row] = []
    waiting = [""]
    while waiting:
        name = waiting.pop()
        ordered.append(rows[name])
        waiting.extend(reversed(children.get(name, {})))
    return ordered


def _worth_showing(rows: Sequence[Row]) -> list[Row]:
    needed = {""}
    for row in rows:
        if _owns(row) or (row.calls and not row.parent):
            name = row.name
            needed.add(name)
            while name := name.rpartition(".")[0]:
                needed.add(name)
    return [row for row in rows if row.name in needed]


def _owns(row: Row) -> bool:
    numbers = (row.parameters, row.shared, row.multiplications, row.kept, row.kept_fixed)
    return any(numbers)


def _with_before(rows: Sequence[Row], n_input: int) -> list[Row]:
    """Each row with the size of what came before it."""
    before, made = n_input, list[Row]()
    for row in rows:
        made.append(replace(row, outputs_before=before))
        if not row.parent and row.output_shape:
            before = prod(row.output_shape)
    return made


def fold_rows(
    rows: Sequence[Row], n_input: int, depth: int | None, fold: Sequence[Fold] | Fold
) -> list[Row]:
    """Let one row stand for all inside it; without a row for the model that would say nothing.

    Args:
        rows: as `make_rows` gives them.
        n_input: numbers in the input.
        depth: fold what lies deeper in the model; None folds nothing.
        fold: names of layers or of their classes, or classes; each is folded.

    Raises:
        ArgumentError: if nothing has such a name, or ``depth`` is none.
    """
    if depth is not None and (not isinstance(depth, int) or isinstance(depth, bool) or depth < 0):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(
            f"depth={depth!r} is no depth; give a whole number from 0 (one row for the model), or "
            "None for all of it."
        )
    if not isinstance(fold, str | type | Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(
            f"fold={fold!r} must be a layer's name, a kind of layer, or several of them."
        )
    chosen = _chosen(rows, [fold] if isinstance(fold, str | type) else list(fold))
    inside = _insiders(rows)
    gone: set[str] = set()
    made: list[Row] = []
    for row in rows:
        if row.name in gone or (not row.name and row.parent and depth != 0 and not _owns(row)):
            continue
        if chosen(row) or (depth is not None and row.depth >= depth):
            below = inside[row.name]
            gone.update(r.name for r in below)
            made.append(_together(row, below) if below else row)
        else:
            made.append(row)
    return _with_before(made, n_input)


def _insiders(rows: Sequence[Row]) -> dict[str, list[Row]]:
    inside: dict[str, list[Row]] = {row.name: [] for row in rows}
    for row in rows:
        name = row.name
        while name:
            name = name.rpartition(".")[0]
            if name in inside:
                inside[name].append(row)
    return inside


def _chosen(rows: Sequence[Row], fold: Sequence[Fold]) -> Callable[[Row], bool]:
    """Whether a row is among those to fold."""
    known = {row.name for row in rows} | {row.kind for row in rows}
    words = [f if isinstance(f, str) else f.__name__ for f in fold]
    for word in words:
        if word not in known:
            close = difflib.get_close_matches(word, known, n=3, cutoff=0.4) or sorted(known)[:3]
            raise ArgumentError(
                f"fold={word!r} is neither a layer nor a kind of layer of this model; closest: "
                f"{', '.join(map(repr, close))}."
            )
    return lambda row: row.name in words or row.kind in words


def _together(row: Row, below: Sequence[Row]) -> Row:
    def total(name: str) -> Any:  # noqa: ANN401 — a sum, or None
        values = [getattr(r, name) for r in (row, *below)]
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    summed = (
        *("trainable", "frozen", "shared", "parameter_bytes", "multiplications"),
        *("activations", "kept", "kept_fixed"),
    )
    return replace(row, parent=False, folded=True, **{name: total(name) for name in summed})


def idle_kinds(rows: Sequence[Row]) -> Iterator[str]:
    """Kinds of layers that run without a multiplication that counts."""
    busy = {row.kind for row in rows if row.multiplications}
    yield from dict.fromkeys(
        r.kind for r in rows if r.calls and not r.parent and r.kind not in busy
    )
