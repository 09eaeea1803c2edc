"""Where everything lies on the screens: HTML with places for panels and figures, nothing of a run.

A place ``<div id="panel-NAME">`` is filled by the session's panel of that name, a
``<div id="root-NAME">`` by Bokeh.
"""

from __future__ import annotations

from collections.abc import Mapping

QUANTITIES: Mapping[str, str] = {
    "near_zero": "near zero",
    "mean": "mean",
    "std": "standard deviation",
    "dead": "dead channels",
    "gradient": "gradient size",
    "update": "update ratio",
}
"""What the matrix may be coloured by, and what it is called."""

SIDES: Mapping[str, str] = {
    "images": "Training images",
    "confusion": "Confusion and mistakes",
    "findings": "Findings",
    "summary": "Summary",
    "about": "About this run",
}
"""What may be shown below the screen."""

_KEYS = '<details id="keys"><summary>Keys</summary><div>{}</div></details>'

RUN_KEYS = _KEYS.format(
    """<p><kbd>j</kbd> <kbd>k</kbd> or <kbd>↓</kbd> <kbd>↑</kbd> next, previous layer</p>
<p><kbd>→</kbd> <kbd>←</kbd> next, previous epoch kept</p>
<p><kbd>space</kbd> play through time, <kbd>Esc</kbd> back to the newest</p>
<p><kbd>l</kbd> logarithmic loss, <kbd>?</kbd> these keys</p>
<p>In a picture: arrows move the chosen place</p>"""
)

COMPARE_KEYS = _KEYS.format(
    """<p><kbd>j</kbd> <kbd>k</kbd> or <kbd>↓</kbd> <kbd>↑</kbd> next, previous layer</p>
<p><kbd>l</kbd> logarithmic loss, <kbd>?</kbd> these keys</p>"""
)

THEME = """<label>Theme <select id="theme"><option value="auto">as the system</option>
<option value="light">light</option><option value="dark">dark</option></select></label>"""


def place(kind: str, name: str, *, of: str = "div", more: str = "") -> str:
    """An empty place of a panel or a figure; a panel's is filled when the page is sent."""
    key = f"{kind}-{name}"
    inside = f"<!--{key}-->" if kind == "panel" else ""
    style = ' class="figure"' if kind == "root" else ""
    return f'<{of} id="{key}"{style}{more}>{inside}</{of}>'


def bar(*, keys: str = "") -> str:
    """What stands on top of every screen."""
    return (
        '<header class="topbar"><a class="home" href="/?list=1"><span>conv</span>lens</a>'
        f"{place('panel', 'header')}"
        f'<div class="tools">{keys}{THEME}</div></header>'
        f"{place('panel', 'trouble')}"
    )


def list_body() -> str:
    """The list of runs."""
    return f"{bar()}<main>{place('panel', 'runs', more=' class=card')}</main>"


def run_body() -> str:
    """A run, a layer of it, a unit of that."""
    return f"""{bar(keys=RUN_KEYS)}<main><div class="screen"><div class="column">
<section class="card" aria-label="The run"><div class="controls"><h2>The run</h2>
{place("panel", "metric")}
{_check("log", "log loss")}{_slider("smooth", "smoothing", 0, 0.99, 0.01)}</div>
{place("root", "curves")}
<div class="controls"><h2>Layers by steps</h2>{_select("quantity", "coloured by", QUANTITIES)}</div>
{place("root", "matrix")}</section>
<section class="card" aria-label="Inside the layer">{place("panel", "time")}
{place("panel", "features")}{place("panel", "kernels")}</section>
</div><div class="column second">
<section class="card" aria-label="A layer">{place("panel", "layer")}
{place("root", "layer")}</section>
<section class="card" aria-label="A unit"><div class="controls"><h2>A unit of the layer</h2></div>
{place("panel", "unit")}
{place("panel", "window")}</section>
</div></div>
<section class="card below" aria-label="Beside it">{place("panel", "tabs")}
{place("panel", "beside")}</section></main>"""


def compare_body() -> str:
    """Two runs on one axis."""
    return f"""{bar(keys=COMPARE_KEYS)}<main>
<section class="card">{place("panel", "parting")}{place("panel", "differences")}</section>
<div class="screen below">
<section class="card" aria-label="Both runs"><div class="controls"><h2>Both runs</h2>
{_check("log", "log loss")}</div>{place("root", "overview")}</section>
<section class="card" aria-label="A layer"><div class="controls"><h2>One layer of both</h2>
<button type="button" data-do="previous-layer">‹ previous</button>
<button type="button" data-do="next-layer">next ›</button></div>{place("root", "layer")}</section>
</div></main>"""


def _check(name: str, label: str) -> str:
    return f'<label><input type="checkbox" data-do="{name}" data-control="{name}"> {label}</label>'


def _slider(name: str, label: str, low: float, high: float, step: float) -> str:
    return (
        f'<label>{label} <input type="range" min="{low}" max="{high}" step="{step}" '
        f'data-do="{name}" data-control="{name}"></label>'
    )


def _select(name: str, label: str, options: Mapping[str, str]) -> str:
    inside = "".join(f'<option value="{key}">{word}</option>' for key, word in options.items())
    return (
        f'<label>{label} <select data-do="{name}" data-control="{name}">{inside}</select></label>'
    )
