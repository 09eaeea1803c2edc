"""The page's HTML: where each figure and panel lies, and what the script needs to fill them."""

from __future__ import annotations

from typing import Any

from bokeh.core.json_encoder import serialize_json
from bokeh.document import Document
from bokeh.embed.util import RenderItem
from bokeh.model import Model

from convlens.views.live.models import PANEL, ROOT, names_of, panel_html
from convlens.views.markup import text

BOKEH_JS = "/static/js/bokeh.min.js"


def frame(document: Document, token: str) -> str:
    """The page of a session, with its panels already in it.

    Args:
        document: the session's document; its `template_variables` say ``theme`` and ``body``.
        token: the session's token, by which the script finds it again through the socket.
    """
    facts = document.template_variables
    places: dict[Model, Any] = {}
    for root in document.roots:
        if root.name is not None and root.name.startswith(ROOT):
            places[root] = root.name
        else:
            places[root] = "models"
    item = RenderItem(token=token, roots=places)  # pyright: ignore[reportArgumentType]
    data = serialize_json([item.to_json()]).replace("<", "\\u003c")
    body: str = facts["body"]
    for name in names_of(document, PANEL):
        body = body.replace(f"<!--{name}-->", panel_html(document, name))
    return f"""<!DOCTYPE html>
<html lang="en" data-theme="{text(facts["theme"])}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="{text(facts["theme"])}">
<link rel="icon" href="data:,">
<title>{text(document.title)}</title>
<link rel="stylesheet" href="/assets/live.css">
<link rel="stylesheet" href="/assets/panels.css">
<script src="{BOKEH_JS}" defer></script>
<script src="/assets/live.js" defer></script>
<script type="application/json" id="session">{data}</script>
</head>
<body>
<noscript><p class="state">The page needs JavaScript.</p></noscript>
{body}
<div id="models" hidden></div>
</body>
</html>
"""


def not_found() -> str:
    """The page for a run that there is not."""
    return """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>No such run – convlens</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/assets/live.css"></head>
<body><main class="alone"><h1>There is no such run</h1>
<p>It was deleted or moved, or the address is wrong. <a href="/?list=1">All runs</a></p></main>
</body></html>
"""
