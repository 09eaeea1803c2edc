"""`write_report`: the page of a run as one HTML file that opens offline."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from convlens.core.records import Finding
from convlens.core.snapshots import FeatureMaps
from convlens.doctor import diagnose
from convlens.errors import RunError
from convlens.runs import Run
from convlens.runs.follower import RunFollower
from convlens.web.figures.quantities import QUANTITIES, LayerHealth, layer_health, measured
from convlens.web.pages import Page, cannot_show, draw, figure_place, render
from convlens.web.run_data import RunData
from convlens.web.static import bokeh_js, site_css, site_js
from convlens.web.view import View

MOST_OPEN = 10
"""Layers that are unfolded, and printed: the worst ones."""

MOST_FIGURES = 60
"""Layers with figures."""

SECTIONS = {
    "verdict": "Findings", "curves": "Losses", "matrix": "All layers", "layers": "Every layer",
    "confusion": "Mistakes", "images": "Images", "summary": "Summary", "about": "Run",
}  # fmt: skip


class Report(Page):
    """The page of a run in a file: figures lie in it, links lead within it.

    Args:
        run: the run.
        view: what of it is looked at.
        items: where the figures' JSON is put, by the ids of their script elements.
    """

    live = False

    def __init__(self, run: RunData, view: View, items: dict[str, Markup]) -> None:
        super().__init__(run, view)
        self.items = items

    def url(self, **changes: Any) -> str:  # noqa: ANN401 — fields of View
        """Nothing: there is no other view of the run in the file."""
        del changes
        return ""

    def layer_url(self, layer: str) -> str:
        """The layer's place in the file."""
        return f"#layer-{self.run.names.index(layer)}" if layer in self.run.names else ""

    def at(self, **changes: Any) -> Report:  # noqa: ANN401 — fields of View
        """The same page with some fields of the view changed."""
        return Report(self.run, self.view.but(**changes), self.items)

    def figure(self, name: str, height: int, words: str, **changes: Any) -> Markup:  # noqa: ANN401
        """The place of a figure, whose JSON is kept for the end of the file."""
        key = f"item-{name}-{len(self.items)}"
        try:
            self.items[key] = Markup(draw(self.at(**changes), name))
        except Exception as error:
            return Markup('<p class="note">{}</p>').format(cannot_show(error))
        return figure_place(f"figure-{key}", height, words, item=key)


def write_report(run: Run, out: Path | None = None) -> Path:
    """Write what a run recorded into one HTML file that opens offline, without any request.

    Everything comes from the run's directory, whether it is finished, crashed or still growing.

    Args:
        run: an opened run.
        out: the file to write, replaced if it exists; ``report.html`` in the run's folder if None.

    Returns:
        The file.

    Raises:
        RunError: if the run cannot be read, or the file cannot be written.
    """
    out = run.path / "report.html" if out is None else Path(out)
    record = run.record(counts=False)
    try:
        findings = diagnose(record)
    except Exception as error:  # a record may hold anything
        findings = [Finding("unreadable", "note", cannot_show(error), confidence="certain")]
    data = RunData("", RunFollower(run), findings)
    write_file(out, report_html(data).encode("utf-8", "replace"), "an HTML file")
    return out


def report_html(run: RunData) -> str:
    """The whole file."""
    report, layers = Report(run, View(), {}), layer_health(run)
    scripts = [bokeh_js(), site_js()]
    return render(
        "report.html",
        page=report,
        run=run,
        view=report.view,
        sections=SECTIONS.items(),
        layers=layers,
        drawn=_drawn(layers),
        kinds={info.name: info.kind for info in run.layers},
        pictured=run.run.snapshot_layers(FeatureMaps),
        most_open=MOST_OPEN,
        quantities=_recorded(run),
        scripts=[Markup(script) for script in scripts],
        sheet=Markup(site_css()),
        policy=policy(scripts),
    )


def _recorded(run: RunData) -> list[tuple[str, str]]:
    """The quantities of the matrix that there is anything of, and their labels."""
    found = ((key, measured(run, key)) for key in QUANTITIES)
    return [(key, QUANTITIES[key].label) for key, cells in found if np.isfinite(cells.values).any()]


def _drawn(layers: Sequence[LayerHealth]) -> set[str]:
    """The layers that have figures: the sick ones, and healthy ones equally far apart."""
    sick = [one.layer for one in layers if one.severity][:MOST_FIGURES]
    healthy = [one.layer for one in layers if not one.severity]
    room = MOST_FIGURES - len(sick)
    chosen = healthy[:: -(-len(healthy) // room) or 1] if room else []
    return {*sick, *chosen}


def policy(scripts: Sequence[str]) -> str:
    """A Content-Security-Policy: no network, and no script but exactly these."""
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts]
    known = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {known}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def write_file(out: Path, content: bytes, what: str) -> None:
    """Write under a temporary name and rename: whoever reloads it never sees half of it.

    Raises:
        RunError: if it cannot be written.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(out.suffix, ".convlens-", out.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(out)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise RunError(
            f"out={str(out)!r} cannot be written ({error.strerror}); give {what} in a folder "
            "that exists and that you may write to."
        ) from error
