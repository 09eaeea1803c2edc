"""The screen of a run: the whole of it, a layer, a unit, and what lies beside."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast
from urllib.parse import urlencode

import numpy as np
from bokeh.document import Document

from convlens.core.records import Epoch
from convlens.core.steps import StepSeries
from convlens.errors import ConvlensError
from convlens.plots.curves import SMOOTH
from convlens.runs.follower import BlockSeries, Newest
from convlens.views import panels as shown
from convlens.views import words
from convlens.views.cells import at_once
from convlens.views.layer_view import LayerView
from convlens.views.live.beside import Beside
from convlens.views.live.commands import Command, place, share, stop_of, whole, word
from convlens.views.live.controls import chooser, layer_head, no_layers
from convlens.views.live.inside import Inside, Looking, neighbour
from convlens.views.live.layout import QUANTITIES, run_body
from convlens.views.live.looks import Latest, Reading
from convlens.views.live.models import Panels, Say, add_figure, added
from convlens.views.live.store import POINTS, Look, RunStore
from convlens.views.matrices import Matrix, make_matrix
from convlens.views.overview import Heights, RunView
from convlens.views.parameter_lines import parameter_lines
from convlens.views.timeline import Grid, grid_of

AGO_S = 2.0
"""The page says how long ago the run was last written to, no oftener than this."""

EPOCHS_S = 10.0
"""Where no core is free, a finished epoch waits so long before it is drawn for its own sake."""


class RunScreen:
    """One run, as one page shows it.

    Args:
        store: the runs.
        key: which of them.
        document: what the figures are drawn in.
        panels: where HTML is put.
        asked: the address's arguments: ``layer``, ``quantity``, ``epoch`` and ``side``.
        dark: whether the page is dark.
        say: sends words to the page's script, past the document.

    Raises:
        RunError: if the run cannot be read.
    """

    body = run_body()

    def __init__(
        self,
        store: RunStore,
        key: str,
        document: Document,
        panels: Panels,
        asked: Mapping[str, str],
        dark: bool,
        say: Say,
    ) -> None:
        self._store, self._key, self._document, self._panels = store, key, document, panels
        self._say = say
        self._look = store.look(key)
        self._latest = Latest(partial(store.newest, key))
        self._reading = Reading(partial(store.read, key, self._prepare))
        self._run = self._look.follower.run
        self.title = f"{self._run.name} – convlens"
        self._quantity = asked.get("quantity", "")
        self._quantity = self._quantity if self._quantity in QUANTITIES else "near_zero"
        self._smooth = SMOOTH
        self._playing = False
        self._shown: object = None
        self._told, self._epochs_drawn = 0.0, -math.inf
        n_layers = len(self._look.follower.layers_of())
        matrix = min(max(250, 110 + 9 * n_layers), 560)
        self._figures = RunView(heights=Heights(loss=165, metric=85, schedule=95, matrix=matrix))
        self._figures.set_smooth(SMOOTH)
        self._layer_view = LayerView(self._figures.axis)
        self._inside, self._beside = Inside(self._run, panels), Beside(panels)
        self._beside.choose(asked.get("side", ""))
        self._looking = Looking(layer=asked.get("layer", ""), epoch=whole(asked, "epoch"))
        self._show_all()
        for name, root in (
            ("curves", self._figures.curves),
            ("matrix", self._figures.matrix),
            ("layer", self._layer_view.root),
        ):
            add_figure(document, name, root, dark)
        self._figures.on_select(self._row)

    # ---- what the session calls ----------------------------------------------------------------

    def glance(self) -> bool:
        """Have the page's script show the newest losses; false if there is anything else to do."""
        newest = self._latest.look()
        if newest is None:
            return False
        newest = replace(newest, epochs=self._epochs_due(newest))
        if not self._figures.fits(newest.steps, newest.epochs):
            return False
        if len(newest.steps):
            figures = self._header_figures(newest.steps)
            if not self._say(added(self._latest.last, newest.steps, figures)):
                return False
            self._latest.add(newest)
            self._told = time.monotonic()
        self._reading.begin_when_due(self._wall_s() or 0.0)
        idle = time.monotonic() - self._told > AGO_S
        return not (self._reading.has_news() or idle or self._beside.side == "findings")

    def _epochs_due(self, newest: Newest) -> Sequence[Epoch]:
        """The epochs to show: the newest, or for now those that are shown: drawing takes 5 ms."""
        waits = self._reading.crowded and time.monotonic() - self._epochs_drawn < EPOCHS_S
        return self._figures.axis.epochs if waits else newest.epochs

    def tick(self) -> bool:
        """Show the newest losses; if there are none, all that has been read. Whether there is more.

        The losses are sent before anything that takes longer is drawn.
        """
        newest = self._latest.look()
        more = newest is not None and self._show_newest(newest)
        if not more:
            look = self._reading.take()
            if newest is None:
                look = self._store.look(self._key)
            if look is not None:
                self._show_news(look)
        self._reading.begin_when_due(self._wall_s() or 0.0)
        if time.monotonic() - self._told > AGO_S:
            self._show_header()
        if self._beside.side == "findings":
            self._show_beside()
        return more and self._reading.has_news()

    def do(self, command: Command) -> None:
        """Carry out a command; one that there is not, or that makes no sense, does nothing."""
        do = self._commands().get(command["do"])
        if do is not None:
            do(command)

    def tell(self) -> dict[str, Any]:
        """The address that leads here again, the state of the controls, and what is shown."""
        looking, choice = self._looking, self._looking.choice
        asked = {
            "run": self._key,
            "layer": looking.layer,
            "quantity": self._quantity,
            "side": self._beside.side,
            **({} if looking.epoch is None else {"epoch": looking.epoch}),
        }
        return {
            "address": f"/?{urlencode(asked)}",
            "controls": {
                "log": self._figures.loss.scales.log,
                "smooth": self._smooth,
                "quantity": self._quantity,
            },
            "root": {
                "layer": looking.layer,
                "epoch": "newest" if looking.epoch is None else str(looking.epoch),
                "unit": f"{choice.channel}:{choice.cell}:{choice.probe}",
                "steps": str(max(self._last_step(), 0)),
                "playing": str(self._playing).lower(),
            },
        }

    # ---- commands ------------------------------------------------------------------------------

    def _commands(self) -> dict[str, Callable[[Command], None]]:
        return {
            "layer": lambda c: self._to_layer(word(c, "name")),
            "next-layer": lambda _: self._by_layer(1),
            "previous-layer": lambda _: self._by_layer(-1),
            "quantity": lambda c: self._color_by(word(c, "value")),
            "log": lambda c: self._set_log(bool(c.get("value"))),
            "toggle-log": lambda _: self._set_log(not self._figures.loss.scales.log),
            "smooth": lambda c: self._set_smooth(share(c, "value")),
            "unit": self._to_unit,
            "pixel": self._to_pixel,
            "window": self._to_window,
            "probe": lambda c: self._choose(probe=whole(c, "probe") or 0, cell=None, unit=None),
            "maps": lambda c: self._to_stage(word(c, "value")),
            "metric": lambda c: self._figures.set_metric(word(c, "value")),
            "scale": lambda c: self._look_at(shared=word(c, "value") == "shared"),
            "epoch": lambda c: self._to_epoch(stop_of(c)),
            "next-epoch": lambda _: self._by_epoch(1),
            "previous-epoch": lambda _: self._by_epoch(-1),
            "play": lambda _: self._play(),
            "play-on": lambda _: self._play_on(),
            "stop": lambda _: self._stop(newest=True),
            "confusion": self._to_pair,
            "side": lambda c: self._to_side(word(c, "side")),
            "again": lambda _: self._show_latest(),
        }

    def _row(self, index: int) -> None:
        """A row of the matrix was clicked."""
        names = self._names()
        if index < len(names):
            self._to_layer(names[index])

    def _to_layer(self, name: str) -> None:
        if name in self._names():
            choice = replace(shown.Choice(), probe=self._probe)
            self._look_at(layer=name, maps="", choice=choice)
            self._show_layer()

    def _to_stage(self, name: str) -> None:
        if name in self._inside.stages(self._looking.layer, self._names()):
            self._look_at(maps=name, choice=replace(shown.Choice(), probe=self._probe))

    def _by_layer(self, step: int) -> None:
        names = self._names()
        if names:
            at = self._index() or 0
            self._to_layer(names[min(max(at + step, 0), len(names) - 1)])

    def _color_by(self, quantity: str) -> None:
        if quantity in QUANTITIES:
            self._quantity = quantity
            self._figures.update_matrix(self._matrix())

    def _set_log(self, log: bool) -> None:
        self._figures.set_log(log)
        self._show_latest()  # an axis that is new spans these too

    def _set_smooth(self, smooth: float | None) -> None:
        if smooth is not None:
            self._smooth = min(smooth, 0.999)
            self._figures.set_smooth(self._smooth)

    def _to_unit(self, command: Command) -> None:
        probe, channel = whole(command, "probe"), whole(command, "channel")
        probe = self._probe if probe is None else probe
        self._choose(probe=probe, channel=channel, cell=place(command), unit=None)

    def _to_pixel(self, command: Command) -> None:
        self._choose(pixel=place(command))

    def _to_window(self, command: Command) -> None:
        self._choose(unit=place(command))

    def _to_epoch(self, epoch: int | None) -> None:
        newest = self._epochs()[-1:]
        self._look_at(epoch=None if epoch is None or [epoch] == newest else epoch)
        self._mark_epoch()
        self._show_beside()

    def _by_epoch(self, step: int) -> None:
        self._to_epoch(neighbour(self._epochs(), self._looking.epoch, step))

    def _play(self) -> None:
        """Go through the kept epochs, each when the page has seen the last; again, to hold on."""
        if self._playing:
            self._stop(newest=False)
            return
        epochs = self._epochs()
        if len(epochs) > 1:
            if self._looking.epoch is None:
                self._to_epoch(epochs[0])
            self._playing = True
            self._show_time()

    def _play_on(self) -> None:
        if not self._playing:
            return
        try:
            self._by_epoch(1)
        except ConvlensError:
            self._stop(newest=False)  # the script asks for the next only when it has seen this one
            raise
        if self._looking.epoch is None:
            self._stop(newest=False)

    def _stop(self, *, newest: bool) -> None:
        self._playing = False
        if newest:
            self._to_epoch(None)
        self._show_time()

    def _to_pair(self, command: Command) -> None:
        at = place(command)
        true, predicted = whole(command, "true"), whole(command, "predicted")
        pair = at if at is not None else (true, predicted)
        known = None not in pair and pair != self._beside.pair
        self._beside.pair = cast("tuple[int, int]", pair) if known else None
        self._show_beside()

    def _to_side(self, side: str) -> None:
        self._beside.choose(side)
        self._show_beside()

    # ---- what is shown -------------------------------------------------------------------------

    def _show_all(self) -> None:
        self._shown = self._landmarks()
        names = self._names()
        if self._looking.layer not in names and names:
            self._looking = replace(self._looking, layer=names[0])
        elif not names and not self._looking.maps:  # there may be pictures all the same
            self._looking = replace(self._looking, maps=next(iter(self._inside.stages("", [])), ""))
        self._show_growth()
        self._look_at()
        self._mark_epoch()
        self._show_beside()

    def _landmarks(self) -> object:
        """What changes seldom; as long as it does not, no snapshot can be new."""
        follower = self._look.follower
        return list(follower.epochs), list(follower.layers_of("activation")), dict(follower.meta)

    def _show_news(self, look: Look) -> None:
        if look != self._look:
            self._look = look
            if self._landmarks() == self._shown:
                self._show_growth()
            else:
                self._show_all()

    def _show_newest(self, newest: Newest) -> bool:
        """What a glance has found, by the figures; whether there was anything to show."""
        if not len(newest.steps) and newest.epochs is self._figures.axis.epochs:
            return False
        self._latest.add(newest)
        self._show_latest()
        return True

    def _show_latest(self) -> None:
        """The losses since the last look at everything, and the epochs, by the figures."""
        if self._latest.epochs is not self._figures.axis.epochs:
            self._epochs_drawn = time.monotonic()
        self._figures.extend(self._latest.steps, self._latest.epochs, growing=self._growing)
        self._show_header()

    def _show_growth(self) -> None:
        """What grows with every step."""
        follower = self._look.follower
        curves, matrix = follower.curves(POINTS), self._matrix()
        self._latest.begin(curves, follower.epochs, follower.meta, len(self._names()))
        epochs, last = self._latest.epochs, self._latest.last
        self._figures.update(curves, epochs, matrix, growing=self._growing, last=last)
        self._epochs_drawn = time.monotonic()
        self._show_latest()
        self._panels.put("metric", chooser("metric", "metric", words.metric_names(epochs)))
        self._show_layer()

    @property
    def _growing(self) -> bool:
        return self._look.follower.meta.get("status") == "running"

    def _show_header(self) -> None:
        self._told = time.monotonic()
        self._panels.put(
            "header",
            shown.header(
                self._run.name,
                self._look.follower.meta,
                self._latest.epochs,
                self._last_step() + 1,
                self._wall_s(),
                self._run.last_written,
                datetime.now(UTC),
            ),
        )

    def _header_figures(self, steps: StepSeries) -> dict[str, str]:
        """Those figures of the header that change with every step, after these."""
        meta, epochs = self._look.follower.meta, self._latest.epochs
        n_steps, wall_s = int(steps.step[-1]) + 1, float(steps.wall_s[-1])
        found = dict(words.figures(meta, epochs, n_steps, wall_s))
        return {name: found[name] for name in shown.COUNTING}

    def _prepare(self, look: Look) -> None:
        """What takes longest of showing a look, for the thread that has read it."""
        names = [info.name for info in look.follower.layers_of("activation")]
        if look != self._look and self._looking.layer in names:
            series = look.follower.series(names.index(self._looking.layer))
            self._layer_view.prepare(series, at_once)

    def _show_layer(self) -> None:
        """The chosen layer's figures and facts."""
        index, follower = self._index(), self._look.follower
        self._figures.select(index)
        self._layer_view.root.visible = index is not None
        if index is None:
            self._layer_view.show(None)
            self._panels.put("layer", no_layers())
            return
        series = follower.series(index)
        grid = grid_of([series]) or Grid(0, 1, 1)
        gradients, updates = parameter_lines(follower, self._looking.layer, grid)
        self._layer_view.update(series, gradients, updates, self._latest.epochs)
        head = layer_head(series.info, index, len(self._names()))
        facts = shown.facts_of_layer(follower.meta, series.info.name)
        fold = (
            f'<details class="fold"><summary>Size and cost of this layer</summary>{facts}</details>'
        )
        line = f'<p class="line">{self._layer_line(series)}</p>' if len(series.first_step) else ""
        self._panels.put("layer", head + line + fold)

    def _layer_line(self, series: BlockSeries) -> str:
        figures = self._look.follower.figures()
        row = [info.index for info in figures.layers].index(series.info.index)
        known = np.isfinite(figures.values["nonfinite"][row])
        bad = figures.values["nonfinite"][row, known] > 0
        newest = series.history(int(series.first_step[-1]))
        return words.newest_line(newest) + words.nonfinite_line(figures.first_step[known], bad)

    def _look_at(self, **changes: Any) -> None:  # noqa: ANN401 — fields of Looking
        self._looking = self._inside.show(replace(self._looking, **changes))
        self._show_time()

    def _choose(self, **changes: Any) -> None:  # noqa: ANN401 — fields of Choice
        self._look_at(choice=replace(self._looking.choice, **changes))

    def _mark_epoch(self) -> None:
        """Mark the step of the epoch that is looked at, where it is not the newest."""
        epoch = self._looking.epoch
        ends = {done.epoch: done.last_step for done in self._look.follower.epochs}
        first = self._look.follower.epochs[:1]
        begin = first[0].first_step if first else 0
        self._figures.set_step(None if epoch is None else ends.get(epoch, begin))

    def _show_time(self) -> None:
        epochs = self._epochs()
        word = "Hold" if self._playing else "Play through time"
        off = "" if len(epochs) > 1 else " disabled"
        stages = self._inside.stages(self._looking.layer, self._names())
        self._panels.put(
            "time",
            '<div class="controls"><h2>Inside the layer</h2>'
            + chooser("maps", "maps of", stages, self._looking.maps or self._looking.layer)
            + '<button type="button" data-do="play" data-key="play" '
            f'aria-pressed="{str(self._playing).lower()}"{off}>{word}</button></div>',
        )

    def _show_beside(self) -> None:
        found = self._store.findings(self._key) if self._beside.side == "findings" else None
        self._beside.show(self._look.follower, self._looking.epoch, found)

    # ---- what there is -------------------------------------------------------------------------

    @property
    def _probe(self) -> int:
        return self._looking.choice.probe

    def _names(self) -> list[str]:
        return [info.name for info in self._look.follower.layers_of("activation")]

    def _index(self) -> int | None:
        names = self._names()
        return names.index(self._looking.layer) if self._looking.layer in names else None

    def _epochs(self) -> list[int]:
        return self._inside.epochs(self._looking)

    def _last_step(self) -> int:
        """The newest step of anything that was recorded: a watched loop records no loss."""
        follower = self._look.follower
        curves, watched = follower.curves(POINTS), follower.figures("activation")
        ends = [series.last_step[-1] for series in (curves, watched) if len(series.last_step)]
        ends.append(self._latest.last)
        return int(max(ends, default=-1))

    def _wall_s(self) -> float | None:
        """Seconds since training began, as of the newest step; None without any."""
        if len(self._latest.steps):
            return float(self._latest.steps.wall_s[-1])
        curves = self._look.follower.curves(POINTS)
        return float(curves.wall_s[-1]) if len(curves) else None

    def _matrix(self) -> Matrix:
        follower = self._look.follower
        activations = follower.figures("activation")
        if self._quantity == "gradient":
            return make_matrix("gradient", activations, follower.figures("gradient"))
        if self._quantity == "update":
            pair = follower.figures("update"), follower.figures("parameter")
            return make_matrix("update", activations, None, *pair)
        return make_matrix(self._quantity, activations)
