"""The frame of the one file: head, styles, scripts, and a policy that lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from bokeh.resources import Resources

from convlens.views.canvas import DARK
from convlens.views.markup import text


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        key: its place in the page, for links.
        title: its heading.
        body: its HTML.
        link: a shorter heading for the bar of links.
    """

    key: str
    title: str
    body: str
    link: str


def place(key: str, height: int, what: str) -> str:
    """Where a figure will be drawn: as high as the figure, so that nothing jumps."""
    return (
        f'<div class="plot" id="plot-{key}" data-item="item-{key}" style="min-height:{height}px" '
        f'role="img" aria-label="{text(what)}"></div>'
    )


def page(title: str, top: str, sections: Sequence[Section], items: Mapping[str, str]) -> str:
    """The whole document.

    Args:
        title: the run's name.
        top: HTML above the sections.
        sections: in their order.
        items: figures as JSON by the key of their place; see `canvas.embed`.
    """
    scripts = [_bokeh_js(), _asset("report.js")]
    links = "".join(f'<a href="#{s.key}">{text(s.link)}</a>' for s in sections)
    body = "".join(
        f'<section id="{s.key}"><h2>{text(s.title)}</h2>{s.body}</section>' for s in sections
    )
    data = [_json_script(f"item-{key}", item) for key, item in items.items()]
    data.append(_json_script("dark-colours", json.dumps(DARK)))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy(scripts)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{text(title)} – convlens report</title>
<style>
{_asset("report.css")}
{_asset("panels.css")}
</style>
</head>
<body>
<nav aria-label="Sections"><div>{links}<span class="tools"><button type="button" id="show-all" \
hidden>Show all steps</button></span></div></nav>
<main>
<header><p class="kicker">convlens report</p><h1>{text(title)}</h1>{top}</header>
<noscript><p class="note">The figures need JavaScript; everything else can be read without.</p>\
</noscript>
{body}
</main>
{"".join(data)}
{"".join(f"<script>{script}</script>" for script in scripts)}
</body>
</html>
"""


def policy(scripts: Sequence[str]) -> str:
    """A Content-Security-Policy: no network, and no script but exactly these."""
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts]
    known = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {known}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _bokeh_js() -> str:
    """Bokeh's core alone: widgets, tables, WebGL and formulas are not used."""
    return Resources(mode="inline", components=["bokeh"]).js_raw[0]


def _asset(name: str) -> str:
    return (files("convlens.views") / name).read_text(encoding="utf-8")


def _json_script(key: str, content: str) -> str:
    return f'<script type="application/json" id="{key}">{content}</script>\n'
