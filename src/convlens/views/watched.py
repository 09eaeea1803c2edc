"""The watched layers and parameters of a report: brought down to what it draws, and their HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from convlens.core.histories import LayerHistory, UpdateHistory
from convlens.core.records import RunRecord
from convlens.core.wording import plural
from convlens.runs import Run
from convlens.views import layers as layer_figures
from convlens.views import words
from convlens.views.album import Album, inside, spread
from convlens.views.canvas import embed
from convlens.views.layers import Parameters
from convlens.views.markup import say, text
from convlens.views.matrices import QUANTITIES, Matrix, joined_figures, make_matrix, module_of
from convlens.views.page import place
from convlens.views.timeline import MAX_CELLS, Grid, condense, grid_of

ALL_CELLS, FEWEST_CELLS = 12_000, 120
"""Cells of time in all figures of layers together, and in each at least."""

MOST_FIGURES = 60
"""So many layers have figures of their own; of more, as many equally far apart."""

HINTS = {
    "near_zero": (
        "Bright is a large share of values near zero (|x| ≤ {eps}), counted after the ReLU where "
        "one follows: about half is usual there, everything is a dead layer."
    ),
    "mean": "Green is above zero, purple below: a mean that drifts away shifts the next layer.",
    "std": "Bright is large, on a logarithmic scale: it should neither vanish nor explode.",
    "dead": "Bright is a large share of channels without any positive value before their ReLU.",
    "gradient": "The norm of all of a layer's gradients, on a logarithmic scale.",
    "update": "How large a step is beside the weights, logarithmic: about a thousandth is usual.",
}


@dataclass(frozen=True)
class Watched:
    """What was watched, as a report draws it.

    Attributes:
        grid: the cells of time, None if nothing was recorded.
        layers: the layers' outputs, a column for each cell.
        gradients: those of parameters without their bucket counts, None if none were watched.
        updates: what the optimizer did to parameters, None if that was not watched.
    """

    grid: Grid | None
    layers: Sequence[LayerHistory]
    gradients: Sequence[LayerHistory] | None
    updates: Sequence[UpdateHistory] | None

    def parameters(self, layer: str) -> Parameters:
        """Those of one layer."""
        return Parameters(
            [g for g in self.gradients or () if module_of(g.layer.name) == layer],
            [u for u in self.updates or () if module_of(u.update.layer.name) == layer],
        )

    def matrices(self) -> Mapping[str, Matrix]:
        """What was recorded as layers by steps, by its key in `QUANTITIES`."""
        outputs = joined_figures(self.layers)
        keys = [key for key, one in QUANTITIES.items() if one.series == "activation"]
        if not any(one.channels and one.layer.feeds_relu for one in self.layers):
            keys.remove("dead")
        found = {key: make_matrix(key, outputs) for key in keys}
        if self.gradients is not None:
            found["gradient"] = make_matrix("gradient", outputs, joined_figures(self.gradients))
        if self.updates is not None:
            updates = joined_figures([one.update for one in self.updates])
            before = joined_figures([one.parameter for one in self.updates])
            found["update"] = make_matrix("update", outputs, None, updates, before)
        return found


def read_watched(run: Run, record: RunRecord) -> Watched:
    """Bring down what a run watched; the parameters are read one by one.

    Raises:
        RunError: if the run cannot be read.
    """
    n = max(len(record.layers), 1)
    grid = grid_of(record.layers, min(MAX_CELLS, max(ALL_CELLS // n, FEWEST_CELLS)))
    if grid is None:
        return Watched(None, (), None, None)
    n_gradients, n_updates = (len(run.layers_of(quantity)) for quantity in ("gradient", "update"))
    gradients = [_brief(run.history(i, "gradient"), grid) for i in range(n_gradients)]
    updates = [run.update_history(i) for i in range(n_updates)]
    return Watched(
        grid,
        [condense(history, grid) for history in record.layers],
        gradients or None,
        [UpdateHistory(_brief(one.update, grid), _brief(one.parameter, grid)) for one in updates]
        or None,
    )


def _brief(history: LayerHistory, grid: Grid) -> LayerHistory:
    """A column for each cell, without bucket counts, which are large and not drawn."""
    return replace(history, columns=condense(history, grid).columns.without_counts())


def matrix_section(
    record: RunRecord, watched: Watched, span: tuple[int, int], items: dict[str, str]
) -> str:
    """All layers by steps: one figure for each quantity, of which a list shows one."""
    if watched.grid is None:
        return _no_layers(record)
    hint = "Each row is a layer, first to last. Click a row to see that layer."
    parts, options = list[str](), list[str]()
    for key, shown in watched.matrices().items():
        drawn = layer_figures.matrix(shown, record.epochs, span)
        items[f"matrix-{key}"] = embed(drawn.root)
        words_of = HINTS[key].format(eps=f"{record.layers[0].eps:g}")
        there = place(f"matrix-{key}", drawn.height, f"{shown.label} by layer and step")
        hidden = " hidden" if parts else ""
        parts.append(f'<div class="choice" id="choice-{key}"{hidden}>{say(words_of)}{there}</div>')
        options.append(f'<option value="choice-{key}">{text(shown.label)}</option>')
    choose = (
        '<p class="choose"><label for="quantity">Colour by</label> '
        f'<select id="quantity" autocomplete="off">{"".join(options)}</select></p>'
    )
    return say(hint) + choose + "".join(parts) + _not_recorded(watched)


def _not_recorded(watched: Watched) -> str:
    missing = [
        f"{what} (cl.{callback}())"
        for what, callback, recorded in (
            ("gradients", "GradientStats", watched.gradients),
            ("update ratios", "UpdateStats", watched.updates),
        )
        if recorded is None
    ]
    if not missing:
        return ""
    return say(f"Not recorded in this run: {' and '.join(missing)}.")


def layer_sections(
    record: RunRecord,
    watched: Watched,
    album: Album,
    span: tuple[int, int],
    items: dict[str, str],
) -> str:
    """Every layer that was watched, or of which there are pictures, in the model's order."""
    positions = {history.layer.name: i for i, history in enumerate(record.layers)}
    names = merged(list(positions), [name for name in album.order if name in album.layers])
    if watched.grid is None and not names:
        return _no_layers(record)
    parts = [_no_layers(record) if watched.grid is None else _hint(watched.grid)]
    parts += [say(album.note)] if album.note else []
    drawn = [i for i, history in enumerate(watched.layers) if len(history)]
    chosen = spread(drawn, MOST_FIGURES)
    if len(chosen) < len(drawn):
        parts.append(say(f"{len(chosen)} of {plural(len(drawn), 'layer')} have figures here."))
    for k, name in enumerate(names):
        at = positions.get(name)
        if at is None:
            parts.append(_pictured(k, name, _kind_of(record, name), inside(album, name)))
        elif watched.grid is not None:
            body = _figures(record, watched, at, span, items if at in chosen else None)
            parts.append(_section(f"layer-{at}", _title(record.layers[at]), body, album, name))
        else:
            parts.append(_section(f"layer-{at}", _title(record.layers[at]), "", album, name))
    return "".join(parts)


