"""The page's HTML: where each figure and panel lies, and what the script needs to fill them."""

from __future__ import annotations

from typing import Any

from bokeh.core.json_encoder import serialize_json
from bokeh.document import Document
from bokeh.embed.util import RenderItem
from bokeh.model import Model

from convlens.views.live.models import PANEL, ROOT, names_of, panel_html
from convlens.views.markup import text


def head(theme: str, bokeh_js: str) -> str:
    """The page down to its body, which needs no session.

    Sent ahead, it has the browser read Bokeh's script while the server reads the run.

    Args:
        theme: ``"light"`` or ``"dark"``.
        bokeh_js: the address of Bokeh's script.
    """
    return f"""<!DOCTYPE html>
<html lang="en" data-theme="{text(theme)}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="{text(theme)}">
<link rel="icon" href="data:,">
<title>convlens</title>
<script src="{text(bokeh_js)}" id="bokeh" async></script>
<link rel="stylesheet" href="/assets/live.css">
<link rel="stylesheet" href="/assets/panels.css">
<script src="/assets/live.js" defer></script>
</head>
<body>
<noscript><p class="state">The page needs JavaScript.</p></noscript>
"""


def rest(document: Document, token: str) -> str:
    """The page of a session, from its body on, with its panels already in it.

    Args:
        document: the session's document; its `template_variables` say ``body``.
        token: the session's token, by which the script finds it again through the socket.
    """
    places: dict[Model, Any] = {}
    for root in document.roots:
        if root.name is not None and root.name.startswith(ROOT):
            places[root] = root.name
        else:
            places[root] = "models"
    item = RenderItem(token=token, roots=places)  # pyright: ignore[reportArgumentType]
    facts = {"items": [item.to_json()], "title": document.title}
    data = serialize_json(facts).replace("<", "\\u003c")
    body: str = document.template_variables["body"]
    for name in names_of(document, PANEL):
        body = body.replace(f"<!--{name}-->", panel_html(document, name))
    return f"""<script type="application/json" id="session">{data}</script>
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
