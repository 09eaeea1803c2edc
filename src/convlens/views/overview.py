"""A whole run in figures that are built once and follow it as it grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.events import DoubleTap
from bokeh.layouts import column
from bokeh.models import (
    BasicTicker,
    LegendItem,
    LinearAxis,
    NoOverlap,
    Patch,
    UIElement,
)
from bokeh.plotting import figure

from convlens.core.buckets import Floats
from convlens.core.records import Epoch
from convlens.core.steps import StepCurves, StepSeries
from convlens.plots.canvas import BLUE, GREEN, ORANGE
from convlens.plots.curves import SMOOTH, distinct_groups, smoothed_loss
from convlens.views.canvas import StepAxis, retitle, short, with_room
from convlens.views.curves import band_outline, spreads
from convlens.views.lines import (
    MARGIN,
    Curve,
    Drawn,
    Lines,
    LossScales,
    Message,
    Strips,
    ValueRange,
    legend_beside,
)
from convlens.views.matrices import Matrix
from convlens.views.matrix import MatrixFigure
from convlens.views.words import metric_names

LEFT = 114
"""Pixels on the left of figures that stand above one another, for names of layers and numbers."""

NEWEST = "newest-losses"
"""Name of the source of each batch's loss, a line that the page's script makes longer."""


@dataclass(frozen=True)
class Heights:
    """Pixels of each figure of a run: together they and a header fit a screen of 768."""

    loss: int = 205
    metric: int = 95
    schedule: int = 100
    matrix: int = 270


class RunView:
    """Loss, a metric, learning rate and momentum, and the matrix of layers by steps.

    `curves` and `matrix` are what to lay out, above one another: their time axes are aligned.
    A double click in any figure shows all steps again.

    Args:
        axis: the time axis, which other figures of the document may share.
        heights: of the figures.
    """

    def __init__(self, axis: StepAxis | None = None, heights: Heights = Heights()) -> None:
        self.axis = StepAxis((0, 0)) if axis is None else axis
        self.loss = LossFigures(self.axis, heights.loss)
        self.metric = MetricFigure(self.axis, heights.metric)
        self.schedule = ScheduleFigure(self.axis, heights.schedule)
        self.matrix_figure = MatrixFigure(self.axis, heights.matrix, length=14)
        below = [self.metric.plot, self.schedule.plot]
        for plot in (*below, self.matrix_figure.plot):
            align(plot)
            plot.on_event(DoubleTap, lambda: self.axis.follow(True))
        self._span = (0, 0)
        self.curves: UIElement = column(self.loss.scales.root, *below, sizing_mode="stretch_width")
        self.matrix: UIElement = self.matrix_figure.plot

    def update(
        self,
        curves: StepCurves,
        epochs: Sequence[Epoch],
        matrix: Matrix,
        *,
        growing: bool = False,
        last: int = -1,
    ) -> None:
        """Show the run as it is now; models stay, only what they show changes.

        Args:
            curves: losses and hyperparameters.
            epochs: the finished epochs.
            matrix: the layers.
            growing: whether the time axis has room for steps to come.
            last: a later step that the time axis has to reach.
        """
        first, end = _span(curves, epochs, matrix)
        self._span = span = first, max(end, last)
        self.axis.update(with_room(span) if growing else span, epochs)
        self.loss.update(curves, epochs)
        self.metric.update(epochs)
        self.schedule.update(curves)
        self.matrix_figure.update(matrix)

    def extend(self, steps: StepSeries, epochs: Sequence[Epoch], *, growing: bool = False) -> None:
        """Show what came since the last `update`, which is far less work than another one.

        Args:
            steps: those since then, whose losses are drawn.
            epochs: all finished epochs.
            growing: see `update`.
        """
        new = epochs is not self.axis.epochs
        span = self._span[0], max([self._span[1], *steps.step[-1:].tolist()])
        self.axis.update(with_room(span) if growing else span, epochs)
        self.loss.extend(steps)
        if new:
            self.loss.measure(epochs)
            self.metric.update(epochs)

    def fits(self, steps: StepSeries, epochs: Sequence[Epoch]) -> bool:
        """Whether to `extend` by these would do no more than make the line of losses longer.

        Args:
            steps: those that have come since.
            epochs: all finished epochs.
        """
        if epochs is not self.axis.epochs or not len(steps):
            return epochs is self.axis.epochs
        return steps.step[-1] < self.axis.whole[1] and self.loss.fits(steps.loss)

    def update_matrix(self, matrix: Matrix) -> None:
        """Show another quantity of the same run."""
        self.matrix_figure.update(matrix)

    def set_log(self, log: bool | None) -> None:
        """Whether the loss has a logarithmic axis; None lets its values decide."""
        self.loss.set_log(log)

    def set_smooth(self, smooth: float) -> None:
        """How much of its weight the smoothed loss keeps from step to step: 0 does not smooth."""
        self.loss.set_smooth(smooth)

    def set_metric(self, name: str | None) -> None:
        """Which metric is drawn; None is the first."""
        self.metric.choose(name)

    def select(self, index: int | None) -> None:
        """Outline a row of the matrix, or none."""
        self.matrix_figure.select(index)

    def on_select(self, callback: Callable[[int], None]) -> None:
        """Have ``callback(index)`` called whenever a row of the matrix is clicked."""
        self.matrix_figure.on_select(callback)

    def set_step(self, step: int | None) -> None:
        """Mark one step in all figures of the axis, or none."""
        self.axis.set_step(step)

    def follow(self, on: bool) -> None:
        """Whether all steps are shown as the run grows; True also goes back to all of them."""
        self.axis.follow(on)


class LossFigures:
    """Training loss by step, raw and smoothed, and validation loss by epoch."""

    def __init__(self, axis: StepAxis, height: int) -> None:
        self._axis = axis
        band: dict[str, Any] = {"fill_color": BLUE, "line_color": BLUE}
        band |= {"fill_alpha": 0.3, "line_alpha": 0.3}
        self._band = Drawn(lambda: Patch(x="x", y="y", **band), ("x", "y"))
        self._strips = Strips([], "loss NaN or infinite")
        self._raw = Lines([], BLUE, 0.8, alpha=0.5, number=None, dots=False, name=NEWEST)
        self._smooth = Lines([], BLUE, 2.5, number="0.0000", tip="above")
        self._valid = Lines([], ORANGE, number="0.0000", dots=True, tip="below")
        self._entries: list[LegendItem] = []
        self._explained: frozenset[str] = frozenset()
        self._wanted: bool | None = None
        self._weight = SMOOTH
        self._curves: StepCurves | None = None
        self._extended = False
        self.scales = LossScales(axis, height, self._fill)

    def _fill(self, plot: figure) -> None:
        align(plot)
        self._axis.mark_epochs(plot)
        for one in (self._band, self._strips, self._raw, self._smooth, self._valid):
            one.join(plot)
        self._entries += legend_beside(
            plot,
            [
                ("each batch", self._raw.renderer(plot)),
                ("low to high", self._band.renderer(plot)),
                ("smoothed", self._smooth.renderer(plot)),
                ("validation", self._valid.renderer(plot)),
            ],
        )
        self._mark_entries()

    def update(self, curves: StepCurves, epochs: Sequence[Epoch]) -> None:
        """Show the losses up to now."""
        self._curves, self._extended = curves, False
        known = curves.loss.finite > 0
        wide = curves.width > 1
        band = (curves.loss.low, curves.loss.high) if wide and known.any() else None
        self._band.put(band_outline(curves, *band) if band else {"x": [], "y": []})
        raw = Curve("training loss", curves.first_step, curves.loss.mean)
        self._raw.draw([raw] if known.any() and not wide and len(curves) > 2 else [])
        self._strips.draw(curves.first_step, curves.last_step, curves.loss.finite < curves.n)
        few = len(curves) <= 2
        seen = {
            "each batch": not wide and not few,
            "low to high": wide,
            "smoothed": wide or not few,
        }
        self._explain(frozenset(name for name, there in seen.items() if there))
        self.scales.fit(np.concatenate([curves.loss.low, curves.loss.high]))
        self.measure(epochs)
        self._smooth_and_scale()
        self._say(curves, "validation" in self._explained, bool(known.any()))

    def extend(self, steps: StepSeries) -> None:
        """See `RunView.extend`: each batch's loss, going on from where the curves end."""
        curves = self._curves
        if curves is None or not len(steps):
            return
        before = slice(None) if curves.width == 1 else slice(len(curves) - 1, None)
        x = np.concatenate([curves.last_step[before], steps.step])
        y = np.concatenate([curves.loss.mean[before], steps.loss])
        self._raw.draw([Curve("training loss", x, y)])
        finite = np.isfinite(steps.loss)
        self._strips.draw(
            np.concatenate([curves.first_step, steps.step]),
            np.concatenate([curves.last_step, steps.step]),
            np.concatenate([curves.loss.finite < curves.n, ~finite]),
        )
        if finite.any():
            self._say(curves, True, True)
        self._explain(self._explained | {"each batch"})
        self.scales.extend(steps.loss)
        self._extended = True

    def fits(self, loss: Floats) -> bool:
        """See `RunView.fits`."""
        return self._extended and bool(np.isfinite(loss).all()) and self.scales.spans(loss)

    def measure(self, epochs: Sequence[Epoch]) -> None:
        """Show the validation losses up to now."""
        measured = [(e.last_step, e.valid_loss) for e in epochs if e.valid_loss is not None]
        x, y = np.array(measured, np.float64).reshape(-1, 2).T
        self._valid.draw([Curve("validation loss", x, y)] if measured else [])
        self._explain(self._explained | ({"validation"} if measured else set[str]()))
        self.scales.extend(y)

    def set_log(self, log: bool | None) -> None:
        """See `RunView.set_log`."""
        self._wanted = log
        self._smooth_and_scale()

    def set_smooth(self, smooth: float) -> None:
        """See `RunView.set_smooth`."""
        self._weight = smooth
        self._smooth_and_scale()

    def _smooth_and_scale(self) -> None:
        curves = self._curves
        log = self._wanted
        if log is None:
            log = curves is not None and spreads(curves.loss)
        self.scales.show(log)
        if curves is None or not (curves.loss.finite > 0).any():
            self._smooth.draw([])
            return
        positive = bool((curves.loss.mean[curves.loss.finite > 0] > 0).all())
        smooth = self._weight if len(curves) > 2 or curves.width > 1 else 0.0
        mean = smoothed_loss(curves, smooth, log=log and positive)
        self._smooth.draw([Curve("training loss", curves.middle_step, mean)])

    def _explain(self, seen: frozenset[str]) -> None:
        if seen != self._explained:
            self._explained = seen
            self._mark_entries()

    def _mark_entries(self) -> None:
        for item in self._entries:
            item.visible = item.name in self._explained

    def _say(self, curves: StepCurves, measured: bool, known: bool) -> None:
        words = ""
        if not len(curves) and not measured:
            words = "No step was recorded yet."
        elif len(curves) and not known:
            words = "Every loss was NaN or infinite."
        self.scales.say(words)


