"""The page's own files, and Bokeh's script."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from bokeh.resources import Resources


@cache
def site_css() -> str:
    """All style sheets."""
    sheets = (entry for entry in files(__name__).iterdir() if entry.name.endswith(".css"))
    ordered = sorted(sheets, key=lambda entry: (entry.name != "base.css", entry.name))
    return "".join(sheet.read_text(encoding="utf-8") for sheet in ordered)


@cache
def site_js() -> str:
    """The page's script."""
    return (files(__name__) / "site.js").read_text(encoding="utf-8")


@cache
def bokeh_js() -> str:
    """Bokeh's core alone: widgets, tables, WebGL and formulas are not used."""
    return Resources(mode="inline", components=["bokeh"]).js_raw[0]


@cache
def served() -> Mapping[str, tuple[bytes, str]]:
    """Content and media type of each file by its name."""
    script, style = "text/javascript; charset=utf-8", "text/css; charset=utf-8"
    return {
        "bokeh.js": (bokeh_js().encode(), script),
        "site.js": (site_js().encode(), script),
        "site.css": (site_css().encode(), style),
    }


@cache
def version() -> str:
    """Differs whenever one of them does, so that browsers may keep them."""
    return hashlib.sha256(b"".join(content for content, _ in served().values())).hexdigest()[:12]
