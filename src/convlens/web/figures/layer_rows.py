"""The rows of the matrix: layers, and blocks of layers folded into one row where there are many."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, takewhile

from convlens.web.figures.quantities import LayerHealth, layer_health
from convlens.web.formatting import short
from convlens.web.run_data import RunData
from convlens.web.view import View

MAX_ROWS = 24
"""More rows than this are folded by block."""

MAX_OPENED = 32
"""Blocks with sick layers are unfolded up to so many rows."""

WORST = 10
"""Layers that are listed as the worst, and stand first when sorted by severity."""

LONGEST = 15
"""Characters of a row's name."""

KINDS = ("convolutions", "normalizations", "linear", "activations", "others")
"""Families of layers by which rows are filtered."""

_FAMILIES = (
    "conv", "norm", "linear",
    "relu|elu|celu|glu|silu|mish|sigmoid|tanh|swish|soft|shrink|threshold",
)  # fmt: skip
_SHORT = {"batchnorm": "bn", "layernorm": "ln", "groupnorm": "gn", "instancenorm": "in"}
_RANGE = re.compile(r"([0-9]{1,6})-([0-9]{1,6})")


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        layers: positions of its layers; several in a folded row.
        name: in full.
        label: its name as it is drawn.
        kind: its kind in few letters, or how many layers it has.
        worst: the health of its sickest layer.
    """

    layers: Sequence[int]
    name: str
    label: str
    kind: str
    worst: LayerHealth

    @property
    def block(self) -> str:
        """What `View.block` is when this row is opened."""
        return f"{self.layers[0]}-{self.layers[-1]}"


def family(kind: str) -> str:
    """Which of `KINDS` a module's class belongs to."""
    found = (name for name, sign in zip(KINDS, _FAMILIES, strict=False) if
             re.search(sign, kind.lower()))  # fmt: skip
    return next(found, "others")


def short_kind(kind: str) -> str:
    """A module's class in few letters: conv, bn, relu, linear."""
    plain = re.sub(r"[0-9]d$", "", kind).lower()
    return _SHORT.get(plain, short(plain, 9))


def rows_of(run: RunData, view: View) -> list[Row]:
    """The rows that a view shows, from the top."""
    names = run.names
    shown = [i for i in block_of(run, view)
             if view.kinds not in KINDS or family(run.layers[i].kind) == view.kinds]  # fmt: skip
    health = {one.layer: (place, one) for place, one in enumerate(layer_health(run))}
    by_health = sorted(shown, key=lambda i: health[names[i]][0])
    if view.sort == "severity":
        first = by_health
        if len(shown) > MAX_ROWS:
            first = [i for i in by_health if health[names[i]][1].severity][:WORST]
        groups = [[i] for i in first] + _folded(names, [i for i in shown if i not in first])
    else:
        groups = _folded(names, shown)
        sick = (i for i in by_health if health[names[i]][1].severity)
        for i in [*sick][:3]:
            groups = _opened(names, groups, i)
    rows: list[Row] = []
    for group in groups:
        worst = min((health[names[i]] for i in group), key=lambda pair: pair[0])[1]
        kind = short_kind(run.layers[group[0]].kind) if len(group) == 1 else f"{len(group)} layers"
        label = _block_name([names[i] for i in group], LONGEST)
        rows.append(Row(group, _block_name([names[i] for i in group]), label, kind, worst))
    return rows


def block_of(run: RunData, view: View) -> Sequence[int]:
    """The layers of the opened block; all of them if there is none such."""
    every = range(len(run.layers))
    given = _RANGE.fullmatch(view.block)
    return (given and every[int(given[1]) : int(given[2]) + 1]) or every


def block_name(run: RunData, view: View) -> str:
    """The opened block's name; empty if all layers are shown."""
    block = block_of(run, view)
    return _block_name([run.names[i] for i in block]) if len(block) < len(run.layers) else ""


def _folded(names: Sequence[str], layers: Sequence[int]) -> list[list[int]]:
    """Blocks by their names, as fine as `MAX_ROWS` allows; single layers where they fit."""
    if len(layers) <= MAX_ROWS:
        return [[i] for i in layers]
    groups = [[*layers]]
    while True:
        finer = [part for group in groups for part in _split(names, group)]
        if len(finer) == len(groups) or len(finer) > MAX_ROWS:
            return groups
        groups = finer


def _split(names: Sequence[str], group: Sequence[int]) -> list[list[int]]:
    """A block's own blocks; stretches of them where they are too many for one view."""
    level = len(_shared(names[i] for i in group)) + 1
    parts = [[*part] for _, part in groupby(group, lambda i: names[i].split(".")[:level])]
    size = 1 if len(parts) <= MAX_ROWS else -(-len(parts) // (MAX_ROWS - 4))
    return [[*chain(*parts[i : i + size])] for i in range(0, len(parts), size)]


def _opened(names: Sequence[str], groups: list[list[int]], layer: int) -> list[list[int]]:
    """The groups with those around a layer split until it stands alone, if there is room."""
    opened = groups
    for _ in range(MAX_OPENED):
        at = next(i for i, group in enumerate(opened) if layer in group)
        if len(opened[at]) == 1:
            return opened if len(opened) <= MAX_OPENED else groups
        opened = [*opened[:at], *_split(names, opened[at]), *opened[at + 1 :]]
    return groups


def _shared(names: Iterable[str]) -> list[str]:
    """The parts, between dots, that all names begin with."""
    parts = [name.split(".") for name in names]
    pairs = zip(min(parts), max(parts), strict=False)
    return [part for part, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]


def _block_name(names: Sequence[str], length: int = 1_000) -> str:
    """The name of one layer or of a block: what its layers share, else the first and the last."""
    shared = _shared(names)
    if shared:
        return _end_of(".".join(shared), length)
    return f"{_end_of(names[0], (length - 3) // 2)} … {_end_of(names[-1], (length - 3) // 2)}"


def _end_of(name: str, length: int) -> str:
    """A name's last parts, which tell layers apart; one long part without its middle."""
    while len(name) > length and "." in name:
        name = "…" + name.lstrip("…").partition(".")[2]
    return short(name, length)