class MetricFigure:
    """One metric of the validation, at the end of each epoch."""

    def __init__(self, axis: StepAxis, height: int) -> None:
        self._range = ValueRange()
        self.plot = axis.figure(
            "Metric", "", height, self._range.range, names=False, say_steps=False
        )
        self.plot.xaxis.visible = False
        self.plot.yaxis.ticker = BasicTicker(desired_num_ticks=4)
        self.plot.yaxis.major_label_policy = NoOverlap()
        axis.mark_epochs(self.plot)
        self._lines = Lines([self.plot], ORANGE, 2.0, number="0.0000", dots=True)
        self._message = Message(self.plot)
        self._wanted: str | None = None
        self._epochs: Sequence[Epoch] = ()

    def update(self, epochs: Sequence[Epoch]) -> None:
        """Show the metric up to now."""
        self._epochs = epochs
        names = metric_names(epochs)
        name = self._wanted if self._wanted in names else next(iter(names), None)
        x = np.array([epoch.last_step for epoch in epochs], np.int64)
        y = np.array([epoch.metrics.get(name or "", np.nan) for epoch in epochs], np.float64)
        self._lines.draw([Curve(name, x, y)] if name is not None else [])
        retitle(self.plot, short(name).capitalize() if name is not None else "Metric")
        seen = y[np.isfinite(y)]
        is_share = bool(((seen >= 0) & (seen <= 1)).all())  # as an accuracy is
        known = self._range.fit(y, ends=(0.0, 1.0) if is_share else None)
        words = "" if name is not None else "No metric was recorded."
        if not epochs:
            words = "No epoch was finished yet."
        elif name is not None and not known:
            words = "Every value was NaN or infinite."
        self._message.say(words)

    def choose(self, name: str | None) -> None:
        """Show another metric."""
        self._wanted = name
        self.update(self._epochs)


