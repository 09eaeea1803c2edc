"""A run in the cell of a notebook: static HTML, which is still there when it is opened again."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from convlens.core.histories import LayerHistory
from convlens.core.records import Finding, RunRecord
from convlens.core.steps import sum_up
from convlens.core.terminal import printable
from convlens.core.training_curves import POINTS
from convlens.core.wording import metric_value, plural, without_classes
from convlens.doctor import diagnose
from convlens.plots.canvas import label_axes
from convlens.plots.curves import plot_loss
from convlens.plots.one_layer import color_dim

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from convlens.runs.folder import RunInfo
    from convlens.runs.reader import Run

COLOURS = {"problem": "#b02a1a", "warning": "#8a5a00", "note": "#59636f", "good": "#00704f"}

MOST_FINDINGS = 6
MOST_ROWS = 60
"""Layers in the matrix; of more, so many equally far apart and the sickest one."""

BOX = (
    "background:#ffffff;color:#23292f;border:1px solid #e0e4e9;border-radius:8px;"
    "padding:10px 14px;font-family:system-ui,sans-serif;font-size:14px;max-width:1000px"
)
SOFT = "color:#59636f"


def run_html(run: Run) -> str:
    """Findings, numbers and pictures of a run.

    Raises:
        ConvlensError: if it cannot be read.
    """
    record = run.record()
    findings = diagnose(record)
    lines = "".join(map(_finding, findings[:MOST_FINDINGS]))
    more = len(findings) - MOST_FINDINGS
    if more > 0:
        lines += f'<div style="{SOFT}">and {plural(more, "more finding")}</div>'
    return (
        f'<div style="{BOX}"><div><b style="font-size:16px">{_text(run.name)}</b> '
        f'<span style="{SOFT}">{_text(_numbers(record))}</span></div>'
        f"{lines}<div>{_picture(record, findings)}</div></div>"
    )


def runs_html(infos: Sequence[RunInfo]) -> str:
    """A folder's runs as a table, the newest first."""
    rows = [
        (info.name, info.created[:16].replace("T", " "), info.status, str(info.n_epochs),
         info.problem or _metrics(info.metrics))
        for info in reversed(infos)
    ]  # fmt: skip
    if not rows:
        return f'<div style="{BOX}">No runs here yet.</div>'
    cell = 'style="text-align:left;padding:2px 14px 2px 0"'
    heads = ("run", "created (UTC)", "status", "epochs", "newest epoch")
    table = "".join(f"<th {cell}>{head}</th>" for head in heads)
    for row in rows:
        table += "</tr><tr>" + "".join(f"<td {cell}>{_text(one)}</td>" for one in row)
    return f'<div style="{BOX}"><table><tr>{table}</tr></table></div>'


def _text(value: object) -> str:
    return escape(printable(str(value)[:200]))


def _finding(one: Finding) -> str:
    layer = "" if one.layer is None else f"layer {one.layer}: "
    return (
        f'<div style="margin:3px 0"><b style="color:{COLOURS.get(one.severity, "#59636f")}">'
        f"{_text(one.severity)}</b> {escape(printable(layer + one.text))}</div>"
    )


def _metrics(metrics: object) -> str:
    if not isinstance(metrics, dict):
        return ""
    return ", ".join(
        f"{name} {metric_value(name, value)}"
        for name, value in list(without_classes(metrics).items())[:4]
    )


def _numbers(record: RunRecord) -> str:
    parts = [str(record.meta.get("status", "")), plural(len(record.steps), "step")]
    parts.append(plural(len(record.epochs), "epoch"))
    for newest in record.epochs[-1:]:
        parts.append(_metrics(newest.metrics))
        if newest.valid_loss is not None:
            parts.append(f"validation loss {newest.valid_loss:.4f}")
    return ", ".join(part for part in parts if part)


def _picture(record: RunRecord, findings: Sequence[Finding]) -> str:
    """Loss, layers by steps, and the histograms of the sickest layer as one PNG."""
    from matplotlib.figure import Figure  # not pyplot, which would show it a second time

    layers = {history.layer.name: history for history in record.layers if len(history)}
    chosen = next((layers[one.layer] for one in findings if one.layer in layers), None)
    figure = Figure(figsize=(10.5, 6.4) if layers else (5.6, 3.4), layout="constrained")
    grid = figure.add_gridspec(2, 2) if layers else figure.add_gridspec(1, 1)
    if layers:
        _matrix(figure.add_subplot(grid[0, 1]), [*layers.values()], chosen)
        below = figure.add_subplot(grid[1, :])
        color_dim(chosen or next(iter(layers.values())), below, record.epochs)
    loss = figure.add_subplot(grid[0, 0])
    plot_loss(sum_up(record.loss_steps, POINTS), record.epochs, loss)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in letters that the font does not have
        figure.savefig(file, format="png", dpi=90)
    words = "loss by step, share near zero by layer and step, histograms of one layer by step"
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{words}" style="max-width:100%" src="data:image/png;base64,{data}">'


def _matrix(ax: Axes, layers: Sequence[LayerHistory], sick: LayerHistory | None) -> None:
    """The share near zero of every layer; each is drawn over its own columns."""
    every = -(-len(layers) // MOST_ROWS)
    shown = [h for i, h in enumerate(layers) if i % every == 0 or h is sick]
    label_axes(ax, "Share near zero (bright: all of it)", "")
    for row, history in enumerate(shown):
        edges = np.append(history.first_step, history.last_step[-1] + 1) - 0.5
        relu = history.layer.feeds_relu
        share = history.near_zero_after_relu if relu else history.near_zero
        ax.pcolormesh(
            edges, [row - 0.5, row + 0.5], share[None], cmap="cividis", vmin=0, vmax=1,
            rasterized=True,
        )  # fmt: skip
    step = max(1, len(shown) // 8)
    mine = [i for i, history in enumerate(shown) if history is sick]
    rows = mine + [i for i in range(0, len(shown), step) if all(abs(i - m) >= step for m in mine)]
    names = [shown[i].layer.name for i in rows]
    ax.set_yticks(
        rows, [n if len(n) < 20 else f"{n[:9]}…{n[-9:]}" for n in names], parse_math=False
    )
    ax.invert_yaxis()