def merged(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Both without repetition, the second's own after whatever stands before them there."""
    names, before = list(first), -1
    known = set(first)
    for name in second:
        if name in known:
            before = names.index(name)
        else:
            before += 1
            names.insert(before, name)
    return names


def _hint(grid: Grid) -> str:
    return say(
        f"{words.grid_words(grid)}: the histogram of that layer's activations, bright where "
        "many values lie. The count's colour is logarithmic."
    )


def _section(key: str, title: str, body: str, album: Album, name: str) -> str:
    return (
        f'<section class="layer" id="{key}"><h3>{title}</h3>{body}{inside(album, name)}</section>'
    )


def _pictured(k: int, name: str, kind: str, shown: str) -> str:
    """A layer of which there are pictures and no numbers."""
    note = say("The values of this layer were not watched; its output was kept as pictures.")
    title = f"{text(name)} <span>{text(kind)}</span>"
    return f'<section class="layer" id="pictures-{k}"><h3>{title}</h3>{note}{shown}</section>'


def _kind_of(record: RunRecord, name: str) -> str:
    """A module's class, from the model's summary."""
    summary = record.meta.get("summary")
    rows = summary.get("rows") if isinstance(summary, dict) else None
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and row.get("name") == name:
            return str(row.get("kind", ""))
    return ""


def _figures(
    record: RunRecord,
    watched: Watched,
    at: int,
    span: tuple[int, int],
    items: dict[str, str] | None,
) -> str:
    """A watched layer's line and figures; without ``items`` the line alone."""
    history, grid = watched.layers[at], watched.grid
    if not len(history) or grid is None:
        return say("Nothing of this layer was recorded: it took part in no batch.")
    line = f'<p class="line">{words.layer_line(record.layers[at])}</p>'
    if items is None:
        return line
    parameters = watched.parameters(history.layer.name)
    drawn = layer_figures.layer(history, grid, record.epochs, span, parameters)
    items[f"layer-{at}"] = embed(drawn.root)
    return line + place(f"layer-{at}", drawn.height, f"Layer {history.layer.name}")


def _title(history: LayerHistory) -> str:
    info = history.layer
    return f"{text(info.name)} <span>{text(info.kind)}</span>" if info.name else text(info.kind)


def _no_layers(record: RunRecord) -> str:
    n = len(record.layers)
    return say(words.NO_COLUMNS.format(layers=plural(n, "layer")) if n else words.NO_LAYERS)
