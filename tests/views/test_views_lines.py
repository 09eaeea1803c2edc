"""Lines are added to figures when there is something to draw, and in the figures' colours."""

from __future__ import annotations

import numpy as np
import pytest
from bokeh.models import HoverTool, MultiLine, Scatter
from bokeh.plotting import figure

from convlens.plots.canvas import BLUE
from convlens.views.canvas import DARK, StepAxis, darken
from convlens.views.lines import Curve, Lines, LossScales


@pytest.fixture
def plots() -> list[figure]:
    axis = StepAxis((0, 99))
    return [axis.figure("A title", "a label", 100) for _ in range(2)]


def kinds(plot: figure) -> list[type]:
    return [type(renderer.glyph) for renderer in plot.renderers]


def line(n: int = 100) -> list[Curve]:
    return [Curve("loss", np.arange(n), np.linspace(1.0, 2.0, n))]


def test_nothing_is_added_before_something_is_drawn(plots):
    lines = Lines(plots, BLUE)
    lines.draw([])
    assert [kinds(plot) for plot in plots] == [[], []]

    lines.draw(line())
    assert [kinds(plot) for plot in plots] == [[MultiLine], [MultiLine]]
    assert [sum(isinstance(t, HoverTool) for t in plot.tools) for plot in plots] == [1, 1]

    lines.draw(line(3))
    assert [kinds(plot) for plot in plots] == [[MultiLine, Scatter], [MultiLine, Scatter]]
    assert plots[0].renderers[1].data_source.data["x"].tolist() == [0, 1, 2]

    lines.draw([])
    assert all(
        len(plots[0].renderers[i].data_source.data[n]) == 0 for i, n in ((0, "xs"), (1, "x"))
    )


def test_a_legend_of_one_figure_does_not_leave_the_other_empty(plots):
    lines = Lines(plots, BLUE)
    lines.renderer(plots[0])

    lines.draw(line())

    assert [kinds(plot) for plot in plots] == [[MultiLine], [MultiLine]]
    sources = [plot.renderers[0].data_source for plot in plots]
    assert sources[0] is sources[1]
    assert len(sources[0].data["xs"][0]) == 100


def test_what_comes_later_has_the_colours_of_its_figure(plots):
    darken(plots[0])
    for plot in plots:
        Lines([plot], BLUE).draw(line())

    assert [plot.renderers[0].glyph.line_color for plot in plots] == [DARK[BLUE], BLUE]


def test_the_other_axis_is_made_when_it_is_wanted():
    filled: list[figure] = []
    scales = LossScales(StepAxis((0, 9)), 100, filled.append)
    assert filled == scales.root.children == []

    scales.show(False)
    scales.say("Nothing yet.")
    assert scales.root.children == filled
    assert (len(filled), scales.log) == (1, False)

    scales.show(True)
    assert scales.log
    assert [plot.visible for plot in filled] == [False, True]
    assert [plot.title.text for plot in filled] == ["Loss", "Loss (log scale)"]
    assert [message.text for message in scales._messages.values()] == ["Nothing yet."] * 2

    scales.show(False)
    assert len(filled) == 2
    assert [plot.visible for plot in filled] == [True, False]
