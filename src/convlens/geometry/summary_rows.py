"""The rows of a summary: one for each module; a folded row stands for all modules inside it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import Tensor, nn

from convlens.errors import ArgumentError
from convlens.execution.modules import has_children, named_layers
from convlens.execution.shapes import times
from convlens.geometry.costs import (
    CostCounter,
    Usage,
    channels,
    inputs_per_output,
    parameter_counts,
    window,
)
from convlens.geometry.fields import INDEPENDENT, LayerField, ReceptiveFields
from convlens.geometry.training_memory import LayerMemory

Fold = str | type[nn.Module]
"""A layer's name, its class name, or its class."""


@dataclass(frozen=True, repr=False)
class Row:
    """The numbers of one module, for one image.

    A module that runs several times has the sums of its runs, and the output and field of the last.
    A module with children counts only what is its own, unless it is folded: then it has the sums of
    everything inside it. So each column adds up to its total.

    >>> cl.summary(cl.simple_cnn(1, 10), (1, 1, 28, 28))["1.0"]
    Row('1.0', Conv2d, output 1×16×7×7, 1,168 parameters, 56,448 multiplications, field 9×9)

    Attributes:
        name: qualified name; empty for the model itself.
        kind: class name.
        depth: number of modules around it; 0 for the model itself.
        parent: whether the rows of its children follow.
        folded: whether the row stands for its children too.
        calls: number of runs.
        channels: of input and output, for a layer with a weight.
        output_shape: (1, C, …); empty if the module did not run or gave several tensors.
        kernel_size: pixels along each axis; None without a kernel.
        stride: pixels along each axis.
        padding: pixels along each axis, or torch's word.
        dilation: distance between the kernel's pixels along each axis.
        groups: groups of channels that do not mix.
        trainable: numbers in parameters with ``requires_grad``.
        frozen: numbers in parameters without it.
        shared: numbers in parameters that an earlier row counts.
        parameter_bytes: memory of the trainable and frozen parameters.
        multiplications: of convolutions and matrix products.
        activations: numbers in the outputs; None for a module with children.
        outputs_before: numbers in the output of the row before, or in the input.
        kept: bytes that training keeps for the backward pass, and no earlier row; None if unknown.
        kept_fixed: the same, for what does not grow with the batch.
        inputs: numbers that one position of a convolution, or a linear layer, reads.
        outputs: numbers that it computes from them.
        receptive_field: pixels along each axis, the padding included; None along an axis where
            positions differ.
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
        """Inputs for each output; at 1 or below the layer does not compress."""
        return self.inputs / self.outputs if self.inputs and self.outputs else None

    @property
    def compresses(self) -> bool:
        """Whether a position reads more numbers than it computes."""
        return self.inputs_per_output is None or self.inputs_per_output > 1

    @property
    def ratio(self) -> float | None:
        """Numbers in the output, to those of the row before (or of the image)."""
        if self.parent or not self.output_shape or not self.outputs_before:
            return None
        return prod(self.output_shape) / self.outputs_before

    def __repr__(self) -> str:
        parts = [repr(self.name), self.kind]
        if self.output_shape:
            parts.append(f"output {times(self.output_shape)}")
        parts.append(f"{self.parameters:,} parameters")
        parts.append(f"{self.multiplications:,} multiplications")
        if self.receptive_field and None not in self.receptive_field:
            parts.append(f"field {times(self.receptive_field)}")
        return f"Row({', '.join(parts)})"

    def to_dict(self) -> dict[str, Any]:
        """Attributes and numeric properties as plain JSON."""
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
    """A row for each module that runs or owns parameters, children after their parent.

    Siblings are in the order in which they first ran. A module that does nothing has no row.

    Args:
        model: the traced model.
        costs: what was counted.
        fields: the receptive fields.
        memory: what training keeps, by layer; None if unknown.
    """
    modules = dict(named_layers(model))
    met: dict[int, Tensor] = {}
    made: dict[str, Row] = {}
    for name in [*costs.usage, *(n for n in modules if n not in costs.usage)]:
        usage = costs.usage.get(name) or Usage(name, modules[name])
        kept = None if memory is None else memory.get(name, LayerMemory(name))
        made[name] = _row(usage, fields.layers.get(name), kept, met)
    needed = {""}
    for row in made.values():
        if _owns(row) or (row.calls and not row.parent):
            needed.update(_with_parents(row.name))
    return [row for row in _as_tree(made) if row.name in needed]


def _row(
    usage: Usage, seen: LayerField | None, kept: LayerMemory | None, met: dict[int, Tensor]
) -> Row:
    module = usage.module
    parent = has_children(module)
    inputs, outputs = inputs_per_output(module) or (None, None)
    return Row(
        name=usage.name,
        kind=module._get_name(),  # pyright: ignore[reportPrivateUsage] — as torch prints it
        depth=usage.name.count(".") + 1 if usage.name else 0,
        parent=parent,
        folded=False,
        calls=usage.calls,
        channels=channels(module),
        output_shape=usage.output_shape,
        **window(module),
        **parameter_counts(module, met),
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


def _field_note(seen: LayerField | None) -> str:
    if seen is None or not seen.size:
        return ""
    if seen.unknown:
        return "none" if seen.unknown == INDEPENDENT else f"unknown: {seen.unknown}"
    if seen.whole:
        return "all"
    return "varies" if None in seen.size else ""


def _with_parents(name: str) -> Iterator[str]:
    """A module's name, and those of the modules around it but the model's."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _as_tree(rows: Mapping[str, Row]) -> list[Row]:
    """Children after their parents; a parent that does not run stands by its first child."""
    children: dict[str, dict[str, None]] = {}
    for row in rows:
        for name in _with_parents(row):
            children.setdefault(name.rpartition(".")[0], {}).setdefault(name)
    ordered: list[Row] = []
    waiting = [""]
    while waiting:
        name = waiting.pop()
        ordered.append(rows[name])
        waiting.extend(reversed(children.get(name, {})))
    return ordered