class ScheduleFigure:
    """Learning rate, and momentum on an axis of its own; a line for each parameter group."""

    def __init__(self, axis: StepAxis, height: int) -> None:
        self._rates, self._momenta = ValueRange(), ValueRange()
        self.plot = plot = axis.figure(
            "Learning rate and momentum", "", height, self._rates.range, names=False
        )
        plot.xaxis.visible = False
        axis.mark_epochs(plot)
        plot.extra_y_ranges = {"momentum": self._momenta.range}
        right = LinearAxis(
            y_range_name="momentum",
            axis_label="mom.",  # the whole word is longer than the axis
            ticker=BasicTicker(desired_num_ticks=4),
        )
        plot.add_layout(right, "right")
        self._rate = Lines([plot], BLUE, 2.0, number="0.[000000]", tip="above")
        self._momentum = Lines([plot], GREEN, 2.0, dashed=True, range_name="momentum", tip="below")
        plot.yaxis[0].update(
            axis_label="rate",
            axis_label_text_color=BLUE,
            ticker=BasicTicker(desired_num_ticks=4),
            major_label_policy=NoOverlap(),
        )
        right.axis_label_text_color = GREEN
        self._message = Message(plot)

    def update(self, curves: StepCurves) -> None:
        """Show the hyperparameters up to now."""
        rate = self._draw(self._rate, curves, "lr", "learning rate", self._rates)
        momentum = self._draw(
            self._momentum, curves, "momentum", "momentum (β₁ for Adam)", self._momenta
        )
        missing = [w for w, there in (("learning rate", rate), ("momentum", momentum)) if not there]
        self._message.say(f"No {' and no '.join(missing)} was recorded." if missing else "")

    def _draw(
        self, lines: Lines, curves: StepCurves, name: str, word: str, reach: ValueRange
    ) -> bool:
        band = curves.hypers.get(name)
        if band is None or not band.finite.any():
            lines.draw([])
            return False
        groups = distinct_groups(band) if band.mean.shape[1] > 1 else [0]
        lines.draw(
            [
                Curve(
                    word if len(groups) == 1 else f"{word}, parameter group {group}",
                    curves.middle_step,
                    band.mean[:, group],
                )
                for group in groups
            ]
        )
        reach.fit(band.mean)
        return True


def align(plot: figure) -> None:
    """The same borders for all figures that stand above one another."""
    plot.update(min_border_left=LEFT, min_border_right=MARGIN, min_border_top=2)


def _span(curves: StepCurves, epochs: Sequence[Epoch], matrix: Matrix) -> tuple[int, int]:
    parts = [part for part in (curves, matrix) if len(part.first_step)]
    firsts = [part.first_step[0] for part in parts]
    lasts = [part.last_step[-1] for part in parts]
    firsts += [epoch.first_step for epoch in epochs[:1]]
    lasts += [epoch.last_step for epoch in epochs[-1:]]
    return int(min(firsts, default=0)), int(max(lasts, default=0))
