"""A layer's cells grow to what they would be if they were worked out anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from views_data import LAYOUT, layer_infos, normal_columns, write_columns

from convlens.core.columns import Columns
from convlens.runs import create_run, open_run
from convlens.runs.follower import BlockSeries, RunFollower
from convlens.views import layer_view
from convlens.views.canvas import StepAxis
from convlens.views.cells import LayerCells
from convlens.views.layer_view import LayerView


def columns(n: int = 900, outlier: int = 880) -> Columns:
    std = np.linspace(0.5, 0.9, n)
    std[outlier] = 60.0  # another range of values
    nan = np.where(np.arange(n) % 211 == 5, 3, 0)
    return normal_columns(np.full(n, 0.1), std, 10_000, 8, nan=nan)


def growing(path: Path, stops: list[int]) -> list[BlockSeries]:
    """The layer as a follower has it after each of these steps."""
    writer, whole = create_run(directory=path), columns()
    writer.write_layers(layer_infos()[:1], LAYOUT, 0.05)
    found: list[BlockSeries] = []
    follower: RunFollower | None = None
    for first, stop in zip([0, *stops], stops, strict=False):
        write_columns(writer, 0, whole[(first >> 6) << 6 : stop])
        writer.flush(wait=True)
        follower = follower or RunFollower(open_run(path))
        follower.refresh()
        found.append(follower.series(0))
    writer.close()
    return found


# Within a chunk, over its end, at its end, nothing new, wider cells (more than 600), another range.
STOPS = [3, 40, 64, 64, 130, 131, 599, 600, 601, 640, 700, 879, 890, 900]


def test_only_what_changed_is_worked_out_and_all_is_as_if_it_were_anew(tmp_path: Path) -> None:
    stages = growing(tmp_path / "run", STOPS)
    cells, since = LayerCells(stages[0]), list[int | None]()
    for series in stages[1:]:
        before = cells.heat.cells.copy()
        grown = cells.grown(series)
        np.testing.assert_array_equal(cells.heat.cells, before, "it is still shown")
        cells, first = grown or (LayerCells(series), None)
        since.append(first)
        anew = LayerCells(series.history())
        assert cells.grid == anew.grid
        for name in ("first_step", "counts", "n", "nan", "calls"):
            mine, its = (getattr(c.history.columns, name) for c in (cells, anew))
            np.testing.assert_array_equal(mine, its)
        np.testing.assert_array_equal(cells.quantiles, anew.quantiles)
        np.testing.assert_allclose(cells.heat.counts, anew.heat.counts, rtol=1e-6)
        np.testing.assert_array_equal(cells.heat.cells, anew.heat.cells)
        assert (cells.heat.low, cells.heat.peak) == (anew.heat.low, anew.heat.peak)
    assert None in since[STOPS.index(601) - 1 :]
    assert since[STOPS.index(131) - 1] == 128  # the block that is open then begins there
    assert sum(s is None for s in since) < len(since) / 2


def test_what_was_prepared_is_shown_and_not_worked_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = growing(tmp_path / "run", [40, 130, 700])
    view, plain = LayerView(StepAxis((0, 899))), LayerView(StepAxis((0, 899)))
    for series in (first, second, third):
        plain.update(series)
        waited: list[int] = []
        view.prepare(series, lambda waited=waited: waited.append(1))
        assert waited, "nothing was called between the parts"
        with monkeypatch.context() as patched:
            patched.setattr(layer_view, "prepare", lambda *_: pytest.fail("worked out again"))
            view.update(series)
        for name, mine in view.heat.source.data.items():
            np.testing.assert_array_equal(mine, plain.heat.source.data[name], name)
    view.prepare(third, lambda: None)
    view.show(None)  # it does not fit any more
    view.update(first)
    fresh = LayerView(StepAxis((0, 899)))
    fresh.update(first)
    np.testing.assert_array_equal(view.heat.source.data["image"], fresh.heat.source.data["image"])


def test_figures_show_what_a_view_that_never_saw_less_shows(tmp_path: Path) -> None:
    view = LayerView(StepAxis((0, 899)))
    for series in growing(tmp_path / "run", STOPS):
        view.update(series)
    fresh = LayerView(StepAxis((0, 899)))
    fresh.update(series)
    mine, its = view.heat.source.data, fresh.heat.source.data
    for name in its:
        np.testing.assert_allclose(mine[name][0], its[name][0], rtol=1e-6)
    for one, other in zip(view.heat.quantiles, fresh.heat.quantiles, strict=True):
        np.testing.assert_array_equal(one.lines["ys"], other.lines["ys"])
    np.testing.assert_array_equal(view.heat._bad.data["left"], fresh.heat._bad.data["left"])


def test_columns_since_a_step_are_the_end_of_the_history(tmp_path: Path) -> None:
    (series,) = growing(tmp_path / "run", [300])
    whole = series.history()
    for since in (0, 63, 64, 200, 299):
        part = series.history(since)
        np.testing.assert_array_equal(part.first_step, whole.first_step[since:])
        np.testing.assert_array_equal(part.counts, whole.counts[since:])
    assert series.changed_since(series) == pytest.approx(320)