def _owns(row: Row) -> bool:
    return any((row.parameters, row.shared, row.multiplications, row.kept, row.kept_fixed))


def fold_rows(
    rows: Sequence[Row], n_input: int, depth: int | None, fold: Sequence[Fold] | Fold
) -> list[Row]:
    """Let one row stand for all modules inside it.

    The model's own row is left out if it would have no numbers.

    Args:
        rows: from `make_rows`.
        n_input: numbers in the input.
        depth: fold modules at this depth; None folds nothing.
        fold: names of layers, class names, or classes to fold.

    Raises:
        ArgumentError: if there is no such layer, or ``depth`` is not a whole number from 0.
    """
    if depth is not None and (not isinstance(depth, int) or isinstance(depth, bool) or depth < 0):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(
            f"depth must be a whole number from 0 (one row for the model), or None for all of it, "
            f"got {depth!r}."
        )
    words = _fold_words(rows, fold)
    made: list[Row] = []
    gone: set[str] = set()
    before = n_input
    for row in rows:
        if row.name in gone or (not row.name and row.parent and depth != 0 and not _owns(row)):
            continue
        folded = (
            row.name in words or row.kind in words or (depth is not None and row.depth >= depth)
        )
        below = [r for r in rows if r is not row and _is_inside(r, row)] if folded else []
        gone.update(r.name for r in below)
        new = replace(_sum(row, below) if below else row, outputs_before=before)
        made.append(new)
        if not new.parent and new.output_shape:
            before = prod(new.output_shape)
    return made


def _is_inside(row: Row, outer: Row) -> bool:
    return not outer.name or row.name.startswith(f"{outer.name}.")


def _fold_words(rows: Sequence[Row], fold: Sequence[Fold] | Fold) -> list[str]:
    """The names of layers and classes to fold."""
    if not isinstance(fold, str | type | Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(
            f"fold={fold!r} must be a layer's name, a kind of layer, or several of them."
        )
    chosen = [fold] if isinstance(fold, str | type) else list(fold)
    words = [f if isinstance(f, str) else f.__name__ for f in chosen]
    known = {row.name for row in rows if row.name} | {row.kind for row in rows}
    for word in words:
        if word not in known:
            close = difflib.get_close_matches(word, known, n=3, cutoff=0.4) or sorted(known)[:3]
            raise ArgumentError(
                f"fold={word!r} is neither a layer nor a kind of layer of this model; closest: "
                f"{', '.join(map(repr, close))}."
            )
    return words


_SUMMED = (
    *("trainable", "frozen", "shared", "parameter_bytes", "multiplications"),
    *("activations", "kept", "kept_fixed"),
)


def _sum(row: Row, below: Sequence[Row]) -> Row:
    """A row with the sums of the rows inside it."""
    sums: dict[str, Any] = {}
    for name in _SUMMED:
        known = [n for r in (row, *below) if (n := getattr(r, name)) is not None]
        sums[name] = sum(known) if known else None
    return replace(row, parent=False, folded=True, **sums)
